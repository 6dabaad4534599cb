"""Data parallel training: every rank holds the whole model."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from lit_mm.checkpoints import writing


class DDP(DDPStrategy):
    """Lightning's DDP with our checkpoints: rank 0 writes them, and all ranks agree on whether that succeeded."""

    def configure_ddp(self) -> None:
        """Switch off the broadcast of buffers before every forward; all ranks compute queues and copies alike."""
        super().configure_ddp()
        wrapped = self.model
        assert isinstance(wrapped, DistributedDataParallel)
        wrapped.broadcast_buffers = self._ddp_kwargs.get("broadcast_buffers", False)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        writing.publish(checkpoint, filepath, self.is_global_zero)
