"""Training pairs: folders, datasets of the Hub, and patches."""
