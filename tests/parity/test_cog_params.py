"""The published recipes of CogVLM and CogAgent have the published numbers of parameters, tokens and operations."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_mm.documents.document import Document, Turn
from lit_mm.module import MultimodalModule
from lit_mm.samples.collate import collate
from lit_mm.tiling import Stretch
from lit_mm.vision import timm_encoder
from tests.parity.test_qwen_xcomposer_params import build, counts
from tests.tiny import Noise

FILE = "cog_fuyu_mgm_params"
TEXT = 32  # text tokens of the authors' count of operations


def key_biases(configs: dict[str, Any]) -> int:
    """Key biases of EVA2-CLIP-E, which softmax cancels: buffers here, parameters in the release."""
    vit = configs["vit"]
    return vit["num_hidden_layers"] * vit["hidden_size"]


def test_cogvlm_has_the_published_count_in_every_part(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    published = golden.json(FILE)
    count, configs = published["counts"]["cogvlm_17b_224"], published["configs"]["cogvlm"]
    model, stages = build("cogvlm", monkeypatch)
    biases = key_biases(configs)
    assert counts(model) == {
        "vision": count["vit_total"] - biases,
        "connector": count["adapter_glu"],
        "flags": count["boi_eoi"],
        "language": count["language_model_total"],
        "visual_expert": count["visual_expert_total"],
    }
    assert sum(counts(model).values()) == count["total"] - biases
    trained = sum(counts(model)[part] for part in stages[0].train)
    assert trained == count["trainable_in_pretraining_expert_plus_adapter_boi_eoi"]
    sizes = {tiling: processor.visual_tokens(300, 800) for tiling, processor in model.processors_of(stages[1]).items()}
    by_size = {row["resolution"]: row["vision_typed"] for row in golden.json("cogvlm_masks")["full_size"]}
    assert sizes == {0: by_size[224], 30000: by_size[490]}


def test_cogagent_has_the_published_count_in_every_part(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    published = golden.json(FILE)
    count, configs = published["counts"]["cogagent_18b"], published["configs"]["cogagent"]
    model, stages = build("cogagent", monkeypatch)
    biases, unread = key_biases(configs), sum(count["hi_res_vit_unused_in_forward"].values())
    cross = ("query", "key_value", "dense", "layer_norm")
    assert counts(model) == {
        "vision": count["vit_total"] - biases,
        "connector": count["adapter_glu"] + count["low_res_extra_pos_embed"],
        "flags": count["boi_eoi"],
        "language": count["language_model_total"],
        "visual_expert": count["visual_expert_total"],
        "second_vision": count["hi_res_vit_eva2_clip_l"] - unread,
        "second_connector": count["hi_res_pos_embed"],
        "cross_attention": sum(count[f"cross_attention_{name}"] for name in cross),
    }
    assert sum(counts(model).values()) == count["total"] - biases - unread
    trained = sum(counts(model)[part] for part in stages[0].train)
    assert trained == count["high_resolution_cross_module_total"] - unread


def tera_operations(model: MultimodalModule) -> float:
    """Count 10^12 operations of one forward of an image and `TEXT` tokens; attention counts whole matrices."""
    processor = model.processor
    question = Document("d", (Turn("user", (Noise(0), "?")),))
    sample = processor.lay_out(question)
    batch = collate([sample], processor).to("meta")
    missing = TEXT + processor.visual_tokens(8, 8) - batch.ids.shape[1]
    ids = torch.zeros(1, batch.ids.shape[1] + missing, dtype=torch.long, device="meta")
    batch = replace(batch, ids=ids, positions=ids, lengths=(ids.shape[1],), supervised=ids[0], labels=ids[0])
    model.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.network.language.logits(model.network(batch).hidden)
    return counter.get_total_flops() / 1e12


def test_the_cross_module_costs_what_the_authors_say(monkeypatch: pytest.MonkeyPatch) -> None:
    # the meta device has no autocast, which resizing switches off; resizing has no products to count
    monkeypatch.setattr(
        timm_encoder, "resize_grid", lambda table, grid: table.new_empty(math.prod(grid), table.shape[1])
    )
    cogvlm, _ = build("cogvlm", monkeypatch)
    cogagent, _ = build("cogagent", monkeypatch)
    processor = cogvlm.processor
    figures = {"cogagent": tera_operations(cogagent), 490: tera_operations(cogvlm)}
    cogvlm.processor = replace(processor, tiling=Stretch(1120), max_length=8192)
    figures[1120] = tera_operations(cogvlm)
    sys.stdout.write(f"operations, 10^12: {figures}; ratio {figures['cogagent'] / figures[490]:.3f}\n")
    assert figures["cogagent"] == pytest.approx(15.0, rel=0.02)
    assert figures[490] == pytest.approx(29.0, rel=0.02)
    assert figures[1120] == pytest.approx(181.8, rel=0.02)
    assert figures["cogagent"] / figures[490] == pytest.approx(0.52, abs=0.01)
