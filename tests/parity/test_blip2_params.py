"""Parameter counts of BLIP-2's and InstructBLIP's connectors at published size, by part, on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.stages.parts import Parts

STAGE1 = {"connector", "text_branch", "text_head", "contrast", "matching"}
STAGE2 = {"connector", "projection"}
INSTRUCT = {"connector", "text_branch", "projection"}


def counts(language_width: int, **arguments: Any) -> dict[str, int]:
    """Part -> number of parameters of a network that holds the connector alone."""
    network = nn.Module()
    with torch.device("meta"):
        network.connector = PairedQFormer(1408, language_width, vocab_size=30523, **arguments)
    return {part: sum(p.numel() for p in of.values()) for part, of in Parts(network).parameters().items()}


def test_each_stage_trains_the_published_number_of_parameters(golden: Any) -> None:
    expected = golden.json("blip_params")["original_modules"]["qformer_vitg"]
    pretraining = counts(2560, head=True, contrast_width=256)
    assert sum(pretraining[part] for part in STAGE1) == expected["stage1_trainable_including_ln_vision"]
    for table, parts in (("stage2_trainable", STAGE2), ("instructblip_trainable", INSTRUCT)):
        for name, entry in expected[table].items():
            width = entry["projection"] // 769  # a linear from 768 channels, with bias
            numbers = counts(width, reads_text=True, head=True)
            assert sum(numbers[part] for part in parts) == entry["trainable_incl_ln_vision"], name
