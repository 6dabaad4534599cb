"""Pre-training of the vision encoder: the signs of each patch, without text."""

from dataclasses import replace
from random import Random

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.nano.cells import WHOLE, cells
from lit_mm.nano.elements import Shape
from lit_mm.nano.prints import (
    CLOSEST,
    PLACES,
    SIGN,
    TENTHS,
    PrintNetwork,
    PrintPretraining,
    Prints,
    draw_sign,
    draw_window,
    sides_of,
)
from lit_mm.stream.order import MicroBatch
from lit_mm.vision.vit import ViT

SIZE = 56


@pytest.fixture(scope="module")
def batch():
    return Prints(SIZE, split="pixels", seed=0)[MicroBatch(((0,), (5,), (7,)), 9)]


def network():
    torch.manual_seed(0)
    return PrintNetwork(ViT(image_size=SIZE, patch=14, width=16, layers=1, heads=2), code=8)


def test_a_batch_holds_pages_and_what_stands_in_their_patches(batch):
    assert batch.prints.shape == (3, 3, SIZE, SIZE)
    assert batch.signs.shape == (3, 16, PLACES) and batch.sides.shape == (3, 16, 4)
    assert batch.merged.shape == (3, 4, PLACES)
    assert batch.sheet.shape == (int(batch.signs.max()) + 1, 3, SIGN, SIGN)
    assert batch.sample_ids == ("0", "5", "7")
    assert (batch.units, batch.num_tokens) == ({"pages": 9}, 3)


def test_it_is_a_function_of_the_page_numbers(batch):
    again = Prints(SIZE, split="pixels", seed=0)[MicroBatch(((7,), (0,)), 1)]
    assert torch.equal(again.prints, batch.prints[[2, 0]])
    assert torch.equal(again.sheet[again.signs], batch.sheet[batch.signs][[2, 0]])


def test_the_pictures_of_a_sheet_differ_and_the_first_is_blank(batch):
    assert len(batch.sheet.flatten(1).unique(dim=0)) == len(batch.sheet)
    assert (batch.sheet[0] == 1).all() and (batch.sheet[1:] < 0.5).flatten(1).any(1).all()


def test_a_sign_has_one_picture_whatever_the_look_of_its_page():
    pages = Prints(SIZE, split="pixels", seed=0)[MicroBatch(tuple((9 * i,) for i in range(40)), 40)]
    assert len(pages.sheet) <= 1 + 19  # the letters of made-up words


def test_shapes_and_bars_alone_have_sides(batch):
    assert not batch.shaped[0].any() and not batch.sides[0].any()  # a sign
    assert batch.shaped[1:].flatten(1).any(1).all()
    left, top, right, bottom = batch.sides[batch.shaped].unbind(-1)
    assert (left < right).all() and (top < bottom).all() and batch.sides.max() < TENTHS


def test_the_sides_of_a_box_are_told_to_the_nearest_line():
    assert sides_of(Shape("circle", "red", (0.1, 0.26, 0.4, 0.74))) == [1, 3, 4, 7]
    assert sides_of(Shape("circle", "red", (-0.01, 0.0, 1.0, 1.02))) == [0, 0, 10, 10]


def test_the_sides_in_a_close_up_are_those_of_what_it_shows():
    shape = Shape("circle", "red", (0.1, 0.25, 0.5, 0.75))
    assert sides_of(shape, (0.0, 0.0, 0.5, 0.5)) == [2, 5, 10, 10]


def test_windows_are_parts_of_the_page_in_its_shape():
    rng = Random(0)
    windows = [draw_window(rng, 0.5) for _ in range(400)]
    parts = [window for window in windows if window != WHOLE]
    assert 160 < len(parts) < 240
    for left, top, right, bottom in parts:
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        assert right - left == pytest.approx(bottom - top) and right - left >= 1 / CLOSEST - 1e-9
    assert all(draw_window(rng, 0.0) == WHOLE for _ in range(10))


def test_a_close_up_shows_its_window_and_the_signs_in_it():
    whole = Prints(SIZE, split="pixels", seed=0)
    close = Prints(SIZE, split="pixels", seed=0, close_ups=1.0)
    micro = MicroBatch(tuple((9 * number,) for number in range(6)), 6)
    shown, parts = whole[micro], close[micro]
    assert not torch.equal(shown.prints, parts.prints)
    for number in range(6):
        window = draw_window(close.rng(9 * number), 1.0)
        signs = [cell for cell, _ in cells(close._page(9 * number), 4, 4, window=window)]
        assert ((parts.signs[number] > 0).any(-1)).nonzero().flatten().tolist() == sorted(set(signs))


def test_a_block_of_patches_holds_the_signs_of_all_four_in_reading_order():
    prints = Prints(SIZE, split="pixels", seed=0, close_ups=0.5)
    batch = prints[MicroBatch(tuple((number,) for number in range(9)), 9)]
    for number in range(9):
        read = {cell: [] for cell in range(4)}
        for cell, sign in cells(prints._page(number), 2, 2, window=draw_window(prints.rng(number), 0.5)):
            read[cell].append(draw_sign(sign))
        for cell, pictures in read.items():
            shown = [batch.sheet[sign] for sign in batch.merged[number, cell] if sign]
            assert len(shown) == min(len(pictures), PLACES)
            assert all(map(torch.equal, shown, pictures))


def test_an_odd_number_of_patches_is_refused():
    with pytest.raises(UserError, match="got 3 patches a side"):
        Prints(42, split="pixels", seed=0)


def test_cells_of_a_window_are_those_of_the_page_where_it_is_the_window():
    page = Prints(SIZE, split="pixels", seed=0)._page(1)  # a list, of many signs
    quarters = []
    for row in range(2):
        for column in range(2):
            window = (column / 2, row / 2, (column + 1) / 2, (row + 1) / 2)
            for cell, sign in cells(page, 2, 2, window=window):
                quarters.append(((2 * row + cell // 2) * 4 + 2 * column + cell % 2, sign))
    assert sorted(quarters, key=str) == sorted(cells(page, 4, 4), key=str)


def test_the_loss_reaches_every_parameter_and_falls(batch):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(batch) / 3
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_empty_pages_still_have_a_finite_loss(batch):
    blank = replace(batch, signs=0 * batch.signs, merged=0 * batch.merged, shaped=torch.zeros_like(batch.shaped))
    model = network()
    loss = model(blank)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_its_parts_are_the_encoder_and_its_heads():
    module = PrintPretraining(ViT(image_size=SIZE, patch=14, width=16, layers=1, heads=2))
    assert set(module.parts()) == set(module.modules_by_part()) == {"vision", "proof", "merged", "sheet"}
