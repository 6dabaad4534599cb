"""Layouts of published checkpoints: how each is recognised, its recipe, and its key map. One module per family.

A module of this package lists its layouts in `LAYOUTS`; nothing else has to be registered.
"""
