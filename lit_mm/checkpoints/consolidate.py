"""Consolidation of a checkpoint, written by any strategy and number of ranks, into one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_mm.checkpoints.manifest import Manifest, damage
from lit_mm.errors import UserError
from lit_mm.weights.stream import DTYPES, Stored, places, run, write

Elements = Callable[[str], Iterable[bytes | memoryview]]


def consolidate(
    manifest: Manifest, path: Path, frozen: Mapping[str, Stored] | None = None, frozen_elements: Elements | None = None
) -> dict[str, Any]:
    """Write all weights of a checkpoint to one file, under their names in `state_dict`.

    Pieces are copied from file to file, so that no more than a few megabytes of stored tensors are in memory at a time.

    Args:
        manifest: checkpoint to read.
        path: path of the new file.
        frozen: name -> tensor that the checkpoint does not store and the new file shall hold too; None leaves such
            tensors out.
        frozen_elements: function from the name of a tensor in `frozen` to its bytes.
    Returns:
        "path", "tensors" (their number), "bytes", and "left_out": part that is not in the file -> its origin.
    Raises:
        UserError: the checkpoint is damaged, or the file cannot be written.
    """
    if problems := damage(manifest, verify=True, kinds=("weights",)):
        raise UserError(f"{str(manifest.path)!r} is damaged: {'; '.join(problems[:3])}")
    content = manifest.content
    stored = {name: Stored(entry["dtype"], tuple(entry["shape"])) for name, entry in content["weights"].items()}
    if unknown := {tensor.dtype for tensor in stored.values()} - DTYPES.keys():
        raise UserError(f"{str(manifest.path)!r} holds {sorted(unknown)}, which safetensors files do not have")
    index = {file: places(manifest.path / file) for file in manifest.files("weights")}
    left_out = {part: entry["origin"] for part, entry in content["frozen"].items()} if frozen is None else {}

    def elements(name: str) -> Iterable[bytes | memoryview]:
        if name in stored:
            return pieces_of(manifest, content["weights"][name], index)
        return frozen_elements(name)

    tensors = stored | dict(frozen or {})
    metadata = {
        "format": "pt",  # Hugging Face's readers need this key
        "family": content["family"],
        "stage": content["stage"],
        "step": str(content["step"]),
        "config": (manifest.path / "config.yaml").read_text(),
        "left_out": json.dumps(left_out),
    }
    size = write(path, tensors, elements, metadata)
    return {"path": str(path), "tensors": len(tensors), "bytes": size, "left_out": left_out}


def pieces_of(
    manifest: Manifest, entry: Mapping[str, Any], index: Mapping[str, Mapping[str, tuple[int, int]]]
) -> Iterator[bytes]:
    """Yield the bytes of a tensor from its pieces, in order. Elements that two ranks have written are read once.

    Args:
        manifest: checkpoint to read.
        entry: entry of the tensor in the manifest.
        index: file -> key -> (begin, end) of the tensor's bytes in the file.
    Raises:
        UserError: a piece has another length than its entry.
    """
    _, width = DTYPES[entry["dtype"]]
    position = 0
    for file, key, start, count in sorted(entry["pieces"], key=lambda piece: piece[2]):
        begin, end = index[file][key]
        if end - begin != count * width:
            raise UserError(f"{str(manifest.path / file)!r} is damaged: {key!r} has {end - begin} bytes")
        if start + count > position:
            yield from run(manifest.path / file, begin + (position - start) * width, end)
            position = start + count
