"""Tiny random checkpoints in published layouts, written as their authors write them."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import timm
import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    CLIPVisionConfig,
    CLIPVisionModel,
    FuyuConfig,
    FuyuForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from lit_mm.assets import NANO_TOKENIZER

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of BERT
SIDE, IMAGE_ID, VOCABULARY = 28, 509, 512  # the nano tokenizer has 509 tokens
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
PIXELS = {
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}
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


def hf_llava(folder: Path, *, old: bool = True, pad: bool = False, text: PretrainedConfig | None = None) -> Path:
    """LLaVA-1.5 of transformers, in the names from before version 5 or of today, with a Llama or another decoder."""
    config = LlavaConfig(**hf_config() | ({} if text is None else {"text_config": text}))
    model = randomised(LlavaForConditionalGeneration(config))
    kind = "LlavaImageProcessor" if pad else "CLIPImageProcessor"
    processor = {"image_processor_type": kind, "do_pad": pad, "do_center_crop": True} | PIXELS
    return _hf(folder, model, old, processor)


def hf_next(folder: Path, *, old: bool = True) -> Path:
    """LLaVA-NeXT of transformers."""
    processor = {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINS} | PIXELS
    config = LlavaNextConfig(image_grid_pinpoints=PINS, **hf_config())
    return _hf(folder, randomised(LlavaNextForConditionalGeneration(config)), old, processor)


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
    special(folder, "<image>")
    return folder


def llava(folder: Path) -> Path:
    """The authors' LLaVA with a linear projector and the vision encoder."""
    linear = {"model.mm_projector.weight": noise(32, 64), "model.mm_projector.bias": noise(32)}
    config = authors_config(mm_projector_type="linear")
    return write(folder, half(llama() | linear | tower()), config, shards=2, suffix="bin")


def vila(folder: Path) -> Path:
    """VILA-1.0, whose names are LLaVA-1.5's."""
    config = authors_config(mm_projector_type="mlp2x_gelu", model_type="llava_llama")
    return write(folder, half(llama() | projector() | tower()), config, shards=2)


SIGLIP = VISION | {"image_size": 44, "num_attention_heads": 2, "hidden_act": "gelu_pytorch_tanh"}  # 3 x 3 patches


def vila_1_5(folder: Path, projector: str = "mlp_downsample", tower: str = "siglip", **more: Any) -> Path:
    """VILA-1.5, bf16: a folder for each part, with SigLIP or CLIP, and a projector of any of its types."""
    if tower == "siglip":
        encoder = randomised(SiglipVisionModel(SiglipVisionConfig(**SIGLIP)), 1)
        settings = {"mm_vision_select_feature": "cls_patch", "image_aspect_ratio": "resize"}
        sizes = {"model_type": "siglip_vision_model", "architectures": ["SiglipVisionModel"], **SIGLIP}
    else:
        encoder = randomised(CLIPVisionModel(CLIPVisionConfig(**VISION)), 1)
        settings = {"mm_vision_select_feature": "patch", "image_aspect_ratio": "pad"}
        sizes = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"], **VISION}
    layers = {
        "linear": linear("layers", 32, 64),
        "mlp2x_gelu": linear("layers.0", 32, 64) | linear("layers.2", 32, 32),
        "mlp_downsample": norm("layers.1", 256) | linear("layers.2", 32, 256) | linear("layers.4", 32, 32),
    }[projector]
    state = {f"vision_model.{n.removeprefix('vision_model.')}": t for n, t in encoder.state_dict().items()}
    parts = {
        "llm": (llama(), {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **TEXT}),
        "mm_projector": (layers, {"model_type": "v2l_projector", "mm_projector_type": projector}),
        "vision_tower": (state, sizes),
    }
    for name, (tensors, config) in parts.items():
        rounded = {key: tensor.bfloat16() for key, tensor in tensors.items()}
        write(folder / name, rounded, config, shards=2 if name == "llm" else 1)
        if name != "llm":
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (folder / name / file).unlink()
    names = {"model_type": "llava_llama", "architectures": ["LlavaLlamaModel"], "hidden_size": 32, "s2": False}
    layer = {"mm_vision_select_layer": -2, "mm_use_im_start_end": False}
    (folder / "config.json").write_text(json.dumps(names | layer | settings | more))
    return folder


def llava_uhd(folder: Path) -> Path:
    """LLaVA-UHD v1 with 4 queries, bf16."""
    pool = {"query": noise(4, 32), "pos_embed": noise(4, 32), "proj": noise(32, 32), **norm("ln_q"), **norm("ln_kv")}
    pool |= norm("ln_post") | attention("attn", 32) | {"kv_proj.weight": noise(32, 64)}
    state = llama() | tower() | {f"model.mm_projector.{name}": tensor for name, tensor in pool.items()}
    state = {name: tensor.bfloat16() for name, tensor in state.items()}
    return write(folder, state, authors_config(mm_projector_type="adapt_spatial_resampler"), shards=2, suffix="bin")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.08


