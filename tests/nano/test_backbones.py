"""The inputs of the recipes of the backbones."""

from __future__ import annotations

from lit_mm.datamodules.nano import NanoDocuments
from lit_mm.nano.prints import Prints
from lit_mm.nano.world import SKILLS
from lit_mm.stream.order import MicroBatch


def test_a_text_model_is_examined_on_held_out_pages_without_pictures() -> None:
    documents = NanoDocuments(kind="text", split="text").heldout(18)
    assert [document.skill for document in documents] == [*SKILLS, *SKILLS]
    assert all(not document.pictures and document.answer for document in documents)
    assert all(document.id.startswith("heldout/") for document in documents)


def test_other_models_are_examined_on_held_out_pages_as_pictures() -> None:
    assert all(document.pictures for document in NanoDocuments().heldout(9))


def test_a_batch_of_prints_counts_pages() -> None:
    batch = Prints(28, split="pixels", seed=0)[MicroBatch(((0,), (1,), (2,)), 3)]
    assert batch.units == {"pages": 3}
    assert batch.to("cpu").num_tokens == batch.num_tokens == 3
