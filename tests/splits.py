"""One optimizer step in several splits, each in processes of its own: `python -m tests.splits FOLDER`.

Every split leaves a file with the step's loss and gradients, and how many micro-batches had no image.
"""

from __future__ import annotations

import os
import sys
import traceback
from itertools import product
from pathlib import Path

import lightning as L
import torch

from lit_mm.batch import Batch
from lit_mm.stages import Stage, Train
from tests.kills import free_port
from tests.tiny import PARTS, Documents, trainer, xcomposer2

SPLITS = ((1, 4), (1, 1), (2, 2), (2, 1), (4, 1))  # ranks, rows of a micro-batch; four rows a step
PACKED = {True: 192, False: None}  # row_tokens
EVERYTHING = Stage("all", {part: Train(lr=1e-3) for part in PARTS}, max_steps=1, clip=0.0)


class Gradients(L.Callback):
    """Keeps the gradients with which the optimizer would step, this rank's share of the loss, and the batches."""

    def __init__(self) -> None:
        self.loss = torch.zeros(())
        self.gradients: dict[str, torch.Tensor] = {}
        self.batches: list[Batch] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, *args: Batch
    ) -> None:
        self.loss = self.loss + pl_module.micro_loss
        self.batches.append(args[0])

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.gradients = {name: p.grad.clone() for name, p in pl_module.network.named_parameters()}


def name_of(ranks: int, micro_batch: int, packed: bool) -> str:
    return f"{ranks}x{micro_batch}{'-packed' if packed else ''}.pt"


def run(folder: Path, ranks: int, micro_batch: int, packed: bool) -> None:
    torch.set_num_threads(1)
    module, seen = xcomposer2(trained=True), Gradients()
    data = Documents(micro_batch=micro_batch, row_tokens=PACKED[packed])
    rank = int(os.environ.get("RANK", 0))
    module.begin(EVERYTHING, total_steps=data.begin(module.processor, EVERYTHING, seed=0, rank=rank, world=ranks))
    fit = trainer([seen], max_steps=1, accumulate_grad_batches=data.stream.accumulation, ranks=ranks)
    fit.fit(module, data)
    imageless = torch.tensor([sum(not batch.visual_mask.any() for batch in seen.batches)])
    loss, imageless = (fit.strategy.reduce(n, reduce_op="sum") for n in (seen.loss, imageless))
    kept = {"loss": loss, "imageless": imageless, "gradients": seen.gradients, "tokens": seen.batches[0].step_tokens}
    if fit.is_global_zero:
        torch.save(kept, folder / name_of(ranks, micro_batch, packed))


def main(folder: str) -> None:
    for (ranks, micro_batch), packed in product(SPLITS, PACKED):
        port = free_port()
        children = []
        for rank in range(ranks):
            child = os.fork()
            if not child:
                try:
                    if ranks > 1:  # what torchrun sets
                        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                        os.environ |= {"TORCHELASTIC_RUN_ID": "splits", "RANK": str(rank), "LOCAL_RANK": str(rank)}
                        os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
                    run(Path(folder), ranks, micro_batch, packed)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(1)
            children.append(child)
        if any(os.waitpid(child, 0)[1] for child in children):
            sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
