"""Tree to meaning: a checked `Policy`, or every diagnostic at once."""
