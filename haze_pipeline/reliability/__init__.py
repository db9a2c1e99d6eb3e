"""Reliability of results: calibrated uncertainty, checks of input and result, and the expected benefit."""
