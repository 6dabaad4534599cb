"""This module reads checkpoints and loads them strictly: every key must match."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.weights.config_file import WHOLE, read_object

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Indexes and files of transformers, in the order in which they are read
HEADS = tuple(name for pair in zip(INDEXES, WHOLE, strict=True) for name in pair)
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
SHOWN = 8  # most names listed in an error


@runtime_checkable
class AdaptsState(Protocol):
    """A module that changes the entries of a checkpoint before they are loaded, such as a position table's size."""

    def adapt_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Change `state` in place; the entries of this module begin with `prefix`."""
        ...


@runtime_checkable
class RestoresBuffers(Protocol):
    """A module with buffers that no checkpoint holds, such as a table of angles."""

    def restore_buffers(self) -> None:
        """Recompute the buffers; needed after a build on the meta device."""
        ...


@runtime_checkable
class AfterLoad(Protocol):
    """A module whose fresh parameters start from loaded ones, such as experts that start as copies of their base."""

    def after_load(self, loaded: Collection[str]) -> None:
        """Set parameters that a checkpoint did not fill.

        Args:
            loaded: names of the tensors inside this module that a checkpoint has filled.
        """
        ...


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint to the CPU, by name.

    Args:
        path: a .safetensors file; a torch file (.bin, .pt, .pth, .ckpt), see `within`; or a folder in Hugging Face
            layout, with one file or with shards and an index.
    Raises:
        UserError: the path does not exist, the kind of file is unknown, the file cannot be read, a shard is missing,
            or the shards lack a tensor that the index lists.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r}: no such file or folder. Is the path relative to another folder?")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in TORCH_SUFFIXES:
            raise UserError(
                f"checkpoint {str(path)!r}: expected a .safetensors or {', '.join(TORCH_SUFFIXES)} file or a folder "
                f"of them, got {path.suffix or 'no ending'!r}"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:  # a truncated file, or one of another kind
        raise UserError(f"checkpoint {str(path)!r} cannot be read ({error}). Is the download complete?") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {str(path)!r} contains more than tensors. It is not loaded, because it could run code: {error}"
        ) from error
    state = within(state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        keys = sorted(map(str, state)) if isinstance(state, dict) else [type(state).__name__]
        raise UserError(f"checkpoint {str(path)!r} should map names to tensors; it holds {shorten(keys)}")
    return state


def within(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tensors of a torch file by name: those under `state_dict` or `model`, if they are there."""
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), Mapping):
            return state[key]
    return state


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Read a folder in Hugging Face layout; see `read_checkpoint`."""
    weights = weight_files(folder)
    if weights is None:
        whole = sorted(folder.glob("*.safetensors"))
        if len(whole) != 1:
            raise UserError(
                f"checkpoint folder {str(folder)!r}: expected one of {[*INDEXES, *WHOLE]} or a single .safetensors "
                f"file, found {sorted(path.name for path in folder.iterdir())[:SHOWN]}"
            )
        return read_checkpoint(whole[0])
    index, files = weights
    if index.name in WHOLE:
        return read_checkpoint(index)
    state: dict[str, Tensor] = {}
    for shard in files:
        state |= read_checkpoint(shard)
    lost = sorted(weight_map(index).keys() - state.keys())
    if lost:
        raise UserError(
            f"checkpoint folder {str(folder)!r}: {index.name} lists tensors that no shard holds: {shorten(lost)}"
        )
    return state


def find_weights(names: Collection[str], shards_of: Callable[[str], Collection[str]]) -> tuple[str, list[str]] | None:
    """Choose the weights among the files of a folder: the first of `HEADS` whose files are all there.

    Safetensors come first. A folder that has them only in part, beside whole torch files, gives the torch files.

    Args:
        names: names of the files.
        shards_of: function from the name of an index to the files that it lists.
    Returns:
        Name of the index or of the only file, and the names of the files. If no head is complete, the first of the
        incomplete ones; None if there is none.
    """
    first: tuple[str, list[str]] | None = None
    for head in HEADS:
        if head not in names:
            continue
        files = sorted(set(shards_of(head))) if head in INDEXES else [head]
        if set(files) <= set(names):
            return head, files
        first = first or (head, files)
    return first


def weight_files(folder: Path) -> tuple[Path, list[Path]] | None:
    """Find the weights of a folder under the names of transformers; None if it has none.

    Returns:
        The index or the only file, and the files, see `find_weights`.
    Raises:
        UserError: an index is damaged, or names shards that are not there.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()}
    weights = find_weights(names, lambda index: weight_map(folder / index).values())
    if weights is None:
        return None
    head, files = weights
    if missing := [name for name in files if name not in names]:
        raise UserError(f"checkpoint folder {str(folder)!r}: {head} names shards that are not there: {missing}")
    return folder / head, [folder / name for name in files]


