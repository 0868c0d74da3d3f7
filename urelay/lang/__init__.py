"""Text to tree: knows the shape of a policy and nothing of networks."""
