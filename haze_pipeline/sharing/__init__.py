"""Sharing of pipelines: publishing on the Hub, model cards, conversion of checkpoints, and bioimage.io."""
