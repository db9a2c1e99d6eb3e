"""Pipelines for others: the Hub, cards, conversion, bioimage.io."""