def half(state: State) -> State:
    return {name: tensor.half() for name, tensor in state.items()}


def linear(name: str, rows: int, columns: int) -> State:
    return {f"{name}.weight": noise(rows, columns), f"{name}.bias": noise(rows)}


def norm(name: str, width: int = 32) -> State:
    return {f"{name}.weight": 1 + noise(width), f"{name}.bias": noise(width)}


def attention(name: str, width: int) -> State:
    """torch.nn.MultiheadAttention."""
    packed = {f"{name}.in_proj_weight": noise(3 * width, width), f"{name}.in_proj_bias": noise(3 * width)}
    return packed | linear(f"{name}.out_proj", width, width)


def special(folder: Path, *tokens: str) -> None:
    """Add special tokens to the tokenizer of a folder."""
    file = str(folder / "tokenizer.json")
    extended = tokenizers.Tokenizer.from_file(file)
    extended.add_special_tokens(list(tokens))
    extended.save(file)


LARGER = TEXT | {"vocab_size": 528, "num_hidden_layers": 2}  # with room for special tokens


def xcomposer2(folder: Path, *, hd: bool = False) -> Path:
    """XComposer2 or 4KHD: InternLM2 with partial LoRA of rank 3, fp32."""
    width, rank, ffn = 32, 3, 48
    state = {"model.tok_embeddings.weight": noise(528, width), "output.weight": noise(528, width)}
    state["model.norm.weight"] = 1 + noise(width)
    shapes = {"attention.wqkv": (64, width), "attention.wo": (width, width)}
    shapes |= {"feed_forward.w1": (ffn, width), "feed_forward.w3": (ffn, width), "feed_forward.w2": (width, ffn)}
    for layer in ("model.layers.0", "model.layers.1"):
        state |= {f"{layer}.{name}.weight": 1 + noise(width) for name in ("attention_norm", "ffn_norm")}
        for name, (rows, columns) in shapes.items():
            state[f"{layer}.{name}.weight"] = noise(rows, columns)
            state[f"{layer}.{name}.Plora_A.weight"] = noise(rank, columns)
            state[f"{layer}.{name}.Plora_B.weight"] = noise(rows, rank)
    inputs = 4 * 64 if hd else 64
    state |= linear("vision_proj.0", width, inputs) | linear("vision_proj.2", width, width)
    state |= {f"vit.vision_tower.{name.partition('vision_tower.vision_tower.')[2]}": t for name, t in tower().items()}
    if hd:
        state |= {"plora_glb_GN": noise(1, 1, inputs), "plora_sub_GN": noise(1, 1, 1, inputs)}
    config = {"model_type": "internlmxcomposer2", "architectures": ["InternLMXComposer2ForCausalLM"], **LARGER}
    write(folder, {name: tensor.float() for name, tensor in state.items()}, config, shards=2, suffix="bin")
    special(folder, "[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]")
    return folder


