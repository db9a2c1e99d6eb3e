"""Optics, cameras and specimens, and the pairs that are simulated with them."""
