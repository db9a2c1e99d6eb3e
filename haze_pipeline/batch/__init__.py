"""Dehaze many files across processes."""
