"""Digests of weights and files: short names for exact bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

CHUNK = 1 << 24  # bytes read at once


def digest(tensor: Tensor) -> str:
    """Digest of a tensor's bytes. About a second per gigabyte."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(flat.numpy(), digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """Digest of a file's bytes."""
    hashed = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()
