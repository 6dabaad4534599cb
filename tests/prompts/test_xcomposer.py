from __future__ import annotations

import pytest

from lit_mm.prompts.xcomposer import label_mask_v1

HUMAN, BOT = 8, 9  # the markers that end a question and an answer


@pytest.mark.parametrize(
    ("ids", "learnt"),
    [
        ([], []),
        ([1, 20, 8, 5, 5, 5, 5, 5, 30, 9, 4, 2], [30, 9, 4, 2]),  # a whole turn
        ([1, 20, 8, 5, 5, 5, 5, 5, 30, 9, 21, 8, 5, 5, 5, 5, 5, 31, 9, 4, 2], [30, 9, 31, 9, 4, 2]),  # two
        ([1, 20, 8, 5, 5, 5, 5, 5, 30, 9, 4, 2, 2, 2], [30, 9, 4, 2]),  # padding has the id of eos
        ([1, 20, 8, 5, 5, 5, 5, 5, 30, 31], [30, 31]),  # cut inside the answer
        ([1, 20, 8, 5, 5, 5, 5, 5, 30, 9, 21, 22], [30, 9]),  # cut inside the second question
        ([1, -100, -100, 20, 8, 5, 5, 5, 5, 5, 30, -100, 9, 4, 2], [30, 9, 4, 2]),  # pictures
    ],
)
def test_answers_and_their_ends_are_learnt(ids: list[int], learnt: list[int]) -> None:
    mask = label_mask_v1(ids, end_of_human_id=HUMAN, end_of_assistant_id=BOT, eos_id=2)
    assert [token for token, learn in zip(ids, mask, strict=True) if learn] == learnt
