"""This program measures the memory of engines: `python -m tests.engines JOBS.json`. A job forks two processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_mm.distributed.ddp import DDP
from lit_mm.distributed.zero import ZeRO
from lit_mm.stages.stage import Stage, Train
from tests.forked import run_ranks
from tests.preloaded import run_program
from tests.tiny import PARTS, Documents, trainer, xcomposer2

STAGE = Stage("most", {part: Train(lr=1e-3) for part in PARTS if part != "language"}, max_steps=2)


@dataclass(frozen=True)
class Engine:
    """An engine trains `STAGE` for two optimizer steps.

    Attributes:
        name: start of the name of the file that each rank writes, `<name>-<rank>.json`.
        zero: arguments of `ZeRO`; empty for DDP.
        micro_batch: rows per rank and forward, of the four rows of a step.
        reuse: DeepSpeed's stage3_max_reuse_distance and prefetch size; None takes DeepSpeed's defaults.
    """

    name: str
    zero: dict[str, Any] = field(default_factory=dict)
    precision: str = "32-true"
    micro_batch: int = 1
    ranks: int = 2
    reuse: int | None = None


class Held(L.Callback):
    """A meter of the bytes that tensors hold; memory that several tensors share counts once."""

    def __init__(self) -> None:
        self.found = dict.fromkeys(("weights", "masters", "gradients", "moments", "gathered", "buckets"), 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.zero = trainer.strategy.engine_optimizer if isinstance(trainer.strategy, ZeRO) else None
        for module in pl_module.modules():
            module.register_forward_pre_hook(lambda *_: self._gathered(pl_module))
        for parameter in pl_module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda _: self._buckets())

    def _keep(self, name: str, tensors: Iterator[Tensor]) -> None:
        distinct = {tensor.data_ptr(): tensor for tensor in tensors if tensor is not None and tensor.numel()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())
        self.found[name] = max(self.found[name], size)

    def _gathered(self, module: L.LightningModule) -> None:
        if hasattr(self.zero, "fp32_partitioned_groups_flat"):
            whole = (p for p in module.parameters() if p.ds_status.name == "AVAILABLE" and not p.ds_persist)
            self._keep("gathered", (p.data for p in whole))

    def _buckets(self) -> None:
        if self.zero is not None:
            buffers = [bucket.buffer for bucket in self.zero.ipg_buckets.values()]
            self._keep("buckets", (b for held in buffers for b in (held if isinstance(held, list) else [held])))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._gradients(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self._gradients(pl_module)
        zero, parameters = self.zero, list(pl_module.parameters())
        optimizer = trainer.optimizers[0] if zero is None else zero.optimizer
        states = [state for states in optimizer.state.values() for state in states.values()]
        self._keep("moments", (tensor for tensor in states if isinstance(tensor, Tensor) and tensor.ndim))
        if zero is None:
            self._keep("weights", iter(parameters))
            logged = trainer.model._get_ddp_logging_data()
            sizes = logged.get("rebuilt_bucket_sizes") or logged["bucket_sizes"]
            self.found["buckets"] = sum(int(size) for size in sizes.split(","))
        elif hasattr(zero, "fp32_partitioned_groups_flat"):
            whole = [p.data for p in parameters if p.ds_persist]
            self._keep("weights", iter([*whole, *(p.ds_tensor for p in parameters)]))
            self._keep("masters", iter(zero.fp32_partitioned_groups_flat))
        else:
            frozen = [p.data for p in parameters if not p.requires_grad]
            self._keep("weights", iter([*frozen, *zero.bit16_groups_flat]))
            self._keep("masters", iter(zero.single_partition_of_fp32_groups))

    def _gradients(self, module: L.LightningModule) -> None:
        if hasattr(self.zero, "grad_partitions_flat_buffer"):
            self._keep("gradients", iter([self.zero.grad_partitions_flat_buffer]))
            return
        kept = [p.grad for p in module.parameters()]
        for name in ("averaged_gradients", "all_grad_tensors"):
            for tensors in (getattr(self.zero, name, None) or {}).values():
                kept += tensors or []
        kept += [flat.grad for flat in getattr(self.zero, "single_partition_of_fp32_groups", [])]
        self._keep("gradients", iter(kept))


def run(engine: Engine, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    module, data, held = xcomposer2(), Documents(micro_batch=engine.micro_batch), Held()
    module.begin(STAGE, total_steps=data.begin(module.processor, STAGE, seed=0, rank=rank, world=engine.ranks))
    strategy = ZeRO(**engine.zero) if engine.zero else DDP()
    if engine.reuse is not None:
        strategy.config["zero_optimization"]["stage3_max_reuse_distance"] = engine.reuse
        strategy.config["zero_optimization"]["stage3_prefetch_bucket_size"] = engine.reuse
    fit = trainer(
        [held],
        max_steps=2,
        accumulate_grad_batches=data.stream.accumulation,
        ranks=engine.ranks,
        strategy=strategy,
        precision=engine.precision,
    )
    fit.fit(module, data)
    (folder / f"{engine.name}-{rank}.json").write_text(json.dumps(held.found))


def main(jobs: str) -> None:
    """Run the ranks of each job, one job after another."""
    for one in json.loads(Path(jobs).read_text()):
        engine = Engine(**one)
        run_ranks(partial(run, engine, Path(jobs).parent), engine.ranks)


def measure(engines: list[Engine], folder: Path) -> dict[str, list[dict[str, int]]]:
    """Run engines. Returns the peak memory of every rank of every engine, bytes."""
    (folder / "jobs.json").write_text(json.dumps([asdict(engine) for engine in engines]))
    done = run_program(["-m", "tests.engines", str(folder / "jobs.json")], timeout=1500)
    assert not done.returncode, done.stderr[-4000:]
    return {
        engine.name: [json.loads((folder / f"{engine.name}-{rank}.json").read_text()) for rank in range(engine.ranks)]
        for engine in engines
    }


if __name__ == "__main__":
    main(sys.argv[1])