def qwen_vl(folder: Path, *, windows: int = 0) -> Path:
    """Qwen-VL, or Monkey with adapters for some windows, bf16."""
    width, wide, ffn = 32, 64, 96
    state = {"transformer.wte.weight": noise(528, width), "lm_head.weight": noise(528, width)}
    state["transformer.ln_f.weight"] = 1 + noise(width)
    for layer in range(2):
        at = f"transformer.h.{layer}"
        state |= {f"{at}.ln_1.weight": 1 + noise(width), f"{at}.ln_2.weight": 1 + noise(width)}
        state |= linear(f"{at}.attn.c_attn", 3 * width, width) | {f"{at}.attn.c_proj.weight": noise(width, width)}
        state |= {f"{at}.mlp.{name}.weight": noise(48, width) for name in ("w1", "w2")}
        state[f"{at}.mlp.c_proj.weight"] = noise(width, 48)
    visual = {"positional_embedding": noise(4, wide), "proj": noise(width, width)}
    visual |= {"conv1.weight": noise(wide, 3, 14, 14), **norm("ln_pre", wide), **norm("ln_post", width)}
    pool = {"query": noise(4, width), "pos_embed": noise(4, width), "kv_proj.weight": noise(width, wide)}
    pool |= attention("attn", width) | norm("ln_q") | norm("ln_kv")
    visual |= {f"attn_pool.{name}": tensor for name, tensor in pool.items()}
    for block in range(2):
        at = f"transformer.resblocks.{block}"
        visual |= norm(f"{at}.ln_1", wide) | norm(f"{at}.ln_2", wide) | linear(f"{at}.attn.in_proj", 3 * wide, wide)
        visual |= linear(f"{at}.attn.out_proj", wide, wide)
        visual |= linear(f"{at}.mlp.c_fc", ffn, wide) | linear(f"{at}.mlp.c_proj", wide, ffn)
        for window in range(windows):
            for name, rank, rows in (("attn.in_proj", 2, 3 * wide), ("attn.out_proj", 2, wide), ("mlp", 3, wide)):
                lora = f"{at}.{name}_lora.{window}"
                visual |= {f"{lora}.lora_a.weight": noise(rank, wide), f"{lora}.lora_b.weight": noise(rows, rank)}
                visual[f"{lora}.lora_scale"] = noise(1)
    state |= {f"transformer.visual.{name}": tensor for name, tensor in visual.items()}
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "layer_norm_epsilon": 1e-6}
    tower_sizes = {"heads": 2, "image_size": 56, "layers": 2, "width": wide, "patch_size": 14}
    config = {"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "visual": tower_sizes, **sizes}
    write(folder, {name: tensor.bfloat16() for name, tensor in state.items()}, config, shards=2)
    special(folder, "<img>", "</img>")
    return folder


def monkey(folder: Path) -> Path:
    return qwen_vl(folder, windows=4)


EVA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 528}
T5 |= {"num_decoder_layers": 2, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "decoder_start_token_id": 0}
T5 |= {"tie_word_embeddings": False}  # as in Flan-T5: hidden states are not scaled before the output projection


def instructblip(folder: Path, text: dict[str, Any] | None = None) -> Path:
    """InstructBLIP of transformers with a Llama, or with the language model of a config, fp32."""
    config = InstructBlipConfig(
        vision_config=EVA | {"image_size": SIDE, "patch_size": 14, "layer_norm_eps": 1e-6},
        qformer_config=BERT | {"vocab_size": VOCABULARY, "max_position_embeddings": 64},
        text_config=text or LARGER | {"model_type": "llama"},
        num_query_tokens=4,
        image_token_index=IMAGE_ID,
    )
    model = randomised(InstructBlipForConditionalGeneration(config))
    state = dict(model.state_dict())
    if text is not None:  # published files hold no copies of the embeddings, and a head of its own
        state = {name: tensor for name, tensor in state.items() if "embed_tokens" not in name}
        head = torch.randn(state["language_model.shared.weight"].shape, generator=torch.Generator().manual_seed(7))
        state["language_model.lm_head.weight"] = head * 0.08
    write(folder, state, {**config.to_dict(), "architectures": [type(model).__name__]}, shards=2)
    blip_pixels(folder)
    special(folder, "<image>")
    bert(folder / "qformer_tokenizer")
    return folder


def blip_pixels(folder: Path) -> None:
    """Write the preprocessor of BLIP, BLIP-2 and InstructBLIP."""
    size = {"size": {"height": SIDE, "width": SIDE}}
    processor = {"image_processor_type": "BlipImageProcessor"} | PIXELS | size
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def bert(folder: Path) -> Path:
    """Write a tokenizer of BERT, with letters as pieces."""
    letters = string.ascii_lowercase + string.digits
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *string.punctuation, "picture", "##s"]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    BertTokenizer(vocab=numbers).save_pretrained(folder)
    return folder


def xcomposer2_4khd(folder: Path) -> Path:
    return xcomposer2(folder, hd=True)


def eva_and_qformer(blocks: int) -> State:
    """EVA of width 88 and a Q-Former of width 64 with its norm, in the names of LAVIS."""
    wide, qwidth = 88, 64
    eva = {"cls_token": noise(1, 1, wide), "pos_embed": noise(1, 5, wide)}
    eva |= {"patch_embed.proj.weight": noise(wide, 3, 14, 14), "patch_embed.proj.bias": noise(wide)}
    ffn = int(wide * 4.3637)
    for block in range(blocks):
        at = f"blocks.{block}"
        eva |= {**norm(f"{at}.norm1", wide), **norm(f"{at}.norm2", wide)}
        eva |= {f"{at}.attn.q_bias": noise(wide), f"{at}.attn.v_bias": noise(wide)}
        eva |= {f"{at}.attn.qkv.weight": noise(3 * wide, wide), **linear(f"{at}.attn.proj", wide, wide)}
        eva |= linear(f"{at}.mlp.fc1", ffn, wide) | linear(f"{at}.mlp.fc2", wide, ffn)
    bert = norm("embeddings.LayerNorm", qwidth) | {"embeddings.position_ids": torch.arange(8)[None]}
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        for name, inputs in (("attention", qwidth), ("crossattention", wide))[: 2 - layer % 2]:
            bert |= linear(f"{at}.{name}.self.query", qwidth, qwidth) | norm(f"{at}.{name}.output.LayerNorm", qwidth)
            bert |= linear(f"{at}.{name}.self.key", qwidth, inputs) | linear(f"{at}.{name}.self.value", qwidth, inputs)
            bert |= linear(f"{at}.{name}.output.dense", qwidth, qwidth)
        bert |= linear(f"{at}.intermediate_query.dense", 96, qwidth) | linear(f"{at}.output_query.dense", qwidth, 96)
        bert |= norm(f"{at}.output_query.LayerNorm", qwidth)
    state = {f"visual_encoder.{name}": t for name, t in eva.items()} | norm("ln_vision", wide)
    return state | {f"Qformer.bert.{name}": t for name, t in bert.items()} | {"query_tokens": noise(1, 8, qwidth)}


