"""The matching objective of BLIP's retrieval model, with negatives of all ranks that show other images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.language.med import Padded
from lit_mm.objectives.gather import gathered_rows, gathered_texts, gathered_with_gradient, row_counts
from lit_mm.objectives.image_text import Encoded, ImageTextModel
from lit_mm.objectives.objective import split
from lit_mm.objectives.pairs import draw_negatives, in_batch_logits, matching_sum
from lit_mm.samples.batch import PAIRS, Batch

# N pairs of this rank, A pairs of all ranks, L text positions, P image features of width D, C channels of a comparison


@dataclass(frozen=True)
class Candidates:
    """Pairs from which negatives are drawn.

    Attributes:
        ids, visible: [A, L] texts.
        features: [A, P, D] image features.
        image, text: [A, C] unit vectors.
        images: [A] number of the image of every pair.
        valid: [A] False at lost pairs.
    """

    ids: Tensor
    visible: Tensor
    features: Tensor
    image: Tensor
    text: Tensor
    images: Tensor
    valid: Tensor


class RetrievalMatching:
    """Tells pairs from mismatches (ITM) in fine-tuning for retrieval: the mean over a pair and two hard negatives.

    Negatives come from the pairs of all ranks, in proportion to the softmax of their similarities. A pair of the same
    image is no negative if the batch numbers its images. Image features are gathered with gradient. The draw is seeded
    by run, stage, micro-batch and rank.

    Args:
        all_ranks: False draws from the pairs of the rank alone. Published: True for COCO, False for Flickr30K.
    Source: models/blip_retrieval.py of github.com/salesforce/BLIP, `negative_all_rank`.
    """

    unit = PAIRS
    parts = frozenset({"vision", "text", "encoder", "contrast", "matching"})
    compares = True

    def __init__(self, all_ranks: bool = True) -> None:
        self.all_ranks = all_ranks

    def depends_on(self, model: ImageTextModel, pairs: int, ranks: int) -> str:
        """See `Comparing.depends_on`."""
        source = "pairs of all ranks" if self.all_ranks else f"{pairs:,} pairs of the rank"
        return f"draws negatives from the {source}: {split(pairs, ranks)}"

    def __call__(self, model: ImageTextModel, batch: Batch) -> Tensor:
        """Return the sum over the pairs of the batch.

        Raises:
            UserError: there is one pair, which has no negative.
        """
        encoded = model.encode(batch)
        candidates, images = self.candidates(encoded, batch.images)
        if len(candidates.valid) < 2:
            raise UserError(
                f"samples {list(batch.sample_ids)}: matching needs negatives from at least 2 pairs per step, got "
                f"{len(candidates.valid)}. Raise `global_batch`"
            )
        of_texts, of_images = (
            draw_negatives(weights) for weights in retrieval_weights(model, encoded, candidates, images)
        )
        return candidate_loss(model, encoded, candidates, of_texts, of_images)

    def candidates(self, encoded: Encoded, images: Tensor | None) -> tuple[Candidates, Tensor]:
        """Return the candidates, and the numbers [N] of the images of the pairs; without numbers all images differ."""
        count, device = len(encoded.valid), encoded.valid.device
        if images is None:
            rank = dist.get_rank() if dist.is_initialized() else 0
            images = (rank << 32) + torch.arange(count, device=device)
        ids, visible = encoded.texts
        if not self.all_ranks:
            local = (ids, visible, encoded.features, encoded.image, encoded.text, images, encoded.valid)
            return Candidates(*local), images
        _, _, all_ids, all_visible = gathered_texts(ids, visible)
        features = gathered_with_gradient(encoded.features, row_counts(encoded.valid))
        rest = (gathered_rows(rows.detach()) for rows in (encoded.image, encoded.text, images, encoded.valid))
        return Candidates(all_ids, all_visible, features, *rest), images


@torch.no_grad()
def retrieval_weights(
    model: ImageTextModel, encoded: Encoded, candidates: Candidates, images: Tensor
) -> tuple[Tensor, Tensor]:
    """[N, A] weights of the negative images of every text and of the negative texts of every image.

    They are the softmax of the similarities, 0 at lost pairs and at pairs of the same image. A pair without a negative
    gets any pair of another image or, in a batch of one image, any pair.
    """
    same = images[:, None] == candidates.images
    weights = []
    for anchors, features in ((encoded.text, candidates.image), (encoded.image, candidates.text)):
        logits = in_batch_logits(anchors, features, features[:0], model.contrast.temperature, candidates.valid)
        of_kind = logits.softmax(dim=1).nan_to_num().masked_fill(same, 0)
        for others in ((~same).float(), torch.ones_like(of_kind)):
            of_kind = torch.where(of_kind.sum(dim=1, keepdim=True) == 0, others, of_kind)
        weights.append(of_kind)
    return weights[0], weights[1]


def candidate_loss(
    model: ImageTextModel, encoded: Encoded, candidates: Candidates, images: Tensor, texts: Tensor
) -> Tensor:
    """Sum the matching loss over pairs with negatives among candidates; see `matching_loss`.

    Args:
        model: model that matches.
        encoded: the pairs.
        candidates: pairs of the negatives.
        images: [N] number of the candidate whose image is the negative of each text.
        texts: [N] number of the candidate whose text is the negative of each image.
    """
    (ids, visible), features = encoded.texts, encoded.features
    wider = (0, candidates.ids.shape[1] - ids.shape[1])
    ids, visible = F.pad(ids, wider), F.pad(visible, wider)
    joined = Padded(
        torch.cat([ids, ids, candidates.ids[texts]]), torch.cat([visible, visible, candidates.visible[texts]])
    )
    logits = model.match(joined, torch.cat([features, candidates.features[images], features]))
    return matching_sum(logits, encoded.valid)
