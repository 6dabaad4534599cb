"""CogAgent: views of two encoders, cross-attention with and without images, cached decoding, gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.families import CogAgent
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer
from lit_mm.language.llama import Llama
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train, apply_stage
from lit_mm.stream.maker import unlearnt
from lit_mm.tiling import Stretch, Tiling, TwoSizes
from lit_mm.vision.vit import ViT
from tests.families.test_cogvlm import SIZES, adapter
from tests.families.test_cogvlm import build as build_cogvlm
from tests.rows import loss_sum, states
from tests.tiny import document

PARTS = {
    "vision",
    "connector",
    "flags",
    "language",
    "visual_expert",
    "second_vision",
    "second_connector",
    "cross_attention",
}
CROSS = ("second_vision", "second_connector", "cross_attention")


def build(**changes: Any) -> CogAgent:
    vision = ViT(image_size=28, patch=14, width=16, layers=2, heads=2)
    second = ViT(image_size=42, patch=14, width=12, layers=2, heads=2)
    module = CogAgent(vision, second, Llama(**SIZES | changes), "nano", 28, 42, adapter, cross_width=16, cross_heads=4)
    with torch.no_grad():
        for part in ("visual_expert", "flags", "second_connector", "cross_attention"):
            for parameter in module.parts()[part].values():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return module


def batch_of(module: CogAgent, *numbers: int) -> Batch:
    return collate([module.processor.sample(document(number)) for number in numbers], module.processor)


def test_every_picture_has_a_view_for_each_encoder_and_the_second_makes_no_visual_token() -> None:
    module = build()
    assert module.processor.visual_tokens(300, 500) == 4 + 2
    batch = batch_of(module, 1, 0, 2)
    assert [tuple(group.shape) for group in batch.views.groups] == [(3, 3, 28, 28)]
    assert [tuple(group.shape) for group in batch.second_views.groups] == [(3, 3, 42, 42)]
    assert batch.second_views.owners.tolist() == [0, 2, 2] and batch.second_views.counts == (1, 0, 2)
    memory = module.network.memory(batch)
    assert memory.vectors.shape == (1, 27, 12) and memory.lengths == (9, 0, 18)


def test_both_views_show_the_same_picture() -> None:
    processor = build().processor
    first, second = processor.views(processor.sample(document(1)))
    small = torch.nn.functional.interpolate(second[None], 28, mode="bicubic", antialias=True)[0]
    assert (first - small).abs().mean() < 0.5 < (first - small.flip(-1)).abs().mean()


def test_a_lost_sample_has_blank_views_of_both_sizes() -> None:
    module = build()
    sample, views = unlearnt(module.processor.sample(document(2)))
    assert [tuple(view.shape[1:]) for view in views] == [(28, 28)] * 2 + [(42, 42)] * 2
    batch = collate([sample], module.processor, views=[views])
    assert states(module.network, batch).isfinite().all()
    assert states(module.network, collate([], module.processor)).isfinite().all()


def test_the_parts_that_a_stage_names_learn_and_no_other() -> None:
    for train in (CROSS, (*CROSS, "visual_expert"), tuple(PARTS)):
        module = build()
        parts = module.parts()
        assert set(parts) == PARTS
        apply_stage(parts, Stage("s", {part: Train(1e-3) for part in train}))
        loss_sum(module, batch_of(module, 1, 2, 4)).backward()
        for part, parameters in parts.items():
            unread = "layers.1" if part == "visual_expert" else "none"  # see the test of CogVLM
            learnt = [
                parameter.grad is not None and bool(parameter.grad.any())
                for name, parameter in parameters.items()
                if unread not in name or "k_proj" in name or "v_proj" in name
            ]
            assert all(learnt) if part in train else not any(learnt), part


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_batch_without_pictures_has_a_gradient_of_zero_and_not_none(checkpointing: str) -> None:
    module = build(activation_checkpointing=checkpointing).train()
    loss_sum(module, batch_of(module, 0)).backward()
    for part in PARTS - {"language"}:
        assert all(p.grad is not None and not p.grad.any() for p in module.parts()[part].values()), part


def test_activation_checkpointing_leaves_the_gradients_of_both_encoders_alone() -> None:
    results = []
    for checkpointing in ("none", "full"):
        torch.manual_seed(0)
        module = build(activation_checkpointing=checkpointing).train()
        loss_sum(module, batch_of(module, 1, 0, 2)).backward()
        results.append({name: parameter.grad for name, parameter in module.named_parameters()})
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=0, atol=2e-4)


@torch.no_grad()
def test_samples_of_a_mixed_batch_have_the_states_they_have_alone() -> None:
    module = build().eval()
    together = states(module.network, batch_of(module, 1, 0, 2))
    alone = [states(module.network, batch_of(module, number)) for number in (1, 0, 2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("numbers", [(1, 2, 0), (0, 3), (2,)], ids=["mixed", "text", "pictures"])
def test_cached_decoding_equals_the_full_forward(numbers: tuple[int, ...]) -> None:
    module = build().eval()
    samples = [module.processor.sample(document(number)) for number in numbers]
    shorter = [replace(s, input_ids=s.input_ids[:-1], labels=s.labels[:-1], index=s.index[:-1]) for s in samples]
    _, state = module.network.begin(collate(shorter, module.processor))
    order = torch.arange(len(samples)).flip(0).repeat_interleave(2)  # two hypotheses of each sample, the last first
    state.reorder(order)
    kept = order[1:]  # one hypothesis leaves
    state.reorder(torch.arange(1, len(order)))
    tokens = torch.tensor([samples[number].input_ids[-1] for number in kept.tolist()])
    whole = collate(samples, module.processor)
    ends = torch.tensor(whole.lengths).cumsum(0) - 1
    expected = states(module.network, whole)[ends][kept]
    torch.testing.assert_close(module.network.language.step(tokens, state), expected, rtol=0, atol=2e-5)


def test_beams_and_greedy_decoding_answer_questions_about_images() -> None:
    module = build()
    for decoding in (Decoding(3), Decoding(3, beams=2)):
        assert len(answer(module, [document(number) for number in range(3)], decoding=decoding)) == 3


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        (TwoSizes(28, 56), "56 x 56 pixels for the second vision encoder, which takes 42 x 42 alone"),
        (Stretch(28), "has a second vision encoder, the tiling .* makes views of 0 sizes"),
    ],
    ids=["size", "none"],
)
def test_stages_whose_views_do_not_fit_the_second_encoder_are_refused(tiling: Tiling, message: str) -> None:
    stage = Stage("s", {"flags": Train(1e-3)}, max_steps=1, inputs=Inputs(tiling=tiling))
    with pytest.raises(UserError, match=f"stages.s.inputs: .*{message}"):
        build().processors_of(stage)


def test_a_model_with_one_encoder_refuses_views_for_a_second() -> None:
    with pytest.raises(UserError, match="makes views for a second vision encoder, the model has one"):
        build_cogvlm(inputs=Inputs(tiling=TwoSizes(28, 42)))
