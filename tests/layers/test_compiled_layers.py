"""Compiled layers: whole graphs that serve every length, with the gradients of layers that are not compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.partial_lora import apply_partial_lora
from lit_mm.layers import activations
from lit_mm.samples.batch import Batch
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.vision.vit import ViT
from lit_mm.vision.window_adapters import WindowAdapters
from tests.language.test_pretrained import KINDS, tiny
from tests.rows import flat

MODES = ("none", "full", "selective")


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend of torch.compile that traces forward and backward, and runs the graphs operation by operation."""
    monkeypatch.setattr(activations, "BACKEND", "aot_eager")
    clear()
    yield
    clear()


def clear() -> None:
    activations.compile_forward.cache_clear()
    activations.selecting.cache_clear()
    torch._dynamo.reset()


def graphs(model: nn.Module) -> int:
    """Number of compiled graphs that the layers of a part have, all of one class."""
    forward = type(next(activations.outer_layers(model))).forward.__wrapped__
    if model.activation_checkpointing == "selective":
        forward = activations.selecting(forward)
    return len(_debug_get_cache_entry_list(forward.__code__))


def gradients(model: nn.Module, run: Callable[[nn.Module, Any], Tensor], inputs: list[Any]) -> list[Tensor]:
    """Outputs and gradients of a model in training, for one input after the other."""
    results = []
    for each in inputs:
        model.zero_grad()
        output = run(model.train(), each)
        output.square().mean().backward()
        results += [output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    return results


def vit(**options: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(image_size=24, patch=4, width=32, layers=3, heads=4, any_size=True, **options)


def with_windows(**options: Any) -> ViT:
    return WindowAdapters(2, {"qkv": 2, "mlp": 2}, dropout=0.0)(vit(**options))


def eva(**options: Any) -> TimmEncoder:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
    return TimmEncoder("eva_giant_patch14_clip_224", image_size=28, overrides=sizes, **options)


def llama(**options: Any) -> Llama:
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "ffn_width": 48, "vocab_size": 40}
    return Llama(**sizes, **options)


def partial_lora(**options: Any) -> Llama:
    language = apply_partial_lora(llama(**options), 4, dropout=0.0)
    for name, parameter in language.named_parameters():
        if "lora_b" in name:
            nn.init.normal_(parameter, std=0.2)
    return language


def learn(language: Llama, batch: Batch) -> Tensor:
    return language.learn(language.embed(batch.ids), batch).hidden


ROWS = [  # lengths of the samples, number of visual positions
    ((20,), 8),
    ((5, 19), 8),
    ((6, 6, 16), 10),
    ((9, 9, 9, 9), 0),
    ((25, 17), 20),
    ((3,) * 15, 5),
]
BATCHES = [flat([torch.arange(n) % 40 for n in lengths], range(visual)) for lengths, visual in ROWS]
PIXELS = [torch.randn(views, 3, 8, side) for views, side in ((2, 8), (3, 12), (2, 16), (4, 20), (5, 12), (6, 24))]
TILES = [torch.arange(len(pixels)) % 3 - 1 for pixels in PIXELS]
SQUARE = [torch.randn(views, 3, 28, 28) for views in (2, 3, 4, 5, 6, 7)]
CASES = {
    "ViT": (vit, lambda model, pixels: model(pixels), PIXELS),
    "ViT with window adapters": (with_windows, lambda model, both: model(*both), list(zip(PIXELS, TILES, strict=True))),
    "Llama": (llama, learn, BATCHES),
    "Llama with partial LoRA": (partial_lora, learn, BATCHES),
    "TimmEncoder": (eva, lambda model, pixels: model(pixels), SQUARE),
}


QUICK = (("ViT", "none"), ("Llama with partial LoRA", "full"))
COMBINATIONS = [
    pytest.param(case, mode, marks=() if (case, mode) in QUICK else pytest.mark.slow)
    for case in CASES
    for mode in MODES
]


@pytest.mark.parametrize(("case", "checkpointing"), COMBINATIONS)
def test_one_graph_serves_all_layers_and_six_shapes(case: str, checkpointing: activations.Checkpointing) -> None:
    make, run, inputs = CASES[case]
    expected = gradients(make(), run, inputs)
    model = make(activation_checkpointing=checkpointing, compile=True)
    values = gradients(model, run, inputs)
    assert graphs(model) == (2 if checkpointing == "full" else 1)  # full: with gradients and without
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)


def test_dropout_is_compiled_too() -> None:
    model = WindowAdapters(2, {"qkv": 2}, dropout=0.5)(vit(compile=True)).train()
    for adapter in model.blocks[0].adapters.values():
        nn.init.normal_(adapter.up)
    outputs = [model(PIXELS[0], TILES[0]) for _ in range(2)]
    assert graphs(model) == 1 and not torch.equal(*outputs)


def test_evaluation_runs_the_layers_as_they_are() -> None:
    model = vit(compile=True).eval()
    model(PIXELS[0])
    assert graphs(model) == 0


@pytest.mark.parametrize("checkpointing", MODES)
def test_blocks_run_as_they_are_where_views_of_several_shapes_are_encoded_together(
    checkpointing: activations.Checkpointing,
) -> None:
    groups = [PIXELS[:2], PIXELS[1:4], PIXELS[2:6]]
    model = vit(activation_checkpointing=checkpointing, compile=True)
    values = gradients(model, lambda model, group: model(group), groups)
    torch.testing.assert_close(values, gradients(vit(), lambda model, group: model(group), groups), rtol=0, atol=1e-6)
    assert graphs(model) == 0


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", MODES)
def test_compiled_layers_follow_autocast(checkpointing: activations.Checkpointing) -> None:
    results = []
    for options in ({}, {"activation_checkpointing": checkpointing, "compile": True}):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(gradients(partial_lora(**options), learn, BATCHES[:2]))
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=2e-2)


def test_a_model_decodes_with_layers_that_are_compiled_for_training_alone() -> None:
    model = llama(compile=True)
    with pytest.raises(UserError, match="eval"):
        model.train().begin(model.embed(BATCHES[1].ids), BATCHES[1])
    model.eval()
    hidden, _ = model.begin(model.embed(BATCHES[1].ids), BATCHES[1])
    assert torch.isfinite(hidden).all() and graphs(model) == 0


def test_selective_checkpointing_without_compilation_is_refused() -> None:
    with pytest.raises(UserError, match="would triple the host time"):
        vit(activation_checkpointing="selective")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_decoders_of_transformers_compile_whole(kind: str) -> None:
    expected = gradients(tiny(kind), learn, BATCHES[:3])
    torch.testing.assert_close(gradients(tiny(kind, compile=True), learn, BATCHES[:3]), expected, rtol=0, atol=1e-5)
