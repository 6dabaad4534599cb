"""Sweeps: W&B's specifications, the points of a search, and the study that workers share."""
