"""The pictures of pairs: one view per sample."""

from __future__ import annotations

from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.samples.batch import Batch


def views_of_pairs(batch: Batch, count: int) -> Tensor:
    """Return the normalised view of every sample, in the order of the samples: [N, 3, H, W].

    If all samples are lost, they share a blank view.

    Args:
        batch: batch of pairs.
        count: N.
    Raises:
        UserError: a sample has no picture, or several views.
    """
    views = batch.views
    blank = views is not None and len(views) == 1 and int(views.owners[0]) < 0
    if views is None or len(views.groups) != 1 or (len(views) != count and not blank):
        raise UserError(
            f"samples {list(batch.sample_ids)}: every pair needs one picture of one view, got "
            f"{batch.num_views} views for {count} samples"
        )
    pixels = views.normalised()[0]
    return pixels.expand(count, *pixels.shape[1:]) if blank else pixels[views.owners.argsort()]
