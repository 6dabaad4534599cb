"""The processor of a model: tiling, layout and prompt. No other object counts visual tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from hashlib import blake2b
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_mm.documents.decode import PictureError, reductions
from lit_mm.documents.document import Decodable, Document, Picture
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, Prompt, ReadsAnswers, answers_apart
from lit_mm.prompts.template import prompt_of
from lit_mm.prompts.tokenizer import Tokenizer, token_inside
from lit_mm.samples.augmentation import Augmentation
from lit_mm.samples.batch import IGNORE
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import InOrder, Layout
from lit_mm.samples.length import Length
from lit_mm.samples.pixels import SPARE, Normalise, crop_views, normalised
from lit_mm.samples.reading import Reading
from lit_mm.tiling.grids import GridRule
from lit_mm.tiling.plan import Size, TilePlan, Tiling

TEXT = np.iinfo(np.int64).min  # in `Sample.index`: the position holds text
NUMBERED = (64, 64)  # (height, width) down to which pictures are decoded to number them, pixels
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Sample:
    """A document laid out for the model. Its exact length is known; its pixels are not read yet.

    Attributes:
        document: document that is laid out.
        input_ids: [L] token ids, the pad id at visual positions.
        labels: [L] ids where the loss counts, `IGNORE` elsewhere.
        index: [L] `TEXT`, or number of a visual token of this sample (i >= 0, picture by picture), or of a learned
            vector (-(k + 1)).
        plans: tile plan of every picture.
        tokens_per_view: number of visual tokens of every view of every picture, in order.
        spans: [start, stop) of the positions of each picture, with the text of its layout.
        lost: True if the pixels could not be read; the sample then keeps its positions but carries no loss.
        apart: number of answers that are tokenised apart from their prompt, see `lit_mm.prompts.prompt.TextRun`.
    """

    document: Document
    input_ids: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    plans: tuple[TilePlan, ...]
    tokens_per_view: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    lost: bool = False
    apart: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def length(self) -> Length:
        """Numbers of tokens, views and supervised tokens; the first position never counts as nothing predicts it."""
        return Length(len(self), len(self.tokens_per_view), int((self.labels[1:] != IGNORE).sum()))


@dataclass(frozen=True)
class Processor:
    """Turns documents into samples and samples into views. It is plain data and can be pickled.

    Args:
        tokenizer: tokenizer of the language model.
        prompt: template and label rule.
        tiling: rule that cuts an image into views; None for a language model alone.
        layout: rule that arranges visual tokens, learned vectors and text.
        token_grid: rule from the size of a view, pixels, to (rows, columns) of its visual tokens; None for a language
            model alone, which reads no pictures.
        normalise: pixel mean and standard deviation, padding colour, resize backend.
        max_length: length of the longest sample, tokens; a longer sample is refused.
        by_source: name of a source -> tiling of the pictures of its documents, if it differs from `tiling`.
        writes_target: True for an encoder-decoder, whose last answer is a separate row.
        augmentation: random changes of pictures in training; None: pictures stay as they are.
        reading: rule for the second text of every sample; None: samples have no second text.
        image_ids: True numbers the images of samples, see `image_number`.
    """

    tokenizer: Tokenizer
    prompt: Prompt
    _: KW_ONLY
    tiling: Tiling | None = None
    token_grid: GridRule | None = None
    layout: Layout = field(default_factory=InOrder)
    normalise: Normalise = field(default_factory=lambda: Normalise(CLIP_MEAN, CLIP_STD))
    max_length: int = 4096
    by_source: Mapping[str, Tiling] = field(default_factory=dict)
    writes_target: bool = False
    augmentation: Augmentation | None = None
    reading: Reading | None = None
    image_ids: bool = False

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        inputs: Inputs,
        token_grid: GridRule,
        *,
        writes_target: bool = False,
        normalise: Normalise | None = None,
    ) -> Processor:
        """Build the processor of a model that reads images.

        Args:
            tokenizer: tokenizer of the language model.
            inputs: settings with all fields set, except `fill`, `max_length`, `by_source`, `augmentation`, `reading`,
                `image_ids` and `whole_jpegs`, which have defaults.
            token_grid: rule from the size of a view, pixels, to (rows, columns) of its visual tokens.
            writes_target: True for an encoder-decoder.
            normalise: constants and colours of the vision encoder; None: CLIP's constants.
        """
        processor = cls(tokenizer, prompt_of(inputs.prompt), token_grid=token_grid, writes_target=writes_target)
        if normalise is not None:
            processor = replace(processor, normalise=normalise)
        return processor.with_inputs(inputs)

    def with_inputs(self, inputs: Inputs | None) -> Processor:
        """Return a copy with the fields that `inputs` sets; None changes nothing."""
        if inputs is None:
            return self
        names = ("tiling", "layout", "max_length", "by_source", "augmentation", "reading", "image_ids")
        changes = {name: value for name in names if (value := getattr(inputs, name)) is not None}
        pixels: dict[str, Any] = {}
        if inputs.prompt is not None:
            changes["prompt"] = prompt_of(inputs.prompt)
        if inputs.fill is not None:
            pixels["fill"] = tuple(inputs.fill)
        if inputs.whole_jpegs is not None:
            pixels["spare"] = None if inputs.whole_jpegs else SPARE
        if pixels:
            changes["normalise"] = replace(self.normalise, **pixels)
        return replace(self, **changes) if changes else self

    def for_questions(self) -> Processor:
        """Return a copy for prompts without an answer, which an encoder-decoder reads whole."""
        return replace(self, writes_target=False)

    def tiling_of(self, source: str) -> Tiling:
        """Return the tiling for images of documents from a source."""
        return self.by_source.get(source, self.tiling)

    def visual_tokens(self, height: int, width: int, source: str = "") -> int:
        """Count the positions that an image takes in the language model, with the text of its layout.

        No tokenizer is needed, since a run of text is always one token.

        Args:
            height, width: size of the image, pixels.
            source: name of the document's source.
        """
        runs = self.layout(self.tiling_of(source)(height, width), self.token_grid)
        return sum(1 if isinstance(run, str) else len(run) for run in runs)

    def sample(self, document: Document) -> Sample:
        """Lay out a document. This reads the sizes of its pictures, not their pixels.

        Raises:
            UserError: the sample is longer than `max_length`, or see `lay_out`.
        """
        sample = self.lay_out(document)
        if len(sample) > self.max_length:
            raise UserError(
                f"sample {document.id!r} has {len(sample)} tokens ({sum(sample.tokens_per_view)} of them visual), "
                f"but the limit of the model is {self.max_length}. Shorten it, or raise `max_length`"
            )
        return sample

    def lay_out(self, document: Document) -> Sample:
        """Lay out a document without a limit on its length, for callers that truncate it.

        Raises:
            UserError: the document has pictures and the model has no vision encoder, or a picture cannot be tiled.
        """
        if document.pictures and self.token_grid is None:
            raise UserError(
                f"sample {document.id!r} has {len(document.pictures)} pictures, but this model reads only text"
            )
        plans = tuple(self._plan(picture, document) for picture in document.pictures)
        pieces = [self._picture(plan) for plan in plans]
        firsts = np.cumsum([0, *(sum(tokens) for _, _, tokens in pieces)])
        ids: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        index: list[np.ndarray] = []
        spans = [(0, 0)] * len(pieces)
        runs = self.prompt.runs(document, self.tokenizer)
        for run in runs:
            if isinstance(run, PictureRun):
                picture_ids, picture_index, _ = pieces[run.number]
                start = sum(len(piece) for piece in ids)
                spans[run.number] = (start, start + len(picture_ids))
                ids.append(picture_ids)
                labels.append(np.full(len(picture_ids), IGNORE, dtype=np.int64))
                index.append(np.where(picture_index >= 0, picture_index + firsts[run.number], picture_index))
            else:
                text = np.asarray(run.ids, dtype=np.int64)
                ids.append(text)
                labels.append(np.where(np.asarray(run.learn, dtype=bool), text, IGNORE))
                index.append(np.full(len(text), TEXT, dtype=np.int64))
        return Sample(
            document,
            np.concatenate(ids),
            np.concatenate(labels),
            np.concatenate(index),
            plans,
            tuple(n for _, _, tokens in pieces for n in tokens),
            tuple(spans),
            apart=answers_apart(runs),
        )

    def views(self, sample: Sample) -> list[Tensor]:
        """Decode and cut the sample's pictures: one [3, H, W] float tensor per view, normalised; see `crops`."""
        scaling = self.normalise.scaling()
        return [normalised(pixels, scaling) for pixels in self.crops(sample)]

    def crops(self, sample: Sample, draw: int | None = None) -> list[Tensor]:
        """Decode and cut the sample's pictures: one [3, H, W] uint8 tensor per view; see `crop_views`.

        The views of the first vision encoder come first, picture by picture, then those of the second.

        Args:
            sample: sample to read.
            draw: seed of the augmentation; None changes nothing.
        """
        change = self.augmentation if draw is not None else None
        draws = Random(draw)
        first: list[Tensor] = []
        second: list[Tensor] = []
        # a truncated sample has fewer pictures than its document
        for picture, plan in zip(sample.document.pictures[: len(sample.plans)], sample.plans, strict=True):
            views = (*plan.views, *plan.second)
            least = self.normalise.least(views)
            if change is not None and least is not None:
                least = math.ceil(least[0] * change.enlargement), math.ceil(least[1] * change.enlargement)
            image = read(picture, sample.document.id, least)
            if change is not None:
                image = change.crop(image, draws)
            crops = crop_views(image, views, self.normalise)
            if change is not None:
                crops = [change.change(crop, draws) if crop.dtype == torch.uint8 else crop for crop in crops]
            first += crops[: len(plan.views)]
            second += crops[len(plan.views) :]
        return first + second

    def answer_text(self, ids: Sequence[int], document: Document) -> str:
        """Convert generated token ids, without stop tokens, to the text of an answer to a document."""
        if isinstance(self.prompt, ReadsAnswers):
            return self.prompt.answer_text(ids, document, self.tokenizer)
        return self.tokenizer.decode(ids).strip()

    def _plan(self, picture: Picture, document: Document) -> TilePlan:
        try:
            return self.tiling_of(document.source)(picture.height, picture.width)
        except UserError as error:
            raise UserError(f"sample {document.id!r}, {self.tiling_of(document.source)}: {error}") from error

    def _picture(self, plan: TilePlan) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """Return token ids, index and tokens per view of one picture."""
        tokens = tuple(rows * columns for rows, columns in (self.token_grid(view.size) for view in plan.views))
        ids = [np.empty(0, dtype=np.int64)]
        index = [np.empty(0, dtype=np.int64)]
        for run in self.layout(plan, self.token_grid):
            if isinstance(run, str):
                ids.append(np.array([token_inside(self.tokenizer, run)], dtype=np.int64))
                index.append(np.array([TEXT], dtype=np.int64))
            else:
                ids.append(np.full(len(run), self.tokenizer.pad_id, dtype=np.int64))
                index.append(np.asarray(run, dtype=np.int64))
        return np.concatenate(ids), np.concatenate(index), tokens


