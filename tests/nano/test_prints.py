"""The vision encoder's pre-training: two prints of a page, and a loss that needs no text."""

from dataclasses import replace

import pytest
import torch

from lit_mm.data.order import MicroBatch
from lit_mm.nano.elements import Rule
from lit_mm.nano.prints import PrintNetwork, PrintPretraining, Prints
from lit_mm.nano.world import SKILLS, page
from lit_mm.vision.vit import ViT

SIZE = 56


@pytest.fixture(scope="module")
def batch():
    return Prints(SIZE, split="pixels", seed=0)[MicroBatch(((0,), (5,), (6,)), 9)]


def network():
    torch.manual_seed(0)
    return PrintNetwork(ViT(image_size=SIZE, patch=14, width=16, layers=1, heads=2), code=8)


def test_a_batch_holds_both_prints_and_their_plain_form(batch):
    assert batch.prints.shape == batch.plain.shape == (6, 3, SIZE, SIZE)
    assert batch.sample_ids == ("0", "5", "6")
    assert (batch.step_tokens, batch.num_tokens) == (9, 3)
    first, second = batch.prints.chunk(2)
    assert (first != second).flatten(1).any(1).all()
    assert (batch.plain[0] - batch.plain[0].amax()).abs().amin() == 0  # white paper


def test_it_is_a_function_of_the_page_numbers(batch):
    again = Prints(SIZE, split="pixels", seed=0)[MicroBatch(((6,), (0,)), 1)]
    assert torch.equal(again.prints[[1, 3, 0, 2]], batch.prints[[0, 3, 2, 5]])


def test_the_plain_print_is_black_on_white_whatever_the_look(batch):
    grey = batch.plain.mean(1)
    assert (batch.plain.std(dim=(2, 3)) >= 0).all()
    assert grey.amax() > 1.5  # normalised white
    assert grey.amin() < -1  # and some ink


@pytest.mark.parametrize("anew", [False, True])
def test_the_loss_reaches_every_parameter_and_falls(anew):
    batch = Prints(SIZE, split="pixels", seed=0, anew=anew)[MicroBatch(((0,), (5,), (6,), (9,)), 4)]
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(batch) / 4
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_batch_without_anything_to_compare_still_has_a_finite_loss(batch):
    blank = replace(batch, plain=torch.ones_like(batch.plain))
    model = network()
    loss = model(blank)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_its_parts_are_the_encoder_and_the_two_heads():
    module = PrintPretraining(ViT(image_size=SIZE, patch=14, width=16, layers=1, heads=2))
    assert set(module.parts()) == set(module.modules_by_part()) == {"vision", "redraw", "code"}


def test_a_page_laid_out_anew_shows_the_same_elements_in_the_same_order():
    moved = 0
    for index in range(20):
        for kind in SKILLS:
            one, other = (page(index, split="pixels", seed=0, kind=kind, look=look) for look in (0, 1))
            shown = [
                [getattr(e, "text", getattr(e, "kind", "")) for e in p.elements if not isinstance(e, Rule)]
                for p in (one, other)
            ]
            assert shown[0] == shown[1] and one.transcript == other.transcript
            moved += one.elements != other.elements
    assert moved > 90


def test_regions_cover_their_elements_in_both_prints():
    anew = Prints(SIZE, split="pixels", seed=0, anew=True)[MicroBatch(((0,), (6,)), 2)]
    (pages, whole), (half_pages, halves) = anew.regions
    assert whole.shape == (2, len(pages), 16) and halves.shape == (2, len(half_pages), 16)
    assert sorted(set(pages.tolist())) == [0, 1] and len(half_pages) == 2 * len(pages)
    torch.testing.assert_close(whole, halves[:, ::2] + halves[:, 1::2])  # two halves make the whole
    first = page(0, split="pixels", seed=0, kind=SKILLS[0])
    left, top, right, bottom = first.elements[0].box
    torch.testing.assert_close(whole[0, 0].sum().item(), (right - left) * (bottom - top) * 16, rtol=1e-5, atol=0)