def xcomposer(folder: Path) -> Path:
    """XComposer 1.0: EVA, Q-Former, InternLM with LoRA of rank 3, fp16."""
    width, rank, qwidth = 32, 3, 64
    text = {"model.embed_tokens.weight": noise(528, width), "lm_head.weight": noise(528, width)}
    text["model.norm.weight"] = 1 + noise(width)
    for layer in range(2):
        at = f"model.layers.{layer}"
        text |= {f"{at}.{name}.weight": 1 + noise(width) for name in ("input_layernorm", "post_attention_layernorm")}
        for name in "qkvo":
            text |= linear(f"{at}.self_attn.{name}_proj", width, width)
        shapes = {"gate_proj": (48, width), "up_proj": (48, width), "down_proj": (width, 48)}
        text |= {f"{at}.mlp.{name}.weight": noise(*shape) for name, shape in shapes.items()}
        shapes = {f"mlp.{name}": shapes[name] for name in ("up_proj", "down_proj")}
        for name, (rows, columns) in (
            shapes | dict.fromkeys(("self_attn.q_proj", "self_attn.v_proj"), (32, 32))
        ).items():
            text |= {
                f"{at}.{name}.lora_A.weight": noise(rank, columns),
                f"{at}.{name}.lora_B.weight": noise(rows, rank),
            }
        text[f"{at}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    state = eva_and_qformer(2)
    state |= {f"internlm_model.{name}": t for name, t in text.items()} | linear("internlm_proj", width, qwidth)
    state |= {"flag_image_start": noise(1, 1, width), "flag_image_end": noise(1, 1, width)}
    state = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    sizes = LARGER | {"num_key_value_heads": 4}
    config = {"model_type": "InternLMXComposer", "architectures": ["InternLMXComposerForCausalLM"], **sizes}
    write(folder, state, config, shards=3, suffix="bin")
    special(folder, "<TOKENS_UNUSED_0>", "<TOKENS_UNUSED_1>")
    return folder


def minigpt4(folder: Path) -> Path:
    """The authors' file of MiniGPT-4: the projection of 64 channels alone, under `model`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": half(linear("llama_proj", 32, 64))}, folder / "pretrained_minigpt4.pth")
    return folder / "pretrained_minigpt4.pth"


def eva_vit_g(folder: Path) -> Path:
    """Write an EVA encoder of three blocks as LAVIS does."""
    state = {name.removeprefix("visual_encoder."): of for name, of in eva_and_qformer(3).items() if "visual" in name}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(half(state), folder / "eva_vit_g.pth")
    return folder / "eva_vit_g.pth"


def blip2_t5(folder: Path) -> Path:
    """Write the trained parts of BLIP-2's second stage, with a projection for another language model."""
    state = {name: of for name, of in eva_and_qformer(0).items() if "visual" not in name}
    state |= linear("t5_proj", 32, 64)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": half(state)}, folder / "blip2_pretrained.pth")
    return folder / "blip2_pretrained.pth"


PERSIMMON = {"model_type": "persimmon", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
PERSIMMON |= {"intermediate_size": 48, "vocab_size": 528, "max_position_embeddings": 512, "hidden_act": "relu2"}
PERSIMMON |= {"rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5}}
FUYU = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_embed_tokens.", "vision_embed_tokens."),
)


def fuyu(folder: Path, *, old: bool = True) -> Path:
    """Fuyu of transformers, in the names from before version 5 or of today, with patches of 4 pixels, fp32."""
    config = FuyuConfig(text_config=PERSIMMON, patch_size=4, image_token_id=IMAGE_ID)
    model = randomised(FuyuForCausalLM(config))
    state = dict(model.state_dict())
    for new, before in FUYU if old else ():
        state = {before + n.removeprefix(new) if n.startswith(new) else n: tensor for n, tensor in state.items()}
    write(folder, state, {**config.to_dict(), "architectures": ["FuyuForCausalLM"]}, shards=2)
    sizes = {"size": {"height": 40, "width": 60}, "patch_size": {"height": 4, "width": 4}, "padding_value": 1.0}
    processor = {"image_processor_type": "FuyuImageProcessor", "image_mean": 0.5, "image_std": 0.5, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | sizes))
    characters = [*string.ascii_letters, *string.digits, *string.punctuation, "\n", "▁"]
    words = ["<unk>", "<s>", "</s>", "<pad>", "|NEWLINE|", "<0x04>", "<0x00>", "<0x01>", "<0x02>", "<0x03>"]
    unused = [f"unused {number}" for number in range(IMAGE_ID - len(characters) - len(words))]
    scores = [*((word, 0.0) for word in words), *((piece, -10.0) for piece in (*characters, *unused))]
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([*scores, ("|SPEAKER|", 0.0)], unk_id=0))
    steps = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    unigram.normalizer = tokenizers.normalizers.Sequence(steps)
    unigram.decoder = tokenizers.decoders.Metaspace()
    unigram.add_special_tokens(words[:4])
    unigram.save(str(folder / "tokenizer.json"))
    return folder


