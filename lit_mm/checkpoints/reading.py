"""Reading checkpoints piece by piece, verifying them, and loading them into a model of the same family."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lit_mm.checkpoints import manifest as manifests
from lit_mm.checkpoints.before import translate_family
from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.checkpoints.manifest import Damaged, digest_file
from lit_mm.checkpoints.origins import Origins
from lit_mm.errors import UserError
from lit_mm.stages.adapter import Adapter


class Restorable(Protocol):
    """A model that a checkpoint can be loaded into.

    Attributes:
        origins: origins of the weights of its parts.
    """

    origins: Origins

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def set_adapters(self, adapters: Mapping[str, Adapter]) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """An open published checkpoint. Each method reads only the pieces of the tensor that it returns.

    Attributes:
        path: folder of the checkpoint.
        manifest: parsed manifest.json, see `lit_mm.checkpoints`.
    """

    path: Path
    manifest: dict[str, Any]
    _open: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def config(self) -> str:
        """Resolved config of the run that wrote the checkpoint, YAML."""
        return (self.path / "config.yaml").read_text()

    @cached_property
    def state(self) -> dict[str, Any]:
        """Loops, callbacks, schedule and stream position."""
        return torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)

    def weight(self, name: str) -> Tensor:
        """Read a stored weight whole, on the CPU."""
        return self._tensor(self.manifest["weights"][name])

    def weights(self) -> dict[str, Tensor]:
        """Read all stored weights. Parts in `manifest["frozen"]` are not among them."""
        return {name: self.weight(name) for name in self.manifest["weights"]}

    def optimizer_step(self, name: str) -> float | None:
        """Return the optimizer steps of a parameter; None if it has not learnt in this stage."""
        return self.manifest["steps"].get(name)

    def moments_of(self, name: str) -> list[str]:
        """Return the names of the optimizer's moments for a parameter."""
        return self._moments.get(name, [])

    @cached_property
    def _moments(self) -> dict[str, list[str]]:
        moments: dict[str, list[str]] = {}
        for key in self.manifest["moments"]:
            moment, _, name = key.partition("/")
            moments.setdefault(name, []).append(moment)
        return moments

    def moment(self, key: str, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """Read a moment of a parameter: whole and in its shape, or `count` elements from `start`, flat."""
        entry = self.manifest["moments"][f"{key}/{name}"]
        return self._tensor(entry) if count is None else self._run(entry, start, count)

    def average(self, name: str) -> Tensor | None:
        """Read the moving average of a parameter; None if it has none."""
        return self.moment("average", name) if "average" in self.moments_of(name) else None

    def _tensor(self, entry: Mapping[str, Any]) -> Tensor:
        return self._run(entry, 0, math.prod(entry["shape"])).view(entry["shape"])

    def _run(self, entry: Mapping[str, Any], start: int, count: int) -> Tensor:
        """Join elements [start, start + count) of a flattened tensor from its pieces."""
        run = torch.empty(count, dtype=getattr(torch, entry["dtype"]))
        missing = count
        for file, key, first, size in entry["pieces"]:
            begin, end = max(start, first), min(start + count, first + size)
            if begin < end:
                piece = self._file(file).get_tensor(key).flatten()
                run[begin - start : end - start] = piece[begin - first : end - first]
                missing -= end - begin
        if missing:
            raise Damaged(f"{str(self.path)!r} lacks {missing} of {count} elements of a tensor")
        return run

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.path / name, framework="pt")
        return self._open[name]

    def verify(self) -> None:
        """Compare every file with its digest, in about a second per gigabyte and core.

        Raises:
            Damaged: the bytes of a file are not those that were written.
        """
        names = list(self.manifest["files"])
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            digests = pool.map(lambda name: digest_file(self.path / name), names)
            for name, hashed in zip(names, digests, strict=True):
                if hashed != self.manifest["files"][name]["blake2b"]:
                    raise Damaged(f"{str(self.path / name)!r} does not have the bytes that were written")


def read(path: Path) -> Checkpoint:
    """Open a checkpoint and check that all of its files exist and have their length.

    Raises:
        UserError: there is no such checkpoint, or it has an unknown format.
        Damaged: the manifest or a file is not as it was written.
    """
    opened = manifests.read(path)
    for name in opened.files(""):
        if problem := opened.problem_of(name):
            raise Damaged(f"{str(path / name)!r} {problem}")
    return Checkpoint(path, opened.content)


