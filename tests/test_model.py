"""The composed model leaves plain text to the language model, bit for bit."""

from dataclasses import replace

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.objectives.next_token import NextToken
from lit_mm.samples.collate import collate
from tests.tiny import decoder, document, run_recipe, stages, xcomposer2

TEXTS = [document(number, pictures=0) for number in range(4)]


def states(module, documents):
    """[T, E] hidden states at every position of the flat row of the documents, and the batch, fully supervised."""
    batch = collate([module.processor.sample(document) for document in documents], module.processor)
    every = torch.arange(batch.ids.shape[1])
    batch = replace(batch, supervised=every, labels=batch.ids[0])
    return module.network(batch).hidden, batch


@torch.no_grad()
def logits(module, documents=TEXTS):
    """Logits at every position of the documents in one row."""
    return module.eval().network.language.logits(states(module, documents)[0])


def language_alone(module):
    """The plain language model with the weights of `module`, without partial LoRA."""
    plain = decoder()
    weights = module.network.language.state_dict()
    kept = {name.replace(".base.", "."): tensor for name, tensor in weights.items() if ".lora_" not in name}
    plain.network.language.load_state_dict(kept, strict=True)
    return plain


def test_a_new_model_says_of_text_what_its_language_model_says():
    assert torch.equal(logits(xcomposer2()), logits(decoder()))
    assert torch.equal(logits(xcomposer2(trained=True)), logits(decoder()))


def test_after_a_stage_with_the_language_model_frozen_it_still_does(tmp_path):
    module = xcomposer2()
    sighted = [document(1)]
    before = logits(module, sighted)
    run_recipe(module, stages()[:1], tmp_path)
    assert torch.equal(logits(module), logits(decoder()))
    assert not torch.allclose(logits(module, sighted), before, atol=1e-3)  # it has learnt


def test_after_all_stages_text_is_what_the_trained_language_model_alone_says(tmp_path):
    module = xcomposer2()
    run_recipe(module, stages(), tmp_path)
    assert torch.equal(logits(module), logits(language_alone(module)))
    assert not torch.allclose(logits(module), logits(decoder()), atol=1e-3)


def test_the_bits_hold_in_training_mode_and_beside_a_sample_with_a_picture():
    module, plain = xcomposer2(dropout=0.5, trained=True).train(), decoder().train()
    beside, batch = states(module, [document(1), TEXTS[0]])
    alone, _ = states(plain, [document(1, pictures=0), TEXTS[0]])
    length = batch.lengths[1]
    torch.testing.assert_close(beside[-length:], alone[-length:], rtol=0, atol=1e-6)  # other row lengths: other sums


@torch.no_grad()
def test_a_picture_reaches_the_text_behind_it_and_not_before_it():
    module = xcomposer2(trained=True).eval()
    before, batch = states(module, [document(2)])
    views = replace(batch.views, groups=tuple(group + 1 for group in batch.views.groups))
    moved = (before - module.network(replace(batch, views=views)).hidden).abs().amax(-1)
    first = int(batch.visual[0])
    assert (moved[:first] == 0).all()
    assert (moved[first:] > 0).all()


def test_another_number_of_visual_tokens_than_counted_is_refused_with_both_numbers():
    module = xcomposer2()
    batch = collate([module.processor.sample(document(1))], module.processor)
    wrong = replace(batch, views=replace(batch.views, tokens=batch.views.tokens + 1))
    with pytest.raises(UserError, match=r"'tiny/1'.* counted 5 visual tokens, .* made 4 from 1 views"):
        module.network(wrong)


def test_the_loss_is_the_cross_entropy_of_the_supervised_tokens():
    module = decoder()
    sample = module.processor.sample(TEXTS[1])
    every = torch.log_softmax(module.network.language.logits(states(module, [TEXTS[1]])[0]), -1)
    expected = -sum(every[i - 1, token] for i, token in enumerate(sample.labels.tolist()) if i and token >= 0)
    batch = collate([sample], module.processor)
    torch.testing.assert_close(NextToken()(module.network, batch), expected)


def test_learned_vectors_of_the_connector_stand_behind_the_visual_tokens_and_learn():
    module = xcomposer2()
    newline = torch.nn.Parameter(torch.randn(2, 32))
    module.network.connector.learned = lambda: newline
    batch = collate([module.processor.sample(document(1))], module.processor)
    batch.bank[-1] = batch.views.tokens + 1  # the second learned vector in place of the last visual token
    assert torch.equal(module.network.embed(batch)[0, batch.visual[-1]], newline[1])
    NextToken()(module.network, batch).backward()
    assert newline.grad[1].any()
    assert not newline.grad[0].any()
