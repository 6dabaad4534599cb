"""The files of a published checkpoint, opened without reading their tensors."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_mm.errors import UserError, first_line
from lit_mm.weights.config_file import check_pointer, read_object
from lit_mm.weights.convert import (
    INDEXES,
    TORCH_SUFFIXES,
    read_checkpoint,
    shorten,
    weight_files,
    weight_map,
    within,
)
from lit_mm.weights.stream import DTYPES, Stored

NAMES = {code: name for name, (code, _) in DTYPES.items()}  # name of a dtype in safetensors -> in torch
LORA = ("adapter_model.safetensors", "adapter_model.bin")  # weights of peft
REST = "non_lora_trainables.bin"  # LLaVA's LoRA training writes the projector here
PROJECTORS = ("mm_projector.bin",)
PART_FOLDERS = ("llm", "mm_projector", "vision_tower")  # folders of a checkpoint that is published part by part
STEPS = ("global_step*", "mp_rank_*", "zero_pp_rank_*", "latest")  # files of DeepSpeed, SAT and Megatron
SHARDED = ("*.distcp", "*_fsdp_*", "*/*.distcp")  # files of torch.distributed.checkpoint, which FSDP writes
# Files of a Trainer beside weights
STATES = re.compile(r"(?:training_args|optimizer|scheduler|scaler|rng_state|random_states)(?:_\d+)?\..*")
OTHERS = {
    ".gguf": "llama.cpp",
    ".ggml": "llama.cpp",
    ".onnx": "ONNX",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".tflite": "TensorFlow Lite",
    ".npz": "NumPy",
}  # ending of a file of weights -> program whose format it has
QUANTISED = (".qweight", ".qzeros", ".SCB", ".absmax", ".quant_map", ".weight_scale", ".weight_packed")
UNMERGED = ".base_layer."  # part of the names of linears that peft has wrapped


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of a file or folder by name. A tensor is read when it is looked up.

    Safetensors files and torch files in the zip format (torch 1.6 and later) are mapped, so a tensor costs its memory
    only while it is in use. An older torch file is loaded whole when one of its tensors is read.

    Args:
        files: files of tensors. Later files may not repeat the names of earlier ones.
        folder: folder of the checkpoint. Tensors of files in a folder inside have its name and a slash in front, such
            as "llm/lm_head.weight". None: no tensor has.
    Attributes:
        files: the same files.
        stored: dtype and shape of every tensor, by name.
        legacy: files of the old torch format.
    Raises:
        UserError: a file cannot be read, or two files hold the same name.
    """

    def __init__(self, files: list[Path], folder: Path | None = None) -> None:
        self.files = files
        self.stored: dict[str, Stored] = {}
        self.legacy: list[Path] = []
        self._place_of: dict[str, tuple[Path, str]] = {}
        self._open: dict[Path, Any] = {}
        for path in files:
            inner = "" if folder is None or path.parent == folder else f"{path.parent.relative_to(folder).as_posix()}/"
            opened = self._opened(path)
            tensors = {f"{inner}{name}": stored for name, stored in opened.items()}
            if twice := tensors.keys() & self.stored.keys():
                raise UserError(f"{str(path)!r} repeats tensors of another file of its checkpoint: {min(twice)!r}")
            self.stored |= tensors
            self._place_of |= {f"{inner}{name}": (path, name) for name in opened}

    def _opened(self, path: Path) -> dict[str, Stored]:
        """Open one file and return dtype and shape of its tensors."""
        try:
            check_pointer(path)
            if path.suffix == ".safetensors":
                handle = self._open[path] = safe_open(path, framework="pt")
                slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
                dtypes = {name: NAMES.get(entry.get_dtype(), entry.get_dtype()) for name, entry in slices.items()}
                return {name: stored(path, name, dtypes[name], tuple(s.get_shape())) for name, s in slices.items()}
            if zipfile.is_zipfile(path):
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            else:
                state = torch.load(path, map_location="meta", weights_only=True)
                self.legacy.append(path)
        except (SafetensorError, RuntimeError, EOFError, OSError, KeyError, UnicodeDecodeError) as error:
            raise UserError(
                f"checkpoint {str(path)!r} cannot be read ({first_line(error)}). Is the download complete?"
            ) from error
        except pickle.UnpicklingError as error:
            reasons = [line for line in str(error).splitlines() if line.startswith(("Trying", "Unsupported"))]
            raise UserError(
                f"checkpoint {str(path)!r} contains more than tensors. It is not loaded, because it could run "
                f"code ({reasons[0] if reasons else 'damaged, or of another program'})"
            ) from error
        state = within(state) if isinstance(state, dict) else state
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            keys = sorted(map(str, state)) if isinstance(state, dict) else [type(state).__name__]
            cure = " That is a shard of DeepSpeed or SwissArmyTransformer; join them first" if "module" in keys else ""
            raise UserError(f"checkpoint {str(path)!r} should map names to tensors; it holds {shorten(keys)}.{cure}")
        if path not in self.legacy:
            self._open[path] = state
        return {
            name: stored(path, name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in state.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        path, name = self._place_of[name]
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


def stored(path: Path, name: str, dtype: str, shape: tuple[int, ...]) -> Stored:
    """Describe a tensor of a file.

    Raises:
        UserError: its dtype is none that a model of this program has.
    """
    if dtype not in DTYPES:
        raise UserError(
            f"checkpoint {str(path)!r}: {name!r} has the dtype {dtype}. Quantised weights are not supported. "
            "Use the original checkpoint in float16, bfloat16 or float32"
        )
    return Stored(dtype, shape)


def check_quantised(place: str | Path, config: Mapping[str, Any], names: Collection[str] = ()) -> None:
    """Refuse a quantised checkpoint.

    Args:
        config: its config.json.
        names: names of its tensors, as far as they are known.
    Raises:
        UserError: it is quantised.
    """
    sections = (config, *(config.get(key) for key in ("text_config", "llm_cfg")))
    tables = [section for section in sections if isinstance(section, dict)]
    quantised = next((section for table in tables if (section := table.get("quantization_config"))), None)
    if quantised or any(name.endswith(QUANTISED) for name in names):
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise UserError(
            f"{str(place)!r} is quantised{f' by {method}' if method else ''}, and only weights in float16, bfloat16 or "
            "float32 are imported. Take the checkpoint that it was made from"
        )


def check_names(place: Path, config: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse a checkpoint that is quantised, has adapters beside its weights, or is incomplete by its index.

    Args:
        config: its config.json.
        names: names of its tensors.
    Raises:
        UserError: it is one of these.
    """
    check_quantised(place, config, names)
    if unmerged := next((name for name in names if UNMERGED in name), None):
        raise UserError(
            f"{str(place)!r} has adapters beside its weights, such as those of {unmerged!r}. Merge them first, by "
            "merge_and_unload() of peft"
        )
    for folder in part_folders(place) or [place]:
        inner = "" if folder == place else f"{folder.name}/"
        head = weights[0] if folder.is_dir() and (weights := weight_files(folder)) else folder
        listed = [f"{inner}{name}" for name in weight_map(head)] if head.name in INDEXES else []
        if absent := sorted(set(listed) - set(names)):
            raise UserError(
                f"{str(folder)!r}: {head.name} lists tensors that no shard holds: {shorten(absent)}. Is the download "
                "complete?"
            )


def check_shard(file: Path) -> None:
    """Refuse a file that is one of several shards of a checkpoint.

    Raises:
        UserError: an index beside the file lists it with others.
    """
    for index in (file.with_name(name) for name in INDEXES):
        shards = set(weight_map(index).values()) if index.is_file() else set()
        if file.name in shards and len(shards) > 1:
            raise UserError(f"{str(file)!r} is one of {len(shards)} shards. Give the folder, {str(file.parent)!r}")


def part_folders(place: Path) -> list[Path]:
    """List the folders of `PART_FOLDERS` of a checkpoint without weights beside them; [] for other places."""
    if not place.is_dir() or weight_files(place) is not None:
        return []
    return [folder for name in PART_FOLDERS if (folder := place / name).is_dir()]


def tensor_files(place: Path) -> list[Path]:
    """List the files of tensors of a checkpoint: a file itself, or those of a folder, with LoRA and projector files.

    Raises:
        UserError: there is no such place, it holds no weights, or a shard is missing.
    """
    if place.is_file():
        if place.suffix not in (".safetensors", *TORCH_SUFFIXES):
            cure = ". Give its folder" if place.suffix == ".json" else other_format(place)
            raise UserError(
                f"{str(place)!r} is no file of weights; they end in .safetensors, {', '.join(TORCH_SUFFIXES)}{cure}"
            )
        check_shard(place)
        return [place]
    if not place.is_dir():
        raise UserError(f"{str(place)!r}: no such file or folder, and no published name OWNER/NAME")
    if (place / "manifest.json").is_file() or (place / "published.json").is_file():
        raise UserError(
            f"{str(place)!r} is a checkpoint or run of this program and needs no import. Use it with "
            "generate, evaluate or fit --init_from"
        )
    whole = weight_files(place)
    lora = [place / name for name in LORA if (place / name).is_file()][:1]
    if lora and (whole is None or whole[0].name not in INDEXES):
        return [*lora, *(path for path in [place / REST] if path.is_file())]
    if whole is not None:
        return whole[1]
    if projectors := [place / name for name in PROJECTORS if (place / name).is_file()]:
        return projectors
    if folders := part_folders(place):
        return [file for folder in folders for file in tensor_files(folder)]
    weights = [path for path in place.iterdir() if path.is_file() and not STATES.fullmatch(path.name)]
    files = sorted(place.glob("*.safetensors")) or sorted(path for path in weights if path.suffix in TORCH_SUFFIXES)
    steps = [path.name for pattern in STEPS for path in place.glob(pattern)]
    shards = [str(path.relative_to(place)) for pattern in SHARDED for path in place.glob(pattern)]
    if files and not steps and not shards:
        return files
    if shards:
        raise UserError(
            f"{str(place)!r} holds {shards[0]!r}, shards of FSDP. Join them first with accelerate merge-weights or "
            "torch.distributed.checkpoint.format_utils, and import the file that it writes"
        )
    if steps:
        raise UserError(
            f"{str(place)!r} holds {steps[0]!r}, shards of DeepSpeed or SwissArmyTransformer. Join them first with the "
            "tool of their program, and import the file that it writes"
        )
    names = sorted(path.name for path in place.iterdir())
    inner = [path for path in sorted(place.iterdir()) if path.is_dir() and (path / "config.json").is_file()]
    cure = f". Give its folder {inner[-1].name!r}" if inner else ""
    cure = next((text for path in place.iterdir() if (text := other_format(path))), cure)
    raise UserError(f"{str(place)!r} holds no weights; it has {names[:8]}{cure}")


def other_format(path: Path) -> str:
    """Return a sentence that names the program whose format a file of weights has; "" for a file of another kind."""
    program = OTHERS.get(path.suffix)
    return (
        "" if program is None else f". {path.name!r} is a file of {program}; take the files that it was converted from"
    )


def image_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of the image processor of a folder, see `lit_mm.weights.layouts.layout.Described`."""
    processor = read_json(folder, "preprocessor_config.json")
    if not processor:
        section = read_json(folder, "processor_config.json").get("image_processor")
        processor = section if isinstance(section, dict) else {}
    return {key: value for key, value in processor.items() if value is not None}


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file beside a checkpoint; {} if it is not there.

    Raises:
        UserError: the file is damaged.
    """
    path = (folder if folder.is_dir() else folder.parent) / name
    if not path.is_file():
        return {}
    return read_object(path)
