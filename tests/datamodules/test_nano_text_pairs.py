"""Pairs of nano pages as text: the questions and their order."""

from __future__ import annotations

import pytest
import torch

from lit_mm.datamodules.nano_text_pairs import NanoPairs, NanoTextPairs
from lit_mm.errors import UserError
from lit_mm.nano.text import reading_document
from lit_mm.nano.world import SKILLS
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.text_to_text import TextToText
from lit_mm.samples.batch import Batch
from lit_mm.samples.processor import Processor
from lit_mm.stages.stage import Stage, Train

PROCESSOR = Processor(load_tokenizer("nano"), TextToText(), writes_target=True)
STAGE = Stage("read", train={"language": Train(lr=1e-3)}, max_steps=3)


def module(**changes: object) -> NanoTextPairs:
    return NanoTextPairs(**{"pairs": 60, "global_batch": 4, "window": 32, "num_workers": 0} | changes)


def batches(data: NanoTextPairs, first_step: int = 0, **begin: int) -> list[Batch]:
    data.begin(PROCESSOR, STAGE, **{"seed": 0} | begin)
    data.stream.first_step = first_step
    return [data.rows[micro] for micro in data.stream]


def test_even_pairs_ask_every_question_of_a_page_and_odd_pairs_read_it_out() -> None:
    pairs = NanoPairs(1000, questions=3, split="text", seed=5)
    for page in range(30):
        whole = reading_document(2 * page, split="text", seed=5, questions=3)
        asked = [pairs[2 * (3 * page + turn)] for turn in range(3)]
        text = whole.turns[0].text.rsplit("\n", 1)[0]
        offered = [
            (turn.text.removeprefix(f"{text}\n"), whole.turns[n + 1].text)
            for n, turn in enumerate(whole.turns)
            if n % 2 == 0
        ]
        for turn, pair in enumerate(asked):
            question, answer = offered[turn % len(offered)]
            assert pair.turns[0].text == f"{text}\n{question}"
            assert pair.answer == answer
            assert [t.role for t in pair.turns] == ["user", "assistant"]
        out = pairs[2 * page + 1]
        assert out.answer.split() == out.question.rsplit("\n", 1)[0].split()
    assert {pairs[n].id for n in range(0, 12, 2)} != {pairs[0].id}


def test_pairs_of_one_page_have_names_of_their_own() -> None:
    pairs = NanoPairs(1000, questions=2, split="text", seed=0)
    lengths = [len(reading_document(2 * page, split="text", seed=0, questions=2).turns) for page in range(9)]
    for page, length in enumerate(lengths):
        assert (pairs[4 * page].id != pairs[4 * page + 2].id) == (length == 4)


def test_the_same_seed_gives_the_same_batches_and_another_seed_others() -> None:
    first, again, other = batches(module()), batches(module()), batches(module(), seed=1)
    assert all(torch.equal(a.target.ids, b.target.ids) for a, b in zip(first, again, strict=True))
    assert [b.sample_ids for b in first] != [b.sample_ids for b in other]


def test_a_stream_that_resumes_continues_it() -> None:
    whole, rest = batches(module()), batches(module(), first_step=1)
    assert [b.sample_ids for b in rest] == [b.sample_ids for b in whole[1:]]


def test_ranks_and_micro_batches_share_the_step() -> None:
    whole = batches(module())
    parts = [batches(module(micro_batch=2), rank=rank, world=2) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        assert sorted(batch.sample_ids) == sorted(parts[0][step].sample_ids + parts[1][step].sample_ids)
        assert batch.units == parts[0][step].units
        assert batch.units["tokens"] == sum(part[step].num_supervised for part in parts)
        assert batch.units["tokens"] == batch.num_supervised


def test_rows_keep_the_budget_of_source_and_target_together() -> None:
    for batch in batches(module(row_tokens=160)):
        assert batch.num_tokens <= 4 * 160  # four rows a step
        assert len(batch.lengths) > 4


def test_held_out_pages_are_asked_once_each_over_all_skills() -> None:
    documents = module().heldout(18)
    assert [document.skill for document in documents] == [*SKILLS, *SKILLS]
    assert all(len(document.turns) == 2 and not document.pictures for document in documents)
    assert all(document.id.startswith("heldout/") for document in documents)
    assert len(module(heldout_documents=5).heldout()) == 5


def test_no_held_out_documents_can_be_asked_for() -> None:
    assert module(heldout_documents=0).heldout(18) == []


@pytest.mark.parametrize("wrong", [{"pairs": 0}, {"questions": 0}])
def test_empty_data_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least one pair"):
        module(**wrong)
