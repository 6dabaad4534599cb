"""Visual tokens into the text."""

from __future__ import annotations

import torch

from lit_mm.fusion.scatter import scatter_visual

MASK = torch.tensor([[False, True, True, False], [True, False, False, True]])
INDEX = torch.tensor([[0, 2, 0, 0], [1, 0, 0, 2]])


def test_each_position_holds_its_own_vector() -> None:
    text, bank = torch.randn(2, 4, 5), torch.randn(3, 5)
    mixed = scatter_visual(text, bank, INDEX, MASK)
    for row in range(2):
        for at in range(4):
            expected = bank[INDEX[row, at]] if MASK[row, at] else text[row, at]
            assert torch.equal(mixed[row, at], expected)


def test_gradients_add_up_in_the_bank_and_stop_in_replaced_text() -> None:
    text, bank = torch.randn(2, 4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    scatter_visual(text, bank, INDEX, MASK).sum().backward()
    assert bank.grad[:, 0].tolist() == [1, 1, 2, 0]  # vector 2 is placed twice, vector 3 never
    assert torch.equal(text.grad[..., 0], (~MASK).float())


def test_a_batch_without_images_gives_the_bank_a_zero_gradient() -> None:
    bank = torch.randn(3, 5, requires_grad=True)
    scatter_visual(torch.randn(2, 4, 5), bank, INDEX * 0, MASK & False).sum().backward()
    assert bank.grad is not None and not bank.grad.any()


def test_the_gradient_repeats_bit_for_bit() -> None:
    index = torch.randint(7, (4, 512))
    weight, gradients = torch.randn(4, 512, 64), []
    values = torch.randn(7, 64)
    for _ in range(3):
        bank = values.clone().requires_grad_()
        mixed = scatter_visual(torch.zeros(4, 512, 64), bank, index, index > 0)
        (mixed * weight).sum().backward()
        gradients.append(bank.grad)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_a_bank_in_half_precision_does_not_round_the_text() -> None:
    text = torch.randn(2, 4, 5)
    mixed = scatter_visual(text, torch.randn(3, 5).bfloat16(), INDEX, MASK)
    assert torch.equal(mixed[~MASK], text[~MASK])
