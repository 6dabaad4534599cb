"""Checkpoints: one kind for all stages and strategies, written aside, synced, published last by one rename.

A checkpoint is a folder `<stage number>-<stage>-step=<step of the stage>.ckpt`:

    manifest.json   what is in it, and bytes and digest of every other file (format below)
    config.yaml     the resolved config of the run
    state.pt        loops, callbacks, schedule, stream position, optimizer groups (torch.save, weights only)
    weights-RRRRR-NN.safetensors     what rank R held of the weights: fp32 masters of what learns, and what else is kept
    optimizer-RRRRR-NN.safetensors   the same of the optimizer's moments; keys are "exp_avg/<parameter>"

It belongs to no strategy and no number of ranks. A tensor is a list of *pieces*: runs of the flattened tensor, each
under a key in one of the files; the key of a piece that is not the whole tensor is "<name>#<start>". A single process
writes whole tensors, DDP's first rank too, a rank of ZeRO the pieces that it updates; nothing is gathered to save, and
a rank that resumes reads the pieces that overlap what it is to hold. So resuming on other ranks, or under another
strategy, is just loading.

manifest.json has
    format          1
    family, stage, stage_number, stage_step, step (through all stages), strategy, ranks
    parts           part -> names of all its parameters, stored or not, in the model's order
    files           file -> {"bytes", "blake2b"}
    weights         name -> {"shape", "dtype", "pieces": [[file, key, start, count], ...]}; names as in `state_dict`
    moments         "<moment>/<name>" -> the same; steps: name -> optimizer steps that the parameter has had
    frozen          part -> {"origin", "digests": name -> digest}: parts that are *not* stored, because nothing in this
                    run has trained them: they are loaded from their origin (the part's `weights`), and must be the same

A folder that ends in .part was not published: nothing ever reads it, the next save clears it away.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_mm import manifest as manifests
from lit_mm.digests import digest
from lit_mm.errors import UserError

# Which checkpoints there are, and their names: to be asked for here, too
from lit_mm.manifest import DAMAGED, FORMAT, Saved, checkpoint_name, digest_file, find, newest, published, saved_as

if TYPE_CHECKING:
    from lit_mm.module import MultimodalModule

__all__ = [
    "Checkpoint",
    "FolderCheckpointIO",
    "Piece",
    "Saved",
    "checkpoint_name",
    "find",
    "kept_buffers",
    "kept_tensors",
    "load_weights",
    "newest",
    "optimizer_groups",
    "publish",
    "publish_pieces",
    "published",
    "read",
    "remove",
    "saved_as",
]

LARGEST_FILE = 2 << 30  # bytes of tensors in one file: what a rank copies to the CPU's memory at a time


def remove(path: Path) -> None:
    """Delete a checkpoint: it loses its name first, so that a kill leaves no half of it to be found."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    path.rename(part)
    shutil.rmtree(part)


