"""CogVLM: parts, routing and positions of samples, text without images, decoding, position table of a later size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_mm.connectors.glu import GLUProjector
from lit_mm.errors import UserError
from lit_mm.families import CogVLM
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import answer
from lit_mm.language.llama import Llama
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train, apply_stage
from lit_mm.tiling import Stretch
from lit_mm.vision.vit import ViT
from tests.rows import loss_sum, states
from tests.tiny import document

PARTS = {"vision", "connector", "flags", "language", "visual_expert"}
SIZES = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 4, "ffn_width": 48, "vocab_size": 512}


def adapter(vision_width: int, language_width: int) -> GLUProjector:
    return GLUProjector(vision_width, language_width, ffn_width=24)


def build(**options: Any) -> CogVLM:
    vision = ViT(image_size=28, patch=14, width=16, layers=2, heads=2, any_size=True)
    module = CogVLM(vision, Llama(**SIZES), "nano", 28, adapter, **options)
    with torch.no_grad():
        for parameter in (*module.parts()["visual_expert"].values(), *module.parts()["flags"].values()):
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return module


def batch_of(module: CogVLM, *numbers: int) -> Batch:
    return collate([module.processor.sample(document(number)) for number in numbers], module.processor)


def test_start_flag_and_patches_are_routed_and_patches_share_a_position() -> None:
    module = build()
    batch = batch_of(module, 1, 0, 2)  # one image, none, two
    routed = set(batch.routed.tolist())
    for row, pictures in zip(torch.arange(sum(batch.lengths)).split(batch.lengths), (1, 0, 2), strict=True):
        of_sample = batch.visual[torch.isin(batch.visual, row)]
        for image in of_sample.view(pictures, 6):
            assert [place in routed for place in image.tolist()] == [True] * 5 + [False]
            positions = batch.positions[0, image]
            assert (positions - positions[0]).tolist() == [0, 1, 1, 1, 1, 2]


def test_the_parts_that_a_stage_names_learn_and_no_other() -> None:
    for train in (("connector", "visual_expert", "flags"), ("vision",), ("language",)):
        module = build()
        parts = module.parts()
        assert set(parts) == PARTS
        apply_stage(parts, Stage("s", {part: Train(1e-3) for part in train}))
        loss_sum(module, batch_of(module, 1, 2, 4)).backward()
        for part, parameters in parts.items():
            # no loss reads what the last layer makes of visual positions; text attends to their keys and values
            unread = "layers.1" if part == "visual_expert" else "none"
            learnt = [
                parameter.grad is not None and bool(parameter.grad.any())
                for name, parameter in parameters.items()
                if unread not in name or "k_proj" in name or "v_proj" in name
            ]
            assert all(learnt) if part in train else not any(learnt), part


def test_a_batch_without_pictures_has_a_gradient_of_zero_and_not_none() -> None:
    module = build()
    loss_sum(module, batch_of(module, 0)).backward()
    for part in ("vision", "connector", "flags", "visual_expert"):
        assert all(p.grad is not None and not p.grad.any() for p in module.parts()[part].values()), part


@torch.no_grad()
def test_cached_decoding_goes_on_from_the_last_position() -> None:
    module = build().eval()
    samples = [module.processor.sample(document(number)) for number in (1, 2, 0)]
    whole = collate(samples, module.processor)
    shorter = [replace(s, input_ids=s.input_ids[:-1], labels=s.labels[:-1], index=s.index[:-1]) for s in samples]
    _, state = module.network.begin(collate(shorter, module.processor))
    tokens = torch.tensor([s.input_ids[-1] for s in samples])
    ends = torch.tensor(whole.lengths).cumsum(0) - 1
    assert torch.equal(state.positions, whole.positions[0, ends])
    torch.testing.assert_close(module.network.language.step(tokens, state), states(module.network, whole)[ends])


def test_beams_and_greedy_decoding_answer_questions_about_images() -> None:
    module = build()
    for decoding in (Decoding(3), Decoding(3, beams=2)):
        assert len(answer(module, [document(number) for number in range(3)], decoding=decoding)) == 3


def test_images_of_another_size_resize_the_position_table() -> None:
    module = build(inputs=Inputs(tiling=Stretch(42)))
    batch = batch_of(module, 1)
    assert len(batch.visual) == 9 + 2
    assert states(module.network, batch).isfinite().all()


def test_a_table_of_positions_is_added_to_as_many_patches() -> None:
    connector = GLUProjector(16, 32, ffn_width=24, positions=4)
    x = torch.randn(2, 4, 16)
    plain = connector(x)
    torch.nn.init.normal_(connector.positions)
    assert not torch.isclose(connector(x), plain).all()
    with pytest.raises(UserError, match="vectors for 4 patches, but the view has 9"):
        connector(torch.randn(1, 9, 16))
