"""Decoding with a cache gives the answer of decoding without."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lit_mm.documents.document import Document, Turn
from lit_mm.families import EncoderDecoder
from lit_mm.inference import generate
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer, decode
from lit_mm.language.t5 import T5
from lit_mm.samples.collate import collate
from lit_mm.samples.processor import TEXT
from tests.rows import states
from tests.tiny import decoder, document, sharp_xcomposer2, xcomposer2

DOCUMENTS = [document(number) for number in range(6)]  # of different lengths, with 0, 1 and 2 pictures


@pytest.fixture(scope="module")
def module():
    """A model with large random weights: attention is sharp, so answers depend on the text and on positions."""
    return sharp_xcomposer2().eval()


@torch.no_grad()
def without_cache(module, sample, tokens):
    """Decode token by token with a full forward each. Generated tokens are appended as text of the user."""
    from dataclasses import replace

    made = []
    for _ in range(tokens):
        batch = collate([sample], module.processor)
        token = int(module.network.language.logits(states(module.network, batch)[-1]).argmax())
        made.append(token)
        sample = replace(
            sample,
            input_ids=np.append(sample.input_ids, token),
            labels=np.append(sample.labels, -100),
            index=np.append(sample.index, TEXT),
        )
    return made


def test_cached_decoding_of_several_samples_is_argmax_decoding_without_a_cache(module):
    samples = [module.processor.sample(d.without_answer()) for d in DOCUMENTS]
    expected = [without_cache(module, sample, 10) for sample in samples]
    assert len({tuple(row) for row in expected}) == len(samples)
    stop = expected[0][4]  # the first sample leaves before the others
    with torch.no_grad():
        ids = decode(module.network, collate(samples, module.processor), stop_ids={stop}, decoding=Decoding(10))
    assert ids == [row[: row.index(stop) + 1] if stop in row else row for row in expected]


def test_answers_do_not_depend_on_the_batch_or_its_order(module):
    together = answer(module, DOCUMENTS, max_new_tokens=8)
    assert answer(module, DOCUMENTS, batch_size=2, max_new_tokens=8) == together
    assert answer(module, DOCUMENTS[::-1], batch_size=4, max_new_tokens=8) == together[::-1]
    assert [answer(module, [d], max_new_tokens=8)[0] for d in DOCUMENTS] == together
    assert len(set(together)) > 1


def scripted(script):
    """A decoder that answers every question with the ids of `script`."""
    model = decoder().eval()
    language = model.network.language
    begin, step, samples, position = language.begin, language.step, [], iter(())

    def scripted_begin(embeds, batch):
        nonlocal position
        samples[:], position = range(len(script)), iter(range(10**6))
        hidden, state = begin(embeds, batch)
        reorder = state.reorder

        def scripted_reorder(order):
            samples[:] = [samples[number] for number in order.tolist()]
            reorder(order)

        state.reorder = scripted_reorder
        return hidden, state

    def logits(hidden):
        at = next(position)
        ids = [script[number][min(at, len(script[number]) - 1)] for number in samples]
        return torch.nn.functional.one_hot(torch.tensor(ids), 512).float()

    language.begin, language.step, language.logits = scripted_begin, step, logits
    return model


def test_an_answer_ends_at_the_first_stop_token_and_others_go_on():
    tokenizer = decoder().processor.tokenizer
    end, red, blue = tokenizer.id_of("<|im_end|>"), tokenizer.encode(" red"), tokenizer.encode(" blue circle")
    texts = [document(0, pictures=0), document(0, pictures=0)]
    model = scripted([[*red, end, *blue, *blue], [*blue, *red, *red, end]])
    assert answer(model, texts, max_new_tokens=40) == ["red", "blue circle red red"]


def test_an_answer_that_does_not_end_is_cut():
    red = decoder().processor.tokenizer.encode(" red")
    assert answer(scripted([red]), [document(0, pictures=0)], max_new_tokens=3) == ["red red red"]


def test_decoding_stops_when_every_row_has_ended():
    end = decoder().processor.tokenizer.id_of("<|im_end|>")
    model = scripted([[end]])
    sample = model.processor.sample(document(0, pictures=0).without_answer())
    batch = collate([sample], model.processor)
    assert decode(model.network, batch, stop_ids={end}, decoding=Decoding(9)) == [[end]]


def test_the_documents_own_answer_is_not_shown(module):
    asked = DOCUMENTS[1]
    other = replace(asked, turns=(*asked.turns[:-1], Turn("assistant", ("something else entirely",))))
    assert answer(module, [asked], max_new_tokens=6) == answer(module, [other], max_new_tokens=6)


def test_it_works_in_the_midst_of_training_and_leaves_the_mode(module):
    model = xcomposer2(dropout=0.5, trained=True).train()
    assert answer(model, DOCUMENTS[:2], max_new_tokens=4) == answer(model, DOCUMENTS[:2], max_new_tokens=4)
    assert model.training


def test_no_documents_have_no_answers(module):
    assert answer(module, []) == []


class Rows:
    """Counts the rows of every step of a language model, and the positions of the row that it begins with."""

    def __init__(self, language, monkeypatch):
        self.of_steps, self.of_prefill, step, read = [], [], language.step, language.begin

        def counted_step(tokens, state):
            self.of_steps.append(len(tokens))
            return step(tokens, state)

        def counted_begin(embeds, batch):
            self.of_prefill.append(tuple(embeds.shape[:2]))
            return read(embeds, batch)

        monkeypatch.setattr(language, "step", counted_step)
        monkeypatch.setattr(language, "begin", counted_begin)


def encoder_decoder():
    """Drawn wide, as `module`."""
    torch.manual_seed(0)
    model = EncoderDecoder(T5(width=32, layers=2, heads=2, ffn_width=48, vocab_size=512), tokenizer="nano").eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
@torch.no_grad()
def test_prompts_are_one_flat_row_and_samples_that_have_ended_leave(module, monkeypatch, kind, beams):
    if kind == "decoder":
        model, documents = module, DOCUMENTS
    else:
        model = encoder_decoder()
        texts = [" ".join(["the code"] * (number + 1)) for number in range(6)]
        documents = [Document(text, (Turn("user", (text,)), Turn("assistant", ("x",)))) for text in texts]
    samples = [model.processor.sample(document) for document in documents]
    batches = [collate([sample], model.processor.for_questions()) for sample in samples]
    batch = collate(samples, model.processor.for_questions())
    stops = set(range(0, 512, 9 if kind == "decoder" else 4))
    alone = [decode(model.network, one, stop_ids=stops, decoding=Decoding(12, beams=beams))[0] for one in batches]
    rows = Rows(model.network.language, monkeypatch)
    assert decode(model.network, batch, stop_ids=stops, decoding=Decoding(12, beams=beams)) == alone
    assert rows.of_prefill == [(1, sum(batch.lengths))]
    assert rows.of_steps == sorted(rows.of_steps, reverse=True)
    assert rows.of_steps[0] > rows.of_steps[-1]
    if beams == 1:
        assert rows.of_steps == [sum(len(ids) > step for ids in alone) for step in range(1, max(map(len, alone)))]


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_where_ranks_share_the_model_nobody_leaves_and_answers_are_the_same(module, monkeypatch, beams):
    """Every rank makes the same calls, so that a sample that has ended goes on as a row that nobody reads."""
    samples = [module.processor.sample(document.without_answer()) for document in DOCUMENTS]
    batch, stops = collate(samples, module.processor), set(range(0, 512, 9))
    expected = decode(module.network, batch, stop_ids=stops, decoding=Decoding(12, beams=beams))
    monkeypatch.setattr(generate, "is_shared", lambda network: True)
    monkeypatch.setattr(generate, "all_done", lambda done, network: False)  # another rank is never done
    rows = Rows(module.network.language, monkeypatch)
    assert decode(module.network, batch, stop_ids=stops, decoding=Decoding(12, beams=beams)) == expected
    assert rows.of_steps == [len(samples) * beams] * 11


@torch.no_grad()
def test_enough_beams_go_on_where_many_tokens_end_an_answer(module):
    """Each hypothesis may have all of its best continuations among the stop tokens."""
    batch = collate([module.processor.sample(d.without_answer()) for d in DOCUMENTS], module.processor)
    answers = decode(module.network, batch, stop_ids=set(range(0, 512, 2)), decoding=Decoding(6, beams=4))
    assert all(1 <= len(ids) <= 6 for ids in answers)
