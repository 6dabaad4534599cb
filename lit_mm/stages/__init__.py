"""Stages as data: which parts learn, how fast and how long; the optimizer of a stage."""
