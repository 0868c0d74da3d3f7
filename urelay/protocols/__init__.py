"""Wire formats, sans-I/O: bytes in, events and the exact leftover out."""
