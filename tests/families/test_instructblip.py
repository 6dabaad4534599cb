"""InstructBLIP trains all stages with both kinds of language model, reads instructions, answers, and ranks answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.evaluation.answering import digest_of_asking, ranked, ranking_of
from lit_mm.evaluation.benchmarks.benchmark import Candidates, Procedure
from lit_mm.evaluation.benchmarks.question import Question
from lit_mm.evaluation.candidates import Ranking, candidate_ids, likelihoods
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer, prompt_sample
from lit_mm.module import MultimodalModule
from lit_mm.samples.batch import IGNORE, PAIRS, TOKENS, Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.processor import Processor
from lit_mm.samples.reading import Reading
from lit_mm.stages.stage import Stage, Train, apply_stage
from lit_mm.stream.datamodule import Source
from tests.tiny import run_recipe
from tests.tiny_blip import Pages
from tests.tiny_blip2 import blip2, qformer
from tests.tiny_instructblip import READING, instructblip, question, stages

KINDS = ("decoder", "encoder-decoder")
PARTS = {"vision", "connector", "text_branch", "text_head", "contrast", "matching", "projection", "language"}


class Questions(Pages):
    """Questions about one picture, one per row."""

    def source(self) -> Source:
        return [question(number) for number in range(self.count)]


def batch_of(processor: Processor, count: int = 4) -> Batch:
    samples = [processor.sample(question(number)) for number in range(count)]
    return collate(samples, processor, units={TOKENS: sum(s.length.supervised for s in samples), PAIRS: count})


def bank_of(
    module: MultimodalModule, processor: Processor, instruction: str, response: str = "red", number: int = 0
) -> torch.Tensor:
    batch = collate([processor.sample(question(number, instruction, response))], processor)
    with module.inference():
        return module.network.bank(batch.views, batch.texts)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_that_a_stage_trains_gets_a_gradient_and_no_other(kind: str) -> None:
    module = instructblip(kind)
    assert set(module.parts()) == PARTS
    module.check_recipe(stages(kind))
    for stage in stages(kind):
        module.zero_grad(set_to_none=True)
        apply_stage(module.parts(), stage)
        batch = batch_of(module.processor_of(stage))
        weights = module.weights_of_objectives(stage)
        sum(module.objectives[name](module.network, batch) for name in weights).backward()
        learnt = {part for part, tensors in module.parts().items() if any(t.grad is not None for t in tensors.values())}
        assert learnt == set(stage.train), stage.name
        missing = [name for part in stage.train for name, tensor in module.parts()[part].items() if tensor.grad is None]
        assert not missing, (stage.name, missing)


@pytest.mark.parametrize("kind", KINDS)
def test_instruction_tuning_starts_with_the_text_branch_of_the_first_stage(kind: str, tmp_path: Path) -> None:
    module, ends = instructblip(kind), {}

    def state() -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in module.network.named_parameters()}

    recipe = stages(kind)
    for length in range(1, len(recipe) + 1):
        run_recipe(module, recipe[:length], tmp_path, data_class=Questions)
        ends[recipe[length - 1].name] = state()
    moved = {
        stage: {module.part_of(name) for name in ends[stage] if not torch.equal(ends[before][name], ends[stage][name])}
        for before, stage in (("represent", "generate"), ("generate", "instruct"))
    }
    assert moved == {
        "generate": {"connector", "projection"},
        "instruct": {"connector", "text_branch", "projection"},
    }
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + len(recipe)


def test_a_batch_without_pictures_gives_every_trained_part_a_gradient() -> None:
    module = instructblip()
    apply_stage(module.parts(), stages()[-1])
    turns = tuple(Turn(turn.role, (turn.text,)) for turn in question(0).turns)
    batch = collate([module.processor.sample(Document("text", turns))], module.processor)
    module.objectives["next_token"](module.network, batch).backward()
    parts = module.parts()
    gradients = {part: [tensor.grad for tensor in parts[part].values()] for part in stages()[-1].train}
    assert not any(gradient is None or gradient.any() for of_part in gradients.values() for gradient in of_part)


def test_visual_tokens_depend_on_the_instruction_and_never_on_the_response() -> None:
    module = instructblip().eval()
    tokens = bank_of(module, module.processor, "what is red ?")
    assert torch.equal(tokens, bank_of(module, module.processor, "what is red ?", "a large blue circle"))
    assert (tokens - bank_of(module, module.processor, "what colour ?")).abs().max() > 1e-4


def test_every_frame_of_a_video_is_read_with_the_instruction() -> None:
    module = instructblip().eval()
    turns = (Turn("user", (*(question(number).pictures[0] for number in range(3)), "what is red ?")),)
    batch = collate([module.processor.sample(Document("video", turns))], module.processor)
    with module.inference():
        tokens = module.network.bank(batch.views, batch.texts)
    frames = [bank_of(module, module.processor, "what is red ?", number=number) for number in range(3)]
    torch.testing.assert_close(tokens, torch.cat(frames), rtol=0, atol=1e-6)


def test_a_reading_of_none_gives_the_visual_tokens_of_a_q_former_without_instructions() -> None:
    module = instructblip().eval()
    silent = module.processor.with_inputs(Inputs(reading=Reading(text="none", **READING)))
    plain = blip2().eval()
    plain.network.load_state_dict(module.network.state_dict())
    expected = bank_of(plain, plain.processor, "what is red ?")
    torch.testing.assert_close(bank_of(module, silent, "what is red ?"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_do_not_depend_on_the_batch_and_the_whole_response_is_learnt(kind: str) -> None:
    module = instructblip(kind)
    documents = [question(number) for number in range(4)]
    texts = answer(module, documents, decoding=Decoding(4), batch_size=4)
    assert texts == answer(module, documents, decoding=Decoding(4), batch_size=1)
    sample, tokenizer = module.processor.sample(documents[1]), module.processor.tokenizer
    learnt = sample.labels[sample.labels != IGNORE].tolist()
    assert learnt == [*tokenizer.encode(documents[1].answer), tokenizer.eos_id]


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_ranked_by_the_sum_over_their_tokens(kind: str) -> None:
    module = instructblip(kind).eval()
    assert ranking_of(module, Candidates()) == Ranking("sum", end=kind == "encoder-decoder")
    assert ranking_of(module, Candidates(length="mean", end=True)) == Ranking("mean", end=True)
    documents = [question(number).without_answer() for number in range(3)]
    options = ("red", "a large blue circle near the page", "123")
    questions = [Question(document.id, None, "?", (), choices=options) for document in documents]
    processor = module.processor
    ids = [[candidate_ids(processor, d, text, end=module.ranking.end) for text in options] for d in documents]
    with module.inference():
        batch = collate([prompt_sample(processor, document) for document in documents], processor.for_questions())
        scores = likelihoods(module.network, batch, ids, length="sum")
    best = ["ABC"[row.index(max(row))] for row in scores]
    assert ranked(module, documents, questions, Candidates(as_letters=False)) == best


def test_stored_answers_are_those_of_the_instruction_that_the_q_former_read() -> None:
    module, procedure = instructblip(), Procedure("p", "equality", "{question}")
    questions = [Question("q", question(0).pictures[0], "what is the colour of the red circle ?", ())]
    before = digest_of_asking(module, questions, procedure, weights="w", data="d")
    shorter = Inputs(reading=replace(module.processor.reading, max_length=4))
    module.processor = module.processor.with_inputs(shorter)
    assert before != digest_of_asking(module, questions, procedure, weights="w", data="d")


def test_a_q_former_that_would_read_the_answer_is_refused() -> None:
    with pytest.raises(UserError, match="the Q-Former reads instructions, got a `reading` of text 'caption'"):
        instructblip(reading=Reading(**READING))
    captions = Inputs(reading=Reading(**READING))
    stage = Stage("generate", {"connector": Train(lr=1e-2)}, inputs=captions)
    with pytest.raises(UserError, match=r"stages\.generate\.inputs\.reading: the Q-Former would read the caption"):
        instructblip().check_recipe([stage])
    instructblip().check_recipe([replace(stage, objectives={"itc": 1.0})])


def test_the_ablation_without_instructions_in_the_q_former_reads_none() -> None:
    def silent(vision_width: int, language_width: int) -> Any:
        return qformer(vision_width, language_width, contrast_width=None, head=False)

    module = instructblip(connector=silent).eval()
    assert set(module.objectives) == {"next_token"}
    assert torch.equal(*(bank_of(module, module.processor, text) for text in ("what is red ?", "what colour ?")))
