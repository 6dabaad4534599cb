"""The objectives of BLIP: contrast with momentum features, matching with hard negatives, captioning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.layers.autocast import without_autocast
from lit_mm.objectives.gather import gathered_rows
from lit_mm.objectives.image_text import Encoded, ImageTextModel
from lit_mm.objectives.objective import split
from lit_mm.samples.batch import PAIRS, Batch

EPSILON = 1e-4  # added to the weight of every negative, as in BLIP

# N pairs of this rank, K entries of the queue


def in_batch_logits(anchors: Tensor, candidates: Tensor, queue: Tensor, temperature: Tensor, valid: Tensor) -> Tensor:
    """[N, N + K] similarities of anchors with the candidates of the batch, then of the queue; lost pairs get -inf."""
    with without_autocast(anchors):  # differences of similarities are small
        logits = anchors @ torch.cat([candidates, queue]).T / temperature
    lost = torch.cat([~valid, valid.new_zeros(len(queue))])
    return logits.masked_fill(lost, -torch.inf)


def soft_targets(momentum_logits: Tensor, alpha: float, positives: Tensor) -> Tensor:
    """[N, N + K]: alpha x softmax of the momentum logits + (1 - alpha) x the positives."""
    return alpha * momentum_logits.softmax(dim=1) + (1 - alpha) * positives


def positives_of(count: int, queue_images: Tensor, images: Tensor | None) -> Tensor:
    """[N, N + K] probabilities of the right candidates of every pair: equal ones over the pairs of its image.

    Args:
        count: N.
        queue_images: [K] number of the image of every entry of the queue.
        images: [N] number of the image of every pair; None: the pair itself is the only right one.
    """
    if images is None:
        return torch.eye(count, count + len(queue_images), device=queue_images.device)
    same = (images[:, None] == torch.cat([images, queue_images])).float()
    return same / same.sum(dim=1, keepdim=True)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """[N] cross-entropy of rows with target probabilities; a logit of -inf with target 0 counts as 0."""
    return -(logits.log_softmax(dim=1).masked_fill(targets == 0, 0) * targets).sum(dim=1)


class MomentumContrast:
    """Contrasts images with texts (ITC): the mean over both directions, summed over pairs.

    The candidates of a pair are the momentum features of the pairs *on its rank* and the queue, which holds the earlier
    pairs of all ranks. So the loss depends on how many pairs share a forward. The authors have 75 pairs on each of 8
    GPUs. The labels are soft: a share `alpha` is the distribution that the momentum features give. The rest belongs to
    the pair itself or, if the batch numbers its images, as in fine-tuning for retrieval, to all pairs of its image.
    After the loss, the momentum features of all ranks enter the queue.

    Args:
        alpha: final share of the momentum distribution in the labels.
        ramp: share of the stage's steps over which alpha rises linearly from 0. BLIP: 2 of 20 epochs in pre-training, 1
            of 6 in fine-tuning.
    Raises:
        UserError: alpha or ramp is outside [0, 1].
    Attributes:
        step, total_steps: step of the stage, from 0, and steps of the stage; the module sets them.
    Source: arXiv:2201.12086, section 3.2; models/blip_pretrain.py and blip_retrieval.py of github.com/salesforce/BLIP.
    """

    unit = PAIRS
    parts = frozenset({"vision", "text", "encoder", "contrast"})
    compares = True

    def __init__(self, alpha: float = 0.4, ramp: float = 0.1) -> None:
        if not (0 <= alpha <= 1 and 0 <= ramp <= 1):
            raise UserError(f"MomentumContrast: `alpha` and `ramp` are between 0 and 1, got {alpha} and {ramp}")
        self.alpha, self.ramp = alpha, ramp
        self.step, self.total_steps = 0, 1

    def current_alpha(self) -> float:
        """Return the share of the momentum distribution. Example: alpha 0.4, ramp 0.1, step 5 of 100 -> 0.2."""
        rise = self.ramp * self.total_steps
        return self.alpha * (min(1.0, self.step / rise) if rise else 1.0)

    def depends_on(self, model: ImageTextModel, pairs: int, ranks: int) -> str:
        """See `Comparing.depends_on`."""
        queue = f"{len(model.queue.image):,} earlier ones"
        return f"compares each pair with the {pairs:,} pairs of its rank and {queue}: {split(pairs, ranks)}"

    def __call__(self, model: ImageTextModel, batch: Batch) -> Tensor:
        """Return the sum over the pairs of the batch, and write the queue while the model trains."""
        encoded, targets = model.encode(batch), model.targets(batch)
        loss = torch.zeros((), device=encoded.image.device)
        positives = positives_of(len(encoded.valid), model.queue.images, batch.images)
        for anchors, followers, candidates, queue in (
            (encoded.image, targets.image, targets.text, model.queue.text),
            (encoded.text, targets.text, targets.image, model.queue.image),
        ):
            logits = in_batch_logits(anchors, candidates, queue, model.contrast.temperature, encoded.valid)
            with torch.no_grad():
                momentum = in_batch_logits(followers, candidates, queue, model.contrast.temperature, encoded.valid)
                labels = soft_targets(momentum, self.current_alpha(), positives)
            loss = loss + (cross_entropy(logits, labels)[encoded.valid]).sum() / 2
        if model.training:
            entries = [targets.image, targets.text, *([] if batch.images is None else [batch.images])]
            model.queue.push(*(gathered_rows(rows[encoded.valid]) for rows in entries))
        return loss


class Matching:
    """Tells pairs from mismatches (ITM): the mean over a pair, a hard negative image and a hard negative text.

    Negatives come from the pairs *on the same rank*, drawn in proportion to the softmax of the contrast, so the loss
    depends on how many pairs share a forward. The draw is seeded by run, stage, micro-batch and rank.

    Source: arXiv:2201.12086, section 3.2; models/blip_pretrain.py of github.com/salesforce/BLIP.
    """

    unit = PAIRS
    parts = frozenset({"vision", "text", "encoder", "contrast", "matching"})
    compares = True

    def depends_on(self, model: ImageTextModel, pairs: int, ranks: int) -> str:
        """See `Comparing.depends_on`."""
        return f"draws negatives from the {pairs:,} pairs of the rank: {split(pairs, ranks)}"

    def __call__(self, model: ImageTextModel, batch: Batch) -> Tensor:
        """Return the sum over the pairs of the batch.

        Raises:
            UserError: there is one pair, which has no negative.
        """
        encoded = model.encode(batch)
        images, texts = (draw_negatives(weights) for weights in self.weights(model, batch))
        return matching_loss(model, encoded, images, texts)

    @torch.no_grad()
    def weights(self, model: ImageTextModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """[N, N] weights of the negative images of every text and of the negative texts of every image.

        Raises:
            UserError: there is one pair, which has no negative.
        """
        encoded, targets = model.encode(batch), model.targets(batch)
        count = len(encoded.valid)
        if count < 2:
            raise UserError(
                f"samples {list(batch.sample_ids)}: matching needs negatives from at least 2 pairs per rank and "
                f"forward, got {count}. Raise `global_batch` or `micro_batch`"
            )
        empty = targets.image[:0]
        temperature = model.contrast.temperature
        logits = [
            in_batch_logits(anchors, candidates, empty, temperature, encoded.valid)
            for anchors, candidates in ((encoded.text, targets.image), (encoded.image, targets.text))
        ]
        images, texts = (negative_weights(of_kind, encoded.valid) for of_kind in logits)
        return images, texts


def negative_weights(logits: Tensor, valid: Tensor) -> Tensor:
    """[N, N] logits -> weights of the negatives of every row: softmax + 1e-4, 0 for the pair itself and lost pairs."""
    weights = (logits.softmax(dim=1).nan_to_num() + EPSILON) * valid
    itself = torch.eye(len(weights), dtype=torch.bool, device=weights.device)
    weights = weights.masked_fill(itself, 0)
    alone = weights.sum(dim=1, keepdim=True) == 0  # all others are lost: any goes, since a lost pair does not count
    return torch.where(alone, (~itself).float(), weights)


def draw_negatives(weights: Tensor) -> Tensor:
    """[N, N] weights -> [N] number of the negative of every row."""
    return torch.multinomial(weights, 1)[:, 0]


def matching_loss(model: ImageTextModel, encoded: Encoded, images: Tensor, texts: Tensor) -> Tensor:
    """Sum the matching loss over pairs.

    Args:
        model: model that matches.
        encoded: the pairs.
        images: [N] number of the negative image of every text.
        texts: [N] number of the negative text of every image.
    """
    return matching_sum(matching_logits(model, encoded, images, texts), encoded.valid)


def matching_sum(logits: Tensor, valid: Tensor) -> Tensor:
    """Sum the losses of pairs [N], negative images [N] and negative texts [N] with logits [3 N, 2], divided by 3."""
    labels = torch.arange(len(logits), device=logits.device) < len(valid)
    losses = F.cross_entropy(logits, labels.long(), reduction="none")
    return (losses * valid.repeat(3)).sum() / 3


def matching_logits(model: ImageTextModel, encoded: Encoded, images: Tensor, texts: Tensor) -> Tensor:
    """[3 N, 2] logits of the pairs, of own texts with negative images, and of negative texts with own images."""
    features, (ids, visible) = encoded.features, encoded.texts
    pairs = type(encoded.texts)(torch.cat([ids, ids, ids[texts]]), torch.cat([visible, visible, visible[texts]]))
    return model.match(pairs, torch.cat([features, features[images], features]))
