"""Truncation cuts text, keeps images whole, and keeps the supervision of what remains."""

import numpy as np
import pytest

from lit_mm.documents.document import Document, Turn
from lit_mm.samples.batch import IGNORE
from lit_mm.samples.collate import collate
from lit_mm.samples.truncate import cut_point, truncate
from tests.tiny import Noise, xcomposer2

PROCESSOR = xcomposer2().processor


def sample(*parts, answer="a long answer about this page"):
    return PROCESSOR.lay_out(Document("d", (Turn("user", parts), Turn("assistant", (answer,)))))


def test_a_sample_that_fits_is_left_alone():
    whole = sample(Noise(0), "what is this")
    assert truncate(whole, tokens=len(whole), views=1) is whole


@pytest.mark.parametrize("views", [None, 1, 2])
def test_at_every_length_images_are_whole_or_gone_and_the_rest_is_a_prefix(views):
    whole = sample("first", Noise(0), "then some text", Noise(1), "and a question")
    (start, stop), (later, end) = whole.spans
    assert stop - start == end - later == 4
    for tokens in range(len(whole) + 2):
        cut = truncate(whole, tokens=tokens, views=views)
        assert len(cut) <= tokens
        assert len(cut) == cut_point(whole, tokens=tokens, views=views)
        for name in ("input_ids", "labels", "index"):
            assert np.array_equal(getattr(cut, name), getattr(whole, name)[: len(cut)])
        shown = (len(cut) >= stop) + (len(cut) >= end)
        assert len(cut.plans) == len(cut.tokens_per_view) == len(cut.spans) == shown
        assert sum(cut.index >= 0) == 4 * shown == sum(cut.tokens_per_view)
        most = 2 if views is None else views
        fits = [n for n in range(min(tokens, len(whole)) + 1) if not (start < n < stop or later < n < end)]
        fits = [n for n in fits if most == 2 or n <= later]
        assert len(cut) == max(fits)


def test_a_cut_sample_is_collated_with_the_pixels_that_are_left():
    whole = sample("first", Noise(0), "then some text", Noise(1), "and a question")
    cut = truncate(whole, tokens=whole.spans[1][0] + 2)
    batch = collate([cut], PROCESSOR)
    assert batch.num_views == 1
    assert len(batch.visual) == 4
    assert (batch.views.groups[0][0] == PROCESSOR.views(whole)[0]).all()


def test_an_answer_that_is_cut_is_learnt_as_far_as_it_goes():
    whole = sample("what is this")
    first = int(np.flatnonzero(whole.labels != IGNORE)[0])
    cut = truncate(whole, tokens=first + 2)
    assert cut.length.supervised == 2
    assert truncate(whole, tokens=first).length.supervised == 0


def test_text_that_a_layout_puts_between_tiles_belongs_to_the_image():
    whole = sample("first", Noise(0), "then")
    (start, stop) = whole.spans[0]
    wider = type(whole)(
        whole.document, whole.input_ids, whole.labels, whole.index, whole.plans, whole.tokens_per_view,
        ((start, stop + 2),),
    )  # fmt: skip
    assert cut_point(wider, tokens=stop + 1) == start
    assert cut_point(wider, tokens=stop + 2) == stop + 2
