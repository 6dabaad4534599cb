"""Decoding equals transformers' generate on the same weights; seeds, limits, and answers with an opening."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.families import Decoder
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer, decode, prompt_sample
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.xcomposer import XComposerPrompt
from lit_mm.samples.collate import collate
from tests.rows import states
from tests.tiny import PROMPT, decoder, document, language, xcomposer2

STOP = 7
DOCUMENTS = [document(number, pictures=0) for number in range(5)]


@pytest.fixture(scope="module")
def module() -> Decoder:
    """A model with large random weights, so that answers differ and have different lengths."""
    model = decoder().eval()
    torch.manual_seed(3)
    for name, parameter in model.network.language.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if "embed_tokens" in name else 0.3)
    return model


def theirs(module: Decoder, sample: Any, **options: Any) -> list[int]:
    """The answer of transformers to the same embeddings, with attention of transformers."""
    ours = module.network.language.lm
    config = LlamaConfig(**{k: v for k, v in ours.config.to_dict().items() if k != "attn_implementation"})
    config._attn_implementation = "eager"
    copy = LlamaForCausalLM(config).eval()
    copy.load_state_dict(ours.state_dict())
    ids = torch.from_numpy(sample.input_ids)[None]
    made = copy.generate(
        inputs_embeds=copy.get_input_embeddings()(ids),
        attention_mask=torch.ones_like(ids),
        eos_token_id=STOP,
        pad_token_id=STOP,
        **options,
    )
    return made[0].tolist()


def up_to_stop(ids: list[int]) -> list[int]:
    return ids[: ids.index(STOP) + 1] if STOP in ids else ids


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        ({}, {"do_sample": False}),
        ({"repetition_penalty": 5.0}, {"do_sample": False, "repetition_penalty": 5.0}),
        ({"min_new_tokens": 4}, {"do_sample": False, "min_new_tokens": 4}),
        ({"beams": 3}, {"num_beams": 3, "do_sample": False}),
        ({"beams": 5, "repetition_penalty": 1.5}, {"num_beams": 5, "do_sample": False, "repetition_penalty": 1.5}),
    ],
    ids=["greedy", "repetition", "min", "beams", "beams and repetition"],
)
def test_it_decodes_as_transformers_does(module: Decoder, ours: dict, options: dict) -> None:
    samples = [module.processor.sample(d.without_answer()) for d in DOCUMENTS]
    batch = collate(samples, module.processor)
    with torch.no_grad():
        made = decode(module.network, batch, stop_ids={STOP}, decoding=Decoding(12, **ours))
    expected = [theirs(module, sample, max_new_tokens=12, **options) for sample in samples]
    assert [up_to_stop(ids) for ids in made] == [up_to_stop(ids) for ids in expected]
    assert len({tuple(ids) for ids in expected}) > 1


def test_draws_repeat_with_their_seed_and_change_with_it(module: Decoder) -> None:
    def drawn(seed: int) -> list[str]:
        return answer(module, DOCUMENTS, decoding=Decoding(8, sample=True, temperature=2.0, seed=seed))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("bound", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_a_draw_with_a_tight_bound_is_greedy(module: Decoder, bound: dict) -> None:
    assert answer(module, DOCUMENTS, decoding=Decoding(8, sample=True, **bound)) == answer(
        module, DOCUMENTS, max_new_tokens=8
    )


def test_a_draw_follows_the_distribution(module: Decoder) -> None:
    """3000 draws of one token among the 3 most likely; frequencies equal probabilities."""
    sample = module.processor.sample(DOCUMENTS[0].without_answer())
    batch = collate([sample] * 3000, module.processor)
    with torch.no_grad():
        scores = module.network.language.logits(states(module.network, batch)[-1])
        made = decode(
            module.network, batch, stop_ids={STOP}, decoding=Decoding(1, sample=True, temperature=3.0, top_k=3)
        )
    best = (scores / 3.0).topk(3)
    shares = torch.stack(
        [sum(ids == [token] for ids in made) / torch.tensor(3000.0) for token in best.indices.tolist()]
    )
    torch.testing.assert_close(shares, best.values.softmax(dim=0), rtol=0, atol=0.03)  # three deviations of 0.009
    assert shares.sum() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"min_new_tokens": 30},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"repetition_penalty": math.nan},
        {"top_p": 0.0},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"beams": 0},
        {"beams": 2, "sample": True},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match="decoding: "):
        Decoding(**wrong)


# --- answers that are begun for the model ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "prompt", [PROMPT, XComposerPrompt("<|im_start|>", "<|im_end|>"), ChatPrompt()], ids=lambda p: type(p).__name__
)
def test_a_begun_answer_is_the_whole_document_without_its_end(prompt: Any) -> None:
    processor = Decoder(language(), "nano", prompt).processor
    turns = (Turn("user", ("what?",)), Turn("assistant", ("red",)), Turn("user", ("which?",)))
    whole = Document("d", (*turns, Turn("assistant", ("the blue circle",))))
    begun = prompt_sample(processor, whole, continued=True)
    ids = processor.sample(whole).input_ids
    assert begun.input_ids.tolist() == ids[: len(begun)].tolist()
    assert processor.tokenizer.decode(begun.input_ids, skip_special=False).endswith("the blue circle")
    assert int(ids[len(begun)]) in prompt.stop_ids(processor.tokenizer)
    assert len(begun) > len(prompt_sample(processor, whole))
    bare = replace(whole, turns=turns)
    assert (
        prompt_sample(processor, bare, continued=True).input_ids.tolist()
        == prompt_sample(processor, bare).input_ids.tolist()
    )


def test_the_answer_depends_on_how_it_was_begun() -> None:
    model = xcomposer2(trained=True).eval()
    for parameter in model.network.language.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    begun = [replace(d := document(1), turns=(*d.turns[:-1], Turn("assistant", (text,)))) for text in ("red", "blue")]
    one, other = answer(model, begun, max_new_tokens=6, continued=True)
    assert one != other
    assert len(set(answer(model, begun, max_new_tokens=6))) == 1  # otherwise the own answer is not shown
