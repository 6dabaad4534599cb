"""Visual tokens are scattered into the text."""

from __future__ import annotations

import torch

from lit_mm.fusion.scatter import scatter_visual

PLACES = torch.tensor([1, 2, 4, 7])
INDEX = torch.tensor([2, 0, 1, 2])
NONE = torch.zeros(0, dtype=torch.long)


def test_each_place_holds_its_own_vector() -> None:
    text, bank = torch.randn(1, 8, 5), torch.randn(3, 5)
    mixed = scatter_visual(text, bank, INDEX, PLACES)
    at = dict(zip(PLACES.tolist(), INDEX.tolist(), strict=True))
    for place in range(8):
        assert torch.equal(mixed[0, place], bank[at[place]] if place in at else text[0, place])


def test_gradients_add_up_in_the_bank_and_stop_in_replaced_text() -> None:
    text, bank = torch.randn(1, 8, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    scatter_visual(text, bank, INDEX, PLACES).sum().backward()
    assert bank.grad[:, 0].tolist() == [1, 1, 2, 0]  # vector 2 is placed twice, vector 3 never
    assert text.grad[0, :, 0].tolist() == [1, 0, 0, 1, 0, 1, 1, 0]


def test_a_batch_without_images_gives_the_bank_a_zero_gradient() -> None:
    bank = torch.randn(3, 5, requires_grad=True)
    scatter_visual(torch.randn(1, 8, 5), bank, NONE, NONE).sum().backward()
    assert bank.grad is not None and not bank.grad.any()


def test_the_gradient_repeats_bit_for_bit() -> None:
    index, places = torch.randint(7, (1024,)), torch.randperm(2048)[:1024].sort().values
    weight, gradients = torch.randn(1, 2048, 64), []
    values = torch.randn(7, 64)
    for _ in range(3):
        bank = values.clone().requires_grad_()
        mixed = scatter_visual(torch.zeros(1, 2048, 64), bank, index, places)
        (mixed * weight).sum().backward()
        gradients.append(bank.grad)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_a_bank_in_half_precision_does_not_round_the_text() -> None:
    text = torch.randn(1, 8, 5)
    mixed = scatter_visual(text, torch.randn(3, 5).bfloat16(), INDEX, PLACES)
    others = [place for place in range(8) if place not in PLACES]
    assert torch.equal(mixed[0, others], text[0, others])
