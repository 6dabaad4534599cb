"""Pre-training of the nano language model on typed pages: lattices of cells that hold tokens instead of pixels.

Prompts, questions, transcripts and the positions of visual tokens are the same as in the main recipes; only the vectors
at those positions differ. So the model learns to read a lattice of signs along lines, along columns, and across the
views of a page that a family cuts into several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_mm.connectors.protocol import Connector
from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.fusion.scatter import scatter_visual
from lit_mm.language.llama import Llama
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.nano.cells import type_page
from lit_mm.nano.world import CAPTION
from lit_mm.prompts.prompt import Prompt, Run
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import BaseThenUnpaddedRows, GlobalThenTiles, InOrder, Layout, SlicesThenOverview
from lit_mm.samples.processor import Processor, Sample
from lit_mm.stages.stage import Stage
from lit_mm.stream.order import stable_hash
from lit_mm.tiling.anyres import AnyRes
from lit_mm.tiling.grids import FixedGrid, SameGrid
from lit_mm.tiling.hd import Hd
from lit_mm.tiling.plan import Stretch, Tiling, View
from lit_mm.tiling.uhd import Uhd
from lit_mm.tiling.windows import Windows
from lit_mm.vision.protocol import VisionEncoder

SLOTS = 6  # tokens per cell, as many as a located shape has: colour, kind and four sides
TILE = 112  # side of a view of the nano recipes, pixels
LEARNED = 2  # learned vectors that a layout may place: newline, separator

# Ways in which families show a page: tiling, layout, and side of the block of cells that one visual token covers
WAYS: dict[str, tuple[Tiling, Layout, int]] = {
    "whole": (Stretch(TILE), InOrder(), 1),
    "anyres": (AnyRes(TILE), BaseThenUnpaddedRows(), 1),
    "hd": (Hd(max_tiles=4, tile=TILE), GlobalThenTiles(), 2),
    "slices": (Uhd(max_slices=4, size=TILE), SlicesThenOverview(), 1),
    "windows": (Windows((2 * TILE, 2 * TILE), TILE), InOrder(), 1),
}


class Templates:
    """A prompt that draws one of several templates for each document, by document id.

    The language models that published families start from were trained on many chat formats. A model trained on a
    single template fails under every other one (caption loss 2.0 instead of 0.03 under `Plain`), and a stage that
    keeps such a model frozen learns nothing.

    Args:
        chats: templates for questions and answers. A template listed twice is drawn twice as often.
        captions: templates for documents that ask for the transcript of a page.
    """

    def __init__(self, chats: list[Prompt], captions: list[Prompt]) -> None:
        self.chats, self.captions = chats, captions

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """Split the document into runs under the drawn template; see `Prompt.runs`."""
        templates = self.captions if document.id.endswith(CAPTION) else self.chats
        return templates[stable_hash(document.id, "template") % len(templates)].runs(document, tokenizer)

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the ids that end an answer under any of the chat templates; captions are never generated."""
        return frozenset().union(*(chat.stop_ids(tokenizer) for chat in self.chats))


@dataclass(frozen=True)
class TypedProcessor(Processor):
    """A processor whose views are token ids [slots, rows, columns] instead of pixels."""

    def crops(self, sample: Sample, draw: int | None = None) -> list[Tensor]:
        """Type the pages of a sample; `draw` changes nothing, because typed pages have no augmentation."""
        return [
            torch.from_numpy(type_page(page, self.tokenizer, *self.token_grid(view.size), SLOTS, window_of(view)))
            for page, plan in zip(sample.document.pictures, sample.plans, strict=True)
            for view in plan.views
        ]


@dataclass(frozen=True)
class DrawnProcessor(TypedProcessor):
    """A processor that draws one of several processors for each document, by document id.

    Args:
        ways: processors to draw from. A processor listed twice is drawn twice as often.
    """

    _: KW_ONLY
    ways: tuple[TypedProcessor, ...] = ()

    @classmethod
    def of_ways(cls, ways: Sequence[TypedProcessor]) -> DrawnProcessor:
        """Build the processor that draws from `ways`; it takes all other fields from the first of them."""
        return cls(**{field.name: getattr(ways[0], field.name) for field in fields(ways[0])}, ways=tuple(ways))

    def with_inputs(self, inputs: Inputs | None) -> DrawnProcessor:
        """Apply the inputs of a stage to every way; see `Processor.with_inputs`."""
        return self.of_ways([way.with_inputs(inputs) for way in self.ways])

    def lay_out(self, document: Document) -> Sample:
        return self._way(document).lay_out(document)

    def crops(self, sample: Sample, draw: int | None = None) -> list[Tensor]:
        return self._way(sample.document).crops(sample, draw)

    def _way(self, document: Document) -> TypedProcessor:
        return self.ways[stable_hash(document.id, "way") % len(self.ways)]


def window_of(view: View) -> tuple[float, float, float, float]:
    """Return the part of the image that a view shows, in unit coordinates; padding lies outside [0, 1]."""
    (height, width), (y, x), (top, left, rows, columns) = view.resize, view.offset, view.box
    return (left - x) / width, (top - y) / height, (left + columns - x) / width, (top + rows - y) / height


