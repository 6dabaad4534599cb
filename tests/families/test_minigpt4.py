"""MiniGPT-4 trains its projection alone in both stages, in both forms, and stops at its separator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_mm.documents.document import Document
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer, decode, prompt_sample
from lit_mm.prompts.minigpt4 import MiniGPT4Prompt
from lit_mm.samples.batch import IGNORE
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.thaw import set_modes
from tests.tiny import run_recipe
from tests.tiny_blip import Pages, page
from tests.tiny_minigpt4 import CONNECTORS, minigpt4, stages

KINDS = tuple(CONNECTORS)


@pytest.mark.parametrize("kind", KINDS)
def test_both_stages_train_the_projection_alone(kind: str, tmp_path: Path) -> None:
    module = minigpt4(kind)
    start = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    run_recipe(module, stages(), tmp_path, data_class=Pages)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 4
    end = module.network.state_dict()
    changes = {name for name in start if not torch.equal(start[name], end[name])}
    assert changes == {"connector.projection.weight", "connector.projection.bias"}


def test_the_q_former_is_a_frozen_part_without_dropout() -> None:
    module = minigpt4()
    assert set(module.parts()) == {"vision", "connector", "projection", "language"}
    set_modes(module.network, {"projection"})
    assert not any(inner.training for inner in module.network.connector.qformer.modules())
    batch = collate([module.processor.sample(page(number)) for number in range(2)], module.processor)
    assert torch.equal(module.network.embed(batch), module.network.embed(batch))  # its dropout is 0.5


def test_groups_of_patches_have_no_part_beside_the_projection() -> None:
    assert set(minigpt4("groups").parts()) == {"vision", "projection", "language"}


@pytest.mark.parametrize(("kind", "tokens"), [("Q-Former", 4), ("groups", 2)])
def test_the_first_stage_has_no_template_and_the_second_has_one(kind: str, tokens: int) -> None:
    module = minigpt4(kind)
    first, second = (module.processor_of(stage).sample(page(1)) for stage in stages())
    assert len(first) == 1 + tokens + int((first.labels != IGNORE).sum())
    text = module.processor.tokenizer.decode(second.input_ids.tolist())
    assert text.startswith("###Human: <Img>") and text.endswith("###")


def test_generation_stops_at_a_separator_of_several_tokens() -> None:
    module = minigpt4(inputs=Inputs(prompt=MiniGPT4Prompt("vicuna")))
    documents = [page(number) for number in range(3)]
    batch = collate([prompt_sample(module.processor, document) for document in documents], module.processor)
    free = decode(module.network.eval(), batch, stop_ids=(), decoding=Decoding(6))
    for beams in (1, 3):
        whole = decode(module.network, batch, stop_ids=(), decoding=Decoding(6, beams=beams))
        end = tuple(whole[0][2:4])
        rows = decode(module.network, batch, stop_ids=(), stop_sequences=[end], decoding=Decoding(6, beams=beams))
        assert all(tuple(row[-2:]) == end or len(row) == 6 for row in rows)
        if beams == 1:
            assert rows[0] == free[0][:4]
        alone = [row for document in documents for row in decode_one(module, document, end, beams)]
        assert rows == alone


def decode_one(module, document: Document, end: tuple[int, ...], beams: int) -> list[list[int]]:
    batch = collate([prompt_sample(module.processor, document)], module.processor)
    return decode(module.network, batch, stop_ids=(), stop_sequences=[end], decoding=Decoding(6, beams=beams))


def test_an_answer_that_is_continued_begins_with_the_words_before_the_separator() -> None:
    module = minigpt4()
    whole, begun = module.processor.sample(page(2)), prompt_sample(module.processor, page(2), continued=True)
    separator = module.processor.tokenizer.encode("a###")[1:]
    assert begun.input_ids.tolist() + separator == whole.input_ids.tolist()
    assert answer(module, [page(2)], decoding=Decoding(2))[0].count("#") < 3
