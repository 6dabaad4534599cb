"""A model that compares images with texts and writes texts about images, and the features that its objectives share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.language.med import ENCODER, MED, MEDState, Padded, pad_right
from lit_mm.language.protocol import Learnt
from lit_mm.layers.protocols import complete
from lit_mm.objectives.momentum import Momentum
from lit_mm.objectives.queue import FeatureQueue
from lit_mm.objectives.views import views_of_pairs
from lit_mm.samples.batch import Batch
from lit_mm.vision.protocol import VisionEncoder

# N pairs of an image and a text, P image features of width D, L text positions of width W, C channels of a comparison


class Contrast(nn.Module):
    """Projections of image and text to one space, and the temperature of their similarities.

    Args:
        vision_width: D.
        text_width: W.
        width: C.
        temperature: initial temperature, by which similarities are divided. It is learnt, between 0.001 and 0.5.
    """

    bounds: Mapping[str, tuple[float, float]] = {"temperature": (0.001, 0.5)}

    def __init__(self, vision_width: int, text_width: int, width: int = 256, temperature: float = 0.07) -> None:
        super().__init__()
        self.width = width
        self.vision = nn.Linear(vision_width, width)
        self.text = nn.Linear(text_width, width)
        self.temperature = nn.Parameter(torch.full((1,), temperature))  # FSDP2 and DeepSpeed refuse shape []


class Matching(nn.Module):
    """Two logits of a pair from the first position of the image-grounded encoder: no match, match."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, L, W] -> [N, 2]."""
        return self.head(hidden[:, 0])


@dataclass(frozen=True)
class Encoded:
    """Features of a batch of pairs.

    Attributes:
        features: [N, P, D] image features, the class token first.
        texts: ids and real positions of the texts; the first id of each is the encoder's.
        image, text: [N, C] unit vectors.
        valid: [N] False at lost pairs, which must not count.
    """

    features: Tensor
    texts: Padded
    image: Tensor
    text: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Targets:
    """Features of the momentum copies for the same batch, without gradient.

    Attributes:
        image, text: [N, C] unit vectors.
    """

    image: Tensor
    text: Tensor


