"""Pairs to learn from: folders, datasets of the Hub, patches."""
