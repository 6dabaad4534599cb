"""The files of a published checkpoint, opened without reading their tensors."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.weights.convert import INDEXES, TORCH_SUFFIXES, WHOLE, read_checkpoint, weight_map, within
from lit_mm.weights.stream import DTYPES, Stored

NAMES = {code: name for name, (code, _) in DTYPES.items()}  # name of a dtype in safetensors -> in torch
LORA = ("adapter_model.safetensors", "adapter_model.bin")  # weights of peft
REST = "non_lora_trainables.bin"  # LLaVA's LoRA training writes the projector here
PROJECTORS = ("mm_projector.bin",)
STEPS = ("global_step*", "mp_rank_*", "latest")  # folders of DeepSpeed, SAT and Megatron


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of a file or folder by name. A tensor is read when it is looked up.

    Safetensors files and torch files in the zip format (torch 1.6 and later) are mapped, so a tensor costs its memory
    only while it is in use. An older torch file is loaded whole when one of its tensors is read.

    Args:
        files: files of tensors. Later files may not repeat the names of earlier ones.
    Attributes:
        files: the same files.
        stored: dtype and shape of every tensor, by name.
        legacy: files of the old torch format.
    Raises:
        UserError: a file cannot be read, or two files hold the same name.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.stored: dict[str, Stored] = {}
        self.legacy: list[Path] = []
        self._file_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for path in files:
            tensors = self._opened(path)
            if twice := tensors.keys() & self.stored.keys():
                raise UserError(f"{str(path)!r} repeats tensors of another file of its checkpoint: {min(twice)!r}")
            self.stored |= tensors
            self._file_of |= dict.fromkeys(tensors, path)

    def _opened(self, path: Path) -> dict[str, Stored]:
        """Open one file and return dtype and shape of its tensors."""
        try:
            if path.suffix == ".safetensors":
                handle = self._open[path] = safe_open(path, framework="pt")
                slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
                return {name: Stored(NAMES[s.get_dtype()], tuple(s.get_shape())) for name, s in slices.items()}
            if zipfile.is_zipfile(path):
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                self._open[path] = state = within(state)
            else:
                self.legacy.append(path)
                state = torch.load(path, map_location="meta", weights_only=True)
                state = within(state)
            return {
                name: Stored(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
                for name, tensor in state.items()
            }
        except (SafetensorError, RuntimeError, EOFError, OSError, AttributeError, KeyError) as error:
            raise UserError(f"checkpoint {str(path)!r} cannot be read ({error}). Is the download complete?") from error
        except pickle.UnpicklingError as error:
            raise UserError(
                f"checkpoint {str(path)!r} holds more than tensors; it is not loaded, because it could run code: "
                f"{error}"
            ) from error

    def __getitem__(self, name: str) -> Tensor:
        path = self._file_of[name]
        if path.suffix == ".safetensors":
            return self._open[path].get_tensor(name)
        if path in self.legacy and path not in self._open:
            for other in self.legacy:  # one old file in memory at a time
                self._open.pop(other, None)
            self._open[path] = read_checkpoint(path)
        return self._open[path][name]

    def __iter__(self) -> Any:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def tensor_files(place: Path) -> list[Path]:
    """List the files of tensors of a checkpoint: a file itself, or those of a folder, with LoRA and projector files.

    Raises:
        UserError: there is no such place, it holds no weights, or a shard is missing.
    """
    if place.is_file():
        if place.suffix not in (".safetensors", *TORCH_SUFFIXES):
            raise UserError(
                f"{str(place)!r} is no file of weights; they end in .safetensors, {', '.join(TORCH_SUFFIXES)}"
            )
        return [place]
    if not place.is_dir():
        raise UserError(f"{str(place)!r}: no such file or folder, and no published name OWNER/NAME")
    if index := next((place / name for name in INDEXES if (place / name).is_file()), None):
        shards = sorted(set(weight_map(index).values()))
        if missing := [name for name in shards if not (place / name).is_file()]:
            raise UserError(f"{str(place)!r}: {index.name} names shards that are not there: {missing}")
        return [place / name for name in shards]
    lora = [place / name for name in LORA if (place / name).is_file()][:1]
    if lora:
        return [*lora, *(path for path in [place / REST] if path.is_file())]
    for names in (WHOLE, PROJECTORS):
        if whole := [place / name for name in names if (place / name).is_file()]:
            return whole[:1]
    files = sorted(place.glob("*.safetensors")) or sorted(p for p in place.iterdir() if p.suffix in TORCH_SUFFIXES)
    if files:
        return files
    steps = [path.name for pattern in STEPS for path in place.glob(pattern)]
    if steps:
        raise UserError(
            f"{str(place)!r} holds {steps[0]!r}, shards of DeepSpeed or SwissArmyTransformer. Join them first with the "
            "tool of their program, and import the file that it writes"
        )
    raise UserError(f"{str(place)!r} holds no weights; it has {sorted(path.name for path in place.iterdir())[:8]}")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file beside a checkpoint; {} if it is not there.

    Raises:
        UserError: the file is damaged.
    """
    path = (folder if folder.is_dir() else folder.parent) / name
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{str(path)!r} is damaged ({error}). Is the download complete?") from error
