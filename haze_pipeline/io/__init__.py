"""Micrographs in files: axes, physical sizes, metadata."""
