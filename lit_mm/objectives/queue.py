"""A ring of features of earlier batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.weights.blip import NO_IMAGE

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
        images: [K] number of the image of every pair, -100 if it has none.
        pointer: [1] place of the next entry.
    Raises:
        UserError: the size is below 1.
    Source: arXiv:1911.05722 (MoCo); models/blip_pretrain.py of github.com/salesforce/BLIP, `_dequeue_and_enqueue`.
    """

    image: Tensor
    text: Tensor
    images: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"FeatureQueue: `size` is at least 1, got {size}")
        self.register_buffer("image", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("text", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("images", torch.full((size,), NO_IMAGE))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, images: Tensor | None = None) -> None:
        """Write the features [n, C] of new pairs, of which at most the last K remain.

        Args:
            image, text: features.
            images: [n] number of the image of every pair; None if they have none.
        """
        size = len(self.image)
        start = self.pointer + max(len(image) - size, 0)
        places = (start + torch.arange(min(len(image), size), device=image.device)) % size
        images = self.images.new_full((len(image),), NO_IMAGE) if images is None else images
        for queue, entries in ((self.image, image), (self.text, text), (self.images, images)):
            queue[places] = entries[-size:].to(queue)
        self.pointer.copy_((self.pointer + len(image)) % size)