# --- reading --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint, opened. Tensors are read when they are asked for, piece by piece.

    Attributes:
        path: its folder.
        manifest: see above.
    """

    path: Path
    manifest: dict[str, Any]
    _open: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def config(self) -> str:
        """The resolved config of the run that wrote it, YAML."""
        return (self.path / "config.yaml").read_text()

    @cached_property
    def state(self) -> dict[str, Any]:
        """Loops, callbacks, schedule and stream position."""
        return torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)

    def weight(self, name: str) -> Tensor:
        """A stored weight, whole, on the CPU."""
        return self._tensor(self.manifest["weights"][name])

    def weights(self) -> dict[str, Tensor]:
        """All stored weights. Parts in `manifest["frozen"]` are not among them."""
        return {name: self.weight(name) for name in self.manifest["weights"]}

    def optimizer_step(self, name: str) -> float | None:
        """Optimizer steps that a parameter has had; None for one that has not learnt in this stage."""
        return self.manifest["steps"].get(name)

    def moments_of(self, name: str) -> list[str]:
        """Which moments the optimizer had of a parameter."""
        return self._moments.get(name, [])

    @cached_property
    def _moments(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key in self.manifest["moments"]:
            moment, _, name = key.partition("/")
            found.setdefault(name, []).append(moment)
        return found

    def moment(self, key: str, name: str, start: int = 0, count: int | None = None) -> Tensor:
        """A moment of a parameter: whole and in its shape, or `count` elements of it from `start`, flat."""
        entry = self.manifest["moments"][f"{key}/{name}"]
        return self._tensor(entry) if count is None else self._run(entry, start, count)

    def _tensor(self, entry: Mapping[str, Any]) -> Tensor:
        return self._run(entry, 0, math.prod(entry["shape"])).view(entry["shape"])

    def _run(self, entry: Mapping[str, Any], start: int, count: int) -> Tensor:
        """Elements [start, start + count) of a flattened tensor, put together from its pieces."""
        run = torch.empty(count, dtype=getattr(torch, entry["dtype"]))
        missing = count
        for file, key, first, size in entry["pieces"]:
            begin, end = max(start, first), min(start + count, first + size)
            if begin < end:
                piece = self._file(file).get_tensor(key).flatten()
                run[begin - start : end - start] = piece[begin - first : end - first]
                missing -= end - begin
        if missing:
            raise UserError(f"{str(self.path)!r} lacks {missing} of {count} elements of a tensor. {DAMAGED}")
        return run

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.path / name, framework="pt")
        return self._open[name]

    def verify(self) -> None:
        """Compare every file with its digest, about a second per gigabyte and core.

        Raises:
            UserError: a file has other bytes than were written.
        """
        names = list(self.manifest["files"])
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            found = pool.map(lambda name: digest_file(self.path / name), names)
            for name, hashed in zip(names, found, strict=True):
                if hashed != self.manifest["files"][name]["blake2b"]:
                    raise UserError(f"{str(self.path / name)!r} does not have the bytes that were written. {DAMAGED}")


def read(path: Path) -> Checkpoint:
    """Open a checkpoint and check that its files are all there, at their length.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or something else wrote it.
    """
    opened = manifests.read(path)
    for name in opened.files(""):
        if problem := opened.problem_of(name):
            raise UserError(f"{str(path / name)!r} {problem}. {DAMAGED}")
    return Checkpoint(path, opened.content)


def load_weights(module: MultimodalModule, checkpoint: Checkpoint, family: str) -> None:
    """Put a checkpoint's weights into a model of the same family and shape.

    Parts that the checkpoint does not store are loaded from their origin first, and must be what they were.

    Raises:
        UserError: another family, other shapes, or another frozen base.
    """
    path, manifest = checkpoint.path, checkpoint.manifest
    if manifest["family"] != family:
        raise UserError(
            f"{str(path)!r} is a checkpoint of {manifest['family']}, the model is {family}. "
            f"Use a config of {manifest['family']}, or another checkpoint"
        )
    ours = dict(kept_tensors(module))
    frozen = {name: part for part, entry in manifest["frozen"].items() for name in entry["digests"]}
    theirs = {name: tuple(entry["shape"]) for name, entry in manifest["weights"].items()}
    odd = sorted(
        (set(ours) ^ (set(theirs) | set(frozen)))
        | {name for name in set(ours) & set(theirs) if tuple(ours[name].shape) != theirs[name]}
    )
    if odd:
        here = tuple(ours[odd[0]].shape) if odd[0] in ours else "absent"
        raise UserError(
            f"{str(path)!r} does not fit this model: {len(odd)} of {len(ours)} tensors differ in name or shape, the "
            f"first is {odd[0]!r} ({theirs.get(odd[0], 'absent')} in the checkpoint, {here} in the model). "
            "Use the config.yaml of the run that made it"
        )
    if frozen:
        module.load_pretrained()
    for part, entry in manifest["frozen"].items():
        other = [name for name, expected in entry["digests"].items() if digest(ours[name]) != expected]
        if other:
            raise UserError(
                f"{str(path)!r} was trained on the frozen part {part!r} of {entry['origin']!r}; the part that is there "
                f"now differs in {len(other)} of {len(entry['digests'])} tensors, the first is {other[0]!r}. Put the "
                "origin back, or train anew on this one"
            )
    with torch.no_grad():
        for name in theirs:
            ours[name].copy_(checkpoint.weight(name))
    module.origins = {part: entry["origin"] for part, entry in manifest["frozen"].items()}


def kept_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters and the buffers that belong to its weights, each once, by their names in `state_dict`."""
    yield from module.named_parameters()
    yield from kept_buffers(module)


def kept_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that belong to a model's weights."""
    kept = module.state_dict().keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


