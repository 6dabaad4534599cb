"""A pipeline: an engine, its sources, and the settings of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_mm.annotation.engine import Engine
from lit_mm.annotation.inputs import Input, Inputs
from lit_mm.annotation.run import Settings


@dataclass(frozen=True)
class Pipeline:
    """What `annotate` runs.

    Attributes:
        engine: engine with its experts.
        sources: sources of images, in order.
        settings: settings of the run.
    """

    engine: Engine
    sources: list[Input]
    settings: Settings = field(default_factory=Settings)

    def inputs(self) -> Inputs:
        """Open the sources.

        Raises:
            UserError: see `Inputs` and `Input.open`.
        """
        return Inputs(self.sources)
