"""A MiniGPT-4 and its recipe that need seconds, for tests."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from lit_mm.connectors.grouped import GroupedProjector
from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.families import MiniGPT4
from lit_mm.language.llama import Llama
from lit_mm.prompts.minigpt4 import MiniGPT4Prompt
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train
from lit_mm.vision.vit import ViT

QFORMER = partial(PairedQFormer, queries=4, width=16, layers=2, heads=2, ffn_width=24, dropout=0.5)
CONNECTORS = {"Q-Former": QFORMER, "groups": partial(GroupedProjector, group=2)}


def minigpt4(kind: str = "Q-Former", seed: int = 0, **options: Any) -> MiniGPT4:
    """A tiny model with a "Q-Former", or with "groups" of patches."""
    torch.manual_seed(seed)
    vision = ViT(image_size=28, patch=14, width=16, layers=1, heads=2, drop_cls=kind == "groups")
    language = Llama(width=24, layers=1, heads=2, kv_heads=2, ffn_width=32, vocab_size=512)
    return MiniGPT4(vision, language, "nano", **{"connector": CONNECTORS[kind], "image_size": 28} | options)


def stages(steps: int = 2) -> list[Stage]:
    """Both published stages."""
    train, plain = {"projection": Train(lr=1e-2)}, MiniGPT4Prompt("plain")
    return [
        Stage("pretrain", train, max_steps=steps, inputs=Inputs(prompt=plain)),
        Stage("finetune", dict(train), max_steps=steps),
    ]
