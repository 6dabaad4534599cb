"""This benchmark measures throughput and memory of a nano recipe, with packed rows and with plain padded batches.

    python benchmarks/nano_run.py [--config experiments/xcomposer2.yaml] [--steps 20]

It trains both ways in one process and prints, for each stage, useful tokens per second and images per second with
packing and the speed-up over padded batches; then the peak memory of the process. Run it by hand, with nothing else on
the machine.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import lightning as L

from lit_mm.commands.recipe import RecipeCLI, quiet
from lit_mm.module import MultimodalModule
from lit_mm.run.folder import peak_memory_mb
from lit_mm.samples.batch import Batch
from lit_mm.stages.stage import Stage

WARM = 3  # steps before the clock starts


@dataclass
class Rate(L.Callback):
    """This callback counts useful tokens and images of the steps after the warm-up."""

    tokens: int = 0
    images: int = 0
    start: float = 0.0
    seconds: float = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: MultimodalModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == WARM and not self.start:
            self.start = time.perf_counter()
        elif self.start:
            self.tokens += batch.num_tokens
            self.images += batch.num_views
            self.seconds = time.perf_counter() - self.start


def measure(cli: RecipeCLI, stage: Stage, steps: int, packed: bool) -> Rate:
    """Train `steps` steps of a stage after the warm-up. Steps have about equally many tokens, packed or padded."""
    data, processor = cli.data_of(stage), cli.model.processor_of(stage)
    if not packed:
        row_tokens, data.row_tokens = data.row_tokens, None
        mean = sum(len(processor.sample(data.source()[i])) for i in range(64)) / 64
        data.global_batch = round(data.global_batch * row_tokens / mean)
        data.micro_batch = None
    rate = Rate()
    total = data.begin(processor, Stage(stage.name, stage.train, max_steps=steps + WARM), seed=cli.seed)
    trainer = cli.trainer_of(
        [rate], [], max_steps=total, accumulate_grad_batches=data.stream.accumulation, enable_progress_bar=False
    )
    cli.model.begin(stage, total_steps=total)
    trainer.fit(cli.model, data)
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="experiments/xcomposer2.yaml")
    parser.add_argument("--steps", type=int, default=20, help="measured optimizer steps per stage (default: 20)")
    options = parser.parse_args()
    quiet()
    cli = RecipeCLI(["--config", options.config], "fit")
    cli.model.load_pretrained()
    print(f"{'stage':12} {'tokens/s':>9} {'images/s':>9}   against padded batches")
    for stage in cli.stages:
        packed, padded = (measure(cli, stage, options.steps, packed) for packed in (True, False))
        ratio = (packed.tokens / packed.seconds) / (padded.tokens / padded.seconds)
        print(
            f"{stage.name:12} {packed.tokens / packed.seconds:9.0f} {packed.images / packed.seconds:9.1f}"
            f"   {ratio:.2f} x the useful tokens/s"
        )
    print(f"peak memory  {peak_memory_mb():.0f} MB")


if __name__ == "__main__":
    main()
