"""The operations that the benchmark on a GPU counts are those of a calculation by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.gpu import operations
from lit_mm.module import MultimodalModule
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.stages.stage import Stage, Train
from tests.tiny import document, xcomposer2

LAYERS, WIDTH = 2, 32  # of the language model
VISION_LAYERS, VISION_WIDTH, PATCHES = 2, 16, 4


@pytest.fixture
def batch() -> Batch:
    module = xcomposer2()
    return collate([module.processor.sample(document(number)) for number in (0, 1, 2)], module.processor)


def count(batch: Batch, *parts: str) -> float:
    """Operations of a step in which these parts learn."""
    with torch.device("meta"):
        module = xcomposer2()
    module.begin(Stage("s", {part: Train(lr=1e-3) for part in parts}), total_steps=1)
    return operations(module, batch)


def matrices(module: nn.Module) -> int:
    """Elements of the weights of linears and convolutions."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d))


def products(module: MultimodalModule, batch: Batch) -> dict[str, int]:
    """Operations of a forward pass, by part."""
    network, rows = module.network, batch.num_tokens
    head = network.language.lm.lm_head.weight.numel()
    low_rank = sum(p.numel() for name, p in network.language.named_parameters() if ".lora_" in name)
    views = len(batch.views)
    patches = network.vision.patches.weight.numel()
    positions = views * (PATCHES + 1)
    attention = sum(4 * length**2 * WIDTH for length in batch.lengths)
    return {
        "language": 2 * rows * (matrices(network.language) - head - low_rank)
        + 2 * len(batch.visual) * low_rank
        + 2 * batch.num_supervised * head,
        "attention": LAYERS * attention,
        "connector": 2 * views * PATCHES * matrices(network.connector),
        "first of connector": 2 * views * PATCHES * network.connector.mlp[0].weight.numel(),
        "vision": 2 * positions * (matrices(network.vision) - patches) + 2 * views * PATCHES * patches,
        "vision attention": VISION_LAYERS * 4 * views * (PATCHES + 1) ** 2 * VISION_WIDTH,
        "patches": 2 * views * PATCHES * patches,
    }


def test_every_part_that_learns_costs_three_forwards_and_attention_half_a_forward_more(batch: Batch) -> None:
    of = products(xcomposer2(), batch)
    forward = sum(of[name] for name in ("language", "attention", "connector", "vision", "vision attention"))
    everything = count(batch, "vision", "connector", "partial_lora", "language")
    again = (of["attention"] + of["vision attention"]) / 2  # scores are computed again
    assert everything == 3 * forward + again - of["patches"]  # pixels need no gradient


def test_a_frozen_part_costs_no_gradients_of_its_weights_and_those_of_its_inputs_only_behind_what_learns(
    batch: Batch,
) -> None:
    of = products(xcomposer2(), batch)
    connector = count(batch, "connector")
    expected = of["vision"] + of["vision attention"] + 3 * of["connector"] - of["first of connector"]
    expected += 2 * of["language"] + 3.5 * of["attention"]
    assert connector == expected
