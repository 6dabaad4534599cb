"""A ring of features of earlier batches, and the rows of all ranks that enter it."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.errors import UserError

# K entries, C channels


class FeatureQueue(nn.Module):
    """The features of the last K pairs of image and text, as fp32 buffers that are the same on all ranks.

    New features overwrite the oldest and wrap at the end. Where the global batch divides K, this is the released queue,
    which refuses other sizes. It starts with random unit vectors.

    Args:
        size: K. Published: 57600.
        width: C.
    Attributes:
        image, text: [K, C] features.
        pointer: [1] place of the next entry.
    Raises:
        UserError: the size is below 1.
    Source: arXiv:1911.05722 (MoCo); models/blip_pretrain.py of github.com/salesforce/BLIP, `_dequeue_and_enqueue`.
    """

    image: Tensor
    text: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"FeatureQueue: `size` is at least 1, got {size}")
        self.register_buffer("image", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("text", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor) -> None:
        """Write the features [n, C] of new pairs, of which at most the last K remain."""
        size = len(self.image)
        start = self.pointer + max(len(image) - size, 0)
        places = (start + torch.arange(min(len(image), size), device=image.device)) % size
        for queue, features in ((self.image, image), (self.text, text)):
            queue[places] = features[-size:].to(queue)
        self.pointer.copy_((self.pointer + len(image)) % size)


@torch.no_grad()
def gathered_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows [n, ...] of all ranks, in their order; ranks may have different numbers of rows."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(number) for number in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    pieces = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])
