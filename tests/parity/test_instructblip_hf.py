"""The family InstructBLIP with transformers' weights gives its logits, loss and generated tokens, from pixels on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_mm.families import InstructBlip
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import decode
from lit_mm.samples.batch import IGNORE, TOKENS, Batch, Target, Texts, Views
from lit_mm.samples.reading import Reading
from lit_mm.weights.blip2 import hf_to_blip2
from lit_mm.weights.convert import load_strict
from tests.parity.test_blip2_hf import build, close

NAMES = ("instructblip_hf_tiny", "instructblip_hf_t5_tiny")


def family(golden: Any, name: str) -> InstructBlip:
    """The family with the golden parts; one key map fills the whole network."""
    parts = build(golden, name)
    module = InstructBlip(
        parts["vision"],
        parts["language"],
        "nano",
        lambda vision_width, language_width: parts["connector"],
        Reading("nano", "instruction", cut="left"),
        image_size=parts["vision"].image_size,
    )
    load_strict(module.network, hf_to_blip2(golden.tensors(name, "w.")))
    return module.eval()


def batch_of(golden: Any, name: str, count: int | None = None) -> Batch:
    """The golden inputs of the first `count` samples as a flat row."""
    inputs = {key: value[:count] for key, value in golden.tensors(name, "in.").items()}
    config = golden.json(name)["config"]
    real, queries = inputs["attention_mask"].bool(), config["num_query_tokens"]
    row, labels = inputs["input_ids"][real], inputs["labels"]
    visual = torch.nonzero(row == config["image_token_index"])[:, 0]
    lengths = tuple(real.sum(1).tolist())
    samples, target = len(lengths), None
    if config["use_decoder_only_language_model"]:
        flat = labels[real]
        firsts = torch.tensor([sum(lengths[:number]) for number in range(samples)])
        learnt = flat != IGNORE
        learnt[firsts] = False
        places, targets = torch.nonzero(learnt)[:, 0] - 1, flat[learnt]
    else:
        learnt = labels != IGNORE
        targets = labels[learnt]
        target = Target(targets[None], tuple(learnt.sum(1).tolist()))
        places = torch.arange(len(targets))
    return Batch(
        ids=row.index_fill(0, visual, 0)[None],
        lengths=lengths,
        positions=torch.cat([torch.arange(length) for length in lengths])[None],
        visual=visual,
        bank=torch.arange(len(visual)),
        supervised=places,
        labels=targets,
        sample_ids=tuple(map(str, range(samples))),
        views=Views((inputs["pixel_values"],), torch.arange(samples), torch.full((samples,), -1), samples * queries),
        target=target,
        units={TOKENS: len(targets)},
        texts=Texts(inputs["qformer_input_ids"], inputs["qformer_attention_mask"].bool()),
        valid=torch.ones(samples, dtype=torch.bool),
    )


def expected_logits(golden: Any, name: str, batch: Batch) -> Tensor:
    """The golden logits at the supervised places of a batch."""
    logits, inputs = golden.tensors(name, "out.")["logits"], golden.tensors(name, "in.")
    if batch.target is not None:
        return logits[inputs["labels"] != IGNORE]
    return logits[inputs["attention_mask"].bool()][batch.supervised]


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_logits_and_loss_are_those_of_transformers(golden: Any, name: str) -> None:
    module, batch = family(golden, name), batch_of(golden, name)
    learnt = module.network(batch)
    assert torch.equal(learnt.ids, batch.labels)
    close(golden, name, module.network.language.logits(learnt.hidden), expected_logits(golden, name, batch))
    loss = module.objectives["next_token"](module.network, batch) / batch.units[TOKENS]
    assert loss.item() == pytest.approx(golden.json(name)["values"]["loss"], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_generated_tokens_are_those_of_transformers(golden: Any, name: str) -> None:
    module, batch = family(golden, name), batch_of(golden, name, 1)
    content = golden.json(name)
    (expected,) = content["values"]["greedy_generate_first_sample"]
    start = 1 if module.network.language.writes_target else batch.lengths[0]  # what the published output repeats
    tokens = decode(module.network, batch, stop_ids=(), decoding=Decoding(len(expected) - start))
    assert tokens == [expected[start:]]
