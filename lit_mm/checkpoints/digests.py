"""Digests of weights, which identify their exact bytes."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def digest(tensor: Tensor) -> str:
    """Compute the digest of a tensor's bytes, in about a second per gigabyte."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(flat.numpy(), digest_size=16).hexdigest()
