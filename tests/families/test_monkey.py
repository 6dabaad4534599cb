"""Monkey: windows with separate adapters, in the order of the release; trainable parts; checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.families import Monkey
from lit_mm.prompts.qwen_vl import QwenPlain
from lit_mm.samples.collate import collate
from lit_mm.samples.inputs import Inputs
from lit_mm.stages.stage import Stage, Train, apply_stage
from lit_mm.tiling import Whole
from lit_mm.vision.vit import ViT
from lit_mm.weights.convert import load_strict
from lit_mm.weights.monkey import monkey_to_model, monkey_visual_to_parts
from tests.rows import loss_sum
from tests.tiny import Noise, document, language

SIZE, WINDOW = (56, 84), 28  # 2 x 3 windows
PARTS = {"vision", "window_adapters", "connector", "projection", "position_table", "language"}


def build(**options: Any) -> Monkey:
    vision = ViT(image_size=WINDOW, patch=14, width=16, layers=2, heads=2)

    def resampler(vision_width: int, language_width: int) -> NormalisedResampler:
        return NormalisedResampler(vision_width, language_width, grid_size=3, heads=4)

    tags = QwenPlain(image_start="", image_end="")
    inputs = Inputs(prompt=options.pop("prompt", tags))
    options = {"size": SIZE, "window": WINDOW, "inputs": inputs, "connector": resampler, "dropout": 0.0} | options
    return Monkey(vision, language(), "nano", **options)


def trained(module: Monkey) -> Monkey:
    """A model with random values where a new model has zeros, so that adapters differ."""
    for parameter in module.parts()["window_adapters"].values():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_a_stage_may_see_the_whole_alone_without_any_adapter() -> None:
    module = trained(build())
    align = Stage("align", {"connector": Train(1e-3)}, inputs=Inputs(Whole(SIZE, WINDOW)))
    stage = module.processor_of(align)
    assert stage.visual_tokens(20, 900) == 9 and stage.prompt is module.processor.prompt
    batch = collate([stage.sample(document(1))], stage)
    assert batch.views.tiles.tolist() == [-1]
    whole = collate([module.processor.sample(document(1))], module.processor)
    with torch.no_grad():
        seen = module.network.bank(batch.views)
        assert torch.allclose(seen, module.network.bank(whole.views)[-9:], atol=1e-5)


def test_windows_come_row_by_row_and_the_whole_last_whatever_the_image() -> None:
    processor = build().processor
    assert processor.visual_tokens(20, 900) == processor.visual_tokens(600, 10) == 7 * 9
    sample = processor.sample(document(1))
    assert sample.index[sample.index >= 0].tolist() == list(range(63))
    assert not (sample.labels[sample.index >= 0] >= 0).any()


def test_every_view_of_every_picture_is_told_its_window() -> None:
    module = build()
    samples = [module.processor.sample(document(number)) for number in (2, 0, 1)]  # 2, 0 and 1 pictures
    batch = collate(samples, module.processor)
    assert batch.views.tiles.tolist() == [0, 1, 2, 3, 4, 5, -1] * 3
    assert collate([samples[1]], module.processor).views.tiles.tolist() == [-1]  # the blank view


def test_a_picture_goes_through_the_adapters_of_its_windows() -> None:
    module = trained(build()).eval()
    sample = module.processor.sample(document(1))
    batch = collate([sample], module.processor)
    with torch.no_grad():
        bank = module.network.bank(batch.views).unflatten(0, (7, 9))
        for view, window in enumerate([0, 1, 2, 3, 4, 5, -1]):
            pixels = batch.views.groups[0][view : view + 1]
            alone = module.network.connector(module.network.vision(pixels, torch.tensor([window])))
            torch.testing.assert_close(bank[view : view + 1], alone, rtol=0, atol=1e-5)
        without = replace(batch.views, tiles=torch.full((7,), -1))
        assert (module.network.bank(without) - bank.flatten(0, 1)).abs().max() > 0.01


def test_what_learns_gets_a_gradient_and_nothing_else() -> None:
    module = trained(build())
    parts = module.parts()
    assert set(parts) == PARTS
    assert {name.split(".")[3] for name in parts["window_adapters"]} == {"qkv", "out", "mlp"}
    train = {part: Train(1e-3) for part in ("window_adapters", "connector", "language")}
    apply_stage(parts, Stage("finetune", train))
    loss_sum(module, collate([module.processor.sample(document(1))], module.processor)).backward()
    for part, parameters in parts.items():
        for name, parameter in parameters.items():
            learns = part in train
            assert (parameter.grad is not None) == learns, f"{part}.{name}"
            assert not learns or parameter.grad.any() or name.endswith("k.bias"), f"{part}.{name}"


def test_a_batch_without_pictures_has_gradients_of_zero_and_not_none() -> None:
    module = build()
    loss_sum(module, collate([module.processor.sample(document(0))], module.processor)).backward()
    for part in PARTS - {"language", "position_table"}:
        for name, parameter in module.parts()[part].items():
            assert parameter.grad is not None and not parameter.grad.any(), f"{part}.{name}"


def test_there_are_as_many_adapter_sets_as_windows_and_none_without_a_window() -> None:
    sets = {
        size: len(next(iter(build(size=size).parts()["window_adapters"].values()))) for size in ((28, 28), (56, 84))
    }
    assert sets == {(28, 28): 1, (56, 84): 6}
    assert len(next(iter(build(stride=14).parts()["window_adapters"].values()))) == 3 * 5
    with pytest.raises(UserError, match="at least one window, got 0"):
        build(size=(27, 84))


def test_questions_and_answers_are_written_as_they_stand() -> None:
    module = build(prompt=QwenPlain("{question} Answer:", " {answer}", "", ""))
    said = Document("vqa", (Turn("user", (Noise(0), "what is it?")), Turn("assistant", ("red",))))
    sample, tokenizer = module.processor.sample(said), module.processor.tokenizer
    assert tokenizer.decode(sample.input_ids[sample.index < 0].tolist()).strip().startswith("what is it? Answer: red")
    learnt = sample.labels[sample.labels >= 0].tolist()
    assert learnt[-1] == tokenizer.eos_id and tokenizer.decode(learnt[:-1]).strip() == "red"


def published_names(module: Monkey) -> dict[str, torch.Tensor]:
    """Rename the weights of the model to the names of the release, written independently of the key map."""
    own, state = dict(module.network.state_dict()), {}

    def packed(tensor: torch.Tensor) -> torch.Tensor:  # all q, all k, all v -> head by head
        return tensor.unflatten(0, (3, 2, -1)).transpose(0, 1).flatten(0, 2)

    visual, block = "transformer.visual.", "transformer.visual.transformer.resblocks."
    top = {"conv1.weight": "patches.weight", "positional_embedding": "positions"}
    top |= {f"ln_pre.{kind}": f"pre_norm.{kind}" for kind in ("weight", "bias")}
    state |= {visual + theirs: own[f"vision.{ours}"] for theirs, ours in top.items()}
    names = {"ln_1": "norm1", "ln_2": "norm2", "attn.out_proj": "out", "mlp.c_fc": "fc1", "mlp.c_proj": "fc2"}
    for number in range(2):
        for kind in ("weight", "bias"):
            for theirs, ours in names.items():
                state[f"{block}{number}.{theirs}.{kind}"] = own[f"vision.blocks.{number}.base.{ours}.{kind}"]
            state[f"{block}{number}.attn.in_proj.{kind}"] = packed(own[f"vision.blocks.{number}.base.qkv.{kind}"])
        for theirs, ours in (("attn.in_proj", "qkv"), ("attn.out_proj", "out"), ("mlp", "mlp")):
            for window in range(6):
                place, adapter = f"{block}{number}.{theirs}_lora.{window}", f"vision.blocks.{number}.adapters.{ours}"
                up = own[f"{adapter}.up"][window]
                state[f"{place}.lora_a.weight"] = own[f"{adapter}.down"][window]
                state[f"{place}.lora_b.weight"] = packed(up) if ours == "qkv" else up
                state[f"{place}.lora_scale"] = own[f"{adapter}.scale"][window : window + 1]
    pool = {"query": "query", "pos_embed": "positions", "kv_proj.weight": "kv_proj.weight"}
    for kind in ("weight", "bias"):
        pool |= {f"ln_q.{kind}": f"norm_q.{kind}", f"ln_kv.{kind}": f"norm_kv.{kind}"}
        pool[f"attn.out_proj.{kind}"] = f"out.{kind}"
        rows = [own[f"connector.resampler.{which}.{kind}"] for which in "qkv"]
        state[f"{visual}attn_pool.attn.in_proj_{kind}"] = torch.cat(rows)
        state[f"{visual}ln_post.{kind}"] = own[f"connector.norm.{kind}"]
    state |= {f"{visual}attn_pool.{theirs}": own[f"connector.resampler.{ours}"] for theirs, ours in pool.items()}
    return {name: tensor.contiguous() for name, tensor in state.items()} | {
        f"{visual}proj": own["connector.proj.weight"].T.contiguous()
    }


def classless() -> Monkey:
    """A model without class token, as published."""
    vision = ViT(WINDOW, 14, 16, layers=2, heads=2, class_token=False, any_size=True)
    module = Monkey(
        vision,
        language(),
        "nano",
        size=SIZE,
        window=WINDOW,
        connector=lambda *widths: NormalisedResampler(*widths, grid_size=3, heads=4),
    )
    return trained(module)


def test_a_whole_checkpoint_of_the_authors_fits() -> None:
    module, fresh = classless(), classless()
    rest = {name: tensor for name, tensor in fresh.state_dict().items() if ".language." in name}
    load_strict(fresh, rest | monkey_to_model(published_names(module), heads=2))
    ours = module.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in fresh.state_dict().items() if name not in rest)


def test_it_starts_from_a_qwen_vl_which_has_no_adapters(tmp_path: Path) -> None:
    """With `weights:` as published, each part takes its tensors from one checkpoint; adapters stay new."""
    module, fresh = classless(), classless()
    theirs = {name: tensor for name, tensor in published_names(module).items() if "_lora." not in name}
    theirs["lm_head.weight"] = torch.zeros(2, 2)  # the language model's, which neither part may trip over
    save_file(theirs, tmp_path / "qwen_vl.safetensors")
    fresh.network.vision.weights = f"qwen-vl-vision:{tmp_path / 'qwen_vl.safetensors'}"
    fresh.network.connector.weights = f"qwen-vl-connector:{tmp_path / 'qwen_vl.safetensors'}"
    before = {name: tensor.clone() for name, tensor in fresh.parts()["window_adapters"].items()}
    fresh.load_pretrained()
    for part in ("vision", "connector", "projection", "position_table"):
        expected = module.parts()[part]
        assert all(torch.equal(tensor, expected[name]) for name, tensor in fresh.parts()[part].items()), part
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.parts()["window_adapters"].items())


def test_a_checkpoint_with_a_gap_between_its_windows_is_refused() -> None:
    state = published_names(classless())
    visual = {name.removeprefix("transformer.visual."): tensor for name, tensor in state.items()}
    kept = {name: tensor for name, tensor in visual.items() if "_lora.1." not in name}
    with pytest.raises(UserError, match=r"windows 0, 1, \.\.\. without a gap, got \[0, 2, 3, 4, 5\]"):
        monkey_visual_to_parts(kept, heads=2)