# --- writing --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Piece:
    """A run of a tensor's elements.

    Attributes:
        name, shape: of the whole tensor.
        start: place of the first element in the flattened tensor.
        tensor: the elements, flat.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensor: Tensor


class FolderCheckpointIO(CheckpointIO):
    """What Lightning asks for checkpoints: every Trainer of a stage has it as a plugin."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        publish(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The state that Lightning restores. Weights are not in it: `run_stages` loads them before a stage begins."""
        saved = read(Path(path))
        state = dict(saved.state)
        return state | {
            "state_dict": {},
            "optimizer_states": [_torch_state(state.pop("optimizer"), saved)],
            "saved": saved,
        }

    def remove_checkpoint(self, path: Any) -> None:
        remove(Path(path))


def publish(checkpoint: dict[str, Any], path: str | os.PathLike, writes: bool = True) -> None:
    """Publish what Lightning gathered, where every rank holds everything.

    Args:
        writes: False on the ranks that only wait for the outcome.
    """
    state = dict(checkpoint)
    tensors, optimizer = state.pop("state_dict"), state.pop("optimizer_states")
    stored = set(state["lit_mm"]["stored"])
    by_name: dict[str, dict[str, Tensor]] = optimizer[0] if optimizer else {}

    def weights() -> Iterator[Piece]:
        for name, tensor in tensors.items():
            if name in stored:
                yield Piece(name, tuple(tensor.shape), 0, tensor.detach().flatten())

    def moments() -> Iterator[tuple[str, Piece]]:
        for name, moment in by_name.items():
            for key, tensor in moment.items():
                if key != "step":
                    yield key, Piece(name, tuple(tensor.shape), 0, tensor.detach().flatten())

    steps = {name: float(moment["step"]) for name, moment in by_name.items() if "step" in moment}
    publish_pieces(state, path, weights() if writes else (), moments() if writes else (), steps if writes else {})


def publish_pieces(
    state: dict[str, Any],
    path: str | os.PathLike,
    weights: Iterable[Piece],
    moments: Iterable[tuple[str, Piece]],
    steps: Mapping[str, float],
) -> None:
    """Write this rank's pieces aside; when every rank has, publish the checkpoint. Called by all ranks.

    A checkpoint of this name that is there already is of the same step of the same run: it stays.

    Args:
        state: what `torch.save` can keep, with `lit_mm`, which goes to the manifest.
        weights: this rank's pieces of the weights.
        moments: the moment's name with this rank's piece of it.
        steps: parameter -> optimizer steps it has had.
    Raises:
        UserError: on every rank, where any of them could not write; the part folder is removed.
    """
    final = Path(path)
    part = final.with_name(final.name + ".part")
    rank = dist.get_rank() if dist.is_initialized() else 0

    def begin() -> bool:
        if final.exists():
            return False
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        return True

    if not _together(begin if rank == 0 else None, final)[0]:
        return
    entries = _together(lambda: _write_pieces(part, rank, weights, moments) | {"steps": dict(steps)}, final)

    def end() -> None:
        kept = dict(state)
        described = kept.pop("lit_mm")
        with (part / "state.pt").open("wb") as file:
            torch.save(kept, file)
        (part / "config.yaml").write_text(described["config"])
        files = {name: entry for found in entries for name, entry in found["files"].items()}
        files |= {name: _sync(part / name) for name in ("state.pt", "config.yaml")}
        manifest = {
            "format": FORMAT,
            **{key: value for key, value in described.items() if key not in ("config", "stored")},
            "ranks": len(entries),
            "files": files,
            "weights": _joined(found["weights"] for found in entries),
            "moments": _joined(found["moments"] for found in entries),
            "steps": {name: step for found in entries for name, step in found["steps"].items()},
        }
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        _sync(part / "manifest.json")
        _sync_folder(part)
        os.rename(part, final)
        _sync_folder(final.parent)

    _together(end if rank == 0 else None, final)


