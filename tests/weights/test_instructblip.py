"""InstructBLIP starts from both stages of BLIP-2: the text branch from the first, the rest from the second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.stages.parts import Parts
from lit_mm.weights.blip2 import blip2_to_lavis
from lit_mm.weights.source import load_part
from tests.tiny_blip2 import blip2
from tests.tiny_instructblip import instructblip, reading_qformer

SECOND = ("connector", "projection")


def stage(folder: Path, seed: int, *parts: str) -> dict[str, torch.Tensor]:
    """Write the connector of a BLIP-2 with random weights as LAVIS does (no parts: all), and return its state."""
    network = blip2(seed=seed).network
    names = Parts(network)
    state = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("connector.")}
    present = {name: tensor for name, tensor in state.items() if not parts or names.part_of(name) in parts}
    torch.save({"model": blip2_to_lavis(present), "epoch": 9}, folder / f"stage{seed}.pth")
    return state


def test_the_text_branch_comes_from_the_first_stage_and_the_rest_from_the_second(tmp_path: Path) -> None:
    stages = {1: stage(tmp_path, 1), 2: stage(tmp_path, 2, *SECOND)}
    model = instructblip(
        seed=3, connector=lambda vision, language: reading_qformer(vision, language, head=False, contrast_width=None)
    )
    fresh = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    load_part(model.network.connector, f"blip2-connector:{tmp_path}/stage2.pth+{tmp_path}/stage1.pth", "connector")
    for name, tensor in model.network.state_dict().items():
        source = {"text_branch": stages[1], **dict.fromkeys(SECOND, stages[2])}.get(model.part_of(name), fresh)
        assert torch.equal(tensor, source[name]), name


def test_a_second_stage_alone_is_refused_by_a_q_former_that_reads_instructions(tmp_path: Path) -> None:
    stage(tmp_path, 2, *SECOND)
    with pytest.raises(UserError, match="the checkpoint has no text branch"):
        load_part(instructblip().network.connector, f"blip2-connector:{tmp_path}/stage2.pth", "connector")
