"""Blocks that several parts need."""
