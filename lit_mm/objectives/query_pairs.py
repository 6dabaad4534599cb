"""The three objectives of BLIP-2's first stage: contrast, matching and captioning by a Q-Former."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.errors import UserError
from lit_mm.language.med import Padded
from lit_mm.model import MultimodalModel
from lit_mm.objectives.gather import gathered_rows, gathered_texts, gathered_with_gradient, row_counts
from lit_mm.objectives.objective import split
from lit_mm.objectives.views import views_of_pairs
from lit_mm.samples.batch import PAIRS, Batch, Texts

READ = frozenset({"vision", "connector", "text_branch"})
FAR = -10000.0  # similarity of a pair that must not be drawn as a negative

# n pairs of this rank, A pairs of all ranks, Q queries, C channels, L text positions


@dataclass(frozen=True)
class Pairs:
    """Images and texts of a micro-batch, and features of all ranks.

    Attributes:
        features: [n, N, D] normed image features, with gradient.
        texts: [n, L] second texts.
        image: [n, Q, C] unit vectors of the queries.
        text: [n, C] unit vectors of the texts.
        all_image, all_text: [A, Q, C] and [A, C] of all ranks, without gradient.
        counts: number of pairs on every rank.
        first: number of this rank's first pair among all.
        valid: [n] False at lost pairs.
        all_valid: [A] False at lost pairs.
    """

    features: Tensor
    texts: Texts
    image: Tensor
    text: Tensor
    all_image: Tensor
    all_text: Tensor
    counts: list[int]
    first: int
    valid: Tensor
    all_valid: Tensor


def encode_pairs(connector: PairedQFormer, features: Tensor, texts: Texts, valid: Tensor | None = None) -> Pairs:
    """Encode images and texts apart, and gather the features of all ranks.

    Args:
        connector: Q-Former with its heads.
        features: [n, N, D] features of the vision encoder, one view per pair.
        texts: [n, L] texts.
        valid: [n] False at lost pairs; None: no pair is lost.
    """
    valid = torch.ones(len(features), dtype=torch.bool, device=features.device) if valid is None else valid
    features = connector.norm(features)
    image, text = connector.encode_image(features), connector.encode_text(texts)
    counts = row_counts(image)
    rank = torch.distributed.get_rank() if len(counts) > 1 else 0
    return Pairs(
        features,
        texts,
        image,
        text,
        gathered_rows(image.detach()),
        gathered_rows(text.detach()),
        counts,
        sum(counts[:rank]),
        valid,
        gathered_rows(valid),
    )


@dataclass
class SharedPairs:
    """Encodes a batch once for all objectives of a step. The features are freed with the batch.

    Attributes:
        batch: weak reference to the batch of `pairs`; None at the start.
        pairs: the last encoded pairs; None if their batch is gone.
    """

    batch: weakref.ref[Batch] | None = field(default=None, init=False)
    pairs: Pairs | None = field(default=None, init=False)

    def __call__(self, model: MultimodalModel, batch: Batch) -> Pairs:
        """Return the pairs of a batch.

        Raises:
            UserError: a sample has no text, or not exactly one view, or the connector cannot compare.
        """
        if self.pairs is None or self.batch is None or self.batch() is not batch:
            self.pairs = self.encode(model, batch)
            self.batch = weakref.ref(batch, self._drop)
        return self.pairs

    def encode(self, model: MultimodalModel, batch: Batch) -> Pairs:
        """Encode a batch, see `__call__`."""
        return encode_pairs(*parts_of_pairs(model, batch), batch.valid)

    def _drop(self, _: object) -> None:
        self.pairs = None


def parts_of_pairs(model: MultimodalModel, batch: Batch) -> tuple[PairedQFormer, Tensor, Texts]:
    """Return the connector, the features [n, N, D] of the vision encoder and the texts [n, L] of a batch.

    Raises:
        UserError: a sample has no text, or not exactly one view, or the connector cannot compare.
    """
    connector, texts = model.connector, batch.texts
    if not isinstance(connector, PairedQFormer) or texts is None:
        raise UserError(
            "the objectives of pairs need a PairedQFormer with `contrast_width` and a `reading` of the inputs, got "
            f"{type(connector).__name__} and {'no texts' if texts is None else 'texts'}"
        )
    assert model.vision is not None
    return connector, model.vision(views_of_pairs(batch, len(texts.ids))), texts


@dataclass(frozen=True)
class QueryComparison:
    """Compares images with texts by the Q-Former of a model; see `lit_mm.evaluation.retrieval.Comparison`.

    Attributes:
        network: model whose connector is a `PairedQFormer` with its heads.
    """

    network: MultimodalModel

    def encode_images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Encode images: normed features [n, N, D] and unit vectors [n, Q, C] of the queries.

        Raises:
            UserError: see `parts_of_pairs`.
        """
        connector, features, _ = parts_of_pairs(self.network, batch)
        features = connector.norm(features)
        return features, connector.encode_image(features)

    def encode_texts(self, batch: Batch) -> tuple[Padded, Tensor]:
        """Encode texts: ids and real positions [n, L], and unit vectors [n, C]."""
        texts = batch.texts
        assert texts is not None  # a family that compares has a reading
        return Padded(texts.ids, texts.mask), _heads(self.network).encode_text(texts)

    def match(self, texts: Padded, features: Tensor) -> Tensor:
        """Logits [n, 2] of no match and match, of texts [n, L] with normed features [n, N, D]."""
        return _heads(self.network).match(features, Texts(*texts)).float()


