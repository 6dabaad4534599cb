"""The families of LLaVA and VILA: parts, and inputs that differ between stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from lit_mm.connectors.downsample import DownsampleMLP
from lit_mm.datamodules.nano import NanoDocuments
from lit_mm.errors import UserError
from lit_mm.families import Llava, Llava15, LlavaNext, Vila
from lit_mm.module import MultimodalModule
from lit_mm.prompts.interleaved import Interleaved
from lit_mm.prompts.plain import Plain
from lit_mm.run.folder import RunFolder
from lit_mm.run.stages import run_stages
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.processor import CLIP_MEAN, CLIP_STD
from lit_mm.stages.stage import Stage, Train, apply_stage
from lit_mm.tiling import CentreCrop, Pad
from lit_mm.vision.vit import ViT
from tests.rows import loss_sum, states
from tests.tiny import Noise, document, language, trainer

FAMILIES = (Llava, Llava15, LlavaNext, Vila)
SIZE = 28


def build(family: Callable[..., MultimodalModule], **options: Any) -> MultimodalModule:
    vision = ViT(image_size=SIZE, patch=14, width=16, layers=2, heads=2, select_layer=-2)
    return family(vision, language(), "nano", image_size=SIZE, **options)


class Recorder(L.Callback):
    """This callback records the text of all batches by stage."""

    def __init__(self) -> None:
        self.text: dict[str, str] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: MultimodalModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        said = pl_module.processor.tokenizer.decode(batch.ids[0].tolist())
        self.text[pl_module.stage.name] = self.text.get(pl_module.stage.name, "") + said


def test_each_stage_trains_on_documents_laid_out_for_it(tmp_path: Path) -> None:
    module = build(Llava15)
    recorder, folder = Recorder(), RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    kinds = {"pretrain": "captions", "finetune": "questions"}
    run_stages(
        module,
        [
            Stage("pretrain", {"connector": Train(1e-3)}, max_steps=2, inputs=Inputs(CentreCrop(SIZE), prompt=Plain())),
            Stage("finetune", {"connector": Train(1e-3)}, max_steps=2),
        ],
        folder,
        data_of=lambda stage: NanoDocuments(
            kinds[stage.name], documents=8, global_batch=2, window=8, row_tokens=512, num_workers=0
        ),
        trainer_of=partial(trainer, [recorder]),
        seed=0,
    )
    assert "USER:" not in recorder.text["pretrain"] and "artificial" not in recorder.text["pretrain"]
    assert "USER:" in recorder.text["finetune"] and "ASSISTANT:" in recorder.text["finetune"]


def test_a_stage_keeps_what_it_does_not_change() -> None:
    module, train = build(Vila), {"connector": Train(1e-3)}
    assert module.processor_of(Stage("finetune", train)) is module.processor
    changed = module.processor_of(Stage("pretrain", train, inputs=Inputs(prompt=Interleaved(), max_length=64)))
    assert (changed.max_length, module.processor.max_length) == (64, 4096)
    assert isinstance(changed.prompt, Interleaved)
    assert changed == replace(module.processor, prompt=changed.prompt, max_length=64)


def test_changes_at_steps_of_a_stage_add_up() -> None:
    module, plain = build(Llava15), Plain()
    stage = Stage(
        "pretrain",
        {"connector": Train(1e-3)},
        max_steps=9,
        inputs=Inputs(prompt=plain),
        inputs_from={5: Inputs(CentreCrop(SIZE)), 2: Inputs(max_length=64)},
    )
    processors = module.processors_of(stage)
    assert list(processors) == [0, 2, 5]
    assert [one.max_length for one in processors.values()] == [2048, 64, 64]
    assert [one.tiling for one in processors.values()] == [Pad(SIZE), Pad(SIZE), CentreCrop(SIZE)]
    assert all(one.prompt is plain for one in processors.values())


@pytest.mark.parametrize("steps", [[0], [9], [3, 12]])
def test_changes_that_no_step_would_see_are_refused(steps: list[int]) -> None:
    with pytest.raises(UserError, match=r"^stages\.pretrain\.inputs_from: steps are from 1 to below .* 9"):
        Stage("pretrain", {"connector": Train(1e-3)}, max_steps=9, inputs_from=dict.fromkeys(steps, Inputs()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(3))
def test_the_processor_counts_what_the_model_makes(family: Callable, number: int) -> None:
    module = build(family)
    sample = module.processor.sample(document(number))
    batch = collate([sample], module.processor)
    assert batch.num_supervised == sample.length.supervised > 0
    with torch.no_grad():
        hidden = states(module.network, batch)
    assert len(hidden) == batch.ids.shape[1] and hidden.isfinite().all()
    visual = (sample.index != np.iinfo(np.int64).min).sum()
    assert visual == sum(module.processor.visual_tokens(p.height, p.width) for p in document(number).pictures)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_that_learns_gets_a_gradient_and_no_other(family: Callable) -> None:
    module = build(family)
    parts = module.parts()
    assert set(parts) == {"vision", "connector", "language"} | ({"newline"} if family is LlavaNext else set())
    train = {part: Train(1e-3) for part in parts if part != "vision"}
    apply_stage(parts, Stage("finetune", train))
    batch = collate([module.processor.sample(document(1))], module.processor)
    loss_sum(module, batch).backward()
    for part, parameters in parts.items():
        assert all((p.grad is not None and p.grad.any()) == (part in train) for p in parameters.values()), part


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_pictures_has_a_gradient_of_zero_and_not_none(family: Callable) -> None:
    module = build(family)
    loss_sum(module, collate([module.processor.sample(document(0))], module.processor)).backward()
    for part, parameters in module.parts().items():
        assert all(p.grad is not None for p in parameters.values()), part
        assert part == "language" or not any(p.grad.any() for p in parameters.values())


def test_vila_takes_the_projector_of_its_second_release() -> None:
    module = build(Vila, connector=DownsampleMLP)
    sample = module.processor.sample(document(2))
    assert module.processor.visual_tokens(40, 60) == 1  # of 2 x 2 patches
    assert len(module.network.bank(collate([sample], module.processor).views)) == len(document(2).pictures) == 2


def test_padding_has_clips_mean_colour_and_is_black_behind_tiles() -> None:
    wide = Noise(0, 8, 64)

    def corner(family: Callable) -> torch.Tensor:
        """The last pixel of the last view, 0 to 255."""
        processor = build(family).processor
        views = processor.views(processor.sample(document(1).with_pictures(iter([wide]))))
        return (views[-1][:, -1, -1] * torch.tensor(CLIP_STD) + torch.tensor(CLIP_MEAN)) * 255

    torch.testing.assert_close(corner(Llava15), torch.tensor([122.0, 116, 104]), rtol=0, atol=1e-3)
    torch.testing.assert_close(corner(LlavaNext), torch.zeros(3), rtol=0, atol=1e-3)
