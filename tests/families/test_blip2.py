"""BLIP-2 trains all stages with a decoder and with an encoder-decoder, finds images and texts, and writes captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.evaluation.examiners import examine
from lit_mm.evaluation.retrieval import cosines_of
from lit_mm.families import Blip2
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer
from lit_mm.objectives.query_pairs import contrast_loss
from lit_mm.samples.batch import IGNORE, PAIRS, TOKENS, Batch
from lit_mm.samples.collate import collate
from lit_mm.stages.stage import apply_stage
from tests.tiny import run_recipe
from tests.tiny_blip import Pages, page
from tests.tiny_blip2 import PARTS, blip2, language, qformer, stages

KINDS = ("decoder", "encoder-decoder")


def batch_of(module: Blip2, count: int = 4) -> Batch:
    samples = [module.processor.sample(page(number)) for number in range(count)]
    tokens = sum(sample.length.supervised for sample in samples)
    return collate(samples, module.processor, units={TOKENS: tokens, PAIRS: count})


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_that_a_stage_trains_gets_a_gradient_and_no_other(kind: str) -> None:
    for stage in stages():
        module = blip2(kind)
        assert set(module.parts()) == set(PARTS)
        apply_stage(module.parts(), stage)
        batch = batch_of(module)
        weights = module.weights_of_objectives(stage)
        sum(module.objectives[name](module.network, batch) for name in weights).backward()
        learnt = {part for part, tensors in module.parts().items() if any(t.grad is not None for t in tensors.values())}
        assert learnt == set(stage.train), stage.name
        missing = [name for part in stage.train for name, tensor in module.parts()[part].items() if tensor.grad is None]
        assert not missing, (stage.name, missing)


@pytest.mark.parametrize("kind", KINDS)
def test_all_stages_train_and_the_retrieval_model_starts_from_the_first(kind: str, tmp_path: Path) -> None:
    module = blip2(kind)
    start = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    run_recipe(module, stages(), tmp_path, data_class=Pages)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 8
    end = module.network.state_dict()
    frozen = {name for name in start if name.startswith(("language.", "connector.projection."))}
    assert all(torch.equal(start[name], end[name]) for name in frozen)  # the branch has not seen generation
    assert any(not torch.equal(start[name], end[name]) for name in start if name.startswith("vision."))


def test_accumulation_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a step has 2 micro-batches per rank"):
        run_recipe(blip2(), stages()[:1], tmp_path, data_class=Pages, micro_batch=2)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_found_and_captions_written(kind: str) -> None:
    module = blip2(kind)
    documents = [page(number) for number in range(5)]
    examination = examine(module, documents, batch_size=4)
    assert list(examination.figures.skills) == list(module.examiner.skills)
    assert examination.figures.count == 4 * len(documents)
    texts = answer(module, documents, decoding=Decoding(4), batch_size=4)
    assert texts == answer(module, documents, decoding=Decoding(4), batch_size=2)


def test_the_similarity_of_an_image_and_a_text_is_the_largest_of_the_queries() -> None:
    image, text = torch.randn(3, 4, 8), torch.randn(5, 8)
    expected = torch.einsum("nqc,mc->nmq", image, text).amax(dim=-1)
    torch.testing.assert_close(torch.from_numpy(cosines_of(image, text)), expected)


@torch.no_grad()
def test_texts_of_one_image_are_all_right_if_images_are_numbered() -> None:
    module = blip2().eval()
    model, same = module.network, torch.tensor([0, 1, 0])
    for name, parameter in model.connector.named_parameters():
        if "norm" not in name and "temperature" not in name:
            parameter.normal_(std=0.2)  # fresh weights give all texts nearly one vector
    batch = replace(batch_of(module, 3), images=same)
    pairs = module.objectives["itc"].shared(model, batch)
    temperature = model.connector.heads()[0].temperature
    expected = contrast_loss(pairs, temperature, 0.1, same).sum()
    assert module.objectives["itc"](model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    plain = contrast_loss(pairs, temperature, 0.1).sum()
    assert expected.item() != pytest.approx(plain.item(), rel=1e-3)
    drawn = []
    with patch("torch.multinomial", lambda weights, count: drawn.append(weights) or weights.argmax(1, keepdim=True)):
        module.objectives["itm"](model, batch)
    assert all(
        (weights > 0).tolist() == [[False, True, False], [True, False, True], [False, True, False]] for weights in drawn
    )


def test_a_connector_without_heads_writes_and_compares_nothing() -> None:
    def writer(vision_width: int, language_width: int) -> Any:
        return qformer(vision_width, language_width, contrast_width=None)

    module = blip2(connector=writer)
    assert set(module.objectives) == {"next_token"} and module.examiner is None


def test_the_decoder_learns_the_caption_and_the_encoder_decoder_the_second_part_alone() -> None:
    for kind in KINDS:
        module = blip2(kind)
        sample = module.processor.sample(page(4))
        learnt = sample.labels != IGNORE
        tokenizer = module.processor.tokenizer
        text = tokenizer.decode(sample.labels[learnt].tolist()).strip()
        assert page(4).answer.endswith(text)
        assert (text == page(4).answer) is (kind == "decoder")
        assert language(kind).writes_target is module.processor.writes_target