COG_VISION = {"hidden_act": "gelu", "hidden_size": 16, "image_size": SIDE, "in_channels": 3, "intermediate_size": 24}
COG_VISION |= {"num_heads": 2, "num_hidden_layers": 2, "num_positions": 5, "patch_size": 14, "layer_norm_eps": 1e-6}


def weights(shapes: dict[str, tuple[int, ...]]) -> State:
    return {f"{name}.weight": noise(*shape) for name, shape in shapes.items()}


def cogvlm(folder: Path, *, more: State | None = None, **config: Any) -> Path:
    """CogVLM, or CogAgent with some more tensors, in the names of the code on the hub, bf16."""
    width, ffn, wide = 32, 48, COG_VISION["hidden_size"]
    state = weights({"model.embed_tokens": (528, width), "lm_head": (528, width)})
    state["model.norm.weight"] = 1 + noise(width)
    for layer in range(2):
        at = f"model.layers.{layer}"
        state |= {f"{at}.{name}.weight": 1 + noise(width) for name in ("input_layernorm", "post_attention_layernorm")}
        for kind in ("language", "vision"):
            attention = f"{at}.self_attn.{kind}_expert"
            state |= weights({f"{attention}_query_key_value": (3 * width, width), f"{attention}_dense": (width, width)})
            shapes = {"gate_proj": (ffn, width), "up_proj": (ffn, width), "down_proj": (width, ffn)}
            state |= weights({f"{at}.mlp.{kind}_mlp.{name}": shape for name, shape in shapes.items()})
        state[f"{at}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    visual = {"patch_embedding.cls_embedding": noise(1, wide), "patch_embedding.proj.bias": noise(wide)}
    visual |= {"patch_embedding.proj.weight": noise(wide, 3, 14, 14), "boi": noise(1, 1, width)}
    visual |= weights({"patch_embedding.position_embedding": (5, wide), "linear_proj.linear_proj": (width, wide)})
    visual |= {"eoi": noise(1, 1, width), **norm("linear_proj.norm1")}
    shapes = {"gate_proj": (ffn, width), "dense_h_to_4h": (ffn, width), "dense_4h_to_h": (width, ffn)}
    visual |= weights({f"linear_proj.{name}": shape for name, shape in shapes.items()})
    for block in range(2):
        at = f"transformer.layers.{block}"
        visual |= norm(f"{at}.input_layernorm", wide) | norm(f"{at}.post_attention_layernorm", wide)
        visual |= linear(f"{at}.attention.query_key_value", 3 * wide, wide) | linear(
            f"{at}.attention.dense", wide, wide
        )
        visual |= linear(f"{at}.mlp.fc1", 24, wide) | linear(f"{at}.mlp.fc2", wide, 24)
    state |= {f"model.vision.{name}": tensor for name, tensor in visual.items()} | (more or {})
    sizes = {**LARGER, "num_key_value_heads": 4, "hidden_act": "silu", "template_version": "chat"}
    config = {"architectures": ["CogVLMForCausalLM"], "vision_config": COG_VISION, **sizes, **config}
    write(folder, {name: tensor.bfloat16() for name, tensor in state.items()}, config, shards=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # the published folder has no tokenizer
        (folder / name).unlink()
    return folder


def tokenizer_alone(folder: Path) -> Path:
    """Write a folder that holds a tokenizer and no weights."""
    folder.mkdir()
    tokenizer(folder)
    return folder


def cogagent(folder: Path) -> Path:
    """CogAgent with an encoder of 56 pixels and a cross-attention of 8 channels."""
    wide, ffn = 64, 170
    fine = {"cls_token": noise(1, 1, wide), "pos_embed": noise(1, 17, wide), "patch_embed.proj.bias": noise(wide)}
    fine |= {"patch_embed.proj.weight": noise(wide, 3, 14, 14), **norm("norm", wide), **linear("head", 16, wide)}
    fine |= {"rope.freqs_cos": torch.ones(16, wide), "rope.freqs_sin": torch.ones(16, wide)}
    for block in range(2):
        at = f"blocks.{block}"
        fine |= norm(f"{at}.norm1", wide) | norm(f"{at}.norm2", wide) | norm(f"{at}.attn.inner_attn_ln", wide)
        fine |= weights({f"{at}.attn.{which}_proj": (wide, wide) for which in "qkv"})
        fine |= {f"{at}.attn.{which}_bias": noise(wide) for which in "qv"} | linear(f"{at}.attn.proj", wide, wide)
        fine |= linear(f"{at}.mlp.w1", ffn, wide) | linear(f"{at}.mlp.w2", ffn, wide)
        fine |= norm(f"{at}.mlp.ffn_ln", ffn) | linear(f"{at}.mlp.w3", wide, ffn)
    more = {f"model.cross_vision.vit.model.{name}": tensor for name, tensor in fine.items()}
    more |= {"model.cross_vision.pos_embed": noise(16, wide), "model.vision.pos_embed": noise(4, 16)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes = {"query": (8, 32), "key_value": (16, wide), "dense": (32, 8)}
        more |= weights({f"{at}.cross_attn.{name}": shape for name, shape in shapes.items()})
        more[f"{at}.post_cross_attention_layernorm.weight"] = 1 + noise(32)
    names = {"architectures": ["CogAgentForCausalLM"], "cross_hidden_size": wide, "cross_compute_hidden_size": 8}
    return cogvlm(folder, more=more, cross_image_size=56, **names)


def gemma() -> State:
    model = randomised(GemmaForCausalLM(GemmaConfig(**TEXT | {"tie_word_embeddings": True, "head_dim": 8})))
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


def mixtral() -> State:
    """Mixtral with experts as they are published, one by one."""
    state = randomised(MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=2))).state_dict()
    published: State = {}
    for name, tensor in state.items():
        at, _, kind = name.partition(".mlp.")
        if not kind:
            published[name] = tensor
        elif kind == "gate.weight":
            published[f"{at}.block_sparse_moe.gate.weight"] = tensor
        else:
            ends = ("w1", "w3") if kind == "experts.gate_up_proj" else ("w2",)
            for number, expert in enumerate(tensor):
                for end, piece in zip(ends, expert.chunk(len(ends)), strict=True):
                    published[f"{at}.block_sparse_moe.experts.{number}.{end}.weight"] = piece
    return published


def mini_gemini(folder: Path, text: State | None = None, **more: Any) -> Path:
    """Mini-Gemini without its encoders, bf16, with a fine encoder of 24 channels and views of 32 pixels."""
    state = text or llama() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    state |= projector()
    for name, width in (("query", 64), ("aux", FINE_WIDTH), ("val", FINE_WIDTH)):
        at = f"model.vlm_uni_{name}_projector"
        state |= norm(f"{at}.0", width) | linear(f"{at}.1", 64, width)
    names = {"model_type": "mgm", "architectures": ["MGMLlamaForCausalLM"]}
    config = authors_config(
        mm_projector_type="mlp2x_gelu",
        image_aspect_ratio="pad",
        image_size_aux=32,
        image_grid=1,
        image_global=False,
        mm_vision_tower="model_zoo/OpenAI/clip-vit-large-patch14-336",
        mm_vision_tower_aux="model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
        **names | more,
    )
    return write(folder, {name: tensor.bfloat16() for name, tensor in state.items()}, config, shards=2)


def mini_gemini_2b(folder: Path) -> Path:
    """Mini-Gemini with Gemma."""
    config = {"head_dim": 8, "hidden_act": "gelu", "tie_word_embeddings": True}
    mini_gemini(folder, gemma(), model_type="mgm_gemma", architectures=["MGMGemmaForCausalLM"], **config)
    special(folder, "<start_of_turn>", "<end_of_turn>", "<eos>")
    return folder


def mini_gemini_8x7b(folder: Path) -> Path:
    """Mini-Gemini with Mixtral."""
    names = {"model_type": "mini_gemini_mixtral", "architectures": ["MiniGeminiMixtralForCausalLM"]}
    return mini_gemini(folder, mixtral(), num_local_experts=2, num_experts_per_tok=2, **names)


FINE_WIDTH = 24


def convnext(folder: Path) -> Path:
    """Write OpenCLIP's ConvNeXt as its authors do: the encoder of timm below `visual.trunk.`, beside a text half."""
    model = randomised(timm.create_model("convnext_large_mlp", depths=[1] * 4, dims=[4, 4, 8, 8], num_classes=0), 2)
    state = {f"visual.trunk.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"positional_embedding": noise(4, 8), "visual.head.proj.weight": noise(8, 8)}
    folder.mkdir(parents=True)
    torch.save(half(state), folder / "open_clip_pytorch_model.bin")
    return folder


OPT = {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 48}
OPT |= {"word_embed_proj_dim": 32, "vocab_size": 528, "max_position_embeddings": 128}


def hf_blip2_config(text: dict[str, Any]) -> Blip2Config:
    return Blip2Config(
        vision_config=EVA | {"image_size": SIDE, "patch_size": 14, "layer_norm_eps": 1e-6},
        qformer_config=BERT | {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "encoder_hidden_size": 32},
        text_config=text,
        num_query_tokens=4,
        image_token_index=IMAGE_ID,
        image_text_hidden_size=8,
    )


def hf_blip2(folder: Path, text: dict[str, Any] = OPT) -> Path:
    """BLIP-2 of transformers with an OPT, or the language model of a config, with the copies that older files have."""
    config = hf_blip2_config(text)
    model = randomised(Blip2ForConditionalGeneration(config))
    state = dict(model.state_dict())
    if text["model_type"] == "t5":
        head = torch.randn(state["language_model.shared.weight"].shape, generator=torch.Generator().manual_seed(7))
        state["language_model.lm_head.weight"] = head * 0.08
    write(folder, state, {**config.to_dict(), "architectures": [type(model).__name__]}, shards=2)
    blip_pixels(folder)
    special(folder, "<image>")
    return folder


def hf_blip2_retrieval(folder: Path, token: int | None = None) -> Path:
    """BLIP-2's first stage of transformers; `token` is the id of the image token of newer folders."""
    config = hf_blip2_config(OPT)
    config.image_token_index, config.qformer_config.use_qformer_text_input = token, True
    model = randomised(Blip2ForImageTextRetrieval(config))
    write(folder, dict(model.state_dict()), {**config.to_dict(), "architectures": [type(model).__name__]})
    blip_pixels(folder)
    bert(folder)
    return folder


def opt(folder: Path) -> Path:
    model = randomised(OPTForCausalLM(OPTConfig(**OPT)))
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    return write(folder, state, OPT)


def lavis(folder: Path, name: str, more: State) -> Path:
    """Write a file of LAVIS that holds norm, Q-Former and some more tensors, fp32."""
    state = {name: of for name, of in eva_and_qformer(0).items() if "visual" not in name} | more
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state}, folder / name)
    return folder / name


