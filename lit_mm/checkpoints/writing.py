"""Writing checkpoints: files are written aside, synced, and published by a rename at the end."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_mm.checkpoints.manifest import FORMAT, digest_file, newest, sealed
from lit_mm.checkpoints.reading import Checkpoint, read
from lit_mm.errors import UserError, first_line

LARGEST_FILE = 2 << 30  # bytes of tensors in one file, which a rank copies to the CPU's memory at a time


def remove(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a kill leaves no half of it under its name."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    path.rename(part)
    shutil.rmtree(part)


@dataclass(frozen=True)
class Piece:
    """A run of a tensor's elements.

    Attributes:
        name, shape: name and shape of the whole tensor.
        start: place of the first element in the flattened tensor.
        tensor: flat tensor of the elements.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensor: Tensor


class FolderCheckpointIO(CheckpointIO):
    """Plugin by which Lightning saves, loads and removes checkpoints; the Trainer of every stage has one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        publish(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the state that Lightning restores, without weights, which `run_stages` loads before a stage begins."""
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
    """Publish the checkpoint that Lightning has gathered, for strategies whose ranks all hold whole tensors.

    Args:
        checkpoint: checkpoint dictionary of Lightning.
        path: folder of the new checkpoint.
        writes: False on ranks that only wait for the outcome.
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
    """Write this rank's pieces aside and publish the checkpoint when every rank has written. All ranks call this.

    An existing checkpoint of this name stays, since it is of the same step of the same run.

    Args:
        state: values for `torch.save`; the entry `lit_mm` goes to the manifest.
        path: folder of the new checkpoint.
        weights: this rank's pieces of the weights.
        moments: names of moments, each with this rank's piece.
        steps: parameter -> optimizer steps of the parameter.
    Raises:
        UserError: a rank could not write. The error is raised on every rank, and the part folder is removed.
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
        content = dict(state)
        described = content.pop("lit_mm")
        with (part / "state.pt").open("wb") as file:
            torch.save(content, file)
        (part / "config.yaml").write_text(described["config"])
        files = {name: entry for entry_of_rank in entries for name, entry in entry_of_rank["files"].items()}
        files |= {name: _sync(part / name) for name in ("state.pt", "config.yaml")}
        manifest = {
            "format": FORMAT,
            **{key: value for key, value in described.items() if key not in ("config", "stored")},
            "ranks": len(entries),
            "folder": os.getcwd(),
            "files": files,
            "weights": _joined(entry_of_rank["weights"] for entry_of_rank in entries),
            "moments": _joined(entry_of_rank["moments"] for entry_of_rank in entries),
            "steps": {name: step for entry_of_rank in entries for name, step in entry_of_rank["steps"].items()},
        }
        (part / "manifest.json").write_text(sealed(manifest))
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
        buffer: dict[str, Tensor] = {}

        def flush(stem: str = stem, buffer: dict[str, Tensor] = buffer) -> None:
            if buffer:
                file = part / _file_name(stem, rank, entries)
                save_file(buffer, file)
                file.chmod(part.stat().st_mode & 0o666)  # safetensors ignores the umask, which the folder has
                entries["files"][file.name] = _sync(file)
                buffer.clear()

        for moment, piece in pieces:
            if sum(tensor.nbytes for tensor in buffer.values()) + piece.tensor.nbytes > LARGEST_FILE:
                flush()
            name = f"{moment}/{piece.name}" if moment else piece.name
            whole = piece.tensor.numel() == math.prod(piece.shape)
            key = name if whole else f"{name}#{piece.start}"
            buffer[key] = piece.tensor.detach().cpu().clone().view(piece.shape if whole else (-1,))
            entry = entries[kind].setdefault(
                name,
                {"shape": list(piece.shape), "dtype": str(piece.tensor.dtype).removeprefix("torch."), "pieces": []},
            )
            entry["pieces"].append([_file_name(stem, rank, entries), key, piece.start, piece.tensor.numel()])
        flush()
    return entries


def _file_name(stem: str, rank: int, entries: dict[str, Any]) -> str:
    """Return the name of the next file of a rank."""
    number = sum(name.startswith(f"{stem}-") for name in entries["files"])
    return f"{stem}-{rank:05d}-{number:02d}.safetensors"


def _joined(entries_by_rank: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Merge the entries of all ranks: every tensor gets the pieces of all ranks in order."""
    joined: dict[str, Any] = {}
    for entries in entries_by_rank:
        for name, entry in entries.items():
            joined.setdefault(name, {**entry, "pieces": []})["pieces"] += entry["pieces"]
    for entry in joined.values():
        entry["pieces"].sort(key=lambda piece: piece[2])
    return joined


def _together(work: Callable[[], Any] | None, final: Path) -> list[Any]:
    """Run `work` on every rank and return the results of all ranks.

    Args:
        work: function to run; None on a rank without work, whose result is None.
        final: folder of the checkpoint, for the message.
    Raises:
        UserError: the work failed on some rank. The error is raised on every rank.
    """
    result, problem, cause = None, "", None
    try:
        result = work() if work is not None else None
    except (OSError, SafetensorError, RuntimeError) as error:
        problem, cause = first_line(error), error
    if not dist.is_initialized() or dist.get_world_size() == 1:
        outcomes = [(problem, result)]
    else:
        outcomes = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, (problem, result))
    if failed := [(rank, message) for rank, (message, _) in enumerate(outcomes) if message]:
        shutil.rmtree(final.with_name(final.name + ".part"), ignore_errors=True)
        rank, message = failed[0]
        where = f" (rank {rank})" if len(outcomes) > 1 else ""
        before = newest(final.parent)
        intact = (
            f"{before.path.name} is intact: make room, and the same command goes on from there"
            if before
            else "It would have been the first of this run: make room, and start again"
        )
        raise UserError(f"the checkpoint {str(final)!r} could not be written{where}: {message}. {intact}") from cause
    return [result for _, result in outcomes]


def _sync(path: Path) -> dict[str, Any]:
    """Sync a file to the disk. Returns its entry in the manifest."""
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


def optimizer_groups(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], parameters: list[list[nn.Parameter]] | None = None
) -> dict[str, Any]:
    """Return the groups of an optimizer with names in place of tensors.

    Args:
        optimizer: optimizer of the stage.
        names: id of a parameter -> its name.
        parameters: parameters of each group if the optimizer holds other tensors in their place (ZeRO); else None.
    """
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        members = group["params"] if parameters is None else parameters[number]
        groups.append({k: v for k, v in group.items() if k != "params"} | {"names": [names[id(p)] for p in members]})
    return {"groups": groups}


def _torch_state(groups: Mapping[str, Any], saved: Checkpoint) -> dict[str, Any]:
    """Build the state dict that torch's optimizers load, from groups by name and a checkpoint; it reads all tensors."""
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
