"""The encoder-decoder alone: loss, parts, training and answers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_mm.datamodules.nano_text_pairs import NanoTextPairs
from lit_mm.documents.document import Document, Turn
from lit_mm.evaluation.examiners import examine
from lit_mm.families import EncoderDecoder
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer
from lit_mm.language.t5 import T5
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.stages.stage import Stage, Train
from tests.rows import loss_sum, transformers_t5

LESSONS = [("what is the code?", "42"), ("what is the name?", "KALO"), ("what is the city?", "MIRUT"), ("count", "3")]


def tiny() -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder(T5(width=32, layers=1, heads=2, ffn_width=48, vocab_size=512), tokenizer="nano")


def documents() -> list[Document]:
    return [Document(q, (Turn("user", (q,)), Turn("assistant", (a,))), skill="lesson") for q, a in LESSONS]


def batch(module: EncoderDecoder, *numbers: int) -> Batch:
    samples = [module.processor.sample(document) for document in documents()]
    return collate([samples[number] for number in numbers], module.processor)


@pytest.fixture(scope="module")
def taught() -> EncoderDecoder:
    """An encoder-decoder that has learned four answers by heart."""
    module = tiny()
    lessons = batch(module, 0, 1, 2, 3)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss_sum(module, lessons).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return module.eval()


def test_its_part_is_the_language_model_and_holds_every_parameter() -> None:
    module = tiny()
    assert list(module.parts()) == ["language"]
    assert len(module.parts()["language"]) == len(list(module.parameters()))
    module.begin(Stage("read", train={"language": Train(lr=1e-3)}), total_steps=1)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_loss_is_the_sum_over_target_tokens_and_packing_does_not_change_it() -> None:
    module = tiny().eval()
    alone = [loss_sum(module, batch(module, number)) for number in range(4)]
    torch.testing.assert_close(loss_sum(module, batch(module, 0, 1, 2, 3)), sum(alone))


def test_the_loss_is_that_of_transformers() -> None:
    module = tiny().eval()
    one = batch(module, 1)
    logits = transformers_t5(module.network.language)(input_ids=one.ids, labels=one.target.ids).logits[0]
    torch.testing.assert_close(loss_sum(module, one), F.cross_entropy(logits, one.target.ids[0], reduction="sum"))


def test_gradients_reach_every_parameter() -> None:
    module = tiny()
    loss_sum(module, batch(module, 0, 1, 2, 3)).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_beams_find_an_answer_too(taught: EncoderDecoder) -> None:
    assert answer(taught, documents(), decoding=Decoding(24, beams=3)) == [text for _, text in LESSONS]


def test_it_answers_what_it_was_taught(taught: EncoderDecoder) -> None:
    assert answer(taught, documents(), batch_size=3) == [text for _, text in LESSONS]


def test_it_is_examined_like_every_family(taught: EncoderDecoder) -> None:
    assert all(prediction.correct for prediction in examine(taught, documents()).predictions)
    wrong = [Document("a", (Turn("user", ("count",)), Turn("assistant", ("4",))))]
    assert not examine(taught, wrong).predictions[0].correct


def test_held_out_pages_can_be_answered_by_an_untrained_model() -> None:
    pages = NanoTextPairs().heldout(9)
    assert len(answer(tiny().eval(), pages, max_new_tokens=3)) == 9
