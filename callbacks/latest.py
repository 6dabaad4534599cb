"""The link `runs/latest`."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L


class LatestLink(L.Callback):
    """This callback points `runs/latest` to the run when a stage begins to train.

    Weights are loaded and the data are open by then. A start that fails before leaves the link at the run before it,
    which `generate runs/latest` and `fit --init_from runs/latest` mean.

    Args:
        point: function that sets the link; the first rank calls it.
    """

    def __init__(self, point: Callable[[], None]) -> None:
        self.point = point

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.point()