def text_branch() -> State:
    """The branch of a Q-Former that reads texts."""
    bert = {"embeddings.word_embeddings.weight": noise(512, 64), "embeddings.position_embeddings.weight": noise(8, 64)}
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        bert |= linear(f"{at}.intermediate.dense", 96, 64) | linear(f"{at}.output.dense", 64, 96)
        bert |= norm(f"{at}.output.LayerNorm", 64)
    return {f"Qformer.bert.{name}": tensor for name, tensor in bert.items()}


def lavis_blip2(folder: Path) -> Path:
    """The end of BLIP-2's second stage."""
    return lavis(folder, "blip2_pretrained_opt2.7b.pth", linear("opt_proj", 32, 64))


def lavis_blip2_retrieval(folder: Path) -> Path:
    """The end of BLIP-2's first stage."""
    more = linear("vision_proj", 8, 64) | linear("text_proj", 8, 64) | linear("itm_head", 2, 64)
    head = {"bias": noise(512), **linear("transform.dense", 64, 64), **norm("transform.LayerNorm", 64)}
    more |= {f"Qformer.cls.predictions.{name}": tensor for name, tensor in head.items()} | text_branch()
    at = "Qformer.cls.predictions."
    more[f"{at}decoder.bias"] = more[f"{at}bias"]
    more[f"{at}decoder.weight"] = more["Qformer.bert.embeddings.word_embeddings.weight"]
    return lavis(folder, "blip2_pretrained.pth", more | {"temp": torch.tensor(0.07)})


