"""Cases of families: each argument changes the parameters, the samples or the hidden states of a tiny model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from lit_mm.connectors.glu import GLUProjector
from lit_mm.connectors.linear import linear_projector
from lit_mm.connectors.merge import MergeMLP
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.qformer_projector import QFormerProjector
from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.connectors.slice_resampler import SliceResampler
from lit_mm.families import (
    CogVLM,
    Llava,
    Llava15,
    LlavaNext,
    LlavaUHD,
    Monkey,
    QwenVL,
    Vila,
    XComposer,
    XComposer2,
    XComposer2HD,
)
from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.prompts.qwen_vl import QwenPlain
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.vision.vit import ViT
from tests.options.case import Case, Fresh
from tests.options.probes import Behaviour, numbers
from tests.rows import states
from tests.tiny import document

ADDED = ("lora_b", "up")  # parts of the names of factors that are zero in a new model


def of_family(module: MultimodalModule) -> Behaviour:
    """Parameters, samples of two documents, and hidden states in training."""
    with torch.no_grad():
        for name, parameter in module.network.named_parameters():
            if not set(ADDED).isdisjoint(name.lower().split(".")):
                parameter.fill_(0.1)
    parameters = [(name, numbers(parameter)) for name, parameter in module.network.named_parameters()]
    processor = module.processor
    samples = [processor.sample(document(number, pictures=1)) for number in (1, 3)]
    laid_out = [(sample.input_ids.tolist(), sample.labels.tolist(), sample.index.tolist()) for sample in samples]
    batch = collate(samples, processor)
    torch.manual_seed(1)
    return parameters, laid_out, numbers(states(module.network.train(), batch))


def vision(**changes: Any) -> Fresh:
    sizes = {"image_size": 28, "patch": 14, "width": 16, "layers": 2, "heads": 2}
    return Fresh(lambda: ViT(**sizes | changes))


def language(width: int = 32) -> Fresh:
    return Fresh(
        lambda: Llama(width=width, layers=1, heads=4, kv_heads=2, ffn_width=40, vocab_size=512, max_positions=512)
    )


def prompt(question: str) -> Inputs:
    return Inputs(prompt=QwenPlain(question=question, image_start="", image_end=""), max_length=4096)


BASE = {"vision": vision(), "language": language(), "tokenizer": "nano", "inputs": prompt("{question}")}
OTHERS = {
    "vision": vision(layers=3),
    "language": language(48),
    "tokenizer": "none/such",  # refused
    "inputs": prompt("{question} Answer:"),
}
SIZE = {"image_size": 28}
LARGER = {"image_size": 56}  # the encoder of the base refuses such views
LORA = {"rank": 2, "dropout": 0.1}
LORA_OTHERS = {"rank": 4, "alpha": 8.0, "dropout": 0.9}
resampler = partial(NormalisedResampler, grid_size=2, heads=2)
slices = partial(SliceResampler, side=2, heads=2)
qformer = partial(QFormerProjector, queries=3, width=8, layers=1, heads=2, ffn_width=12)
FAMILIES = {
    Llava: Case(of_family, BASE | SIZE, OTHERS | LARGER | {"connector": MLPProjector}),
    Llava15: Case(of_family, BASE | SIZE, OTHERS | LARGER | {"connector": linear_projector}),
    LlavaNext: Case(of_family, BASE | SIZE, OTHERS | LARGER | {"connector": linear_projector}),
    Vila: Case(of_family, BASE | SIZE, OTHERS | LARGER | {"connector": linear_projector}),
    LlavaUHD: Case(
        of_family,
        BASE | {"image_size": 56, "connector": slices, "vision": vision(image_size=56, any_size=True)},
        OTHERS
        | {"vision": vision(image_size=56, any_size=True, layers=3), "image_size": 84}
        | {"connector": partial(slices, side=3)},
    ),
    QwenVL: Case(
        of_family,
        BASE | SIZE | {"connector": resampler},
        OTHERS | LARGER | {"connector": partial(resampler, grid_size=1)},
    ),
    Monkey: Case(
        of_family,
        BASE | {"size": (56, 56), "window": 28, "connector": resampler, "ranks": {"qkv": 2}, "dropout": 0.1},
        OTHERS
        | {
            "size": (28, 56),
            "window": 56,
            "stride": 14,
            "connector": partial(resampler, grid_size=1),
            "ranks": {"qkv": 2, "mlp": 2},
            "dropout": 0.9,
        },
    ),
    XComposer: Case(
        of_family,
        BASE | SIZE | LORA | {"connector": qformer},
        OTHERS | LARGER | LORA_OTHERS | {"connector": partial(qformer, queries=4), "linears": ("q_proj",)},
    ),
    XComposer2: Case(of_family, BASE | SIZE | LORA, OTHERS | LARGER | LORA_OTHERS | {"connector": linear_projector}),
    XComposer2HD: Case(
        of_family,
        BASE | LORA | {"tile": 28},
        OTHERS | LORA_OTHERS | {"tile": 56, "connector": partial(MergeMLP, merge=1)},
    ),
    CogVLM: Case(
        of_family,
        BASE | SIZE | {"connector": partial(GLUProjector, ffn_width=16)},
        OTHERS | LARGER | {"connector": partial(GLUProjector, ffn_width=20)},
    ),
}
