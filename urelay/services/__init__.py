"""What runs: listeners, the access log, the daemon."""