def lavis_instructblip(folder: Path) -> Path:
    """The trained parts of InstructBLIP with Vicuna."""
    return lavis(folder, "instruct_blip_vicuna7b_trimmed.pth", text_branch() | linear("llm_proj", 32, 64))


def hf_blip(folder: Path, kind: type[nn.Module] = BlipForConditionalGeneration) -> Path:
    """BLIP's captioner of transformers, or another of its models, with the copies that older files have."""
    sizes = {"image_size": SIDE, "patch_size": 14, "layer_norm_eps": 1e-5}
    text = BERT | {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "encoder_hidden_size": 32}
    text |= {"bos_token_id": VOCABULARY - 2, "sep_token_id": 3}
    model = randomised(kind(BlipConfig(vision_config=EVA | sizes, text_config=text, image_text_hidden_size=8)))
    names = {"architectures": [type(model).__name__]}
    write(folder, dict(model.state_dict()), {**model.config.to_dict(), **names}, shards=2)
    blip_pixels(folder)
    return bert(folder)


def hf_blip_retrieval(folder: Path) -> Path:
    return hf_blip(folder, BlipForImageTextRetrieval)


def vit(width: int = 64) -> State:
    """The ViT of the authors' BLIP, with two blocks."""
    state = {"cls_token": noise(1, 1, width), "pos_embed": noise(1, 5, width), "patch_embed.proj.bias": noise(width)}
    state |= {"patch_embed.proj.weight": noise(width, 3, 14, 14), **norm("norm", width)}
    for block in range(2):
        at = f"blocks.{block}"
        state |= norm(f"{at}.norm1", width) | norm(f"{at}.norm2", width) | linear(f"{at}.attn.qkv", 3 * width, width)
        state |= linear(f"{at}.attn.proj", width, width)
        state |= linear(f"{at}.mlp.fc1", 96, width) | linear(f"{at}.mlp.fc2", width, 96)
    return state


