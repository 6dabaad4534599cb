"""Data parallel training: every rank holds the whole model."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from lit_mm.checkpoints import writing


class DDP(DDPStrategy):
    """Lightning's DDP with checkpoints on whose success all ranks agree. Every rank holds everything; rank 0 writes."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        writing.publish(checkpoint, filepath, self.is_global_zero)
