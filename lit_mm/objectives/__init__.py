"""Objectives: what a stage minimises, as parts with weights."""