def _write_pieces(
    part: Path, rank: int, weights: Iterable[Piece], moments: Iterable[tuple[str, Piece]]
) -> dict[str, Any]:
    """Write pieces to files of limited size. Returns this rank's share of the manifest."""
    entries: dict[str, Any] = {"files": {}, "weights": {}, "moments": {}}
    for kind, pieces in (("weights", (("", piece) for piece in weights)), ("moments", moments)):
        stem = "weights" if kind == "weights" else "optimizer"
        held: dict[str, Tensor] = {}

        def flush(stem: str = stem, held: dict[str, Tensor] = held) -> None:
            if held:
                save_file(held, part / _file_name(stem, rank, entries))
                entries["files"][_file_name(stem, rank, entries)] = _sync(part / _file_name(stem, rank, entries))
                held.clear()

        for moment, piece in pieces:
            if sum(tensor.nbytes for tensor in held.values()) + piece.tensor.nbytes > LARGEST_FILE:
                flush()
            name = f"{moment}/{piece.name}" if moment else piece.name
            whole = piece.tensor.numel() == math.prod(piece.shape)
            key = name if whole else f"{name}#{piece.start}"
            held[key] = piece.tensor.detach().cpu().clone().view(piece.shape if whole else (-1,))
            entry = entries[kind].setdefault(
                name,
                {"shape": list(piece.shape), "dtype": str(piece.tensor.dtype).removeprefix("torch."), "pieces": []},
            )
            entry["pieces"].append([_file_name(stem, rank, entries), key, piece.start, piece.tensor.numel()])
        flush()
    return entries


def _file_name(stem: str, rank: int, entries: dict[str, Any]) -> str:
    """The next file of a rank."""
    number = sum(name.startswith(f"{stem}-") for name in entries["files"])
    return f"{stem}-{rank:05d}-{number:02d}.safetensors"


def _joined(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The tensors of all ranks, each with the pieces of all ranks in order."""
    joined: dict[str, Any] = {}
    for entries in found:
        for name, entry in entries.items():
            joined.setdefault(name, {**entry, "pieces": []})["pieces"] += entry["pieces"]
    for entry in joined.values():
        entry["pieces"].sort(key=lambda piece: piece[2])
    return joined


def _together(work: Callable[[], Any] | None, final: Path) -> list[Any]:
    """What `work` returned on every rank (None where there is none to do), or an error on every rank.

    Raises:
        UserError: the work failed on a rank: this one or another.
    """
    result, problem, cause = None, "", None
    try:
        result = work() if work is not None else None
    except (OSError, SafetensorError, RuntimeError) as error:
        problem, cause = str(error).strip().partition("\n")[0], error
    if not dist.is_initialized() or dist.get_world_size() == 1:
        found = [(problem, result)]
    else:
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, (problem, result))
    if failed := [(rank, said) for rank, (said, _) in enumerate(found) if said]:
        shutil.rmtree(final.with_name(final.name + ".part"), ignore_errors=True)
        rank, said = failed[0]
        where = f" (rank {rank})" if len(found) > 1 else ""
        raise UserError(
            f"the checkpoint {str(final)!r} could not be written{where}: {said}. The one before it is intact: make "
            "room, and the same command goes on from there"
        ) from cause
    return [result for _, result in found]


def _sync(path: Path) -> dict[str, Any]:
    """Bring a file to the disk. Returns its entry in the manifest."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": path.stat().st_size, "blake2b": digest_file(path)}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- the optimizer by name ------------------------------------------------------------------------------------------
def optimizer_groups(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], given: list[list[nn.Parameter]] | None = None
) -> dict[str, Any]:
    """An optimizer's groups without tensors: rates and names.

    Args:
        names: id of a parameter -> its name.
        given: the parameters of each group, where the optimizer holds something else in their place (ZeRO).
    """
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        held = group["params"] if given is None else given[number]
        groups.append({k: v for k, v in group.items() if k != "params"} | {"names": [names[id(p)] for p in held]})
    return {"groups": groups}


def _torch_state(groups: Mapping[str, Any], saved: Checkpoint) -> dict[str, Any]:
    """The state dict that torch's optimizers load, from groups by name and a checkpoint. Tensors are read at once."""
    state: dict[int, dict[str, Tensor]] = {}
    torch_groups, number = [], 0
    for group in groups["groups"]:
        torch_groups.append({k: v for k, v in group.items() if k != "names"} | {"params": []})
        for name in group["names"]:
            torch_groups[-1]["params"].append(number)
            moments = {key: saved.moment(key, name) for key in saved.moments_of(name)}
            if (step := saved.optimizer_step(name)) is not None:
                moments["step"] = torch.tensor(step, dtype=torch.float32)
            if moments:
                state[number] = moments
            number += 1
    return {"state": state, "param_groups": torch_groups}
