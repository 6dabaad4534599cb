"""Stages as data: which parts learn, how fast and how long; the optimizer of a stage."""

from lit_mm.stages.schedule import Constant, Cosine, EpochCosine, EpochDecay, GlobalCosine, Linear, Schedule

__all__ = ["Constant", "Cosine", "EpochCosine", "EpochDecay", "GlobalCosine", "Linear", "Schedule"]
