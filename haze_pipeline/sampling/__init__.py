"""Sampling whole fields: tiles, shared normalisation statistics, initial noise, uncertainty."""