class ImageTextModel(nn.Module):
    """A vision encoder, a mixture of text encoder and decoder, heads that compare them, momentum copies and a queue.

    Each sample is one pair of one image and one text. The text of a sample starts with the decoder's first token.

    Args:
        vision: vision encoder whose class token is the first of its features.
        text: text transformer.
        first_ids: ids of the first token of the text encoder, the image-grounded encoder and the decoder; BLIP: [CLS],
            [ENC], [DEC].
        width: C.
        temperature: initial temperature.
        rate: share of the momentum copies that stays in a step.
        queue_size: number of earlier pairs to compare with.
    Raises:
        UserError: the vision encoder lacks an attribute of its protocol, or has no class token.
    """

    together = False  # the encoder takes views of one size

    def __init__(
        self,
        vision: VisionEncoder,
        text: MED,
        first_ids: tuple[int, int, int],
        width: int = 256,
        temperature: float = 0.07,
        rate: float = 0.995,
        queue_size: int = 57600,
    ) -> None:
        super().__init__()
        complete(vision, VisionEncoder, "vision encoder")
        if not vision.returns_class_token:
            raise UserError(f"{type(vision).__name__}: pairs are compared by the class token; use an encoder with one")
        self.vision, self.text = vision, text
        self.contrast = Contrast(vision.width, text.width, width, temperature)
        self.matching = Matching(text.width)
        self.momentum = Momentum(rate, **self._followed())
        for layer in self.momentum.text.layers:
            layer.decoder_attention = None  # the copies only read texts
        self.momentum.text.head = None
        self.queue = FeatureQueue(queue_size, width)
        self.encoder_id, self.grounded_id, self.decoder_id = first_ids
        self._shared: tuple[Batch, Encoded] | None = None
        self._shared_targets: tuple[Batch, Targets] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the features of the last batch out of copies."""
        return self.__dict__ | {"_shared": None, "_shared_targets": None}

    @property
    def language(self) -> MED:
        """The text transformer, whose decoder writes."""
        return self.text

    def _followed(self) -> Mapping[str, nn.Module]:
        """Return name in `momentum` -> module that a copy follows."""
        projections = nn.ModuleDict({"vision": self.contrast.vision, "text": self.contrast.text})
        return {"vision": self.vision, "text": self.text, "contrast": projections}

    # --- pairs ---------------------------------------------------------------------------------------------------
    def images(self, batch: Batch) -> Tensor:
        """Encode the image of every sample: [N, P, D].

        Raises:
            UserError: a sample has no picture, or several views.
        """
        return self.vision(views_of_pairs(batch, len(batch.lengths)))

    def encode(self, batch: Batch) -> Encoded:
        """Encode images and texts apart. Objectives of one step share the result.

        Raises:
            UserError: see `images`.
        """
        if self._shared is None or self._shared[0] is not batch:
            texts, text = self.encode_texts(batch)
            features, image = self.encode_images(batch)
            self._shared = batch, Encoded(features, texts, image, text, valid_samples(batch))
        return self._shared[1]

    def encode_images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Encode the image of every sample: features [N, P, D] and unit vectors [N, C].

        Raises:
            UserError: see `images`.
        """
        features = self.images(batch)
        return features, F.normalize(self.contrast.vision(features[:, 0]).float(), dim=-1)

    def encode_texts(self, batch: Batch) -> tuple[Padded, Tensor]:
        """Encode the text of every sample: texts [N, L], whose first id is the encoder's, and unit vectors [N, C]."""
        texts = pad_right(batch.ids, batch.lengths)
        texts = Padded(texts.ids.index_fill(1, texts.ids.new_zeros(1), self.encoder_id), texts.visible)
        return texts, F.normalize(self.contrast.text(self.text(*texts, ENCODER)[:, 0]).float(), dim=-1)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """Update the momentum copies, while training, and encode the batch with them, once per batch.

        Raises:
            UserError: see `images`.
        """
        if self._shared_targets is None or self._shared_targets[0] is not batch:
            if self.training:
                self.momentum.update(**self._followed())
            texts, copies = self.encode(batch).texts, self.momentum
            image = copies.contrast["vision"](copies.vision(views_of_pairs(batch, len(texts.ids)))[:, 0])
            text = copies.contrast["text"](copies.text(*texts, ENCODER)[:, 0])
            vectors = Targets(F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1))
            self._shared_targets = batch, vectors
        return self._shared_targets[1]

    def match(self, texts: Padded, features: Tensor) -> Tensor:
        """Logits [N, 2] of no match and match, of texts [N, L] with image features [N, P, D]."""
        ids = texts.ids.index_fill(1, texts.ids.new_zeros(1), self.grounded_id)
        return self.matching(self.text(ids, texts.visible, ENCODER, features)).float()

    # --- writing -------------------------------------------------------------------------------------------------
    def forward(self, batch: Batch) -> Learnt:
        """Return the decoder's hidden states at the supervised places and the token ids that they predict.

        Raises:
            UserError: see `images`.
        """
        shared = self._shared is not None and self._shared[0] is batch
        features = self._shared[1].features if shared else self.images(batch)
        hidden = self.text.decode(batch.ids, batch.lengths, features)
        return Learnt(hidden.index_select(0, batch.supervised), batch.labels)

    def begin(self, batch: Batch) -> tuple[Tensor, MEDState]:
        """Read prompts; return the hidden states [N, W] that predict each first new token, and the decoding state."""
        return self.text.begin(batch.ids, batch.lengths, self.images(batch))


def valid_samples(batch: Batch) -> Tensor:
    """[N] True at samples with a supervised token; a lost sample has none."""
    ends = torch.tensor(batch.lengths, device=batch.ids.device).cumsum(0)
    owners = torch.searchsorted(ends, batch.supervised, right=True)
    valid = torch.zeros(len(batch.lengths), dtype=torch.bool, device=batch.ids.device)
    return valid.index_fill(0, owners, True)