def image_number(sample: Sample) -> int:
    """Return a number that samples with the same pictures share, -1 for a lost sample.

    It is a digest of the pixels, so copies of a picture in other files have the same number.

    Raises:
        PictureError: see `read`.
    """
    if sample.lost:
        return -1
    digest = blake2b(digest_size=8)
    for picture in sample.document.pictures:
        digest.update(read(picture, sample.document.id, NUMBERED).contiguous().numpy())
    return int.from_bytes(digest.digest(), "big") >> 1


def read(picture: Picture, document_id: str, at_least: Size | None = None) -> Tensor:
    """Decode a picture to [3, H, W] uint8.

    Args:
        picture: picture to decode.
        document_id: id of the document, for errors.
        at_least: (height, width) down to which a picture may be decoded at a fraction of its size, pixels; None decodes
            it whole.
    Raises:
        PictureError: the picture cannot be decoded, or its size differs from its metadata.
    """
    try:
        if isinstance(picture, Decodable):
            pixels = picture.pixels(at_least)
        else:
            pixels = torch.from_numpy(np.array(picture.read().convert("RGB"))).permute(2, 0, 1)
    except PictureError as error:
        raise PictureError(f"sample {document_id!r}: {error}") from error
    sizes = [size for _, *size in reductions(picture.height, picture.width)][: 1 if at_least is None else None]
    if list(pixels.shape[1:]) not in sizes:
        raise PictureError(
            f"sample {document_id!r}: a picture is {pixels.shape[2]} x {pixels.shape[1]} pixels, its metadata says "
            f"{picture.width} x {picture.height}. Rebuild the index of the data set"
        )
    return pixels
