"""Layouts that a model can be written in although it was not imported from them. One module per family.

A module of this package lists its conversions in `CONVERSIONS`, and layouts that cannot hold a family in `REFUSALS`;
nothing else has to be registered.
"""
