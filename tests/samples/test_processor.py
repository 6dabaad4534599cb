"""The processor owns the token count and the labels, and its index can express any arrangement."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.source import load_tokenizer
from lit_mm.samples.batch import IGNORE
from lit_mm.samples.collate import collate
from lit_mm.samples.layout import Layout, Run, TokenGrid
from lit_mm.samples.processor import TEXT, Processor
from lit_mm.tiling import Hd
from lit_mm.tiling.hd import plan_hd
from lit_mm.tiling.plan import TilePlan, View
from tests.rows import states
from tests.tiny import PROMPT, Noise, decoder, document, xcomposer2

PATCH, TILE = 14, 28


def plan_tiles(height: int, width: int) -> TilePlan:
    """Plan a thumbnail of one row or column, then tiles of 28 x 28 that cover the image: two shapes of views."""
    rows, columns = math.ceil(height / TILE), math.ceil(width / TILE)
    whole = (rows * TILE, columns * TILE)
    thumbnail = (TILE, TILE * 2)
    tiles = (
        View(whole, whole, (0, 0), (r * TILE, c * TILE, TILE, TILE), (TILE, TILE))
        for r in range(rows)
        for c in range(columns)
    )
    return TilePlan((height, width), (rows, columns), (View.whole(thumbnail), *tiles), thumbnail="first")


def slices_then_overview(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """LLaVA-UHD's layout: slices with "," between those of a row and "\\n" after each row, then the overview."""
    sizes = [math.prod(token_grid(view.size)) for view in plan.views]
    firsts = np.cumsum([0, *sizes])
    rows, columns = plan.grid
    runs: list[Run] = []
    for r in range(rows):
        for c in range(columns):
            view = 1 + r * columns + c
            runs += [np.arange(firsts[view], firsts[view + 1]), "," if c + 1 < columns else "\n"]
    return [*runs, np.arange(sizes[0])]


