"""This module copies tensors between safetensors files in chunks of bytes, so no tensor is ever whole in memory.

It needs no torch. Source: the format description in the safetensors repository. A file has eight bytes with the length
of a JSON header, the header (name -> dtype, shape, [begin, end) counted from the end of the header), and the tensors
without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lit_mm.errors import UserError

CHUNK = 1 << 20  # most bytes in memory at once
DTYPES = {  # name in torch -> name in safetensors, bytes per element
    "float64": ("F64", 8),
    "int64": ("I64", 8),
    "float32": ("F32", 4),
    "int32": ("I32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}


@dataclass(frozen=True)
class Stored:
    """The dtype and shape of a tensor in a file.

    Attributes:
        dtype: name of the dtype in torch, such as "float32".
        shape: sizes of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPES[self.dtype][1]


def places(path: Path) -> dict[str, tuple[int, int]]:
    """Read the position of every tensor in a safetensors file: name -> [begin, end), bytes from the start of the file.

    Raises:
        UserError: the file is not a safetensors file, or its header is damaged.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
            spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
            start = 8 + length
            return {name: (start + int(begin), start + int(end)) for name, (begin, end) in spans.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{str(path)!r} is not a safetensors file, or a damaged one ({error})") from error


def run(path: Path, begin: int, end: int) -> Iterator[bytes]:
    """Yield bytes [begin, end) of a file in pieces of at most `CHUNK` bytes.

    Raises:
        UserError: the file ends before `end`.
    """
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end:
            chunk = file.read(min(CHUNK, end - begin))
            if not chunk:
                raise UserError(f"{str(path)!r} ends {end - begin} bytes too early: it is damaged")
            begin += len(chunk)
            yield chunk


def write(
    path: Path,
    tensors: Mapping[str, Stored],
    elements: Callable[[str], Iterable[bytes | memoryview]],
    metadata: Mapping[str, str],
) -> int:
    """Write a safetensors file tensor by tensor and return its size in bytes.

    The bytes go to `<path>.part`, which is renamed at the end. Dtypes with more bytes come first, so that every tensor
    is aligned.

    Args:
        path: the file to write.
        tensors: dtype and shape of every tensor, by name.
        elements: name -> bytes of the tensor, in pieces of any size. It is called once per tensor.
        metadata: texts for the header.
    Raises:
        UserError: the file cannot be written, or the number of bytes of a tensor does not match its dtype and shape.
            No file is left behind.
    """
    names = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype][1], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].bytes
        dtype, _ = DTYPES[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                size = sum(file.write(chunk) for chunk in elements(name))
                if size != tensors[name].bytes:
                    raise UserError(f"tensor {name!r} should have {tensors[name].bytes} bytes, got {size}")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be written ({error.strerror}). Free some disk space, or choose another folder"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return 8 + len(text) + end
