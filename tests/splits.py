"""This program computes one optimizer step in several splits: `python -m tests.splits FOLDER MODEL ...`.

The step always has the same sixteen documents, in rows of one document or packed into four rows. Each split runs in
separate processes and writes the loss and gradients of the step, and the number of ranks without any image.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.documents.document import Document
from lit_mm.families.llava_next import LlavaNext
from lit_mm.module import MultimodalModule
from lit_mm.samples.batch import Batch
from lit_mm.stages.stage import Stage, Train
from lit_mm.stream.datamodule import Source, StreamDataModule
from lit_mm.vision.vit import ViT
from tests.kills import free_port
from tests.tiny import document, language, trainer, xcomposer2

DOCUMENTS, ROWS = 16, 4  # of the step; packed rows of it
SPLITS = ((1, 1), (1, 4), (2, 2), (4, 1))  # ranks, micro-batches of each; the first is the whole step in one forward
PACKED = (False, True)


class Step(StreamDataModule):
    """The documents of one optimizer step, for any arrangement in rows.

    Args:
        shown: document number -> number of pictures.
    """

    def __init__(self, shown: Callable[[int], int], rows: int, micro_batch: int, row_tokens: int | None) -> None:
        super().__init__(rows, micro_batch, row_tokens, window=DOCUMENTS, num_workers=0)
        self.shown = shown

    def source(self) -> Source:
        return [document(number, pictures=self.shown(number)) for number in range(DOCUMENTS)]

    def heldout(self, count: int | None = None) -> list[Document]:
        return []


def tiny_xcomposer2() -> MultimodalModule:
    return xcomposer2(trained=True)


def tiny_llava_next() -> MultimodalModule:
    """A model with several views per picture and a learned newline vector, which only ranks with pictures use."""
    return LlavaNext(ViT(image_size=28, patch=14, width=16, layers=2, heads=2, select_layer=-2), language(), "nano", 28)


def nano_xcomposer2() -> MultimodalModule:
    """The model of the recipe, with the stored backbones and with random up-projections of the partial LoRA.

    It has no dropout, because masks are drawn per micro-batch and so differ between splits.
    """
    recipe = Path(__file__).parent.parent / "experiments" / "xcomposer2.yaml"
    module = RecipeCLI(["--config", str(recipe), "--model.init_args.dropout", "0"], "fit").model
    module.load_pretrained()
    torch.manual_seed(0)
    for name, parameter in module.network.named_parameters():
        if module.part_of(name) == "partial_lora":
            torch.nn.init.normal_(parameter, std=0.02)
    return module


# name -> model, and the pictures of document n. Two documents with pictures leave two of four ranks without any
MODELS: dict[str, tuple[Callable[[], MultimodalModule], Callable[[int], int]]] = {
    "tiny XComposer2": (tiny_xcomposer2, lambda n: n % 3),
    "tiny LLaVA-NeXT, few images": (tiny_llava_next, lambda n: int(n in (3, 8))),
    "nano XComposer2": (nano_xcomposer2, lambda n: n % 2),
    "nano XComposer2, few images": (nano_xcomposer2, lambda n: int(n in (3, 8))),
    "tiny XComposer2, bf16": (tiny_xcomposer2, lambda n: n % 3),
}
PRECISIONS = {"tiny XComposer2, bf16": "bf16-mixed"}  # all others: 32-true


class Gradients(L.Callback):
    """This callback keeps the gradients before the optimizer steps, the loss share of this rank, and the batches."""

    def __init__(self) -> None:
        self.loss = torch.zeros(())
        self.gradients: dict[str, Tensor] = {}
        self.batches: list[Batch] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, *args: Batch
    ) -> None:
        self.loss = self.loss + pl_module.micro_loss
        self.batches.append(args[0])

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.gradients = {name: p.grad.clone() for name, p in pl_module.network.named_parameters()}


def name_of(model: str, ranks: int, turns: int, packed: bool) -> str:
    return f"{model}, {ranks}x{turns}{', packed' if packed else ''}.pt"


def row_tokens(module: MultimodalModule, shown: Callable[[int], int]) -> int:
    """Smallest number of tokens in a row for which all documents fit `ROWS` rows."""
    lengths = [len(module.processor.sample(document(n, pictures=shown(n)))) for n in range(DOCUMENTS)]
    tokens = max(*lengths, -(-sum(lengths) // ROWS))
    while True:
        data = Step(shown, ROWS, ROWS, tokens)
        data.begin(module.processor, everything(module), seed=0)
        if (rows := data.stream.plan.rows_of(1)) <= ROWS:
            assert rows == ROWS
            return tokens
        tokens += 4


def everything(module: MultimodalModule) -> Stage:
    return Stage("all", {part: Train(lr=1e-3) for part in module.parts()}, max_steps=1, clip=0.0)


def run(folder: Path, model: str, ranks: int, turns: int, packed: bool) -> None:
    torch.set_num_threads(1)
    make, shown = MODELS[model]
    module, seen = make(), Gradients()
    rows = ROWS if packed else DOCUMENTS
    data = Step(shown, rows, rows // (ranks * turns), row_tokens(module, shown) if packed else None)
    stage, rank = everything(module), int(os.environ.get("RANK", 0))
    module.begin(stage, total_steps=data.begin(module.processor, stage, seed=0, rank=rank, world=ranks))
    fit = trainer(
        [seen],
        max_steps=1,
        accumulate_grad_batches=data.stream.accumulation,
        ranks=ranks,
        precision=PRECISIONS.get(model, "32-true"),
    )
    assert data.stream.accumulation == turns
    fit.fit(module, data)
    blind = torch.tensor([float(not any(len(batch.visual) for batch in seen.batches))])
    loss, blind = (fit.strategy.reduce(n, reduce_op="sum") for n in (seen.loss, blind))
    kept = {"loss": loss, "imageless": blind, "gradients": seen.gradients, "tokens": seen.batches[0].units["tokens"]}
    if fit.is_global_zero:
        torch.save(kept, folder / name_of(model, ranks, turns, packed))


def main(folder: str, *models: str) -> None:
    for model, (ranks, turns), packed in product(models, SPLITS, PACKED):
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
                    run(Path(folder), model, ranks, turns, packed)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(1)
            children.append(child)
        if any([os.waitpid(child, 0)[1] for child in children]):
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