def overview_then_rows(plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
    """4KHD's layout: overview with a newline vector (-1) per row, separator (-2), rows of the whole picture."""
    rows, columns = token_grid(plan.views[0].size)
    newline, separator = np.array([-1]), np.array([-2])
    runs: list[Run] = [part for r in range(rows) for part in (np.arange(r * columns, (r + 1) * columns), newline)]
    runs.append(separator)
    side = token_grid(plan.views[1].size)[0]
    for row in range(plan.grid[0] * side):
        for column in range(plan.grid[1]):
            tile = (row // side) * plan.grid[1] + column
            first = rows * columns + tile * side**2 + (row % side) * side
            runs.append(np.arange(first, first + side))
        runs.append(newline)
    return runs


@dataclass(frozen=True)
class Arranged(Layout):
    """A layout that calls a function."""

    function: Callable[[TilePlan, TokenGrid], list[Run]]

    def __call__(self, plan: TilePlan, token_grid: TokenGrid) -> list[Run]:
        return self.function(plan, token_grid)


def tiled(layout: Callable[[TilePlan, TokenGrid], list[Run]], **options) -> Processor:
    return Processor(
        load_tokenizer("nano"),
        PROMPT,
        tiling=plan_tiles,
        token_grid=lambda size: (size[0] // PATCH, size[1] // PATCH),
        layout=Arranged(layout),
        **options,
    )


def asked(*pictures: Noise, answer: str = "red") -> Document:
    return Document("doc", (Turn("user", (*pictures, "what colour ?")), Turn("assistant", (answer,))))


@pytest.mark.parametrize("number", range(6))
def test_the_count_known_before_pixels_is_what_collate_builds_and_the_model_makes(number):
    module = xcomposer2()
    sample = module.processor.sample(document(number))
    assert sample.length.views == len(document(number).pictures) == number % 3
    batch = collate([sample], module.processor)
    assert batch.ids.shape == (1, len(sample)) == (1, sample.length.tokens)
    assert batch.num_supervised == sample.length.supervised > 0
    assert len(batch.visual) == sum(sample.tokens_per_view)
    assert len(module.network.bank(batch.views)) == batch.views.tokens
    assert states(module.network, batch).shape == (len(sample), 32)


def test_pictures_of_a_document_take_their_places_in_turn():
    processor = xcomposer2().processor
    turns = (Turn("user", (Noise(0), "and", Noise(1), "?")), Turn("assistant", ("red",)))
    sample = processor.sample(Document("two", turns))
    visual = sample.index != TEXT
    assert sample.index[visual].tolist() == list(range(8))
    assert sample.tokens_per_view == (4, 4)
    between = processor.tokenizer.decode(
        sample.input_ids[visual.argmax() + 4 : -1][: len(processor.tokenizer.encode("and"))]
    )
    assert between == "and"
    assert (sample.labels[visual] == IGNORE).all()
    assert (sample.input_ids[visual] == processor.tokenizer.pad_id).all()


def test_labels_hold_the_answers_and_nothing_else():
    processor = xcomposer2().processor
    sample = processor.sample(asked(Noise(0), answer="a large red circle"))
    learnt = sample.labels != IGNORE
    assert (sample.labels[learnt] == sample.input_ids[learnt]).all()
    assert processor.tokenizer.decode(sample.labels[learnt]).strip() == "a large red circle"


@pytest.mark.parametrize(
    ("layout", "extra"),
    [
        # 2 x 3 tiles: "," and "\n" after each slice; or newline after 2 + 4 rows, one separator
        (slices_then_overview, 6),
        (overview_then_rows, 2 + 1 + 4),
    ],
)
def test_visual_tokens_counts_every_position_that_an_image_takes(layout, extra):
    processor = tiled(layout)
    assert processor.visual_tokens(50, 80) == 8 + 6 * 4 + extra
    with_it, without = (len(processor.sample(asked(*pictures))) for pictures in ([Noise(0, 50, 80)], []))
    assert with_it - without == processor.visual_tokens(50, 80)


def bank_of(processor: Processor, batch, learned):
    """A bank as from an encoder that keeps the mean colour of every patch: [K, 3], then learned vectors."""
    tokens = []
    for group in batch.views.groups:
        patches = torch.nn.functional.avg_pool2d(group, PATCH)  # [V, 3, rows, columns]
        tokens.append(patches.flatten(2).transpose(1, 2).flatten(0, 1))
    return torch.cat([*tokens, learned])


LEARNED = torch.tensor([[100.0, 0, 0], [200.0, 0, 0]])


def test_slices_with_commas_and_line_breaks_find_their_vectors_in_the_bank():
    processor = tiled(slices_then_overview)
    pictures = [Noise(0, 50, 80), Noise(1, 28, 28)]
    sample = processor.sample(asked(*pictures))
    views = processor.views(sample)
    batch = collate([sample], processor)
    assert [group.shape[1:] for group in batch.views.groups] == [(3, 28, 56), (3, 28, 28)]
    assert [len(group) for group in batch.views.groups] == [2, 7]
    placed = bank_of(processor, batch, LEARNED)[batch.bank]
    order = [1, 2, 3, 4, 5, 6, 0, 8, 7]  # of the views: slices, overview; slices, overview
    expected = [torch.nn.functional.avg_pool2d(views[i][None], PATCH)[0].flatten(1).T for i in order]
    torch.testing.assert_close(placed, torch.cat(expected))
    text = [token for place, token in enumerate(batch.ids[0].tolist()) if place not in batch.visual]
    assert processor.tokenizer.decode(text).count(",") == 4


def test_rows_of_tiles_with_newline_and_separator_vectors_draw_the_picture_row_by_row():
    processor = tiled(overview_then_rows)
    picture = Noise(0, 56, 84)  # 2 x 3 tiles, not resized
    samples = [processor.sample(asked(Noise(5, 28, 28))), processor.sample(asked(picture))]
    batch = collate(samples, processor)
    placed = bank_of(processor, batch, LEARNED)[batch.bank[batch.visual >= batch.lengths[0]]]
    first_rows, rest = placed[:10].view(2, 5, 3), placed[11:].view(4, 7, 3)
    assert (placed[10] == LEARNED[1]).all()  # separator
    assert (first_rows[:, -1] == LEARNED[0]).all()
    assert (rest[:, -1] == LEARNED[0]).all()
    (pixels,) = collate([tiled_whole().sample(asked(picture))], tiled_whole()).views.groups
    whole = torch.nn.functional.avg_pool2d(pixels, PATCH)[0].permute(1, 2, 0)  # [4, 6, 3]
    torch.testing.assert_close(rest[:, :-1], whole)


def tiled_whole() -> Processor:
    """Plan the whole picture as one view."""
    whole = (56, 84)
    return Processor(
        load_tokenizer("nano"),
        PROMPT,
        tiling=lambda height, width: TilePlan((height, width), (1, 1), (View.whole(whole),)),
        token_grid=lambda size: (size[0] // PATCH, size[1] // PATCH),
    )


def test_a_sample_that_is_too_long_is_refused_with_both_numbers():
    length = len(xcomposer2().processor.sample(asked(Noise(0))))
    xcomposer2(max_length=length).processor.sample(asked(Noise(0)))
    expected = rf"sample 'doc' has {length} tokens \(4 of them visual\), but the limit of the model is {length - 1}"
    with pytest.raises(UserError, match=expected):
        xcomposer2(max_length=length - 1).processor.sample(asked(Noise(0)))


def test_a_language_model_alone_refuses_pictures_and_takes_text():
    with pytest.raises(UserError, match="'doc' has 1 pictures, but this model reads only text"):
        decoder().processor.sample(asked(Noise(0)))
    assert decoder().processor.sample(asked()).length.views == 0


def test_views_are_those_of_the_plan_and_normalised():
    processor = xcomposer2().processor
    sample = processor.sample(asked(Noise(0), Noise(1)))
    views = processor.views(sample)
    assert [view.shape for view in views] == [(3, 28, 28)] * 2
    assert not torch.equal(views[0], views[1])
    assert all(abs(view.mean()) < 1 for view in views)


class Resized(Noise):
    """A picture that reports a wrong size."""

    def read(self):
        return super().read().resize((7, 7))


def test_a_picture_of_another_size_than_promised_is_refused():
    processor = xcomposer2().processor
    with pytest.raises(UserError, match="a picture is 7 x 7 pixels, its metadata says 30 x 20"):
        processor.views(processor.sample(asked(Resized(0))))


def test_an_image_that_cannot_be_tiled_is_named_with_its_sample():
    processor = replace(tiled(overview_then_rows), tiling=Hd())
    long = Document("ocr/9", (Turn("user", (Noise(0, height=1, width=30_000), "what?")), Turn("assistant", ("a",))))
    with pytest.raises(
        UserError, match=r"sample 'ocr/9', Hd\(max_tiles=25, tile=336\): plan_hd cannot tile an image of 30000 x 1"
    ):
        processor.sample(long)


def test_a_source_may_have_a_tiling_of_its_own() -> None:
    processor = xcomposer2().processor
    halves = partial(plan_hd, max_tiles=4, tile=28)
    own = Processor(
        processor.tokenizer,
        processor.prompt,
        tiling=processor.tiling,
        token_grid=processor.token_grid,
        by_source={"dense": halves},
    )
    shown = document(1, pictures=1)
    plain, dense = own.sample(shown), own.sample(replace(shown, source="dense"))
    assert plain.plans[0] == processor.tiling(20, 30)
    assert dense.plans[0] == halves(20, 30) and len(dense.plans[0].views) == 1 + 2 * 2


def test_a_layout_that_places_nothing_leaves_the_text_and_the_views() -> None:
    """Models that put images elsewhere than into the text need this."""
    processor = tiled(lambda plan, token_grid: [])
    sample, text = processor.sample(asked(Noise(0, 50, 80))), processor.sample(asked())
    assert (sample.input_ids == text.input_ids).all() and (sample.index == TEXT).all()
    assert processor.visual_tokens(50, 80) == 0
    assert sample.length.views == 7 and len(processor.views(sample)) == 7
    assert sample.spans[0][0] == sample.spans[0][1]
