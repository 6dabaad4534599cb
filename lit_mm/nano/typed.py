"""How the nano language model is pre-trained: it reads typed pages, whose cells hold tokens. It never meets a pixel.

The prompt, the questions, the transcripts and the places of the visual tokens are those of the main recipes; only what
stands in those places differs. So it learns to read a lattice of signs: line after line, column under column, and
across the views of a page where a family cuts it into several.
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

SLOTS = 6  # tokens a cell: a located shape has as many
TILE = 112  # side of a view of the nano recipes, pixels
LEARNED = 2  # vectors that a layout may place: newline, separator

# How the families show a page: tiling, layout, and the side of what a visual token covers, in cells of a view
WAYS: dict[str, tuple[Tiling, Layout, int]] = {
    "whole": (Stretch(TILE), InOrder(), 1),
    "anyres": (AnyRes(TILE), BaseThenUnpaddedRows(), 1),
    "hd": (Hd(max_tiles=4, tile=TILE), GlobalThenTiles(), 2),
    "slices": (Uhd(max_slices=4, size=TILE), SlicesThenOverview(), 1),
    "windows": (Windows((2 * TILE, 2 * TILE), TILE), InOrder(), 1),
}


class Templates:
    """One of several templates for each document, drawn by its id.

    The language model that a family starts from has met chats of many forms. One that has met a single template answers
    no other (a caption loss of 2.0 in place of 0.03 under `Plain`): a stage that keeps it frozen would learn nothing.

    Args:
        chats: for questions and answers. One that is named twice is drawn twice as often.
        captions: for pages to be read out.
    """

    def __init__(self, chats: list[Prompt], captions: list[Prompt]) -> None:
        self.chats, self.captions = chats, captions

    def runs(self, document: Document, tokenizer: Tokenizer) -> list[Run]:
        """See `Prompt.runs`."""
        templates = self.captions if document.id.endswith(CAPTION) else self.chats
        return templates[stable_hash(document.id, "template") % len(templates)].runs(document, tokenizer)

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Of chats: a caption is not asked for."""
        return frozenset().union(*(chat.stop_ids(tokenizer) for chat in self.chats))


@dataclass(frozen=True)
class TypedProcessor(Processor):
    """Puts [slots, rows, columns] token ids where `Processor` puts pixels."""

    def views(self, sample: Sample) -> list[Tensor]:
        return [
            torch.from_numpy(type_page(page, self.tokenizer, *self.token_grid(view.size), SLOTS, window_of(view)))
            for page, plan in zip(sample.document.pictures, sample.plans, strict=True)
            for view in plan.views
        ]


@dataclass(frozen=True)
class DrawnProcessor(TypedProcessor):
    """Shows each document in one of several ways, drawn by its id.

    Args:
        ways: processors to draw from; one that is named twice is drawn twice as often.
    """

    _: KW_ONLY
    ways: tuple[TypedProcessor, ...] = ()

    @classmethod
    def of_ways(cls, ways: Sequence[TypedProcessor]) -> DrawnProcessor:
        """The processor that draws from `ways`; its other fields are those of the first."""
        return cls(**{field.name: getattr(ways[0], field.name) for field in fields(ways[0])}, ways=tuple(ways))

    def with_inputs(self, inputs: Inputs | None) -> DrawnProcessor:
        """See `Processor.with_inputs`; every way changes."""
        return self.of_ways([way.with_inputs(inputs) for way in self.ways])

    def lay_out(self, document: Document) -> Sample:
        return self._way(document).lay_out(document)

    def views(self, sample: Sample) -> list[Tensor]:
        return self._way(sample.document).views(sample)

    def _way(self, document: Document) -> TypedProcessor:
        return self.ways[stable_hash(document.id, "way") % len(self.ways)]


def window_of(view: View) -> tuple[float, float, float, float]:
    """The part of the image that a view shows, in unit coordinates; padding lies outside of [0, 1]."""
    (height, width), (y, x), (top, left, rows, columns) = view.resize, view.offset, view.box
    return (left - x) / width, (top - y) / height, (left + columns - x) / width, (top + rows - y) / height


class Cells(nn.Module, VisionEncoder):
    """Stands where the vision encoder stands: the sum of one vector per (slot, token) of a cell, and two for its place.

    A vision encoder's features tell where they are from, so a cell tells its row and column. Without them a language
    model finds what stands below a letter by counting positions, and answers one table in seven.

    Args:
        side: rows and columns of cells.
        width: of the vectors.
        vocab_size: token ids.

    Attributes:
        noise: standard deviation of what is added to every cell while training, at most: each page draws its own.
            Vision is never exact: without noise a language model comes to need empty cells that are exactly alike, and
            reads nothing from a picture.
    """

    def __init__(self, side: int, width: int, vocab_size: int) -> None:
        super().__init__()
        self.side, self.width = side, width
        self.patch_grid = FixedGrid(side, side)
        self.noise = 0.0
        self.table = nn.Parameter(torch.randn(SLOTS, vocab_size, width) * 0.02)
        self.row = nn.Parameter(torch.randn(side, 1, width) * 0.02)
        self.column = nn.Parameter(torch.randn(1, side, width) * 0.02)

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The same for every view."""
        return self.patch_grid(size)

    def forward(self, typed: Tensor) -> Tensor:
        """[V, slots, R, C] token ids -> [V, R * C, E]. R and C divide the side; a larger cell tells its mean place."""
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
    """A connector that changes nothing. Its learned vectors are zero: every family learns its own, from small ones."""

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
        side: rows and columns of cells.
        noise: stage name -> most standard deviation of the noise on the cells; none where a stage is not named.
        prompt: chat template and label rule.
        views: stage name -> names of `WAYS` to show a page, one drawn for every training document; "whole" where a
            stage is not named.
        max_length: longest sample, tokens.
    Raises:
        UserError: a stage's `views` are empty, or not among `WAYS`.
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
        """See `MultimodalModule.processors_of`; a stage in `views` draws a way for every document."""
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
