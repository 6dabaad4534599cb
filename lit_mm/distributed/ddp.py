"""Data parallel training: every rank holds the whole model."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from lit_mm.checkpoints import writing


class DDP(DDPStrategy):
    """Lightning's DDP with our checkpoints: rank 0 writes them, and all ranks agree on whether that succeeded."""

    def pre_configure_ddp(self) -> None:
        """Switch off the broadcast of buffers, such as momentum copies, which every rank computes alike."""
        super().pre_configure_ddp()
        self._ddp_kwargs.setdefault("broadcast_buffers", False)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        writing.publish(checkpoint, filepath, self.is_global_zero)
