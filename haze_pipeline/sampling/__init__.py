"""Sampling of whole fields: tiles, shared normalisation statistics, initial noise, ensembles and uncertainty."""
