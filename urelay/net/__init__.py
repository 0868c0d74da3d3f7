"""Facts about addresses: pure functions and values."""
