"""Decoding with a cache gives the answer of decoding without."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lit_mm.documents.document import Turn
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer, decode
from lit_mm.samples.collate import collate
from lit_mm.samples.processor import TEXT
from tests.rows import states
from tests.tiny import decoder, document, xcomposer2

DOCUMENTS = [document(number) for number in range(6)]  # of different lengths, with 0, 1 and 2 pictures


@pytest.fixture(scope="module")
def module():
    """A model with large random weights: attention is sharp, so answers depend on the text and on positions."""
    model = xcomposer2(trained=True).eval()
    for name, parameter in model.network.language.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if "embed_tokens" in name else 0.4)
    return model


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
