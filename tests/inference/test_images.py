"""A prompt that a model wrote becomes an image with diffusers, and a text file without it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from lit_mm.commands.generate import save_drawing
from lit_mm.errors import UserError
from lit_mm.inference import images
from lit_mm.inference.images import NEGATIVE, draw, image_prompt, load_pipeline, save_image


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ("Sure. <h>a cat</h>", "a cat"),
        ("<h>a cat</h> or <h> a dog </h> <h>cut", "a dog"),
        ("<h>cut", None),
        ("no start</h>", None),
        ("a cat", None),
    ],
)
def test_the_last_complete_prompt_counts(answer: str, prompt: str | None) -> None:
    assert image_prompt(answer) == prompt


def test_a_pipeline_gets_the_prompt_and_the_negative_prompt_of_the_release(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def pipeline(prompt: str, **options: Any) -> SimpleNamespace:
        calls.append({"prompt": prompt} | options)
        return SimpleNamespace(images=[Image.new("RGB", (8, 6), "red")])

    path = save_image("a cat", tmp_path / "new" / "cat.png", pipeline, num_inference_steps=2)
    assert calls == [{"prompt": "a cat", "negative_prompt": NEGATIVE, "num_inference_steps": 2}]
    with Image.open(path) as image:
        assert image.size == (8, 6)


def test_without_diffusers_the_prompt_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "find_spec", lambda package: None)
    line = save_drawing("Sure. <h>a cat</h>", tmp_path / "cat.png", None, "cpu")
    assert (tmp_path / "cat.txt").read_text() == "a cat\n"
    assert "lit_mm[images]" in line
    with pytest.raises(UserError, match="diffusers, which is not installed"):
        save_drawing("<h>a cat</h>", tmp_path / "cat.png", "some/pipeline", "cpu")


def test_an_answer_without_a_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompt between <h> and </h>"):
        save_drawing("I cannot draw", tmp_path / "cat.png", None, "cpu")


def tiny_sdxl(folder: Path) -> Any:
    """A Stable Diffusion XL pipeline of some thousand parameters, whose tokenizer reads letters."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz,."
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            block_out_channels=[8, 8],
            norm_num_groups=4,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            sample_size=16,
        ),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=6 * 8 + 32,
            cross_attention_dim=64,
        ),
        scheduler=EulerDiscreteScheduler(),
    )


def test_a_tiny_sdxl_draws_and_is_read_from_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="an extra: pip install 'lit_mm[images]'")
    pipeline = tiny_sdxl(tmp_path)
    pipeline.save_pretrained(tmp_path / "pipeline", safe_serialization=True)
    loaded = load_pipeline(str(tmp_path / "pipeline"))
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pil"}
    image = draw(loaded, "a cat", **options)
    assert image.size == (16, 16)
    line = save_drawing("<h>a cat</h>", tmp_path / "cat.png", str(tmp_path / "pipeline"), "cpu")
    assert line.endswith("cat.png") and (tmp_path / "cat.png").stat().st_size > 0
    with pytest.raises(UserError, match="cannot be read"):
        load_pipeline(str(tmp_path / "nothing"))
