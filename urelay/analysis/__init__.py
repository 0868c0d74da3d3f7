"""Exact questions about a table: explain, prove, find."""
