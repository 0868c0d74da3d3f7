"""End to end: urelay as a user runs it, in namespaces the tests make, among real programs."""
