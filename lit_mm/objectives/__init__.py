"""Objectives are the losses that a stage minimises, as parts with weights."""

from lit_mm.objectives.next_token import NextToken

__all__ = ["NextToken"]