def weight_map(index: Path) -> dict[str, str]:
    """Read an index of shards: name of a tensor -> name of its file.

    Raises:
        UserError: the index is damaged, or names a file that is not in its folder.
    """
    try:
        file_of_tensor: dict[str, str] = read_object(index)["weight_map"]
        names = {name: Path(name).name for name in file_of_tensor.values()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint folder {str(index.parent)!r}: {index.name} is damaged ({type(error).__name__}: {error}). Is "
            "the download complete?"
        ) from error
    if outside := [name for name, base in names.items() if name != base or name in ("", "..")]:
        raise UserError(f"checkpoint folder {str(index.parent)!r}: {index.name} names files elsewhere: {outside[:4]}")
    return file_of_tensor


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
) -> None:
    """Load tensors into a module under the names of the module. If any name or shape differs, nothing is loaded.

    Modules that are `AdaptsState` change their entries before loading (the ViT resizes its position table). Modules
    that are `RestoresBuffers` recompute the buffers that no checkpoint holds. Modules that are `AfterLoad` then set
    parameters that no checkpoint filled. Parameters on the meta device are replaced by the loaded tensors; all others
    keep their dtype and are copied into. A parameter that is tied to another one may be absent.

    Args:
        module: the module to fill.
        state: tensors by name. Shapes must equal those of the module.
        allow_missing: parts of names. Parameters that contain one may be absent from `state` and keep their values.
        allow_unexpected: parts of names. Entries of `state` that contain one are ignored.
    Raises:
        UserError: a name is missing or unexpected, a shape differs, or a parameter would stay on the meta device.
    """
    state = dict(state)
    for prefix, part in module.named_modules():
        if isinstance(part, AdaptsState):
            part.adapt_state(state, f"{prefix}." if prefix else "")
    tensors = module.state_dict(keep_vars=True)
    values = {
        id(tensors[name]) for name in tensors.keys() & state.keys()
    }  # a tied parameter counts as present under either name
    absent = [name for name, tensor in tensors.items() if name not in state and id(tensor) not in values]
    missing = [name for name in absent if not any(piece in name for piece in allow_missing)]
    unexpected = [n for n in state if n not in tensors and not any(piece in n for piece in allow_unexpected)]
    shapes = [
        f"{name}: expected {tuple(tensor.shape)}, got {tuple(state[name].shape)}"
        for name, tensor in tensors.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} parameters of the model are not in the checkpoint: {shorten(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} entries of the checkpoint are not in the model: {shorten(unexpected)}")
    if shapes:
        problems.append(f"{len(shapes)} shapes differ: {shorten(shapes)}")
    stranded = [name for name in absent if name not in missing and tensors[name].is_meta]
    if stranded:
        problems.append(f"{len(stranded)} absent parameters have no value yet (meta device): {shorten(stranded)}")
    if problems:
        raise UserError(
            f"loading a checkpoint of {len(state)} tensors into {type(module).__name__} of {len(tensors)}:\n  "
            + "\n  ".join(problems)
            + "\nDo the sizes in the config, and the family, fit the checkpoint?"
        )
    on_meta = any(tensor.is_meta for tensor in tensors.values())
    if on_meta:  # assigned as parameters: plain tensors would lose requires_grad and the ties
        names_of: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            names_of.setdefault(id(tensor), []).append(name)
        for names in names_of.values():
            first = next((name for name in names if name in state), None)
            if first is not None:
                value = nn.Parameter(state[first], tensors[first].requires_grad)
                state |= dict.fromkeys(names, value if isinstance(tensors[first], nn.Parameter) else state[first])
    module.load_state_dict({name: state[name] for name in tensors if name in state}, strict=False, assign=on_meta)
    for part in module.modules():
        if isinstance(part, RestoresBuffers):
            part.restore_buffers()
    for prefix, part in module.named_modules():
        if isinstance(part, AfterLoad):
            inside = f"{prefix}." if prefix else ""
            part.after_load([name.removeprefix(inside) for name in state if name.startswith(inside)])


def shorten(names: list[str]) -> str:
    """List the first `SHOWN` names and count the rest."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