def med(width: int = 64) -> State:
    """One stack of the text transformer of the authors' BLIP."""
    state = {"embeddings.position_ids": torch.arange(48)[None], **norm("embeddings.LayerNorm", width)}
    state |= weights({"embeddings.word_embeddings": (512, width), "embeddings.position_embeddings": (48, width)})
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        for name in ("attention", "crossattention"):
            for piece in ("query", "key", "value"):
                state |= linear(f"{at}.{name}.self.{piece}", width, width)
            state |= linear(f"{at}.{name}.output.dense", width, width) | norm(f"{at}.{name}.output.LayerNorm", width)
        state |= linear(f"{at}.intermediate.dense", 80, width) | linear(f"{at}.output.dense", width, 80)
        state |= norm(f"{at}.output.LayerNorm", width)
    return state


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def blip_decoder(encoder: State | None = None) -> State:
    """The decoder of the authors' BLIP; it shares all but self-attention with an encoder."""
    stack = med()
    for name in stack if encoder else ():
        if ".attention." not in name:
            stack[name] = encoder[name]
    head = {"bias": noise(512), **linear("transform.dense", 64, 64), **norm("transform.LayerNorm", 64)}
    head |= {"decoder.weight": stack["embeddings.word_embeddings.weight"], "decoder.bias": head["bias"]}
    return prefixed("text_decoder.bert.", stack) | prefixed("text_decoder.cls.predictions.", head)


def authors_blip(folder: Path, state: State) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": prefixed("visual_encoder.", vit()) | state}, folder / "model_base.pth")
    return folder / "model_base.pth"


def blip(folder: Path) -> Path:
    """The authors' captioner, fp32."""
    return authors_blip(folder, blip_decoder())


def compared(encoder: State) -> State:
    """The encoder, the heads that compare, the momentum copies and the features of the queue."""
    heads = linear("vision_proj", 8, 64) | linear("text_proj", 8, 64)
    momentum = {name.replace("_proj.", "_proj_m."): tensor + 0.01 for name, tensor in heads.items()}
    momentum |= prefixed("visual_encoder_m.", vit()) | prefixed("text_encoder_m.", med())
    state = prefixed("text_encoder.", encoder) | heads | momentum | linear("itm_head", 2, 64)
    return state | {"temp": torch.tensor(0.05), "image_queue": noise(8, 16), "text_queue": noise(8, 16)}


def blip_retrieval(folder: Path) -> Path:
    """The authors' retrieval model, whose queue has numbers of images."""
    queue = {"idx_queue": torch.arange(16)[None], "ptr_queue": torch.tensor([4])}
    return authors_blip(folder, compared(med()) | queue)


def blip_pretrain(folder: Path) -> Path:
    """The authors' pre-trained model."""
    encoder = med()
    return authors_blip(folder, compared(encoder) | blip_decoder(encoder) | {"queue_ptr": torch.tensor([4])})
