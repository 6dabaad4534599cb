"""Tiny CogVLM and CogAgent in their stages with a frozen language model, and the logits of a text after each stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch

from lit_mm.language.llama import Llama
from lit_mm.module import MultimodalModule
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Start, Train
from lit_mm.tiling import Stretch
from tests.families import test_cogagent, test_cogvlm
from tests.rows import flat, states
from tests.tiny import document

ADDED = (".expert.", ".cross_attention.", ".cross_norm.")
BUILDERS = {"cogvlm": test_cogvlm.build, "cogagent": test_cogagent.build}
TEXTS = (0, 3)  # numbers of documents without pictures


def build(family: str) -> MultimodalModule:
    torch.manual_seed(0)
    return BUILDERS[family]()


def stages(family: str, steps: int = 2) -> list[Stage]:
    """The published stages in which the language model is frozen."""
    rates = {part: Train(1e-2) for part in test_cogagent.PARTS}
    visual, cross = ("visual_expert", "connector", "flags"), test_cogagent.CROSS

    def stage(name: str, *parts: str) -> Stage:
        return Stage(name, {part: rates[part] for part in parts}, max_steps=steps)

    if family == "cogagent":
        return [stage("cogvlm", *visual), stage("high", *cross), stage("expert", *cross, "visual_expert")]
    larger = {1: Inputs(tiling=Stretch(42))}
    averaged = {part: replace(rates[part], average=0.9) for part in visual}
    return [
        stage("pretrain", *visual),
        replace(stage("multitask", *visual), train=averaged, inputs_from=larger),
        replace(stage("finetune", *visual, "vision"), starts_from=Start("multitask", averaged=True)),
    ]


class TextLogits(L.Callback):
    """Compares the logits of texts with those of the base language model at the end of every stage.

    Attributes:
        differences: stage -> largest difference; the logits have the same bits where it is 0.
    """

    def __init__(self, module: MultimodalModule, path: Path | None = None) -> None:
        self.base = Llama(**test_cogvlm.SIZES).eval()
        state = module.network.language.state_dict()
        self.base.load_state_dict(
            {n.replace(".base.", "."): t.clone() for n, t in state.items() if not any(piece in n for piece in ADDED)}
        )
        self.path = path
        self.differences: dict[str, float] = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        samples = [pl_module.processor.sample(document(number)) for number in TEXTS]
        rows = [torch.from_numpy(sample.input_ids) for sample in samples]
        with pl_module.inference():
            network = pl_module.network
            logits = network.language.logits(states(network, collate(samples, pl_module.processor)))
            hidden = self.base.learn(self.base.embed(torch.cat(rows)[None]), flat(rows)).hidden
            difference = (logits - self.base.logits(hidden)).abs().max()
        self.differences[pl_module.current_stage.name] = float(difference)
        if self.path is not None:
            self.path.with_stem(f"{self.path.stem}-{trainer.global_rank}").write_text(json.dumps(self.differences))