class Cells(nn.Module, VisionEncoder):
    """An embedding of typed pages that takes the place of the vision encoder.

    The vector of a cell is the sum of one vector per (slot, token), one for its row and one for its column. Rows and
    columns are needed because features of a vision encoder carry their position: without them a language model finds
    the number below a letter by counting, and answers one table in seven.

    Args:
        side: number of rows and of columns of cells.
        width: width of the vectors.
        vocab_size: number of token ids.

    Attributes:
        noise: largest standard deviation of the Gaussian noise added to cells during training; each page draws a
            level between 0 and this. Without noise a language model comes to rely on empty cells being exactly alike,
            which features of images never are, and then reads nothing from a picture.
    """

    reads_pixels = False

    def __init__(self, side: int, width: int, vocab_size: int) -> None:
        super().__init__()
        self.side, self.width = side, width
        self.patch_grid = FixedGrid(side, side)
        self.noise = 0.0
        self.table = nn.Parameter(torch.randn(SLOTS, vocab_size, width) * 0.02)
        self.row = nn.Parameter(torch.randn(side, 1, width) * 0.02)
        self.column = nn.Parameter(torch.randn(1, side, width) * 0.02)

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of cells, the same for every view size."""
        return self.patch_grid(size)

    def forward(self, typed: Tensor) -> Tensor:
        """[V, slots, R, C] token ids -> [V, R * C, E] vectors.

        R and C divide `side`. Where they are smaller, a cell gets the mean of the row and column vectors it covers.
        """
        ids = typed.flatten(2).long()  # [V, S, N]
        vectors = self.table[torch.arange(SLOTS, device=ids.device)[:, None], ids]  # [V, S, N, E]
        row = self.row.unflatten(0, (typed.shape[2], -1)).mean(dim=1)  # [R, 1, E]
        column = self.column.unflatten(1, (typed.shape[3], -1)).mean(dim=2)  # [1, C, E]
        cells = vectors.sum(dim=1) + (row + column).flatten(0, 1)
        if self.training and self.noise:
            level = self.noise * torch.rand(len(cells), 1, 1, device=cells.device)
            cells = cells + level * torch.randn_like(cells)
        return cells


class Straight(nn.Module, Connector):
    """A connector that returns its input. Its learned vectors are zero; families train theirs from small values."""

    grid_rule: ClassVar[SameGrid] = SameGrid()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return self.grid_rule(grid)

    def learned(self) -> Tensor:
        return torch.zeros(LEARNED, self.width)

    def forward(self, features: Tensor) -> Tensor:
        return features


class TypedPages(MultimodalModule):
    """Pre-trains a decoder on typed pages. Parts: cells, language.

    Args:
        language: the decoder.
        tokenizer: "nano", a tokenizer.json, a folder, or a published name.
        side: number of rows and of columns of cells.
        noise: stage name -> largest standard deviation of the noise on cells. Stages not listed have no noise.
        prompt: chat template and label rule; None is `XComposer2Prompt`.
        views: stage name -> names in `WAYS`, one of which is drawn for every training document. Stages not listed
            use "whole".
        max_length: longest sample, tokens.
    Raises:
        UserError: the `views` of a stage are empty or contain a name that is not in `WAYS`.
    """

    def __init__(
        self,
        language: Llama,
        tokenizer: str,
        side: int = 8,
        noise: dict[str, float] | None = None,
        prompt: Prompt | None = None,
        views: dict[str, list[str]] | None = None,
        max_length: int = 4096,
    ) -> None:
        cells = Cells(side, language.width, language.vocab_size)
        for stage, names in (views or {}).items():
            if not names or set(names) - set(WAYS):
                raise UserError(f"TypedPages: `views.{stage}` takes at least one of {', '.join(WAYS)}, got {names}")
        tokens = load_tokenizer(tokenizer)
        template = prompt or XComposer2Prompt()

        def processor_for(way: str) -> TypedProcessor:
            tiling, layout, covers = WAYS[way]
            grid = FixedGrid(side // covers, side // covers)
            return TypedProcessor(
                tokens, template, tiling=tiling, layout=layout, token_grid=grid, max_length=max_length
            )

        network = MultimodalModel(language, cells, Straight(language.width), fusion=scatter_visual)
        network.parts_within = {"vision": "cells"}
        super().__init__(network=network, processor=lambda: processor_for("whole"))
        self.drawing = {
            stage: DrawnProcessor.of_ways([processor_for(way) for way in ways]) for stage, ways in (views or {}).items()
        }
        self.noise = dict(noise or {})
        self.stage_names = frozenset({*self.drawing, *self.noise})

    def processors_of(self, stage: Stage) -> dict[int, Processor]:
        """Return processors by first step, see `MultimodalModule.processors_of`; stages in `views` draw a way."""
        processors = super().processors_of(stage)
        if stage.name not in self.drawing:
            return processors
        current = self.drawing[stage.name].with_inputs(stage.inputs)
        processors = {0: current}
        for step in sorted(stage.inputs_from):
            current = processors[step] = current.with_inputs(stage.inputs_from[step])
        return processors

    def begin(self, stage: Stage, **place: int) -> None:
        super().begin(stage, **place)
        self.network.vision.noise = self.noise.get(stage.name, 0.0)
