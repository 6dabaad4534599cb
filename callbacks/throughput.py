"""The throughput of every step: tokens, images and samples per second, waste, imbalance of ranks, waiting, MFU, memory.

All counts come from the host, and are summed over ranks in the reduction that measures the step anyway. So no
operation is added that would wait for the device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_mm.callbacks.steps import Numbers, StepObserver, data_module
from lit_mm.module import MultimodalModule
from lit_mm.planning.devices import Device, device_of
from lit_mm.planning.row import Row
from lit_mm.planning.work import Work, in_all, meta_copy, work_of
from lit_mm.run.folder import peak_memory_mb
from lit_mm.samples.batch import Batch
from lit_mm.stages.thaw import late_parts, learning_parts
from lit_mm.stream.datamodule import StreamDataModule

SUMS = ("tokens", "visual_tokens", "images", "num_samples", "operations")
BY_RANK = ("tokens", "views", "wait", "peak_memory_mb")
MIB = 1 << 20


class Throughput(StepObserver):
    """Measures the throughput of every step over all ranks. Its figures are in `Step.figures`.

    | figure | meaning |
    |---|---|
    | visual_tokens, images, num_samples | positions with a visual vector, pictures, samples that could be read |
    | step_seconds | duration of the step, with the wait for data |
    | tokens_per_second and others | useful tokens, visual tokens, images and samples divided by the duration |
    | waste | share of the room of packed rows, rows x `row_tokens`, without a token; 0 without packing |
    | token_imbalance, view_imbalance | largest number of a rank divided by the mean, minus 1 |
    | data_wait | seconds between micro-batches, for the next one and its copy to the device; of the slowest rank |
    | operations | forward and backward pass of all parts, see `lit_mm.planning.work.Operations`; NaN if not counted |
    | mfu | operations per second divided by the peak of the devices; NaN for devices without a known peak |
    | peak_memory_mb | peak memory of a rank in the stage so far: of its GPU, or of its process on a CPU; MiB |

    MFU counts the views of all vision encoders in their shapes, and causal attention in full; it does not count layers
    that are computed again. The figures of the first step of a launch leave out its wait for data.

    Args:
        always: True counts operations on every device; False, on devices with a known peak alone, since a count takes
            about a second per stage and only MFU needs it.
    """

    figure_names = (
        "visual_tokens",
        "images",
        "num_samples",
        "step_seconds",
        "tokens_per_second",
        "visual_tokens_per_second",
        "images_per_second",
        "samples_per_second",
        "waste",
        "token_imbalance",
        "view_imbalance",
        "data_wait",
        "operations",
        "mfu",
        "peak_memory_mb",
    )

    def __init__(self, always: bool = False) -> None:
        self.always = always
        self.counts_operations = always
        self.work: Work | None = None
        self.device: Device | None = None
        self._learning: frozenset[str] = frozenset()

    def setup(self, trainer: L.Trainer, pl_module: MultimodalModule, stage: str) -> None:
        """Copy the network to the meta device, before the strategy shards it, if operations are counted."""
        root = trainer.strategy.root_device
        self.device = device_of(torch.cuda.get_device_name(root)) if root.type == "cuda" else None
        self.counts_operations = self.always or self.device is not None
        if not self.counts_operations:
            return
        self._network = meta_copy(pl_module.network)
        names = pl_module.weights_of_objectives(pl_module.current_stage)
        self._objectives = [pl_module.objectives[name] for name in names]
        self._learning = frozenset(pl_module.current_stage.train_parts)
        self.work = work_of(self._network, self._objectives)

    def on_stage_start(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        self._counts = dict.fromkeys((*SUMS, *BY_RANK), 0.0)
        self._batch_end: float | None = None
        root = trainer.strategy.root_device
        if root.type == "cuda":
            torch.cuda.reset_peak_memory_stats(root)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: MultimodalModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._batch_end is not None:
            self._counts["wait"] += time.perf_counter() - self._batch_end
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not isinstance(batch, Batch):  # pixels alone
            self._counts["tokens"] += batch.num_tokens
            self._counts["num_samples"] += len(batch.sample_ids)
            return
        if self.counts_operations:
            self._follow_thaw(trainer, pl_module)
        sums = {
            "tokens": batch.num_tokens,
            "visual_tokens": len(batch.visual),
            "images": batch.num_images,
            "num_samples": len(batch.sample_ids),
            "views": sum(batch.views.counts) if batch.views is not None else 0,
        }
        if batch.second_views is not None:
            sums["views"] += sum(batch.second_views.counts)
        if self.work is not None:
            sums["operations"] = in_all(self.work.operations(Row.of_batch(batch))).total
        for name, number in sums.items():
            self._counts[name] += number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: MultimodalModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._batch_end = time.perf_counter()

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return False

    def numbers_of_step(self, trainer: L.Trainer) -> Numbers:
        """Return the sums, then for each of `BY_RANK` a number per rank, which is 0 for other ranks."""
        root = trainer.strategy.root_device
        peak = torch.cuda.max_memory_allocated(root) / MIB if root.type == "cuda" else peak_memory_mb()
        counts = self._counts | {"peak_memory_mb": peak}
        numbers = [counts[name] for name in SUMS]
        for name in BY_RANK:
            ranks = [0.0] * trainer.world_size
            ranks[trainer.global_rank] = counts[name]
            numbers += ranks
        self._counts = dict.fromkeys((*SUMS, *BY_RANK), 0.0)
        return Numbers(numbers)

    def figures_of_step(self, trainer: L.Trainer, sums: Sequence[float], seconds: float) -> dict[str, float]:
        """Return the figures of the step, see the class."""
        total = dict(zip(SUMS, sums, strict=False))
        if not self.counts_operations:
            total["operations"] = float("nan")
        world = trainer.world_size
        by_rank = {
            name: sums[len(SUMS) + place * world : len(SUMS) + (place + 1) * world]
            for place, name in enumerate(BY_RANK)
        }
        rates = {
            f"{label}_per_second": total[name] / seconds
            for label, name in (
                ("tokens", "tokens"),
                ("visual_tokens", "visual_tokens"),
                ("images", "images"),
                ("samples", "num_samples"),
            )
        }
        peak = self.device.peak * world if self.device is not None and total["operations"] else float("nan")
        return {
            **{name: total[name] for name in ("visual_tokens", "images", "num_samples", "operations")},
            "step_seconds": seconds,
            **rates,
            "waste": self._waste(trainer, total["tokens"]),
            "token_imbalance": imbalance(by_rank["tokens"]),
            "view_imbalance": imbalance(by_rank["views"]),
            "data_wait": max(by_rank["wait"]),
            "mfu": total["operations"] / seconds / peak,
            "peak_memory_mb": max(by_rank["peak_memory_mb"]),
        }

    def _waste(self, trainer: L.Trainer, tokens: float) -> float:
        data = data_module(trainer)
        if not isinstance(data, StreamDataModule) or data.row_tokens is None:
            return 0.0
        return 1 - tokens / (data.global_batch * data.row_tokens)

    def _follow_thaw(self, trainer: L.Trainer, module: MultimodalModule) -> None:
        """Count no gradients of parts that thaw later; DDP and ZeRO compute them from the first step on."""
        stage = module.current_stage
        learning = frozenset(stage.train_parts)
        if isinstance(trainer.strategy, SingleDeviceStrategy) and len(late_parts(stage)) < len(learning):
            learning = learning_parts(stage, trainer.global_step)
        if learning == self._learning:
            return
        self._learning = learning
        names = {name for part in learning for name in module.parameters_of(part)}
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(name in names)
        self.work = work_of(self._network, self._objectives)


def imbalance(counts: Sequence[float]) -> float:
    """Compute the largest count divided by the mean, minus 1; 0 if all are 0. Example: 30 and 10 give 0.5."""
    mean = sum(counts) / len(counts)
    return max(counts) / mean - 1 if mean else 0.0
