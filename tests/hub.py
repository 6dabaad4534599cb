"""Tiny random checkpoints in published layouts, written as their authors write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from lit_mm.assets import NANO_TOKENIZER

SIDE, IMAGE_ID, VOCABULARY = 28, 511, 512
VISION = {
    "image_size": SIDE,
    "patch_size": 14,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "intermediate_size": 96,
}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
PINS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
State = dict[str, Tensor]
OLD = (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all parameters anew, so that no two tensors are equal."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.08 + (parameter.dim() == 1)
    return model.eval()


def write(folder: Path, state: State, config: dict[str, Any], *, shards: int = 1, suffix: str = "safetensors") -> Path:
    """Write weights, an index if there are several shards, config.json and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = list(state)
    weight_map = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}" if shards > 1 else f"{stem}.{suffix}"
        part = {name: state[name].contiguous().clone() for name in names[number::shards]}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder)
    return folder


def tokenizer(folder: Path) -> None:
    """Write the nano tokenizer as a published one."""
    shutil.copy(NANO_TOKENIZER, folder / "tokenizer.json")
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def clip(folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write the vision half of a CLIP as a repository of its own."""
    model = randomised(CLIPVisionModel(CLIPVisionConfig(**VISION)), 1)
    state = {f"vision_model.{n.removeprefix('vision_model.')}": t.to(dtype) for n, t in model.state_dict().items()}
    config = {"model_type": "clip_vision_model", **VISION}
    return write(folder, state, config)


def llama(seed: int = 0, dtype: torch.dtype = torch.float16) -> State:
    model = randomised(LlamaForCausalLM(LlamaConfig(**TEXT)), seed)
    return {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}


def vicuna(folder: Path) -> Path:
    return write(folder, llama(), {"model_type": "llama", **TEXT}, shards=2, suffix="bin")


def projector(dtype: torch.dtype = torch.float16) -> State:
    draw = torch.Generator().manual_seed(5)
    shapes = {"0.weight": (32, 64), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    return {f"model.mm_projector.{n}": torch.randn(s, generator=draw).to(dtype) for n, s in shapes.items()}


def authors_config(**more: Any) -> dict[str, Any]:
    return {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        **TEXT,
        **more,
    }


def llava_1_5(folder: Path) -> Path:
    """The authors' LLaVA-1.5: shards of torch, fp16, without the vision encoder."""
    state = llama() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)} | projector()
    config = authors_config(mm_projector_type="mlp2x_gelu", image_aspect_ratio="pad")
    return write(folder, state, config, shards=2, suffix="bin")


def tower() -> State:
    model = randomised(CLIPVisionModel(CLIPVisionConfig(**VISION)), 1)
    prefix = "model.vision_tower.vision_tower.vision_model."
    return {prefix + n.removeprefix("vision_model."): t.bfloat16() for n, t in model.state_dict().items()}


def llava_next(folder: Path) -> Path:
    """The authors' LLaVA-NeXT: safetensors, bf16, with the vision encoder."""
    state = llama(dtype=torch.bfloat16) | projector(torch.bfloat16) | tower()
    state |= {"model.image_newline": torch.randn(32, generator=torch.Generator().manual_seed(6)).bfloat16()}
    config = authors_config(
        mm_projector_type="mlp2x_gelu",
        image_aspect_ratio="anyres",
        image_grid_pinpoints=PINS,
        mm_patch_merge_type="spatial_unpad",
    )
    return write(folder, state, config, shards=3)


def hf_config() -> dict[str, Any]:
    return {
        "vision_config": CLIPVisionConfig(**VISION),
        "text_config": LlamaConfig(**TEXT),
        "image_token_index": IMAGE_ID,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def hf_llava(folder: Path, *, old: bool = True, pad: bool = False) -> Path:
    """LLaVA-1.5 of transformers, in the names from before version 5 or of today."""
    config = LlavaConfig(**hf_config())
    model = randomised(LlavaForConditionalGeneration(config))
    return _hf(folder, model, old, {"do_pad": pad, "do_center_crop": not pad, "crop_size": SIDE})


def hf_next(folder: Path, *, old: bool = True) -> Path:
    """LLaVA-NeXT of transformers."""
    config = LlavaNextConfig(image_grid_pinpoints=PINS, **hf_config())
    return _hf(folder, randomised(LlavaNextForConditionalGeneration(config)), old, {})


def _hf(folder: Path, model: nn.Module, old: bool, processor: dict[str, Any]) -> Path:
    def older(name: str) -> str:
        for new, before in OLD:
            if name.startswith(new):
                return before + name.removeprefix(new)
        name = name.removeprefix("model.")
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1) if name.startswith("vision_t") else name

    state = {older(name) if old else name: tensor for name, tensor in model.state_dict().items()}
    write(folder, state, {**model.config.to_dict(), "architectures": [type(model).__name__]}, shards=2)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