def similarities(pairs: Pairs, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """[n, A] similarities of own images with all texts and of own texts with all images, divided by the temperature.

    The similarity of an image and a text is the maximum over the queries. Lost pairs of any rank get -10000.
    """
    to_text = torch.einsum("nqc,ac->naq", pairs.image, pairs.all_text).amax(dim=-1) / temperature
    to_image = torch.einsum("nc,aqc->naq", pairs.text, pairs.all_image).amax(dim=-1) / temperature
    return to_text.masked_fill(~pairs.all_valid, FAR), to_image.masked_fill(~pairs.all_valid, FAR)


def same_image(pairs: Pairs, images: Tensor | None = None) -> Tensor:
    """[n, A] True where a pair of this rank and one of all ranks show the same image.

    Args:
        pairs: pairs of the batch.
        images: [n] number of the image of each pair; None: all images differ.
    """
    if images is None:
        numbers = pairs.first + torch.arange(len(pairs.image), device=pairs.image.device)
        return numbers[:, None] == torch.arange(len(pairs.all_image), device=numbers.device)
    return images[:, None] == gathered_rows(images)


def contrast_loss(pairs: Pairs, temperature: Tensor, label_smoothing: float, images: Tensor | None = None) -> Tensor:
    """[n] losses of the pairs: the mean cross-entropy of both directions.

    Args:
        pairs: pairs of the batch.
        temperature: [1] temperature.
        label_smoothing: share of the target's probability that is spread over all pairs.
        images: see `same_image`; pairs of the same image share the target's probability.
    """
    targets = same_image(pairs, images).float()
    targets = targets / targets.sum(dim=1, keepdim=True)
    others = pairs.all_valid.float() / pairs.all_valid.sum()
    targets = (1 - label_smoothing) * targets + label_smoothing * others
    return sum(-(logits.log_softmax(dim=1) * targets).sum(dim=1) for logits in similarities(pairs, temperature)) / 2


def negative_weights(pairs: Pairs, temperature: Tensor, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[n, A] probabilities of the negative texts of own images and of the negative images of own texts."""
    near = same_image(pairs, images)
    weights = [of.masked_fill(near, FAR).softmax(dim=1) for of in similarities(pairs, temperature)]
    return weights[0], weights[1]


def matching_logits(connector: PairedQFormer, pairs: Pairs, texts: Tensor, images: Tensor) -> Tensor:
    """[3 n, 2] logits of the pairs, of own texts with negative images, and of own images with negative texts.

    Args:
        connector: Q-Former with its heads.
        pairs: pairs of the batch.
        texts: [n] number among all ranks of the negative text of each image.
        images: [n] number among all ranks of the negative image of each text.
    """
    ids, mask, all_ids, all_mask = gathered_texts(pairs.texts.ids, pairs.texts.mask)
    all_features = gathered_with_gradient(pairs.features, pairs.counts)
    joined = Texts(torch.cat([ids, ids, all_ids[texts]]), torch.cat([mask, mask, all_mask[texts]]))
    return connector.match(torch.cat([pairs.features, all_features[images], pairs.features]), joined)


def matching_losses(logits: Tensor) -> Tensor:
    """[3 n, 2] logits of `matching_logits` -> [n] mean losses of each pair and its two negatives."""
    count = len(logits) // 3
    labels = torch.arange(3 * count, device=logits.device) < count
    return F.cross_entropy(logits.float(), labels.long(), reduction="none").view(3, count).mean(dim=0)


class QueryContrastive:
    """Contrasts images with texts (ITC): the mean over both directions, summed over pairs.

    Candidates are the pairs of all ranks, whose features are gathered without gradient, so the loss depends on the
    global batch and its gradients on the split over ranks. The authors have 100 pairs on each of 16 GPUs. If the batch
    numbers its images, as in fine-tuning for retrieval, all texts of an image share the probability of its target.

    Args:
        shared: features that the objectives of a step share.
        label_smoothing: share of the target's probability that is spread over all pairs. Published: 0.1.
    Source: arXiv:2301.12597, section 3.2; lavis/models/blip2_models/blip2_qformer.py.
    """

    unit = PAIRS
    parts = READ | {"contrast"}
    compares = True

    def __init__(self, shared: SharedPairs, label_smoothing: float = 0.1) -> None:
        self.shared, self.label_smoothing = shared, label_smoothing

    def depends_on(self, model: MultimodalModel, pairs: int, ranks: int) -> str:
        """See `Comparing.depends_on`."""
        return f"compares each pair with the pairs of all ranks: {split(pairs, ranks)}"

    def __call__(self, model: MultimodalModel, batch: Batch) -> Tensor:
        """Return the sum over the pairs of the batch."""
        pairs = self.shared(model, batch)
        losses = contrast_loss(pairs, _heads(model).heads()[0].temperature, self.label_smoothing, batch.images)
        return losses[pairs.valid].sum()


class QueryMatchingObjective:
    """Tells pairs from mismatches (ITM): the mean over a pair, a hard negative image and a hard negative text.

    Negatives come from the pairs of all ranks, drawn in proportion to the softmax of the contrast; pairs of the same
    image are none if the batch numbers its images. Image features are gathered with gradient, which reaches the norm of
    the features. The draw is seeded by run, stage, micro-batch and rank, as dropout is.

    Args:
        shared: features that the objectives of a step share.
    Source: arXiv:2301.12597, section 3.2; lavis/models/blip2_models/blip2_qformer.py.
    """

    unit = PAIRS
    parts = READ | {"contrast", "matching"}
    compares = True

    def __init__(self, shared: SharedPairs) -> None:
        self.shared = shared

    def depends_on(self, model: MultimodalModel, pairs: int, ranks: int) -> str:
        """See `Comparing.depends_on`."""
        return f"draws negatives from the pairs of all ranks: {split(pairs, ranks)}"

    def __call__(self, model: MultimodalModel, batch: Batch) -> Tensor:
        """Return the sum over the pairs of the batch.

        Raises:
            UserError: all ranks together have one pair, which has no negative.
        """
        pairs = self.shared(model, batch)
        if sum(pairs.counts) < 2:
            raise UserError(
                f"samples {list(batch.sample_ids)}: matching needs negatives from at least 2 pairs per step over all "
                f"ranks, got {sum(pairs.counts)}. Raise `global_batch`"
            )
        connector = _heads(model)
        with torch.no_grad():
            weights = negative_weights(pairs, connector.heads()[0].temperature, batch.images)
            texts, images = (torch.multinomial(of_kind, 1)[:, 0] for of_kind in weights)
        losses = matching_losses(matching_logits(connector, pairs, texts, images))
        return losses[pairs.valid].sum()


class QueryCaptioning:
    """Predicts the text from the queries (ITG), with label smoothing.

    The loss is the mean over the tokens of all ranks, times the number of pairs, so that dividing by pairs gives the
    mean over tokens. The authors average over the tokens of each GPU, then over GPUs.

    Args:
        shared: features that the objectives of a step share.
        label_smoothing: share of the target's probability that is spread over the vocabulary. Published: 0.1.
    Source: arXiv:2301.12597, section 3.2; lavis/models/blip2_models/blip2_qformer.py.
    """

    unit = PAIRS
    parts = READ | {"text_head"}
    compares = True

    def __init__(self, shared: SharedPairs, label_smoothing: float = 0.1) -> None:
        self.shared, self.label_smoothing = shared, label_smoothing

    def depends_on(self, model: MultimodalModel, pairs: int, ranks: int) -> str:
        """See `Comparing.depends_on`."""
        return f"averages over the tokens of all ranks: {split(pairs, ranks)}"

    def __call__(self, model: MultimodalModel, batch: Batch) -> Tensor:
        """Return the share of this rank, see the class."""
        pairs, connector = self.shared(model, batch), _heads(model)
        learnt = pairs.texts.mask[:, 1:] & pairs.valid[:, None]
        hidden = connector.predict(pairs.features, pairs.texts)[:, :-1][learnt]
        logits = connector.qformer.logits(hidden).float()
        targets = pairs.texts.ids[:, 1:][learnt]
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="sum")
        tokens = gathered_rows(learnt.sum()[None]).sum().clamp(min=1)
        return loss / tokens * batch.units[PAIRS]


def _heads(model: MultimodalModel) -> PairedQFormer:
    """Return the connector as a Q-Former that compares; `SharedPairs` has checked its type."""
    assert isinstance(model.connector, PairedQFormer)
    return model.connector


PairObjective = QueryContrastive | QueryMatchingObjective | QueryCaptioning


def pair_objectives(label_smoothing: float = 0.1) -> dict[str, PairObjective]:
    """Build the objectives of the first stage by name, "itc", "itm" and "itg"; they share the features of a step.

    Args:
        label_smoothing: label smoothing of "itc" and "itg".
    """
    shared = SharedPairs()
    return {
        "itc": QueryContrastive(shared, label_smoothing),
        "itm": QueryMatchingObjective(shared),
        "itg": QueryCaptioning(shared, label_smoothing),
    }
