"""A training step asks nothing of its device that the host would have to wait for."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_mm.commands.recipe import RecipeCLI
from lit_mm.module import MultimodalModule
from lit_mm.objectives.next_token import NextToken
from lit_mm.samples.batch import Batch
from tests.smoke.test_recipes import RECIPES, tiny

# Operations whose result, or its size, is a value that the host has to know
VALUES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")


class Waits(TorchDispatchMode):
    """Counts operations whose values the host waits for: those of `VALUES`, `unique`, and indexing by booleans."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name in VALUES or "unique" in name or masked:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Counts tensors that are copied from the host to the meta device, in place of a real one, while the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        name = getattr(func, "__name__", "")
        from_numbers = name in ("tensor", "as_tensor", "new_tensor") and result.is_meta
        copied = name == "to" and result.is_meta and not args[0].is_meta and result.numel()
        if from_numbers or (copied and not options.get("non_blocking")):
            self.counts[name] += 1
        return result


def test_the_counts_know_operations_that_wait() -> None:
    x = torch.arange(4.0)
    with Waits() as waits:
        x[x > 1], x.nonzero(), x.unique(), x.sum().item(), x[torch.tensor(0)]
    assert waits.counts["index"] == 1 and {"nonzero", "_local_scalar_dense"} <= waits.counts.keys()
    assert any("unique" in name for name in waits.counts)
    on_device = x.to("meta")
    with Copies() as copies:
        torch.tensor([1.0], device="meta"), on_device.new_tensor([1.0]), x.to("meta")
        torch.tensor([1.0]), x.to("meta", non_blocking=True), on_device.to("meta"), x[:0].to("meta")
    assert copies.counts == {"tensor": 1, "new_tensor": 1, "to": 1}


@pytest.fixture(params=[*RECIPES, "xcomposer", "xcomposer2"])
def step(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[MultimodalModule, Batch]:
    """The module of a tiny recipe in its last stage, and a batch of two sources."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    config = tiny(request.param)
    if request.param in ("xcomposer", "xcomposer2"):
        config["model"]["init_args"]["image_size"] = 28
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(config))
    cli = RecipeCLI(["--config", str(file), "--data.init_args.num_workers", "0"], "fit")
    stage, module = cli.stages[-1], cli.model
    data = cli.data_of(stage)
    module.begin(stage, total_steps=data.begin(module.processor_of(stage), stage, seed=0))
    batch = next(batch for batch in data.train_dataloader() if batch.num_supervised)
    sources = torch.arange(batch.num_supervised) % 2
    return module, replace(batch, sources=sources, num_by_source=(1, 1))


def test_the_host_waits_for_nothing_in_a_step_of_several_sources(step: tuple[MultimodalModule, Batch]) -> None:
    module, batch = step
    optimizer = module.configure_optimizers()["optimizer"]
    with Waits() as waits:
        objective = NextToken()
        objective(module.network, batch).backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert objective.loss_by_source.shape == (2, 2)
    assert not waits.counts


def test_nothing_is_copied_to_the_device_in_a_step_while_the_host_waits(
    step: tuple[MultimodalModule, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device there are no values, so a step that reads one fails; nor is there autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    module, batch = step
    module.network.to("meta")
    batch = batch.to("meta")
    with Copies() as copies:
        NextToken()(module.network, batch).backward()
    assert not copies.counts
