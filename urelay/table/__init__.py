"""Meaning to lookup: immutable tables and the one evaluator."""