def newest_whole(folder: Path) -> manifests.Saved | None:
    """Return the latest checkpoint in a run's checkpoint folder whose files all match their digests; else None."""
    for saved in reversed(manifests.published(folder)):
        try:
            read(saved.path).verify()
            return saved
        except Damaged:
            continue
    return None


def alternative(damaged: Path) -> str:
    """Return the end of a message that names the newest whole checkpoint beside a damaged one."""
    whole = newest_whole(damaged.parent)
    return f". The newest whole checkpoint there is {str(whole.path)!r}" if whole else ""


def way_out(damaged: Path) -> str:
    """Advise the user about a damaged checkpoint, the newest of its run."""
    whole = newest_whole(damaged.parent)
    if whole is None:
        return "No other checkpoint of this run is whole: start again in another folder (--run_dir)"
    others = [shlex.quote(str(saved.path)) for saved in manifests.published(damaged.parent) if saved > whole]
    return f"The newest whole one is {str(whole.path)!r}; to go on from it: rm -r {' '.join(others)}"


def adapters_in(manifest: Mapping[str, Any]) -> dict[str, Adapter]:
    """Return part -> adapter of a checkpoint, from its manifest."""
    return {part: Adapter(**fields) for part, fields in manifest.get("adapters", {}).items()}


def load_weights(
    module: Restorable,
    checkpoint: Checkpoint,
    family: str,
    parts: Collection[str] | None = None,
    *,
    averaged: bool = False,
) -> None:
    """Put a checkpoint's weights into a model of the same family and shape.

    The model gets the adapters of the checkpoint. Parts that the checkpoint does not store are loaded from their origin
    first and must have the recorded digests.

    Args:
        module: model to load the weights into.
        checkpoint: checkpoint to read.
        family: public import path of the model's class.
        parts: parts that are needed now; other parts that the checkpoint does not store are not loaded. None means all.
        averaged: True loads the moving averages of the weights that have one.
    Raises:
        UserError: the family, the name or shape of a tensor, or the weights of a frozen part differ, or the checkpoint
            has no averages.
    """
    path, manifest = checkpoint.path, checkpoint.manifest
    if averaged and not any(checkpoint.average(name) is not None for name in manifest["weights"]):
        raise UserError(
            f"{str(path)!r} has no averages of weights, because its stage averages no part. Leave `averaged` "
            "out, or choose the end of a stage with `average` in its `train`"
        )
    origin = translate_family(manifest["family"])
    if origin != family:
        raise UserError(
            f"{str(path)!r} is a checkpoint of {origin}, the model is {family}. "
            f"Use a config of {origin}, or another checkpoint"
        )
    module.set_adapters(adapters_in(manifest))
    tensors = dict(kept_tensors(module))
    frozen = {name: part for part, entry in manifest["frozen"].items() for name in entry["digests"]}
    shapes = {name: tuple(entry["shape"]) for name, entry in manifest["weights"].items()}
    odd = sorted(
        (set(tensors) ^ (set(shapes) | set(frozen)))
        | {name for name in set(tensors) & set(shapes) if tuple(tensors[name].shape) != shapes[name]}
    )
    if odd:
        here = tuple(tensors[odd[0]].shape) if odd[0] in tensors else "absent"
        raise UserError(
            f"{str(path)!r} does not fit this model: {len(odd)} of {len(tensors)} tensors differ in name or "
            f"shape. The first is {odd[0]!r}: {shapes.get(odd[0], 'absent')} in the checkpoint, {here} in the "
            "model. Use the config.yaml of the run that wrote the checkpoint"
        )
    needed = manifest["frozen"].keys() if parts is None else manifest["frozen"].keys() & set(parts)
    if needed:
        module.origins.load(needed)
    for part in needed:
        entry = manifest["frozen"][part]
        module.origins.check(repr(str(path)), part, entry["origin"], entry["digests"])
    with torch.no_grad():
        for name in shapes:
            average = checkpoint.average(name) if averaged else None
            tensors[name].copy_(checkpoint.weight(name) if average is None else average)
    origins = {part: entry["origin"] for part, entry in manifest["frozen"].items()}
    digests = {part: entry["digests"] for part, entry in manifest["frozen"].items() if part not in needed}
    module.origins.resume(origins, digests)
