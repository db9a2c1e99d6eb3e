"""Simulation of pairs: optics, cameras, and random and real specimens."""
