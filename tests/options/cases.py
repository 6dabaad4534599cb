"""For every class that a recipe names: small arguments, and another value of each argument that must make a difference.

Arguments whose difference cannot be seen in a small part name the test that shows it.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch

from lit_mm.connectors.glu import GLUProjector
from lit_mm.connectors.merge import MergeMLP
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.patch_info_mining import PatchInfoMining
from lit_mm.connectors.qformer_paired import PairedQFormer
from lit_mm.connectors.qformer_projector import QFormerProjector
from lit_mm.connectors.resampler import NormalisedResampler
from lit_mm.connectors.slice_resampler import SliceResampler
from lit_mm.datamodules.mixture import Member, Mixture
from lit_mm.datamodules.nano import NanoDocuments, NanoSource
from lit_mm.datamodules.nano_interleaved import NanoInterleaved
from lit_mm.datamodules.nano_prints import NanoPrints
from lit_mm.datamodules.nano_text_pairs import NanoTextPairs
from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.language.med import MED
from lit_mm.language.pretrained import Pretrained
from lit_mm.language.t5 import T5
from lit_mm.layers.two_maps import TwoMaps
from lit_mm.prompts.blip2 import Blip2Caption, PrefixSplit
from lit_mm.prompts.caption import Caption
from lit_mm.prompts.cogvlm import CogVLMPrompt
from lit_mm.prompts.fuyu import FuyuPrompt
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.qwen_vl import QwenChat, QwenPlain
from lit_mm.prompts.source import load_tokenizer
from lit_mm.prompts.text_to_text import TextToText
from lit_mm.prompts.xcomposer import XComposerPrompt
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.batch import Texts
from lit_mm.samples.processor import Processor
from lit_mm.stages.schedule import Constant, Cosine, EpochCosine, EpochDecay, Linear
from lit_mm.tiling import AnyRes, CentreCrop, Hd, Pad, Stretch, Uhd, UhdArxiv, Whole
from lit_mm.vision.dual import DualEncoder
from lit_mm.vision.linear_patches import LinearPatches
from lit_mm.vision.timm_encoder import TimmEncoder
from lit_mm.vision.timm_vit import TimmViT
from lit_mm.vision.vit import ViT
from tests.options.case import Case, With
from tests.options.families import FAMILIES
from tests.options.further import FURTHER
from tests.options.probes import of_data, of_module, of_prompt, of_schedule, of_tiling
from tests.options.settings import SETTINGS
from tests.rows import flat
from tests.tiny import xcomposer2

POSITIONS = "tests/weights/test_blip.py::test_position_table_of_another_image_size_is_resized_on_loading"
DECODER_ID = {
    "decoder_id": "tests/parity/test_blip2_stage1.py::test_losses_and_gradients_of_one_process_are_the_original_ones"
}
PYRAMID = "tests/vision/test_timm_encoder.py::test_a_pyramid_joins_all_stages_at_the_grid_of_the_first"
LONGEST = {
    "max_positions": "tests/options/test_options.py::test_the_longest_sample_is_information_in_the_config_of_a_llama"
}
WEIGHTS = {"weights": "nano:none"}  # published weights that do not exist, which loading them says
COMPILED = {"compile": "tests/layers/test_compiled_layers.py::test_one_graph_serves_all_layers_and_six_shapes"}
RESIZED = "tests/vision/test_vit.py::test_a_checkpoint_of_another_image_size_is_resized_while_loading"
TIMM_RESIZED = "tests/vision/test_timm_encoder.py::test_a_table_of_another_image_size_is_resized_while_it_is_loaded"


# --- tilings, schedules, prompts -------------------------------------------------------------------------------------
TILINGS = {
    AnyRes: Case(of_tiling, {"tile": 28}, {"tile": 56, "grids": ((1, 2), (2, 1)), "rule": "hf"}),
    CentreCrop: Case(of_tiling, {"size": 28}, {"size": 56}),
    Hd: Case(of_tiling, {"max_tiles": 4, "tile": 28}, {"max_tiles": 9, "tile": 56}),
    Pad: Case(of_tiling, {"size": 28}, {"size": 56}),
    Stretch: Case(of_tiling, {"size": 28}, {"size": 56, "patch": 5}),
    Uhd: Case(of_tiling, {"max_slices": 4, "size": 56, "patch": 14}, {"max_slices": 6, "size": 84, "patch": 7}),
    UhdArxiv: Case(of_tiling, {"max_slices": 4, "size": 56, "patch": 14}, {"max_slices": 6, "size": 84, "patch": 7}),
    Whole: Case(of_tiling, {"size": (56, 56), "window": 28}, {"size": (84, 84), "window": 14}),
}
RISING = {"warmup": 0.3, "start": 0.2, "floor": 0.1}
SCHEDULES = {
    Constant: Case(of_schedule, {"warmup": 0.1}, {"warmup": 0.2, "start": 0.1, "floor": 0.5}),
    Cosine: Case(of_schedule, {"warmup": 0.1}, RISING),
    Linear: Case(of_schedule, {"warmup": 0.1}, RISING),
    EpochCosine: Case(of_schedule, {"warmup": 0.1, "epochs": 4}, RISING | {"epochs": 5}),
    EpochDecay: Case(
        of_schedule,
        {"warmup": 0.1, "epochs": 4},
        {"warmup": 0.3, "start": 0.2, "floor": 0.8, "epochs": 5, "decay": 0.5},
    ),
}
MARKERS = {"image_start": "<|im_start|>", "image_end": "<|im_end|>"}
TURNS = {"image_start": "</s>", "image_end": "<pad>"}
CAPTION = {"lead": "a page of ", "max_tokens": 12, "clean": False}
PROMPTS = {
    Blip2Caption: Case(of_prompt, {}, CAPTION),
    PrefixSplit: Case(of_prompt, {}, CAPTION),
    Caption: Case(of_prompt, {"start_id": 1}, CAPTION | {"start_id": 3, "max_words": 4}),
    CogVLMPrompt: Case(of_prompt, {}, {"template": "vqa"}),
    FuyuPrompt: Case(
        of_prompt,
        {"answer_start": "<pad>", "box": ("<s>", "</s>"), "point": ("<s>", "</s>")},
        {
            "canvas": (10, 15),
            "question": "Q {question}",
            "answer_start": "</s>",
            "box": ("</s>", "<s>"),
            "point": ("</s>", "<s>"),
        },
    ),
    ChatPrompt: Case(of_prompt, {}, {"template": "llava_v1", "keep_leading": True, "bos": False}),
    QwenChat: Case(of_prompt, TURNS, {"system": "Be brief.", "image_start": "", "image_end": ""}),
    QwenPlain: Case(
        of_prompt,
        MARKERS,
        {"question": "{question} Answer:", "answer": " {answer}", "image_start": "", "image_end": ""},
    ),
    XComposerPrompt: Case(
        of_prompt,
        {"end_of_human": "<s>", "end_of_assistant": "</s>"},
        {"end_of_human": "<|im_start|>", "end_of_assistant": "<|im_end|>"},
    ),
    XComposer2Prompt: Case(
        of_prompt, {"turn_start": "<|im_start|>", "turn_end": "<|im_end|>"}, {"turn_start": "<s>", "turn_end": "</s>"}
    ),
}


# --- connectors ------------------------------------------------------------------------------------------------------
def features(seed: int = 0) -> torch.Tensor:
    """[2, 16, 8] patch features of two views."""
    return torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(seed))


def texts() -> Texts:
    """Two texts of three and two tokens."""
    return Texts(torch.tensor([[3, 4, 5], [6, 7, 0]]), torch.tensor([[True, True, True], [True, True, False]]))


def call_paired(module: torch.nn.Module) -> Any:
    """Visual tokens with the texts if the connector reads them, and the text head if there is one."""
    assert isinstance(module, PairedQFormer)
    tokens = module(features(), texts()) if module.reads_text else module(features())
    heads = [] if module.contrast is None else [module.match(module.norm(features()), texts())]
    return [tokens, *heads]


of_projector = of_module(lambda module: module(features()))
WIDTHS = {"vision_width": 8, "language_width": 12}
SCALES = {"standardise": True, "start": 0.3}
QFORMER = {"queries": 3, "width": 8, "layers": 2, "heads": 2, "ffn_width": 12}
QFORMER_OTHERS = {
    "language_width": 10,
    "queries": 4,
    "width": 12,
    "layers": 3,
    "heads": 4,
    "ffn_width": 16,
    "cross_every": 1,
    "dropout": 0.5,
    "start": 0.3,
}
VISION_WIDTH = {"vision_width": 10}  # the features do not fit, which is refused
CONNECTORS = {
    GLUProjector: Case(
        of_projector,
        WIDTHS | {"ffn_width": 16},
        VISION_WIDTH | SCALES | {"language_width": 10, "ffn_width": 20, "positions": 16},
    ),
    MergeMLP: Case(of_projector, WIDTHS, VISION_WIDTH | SCALES | {"language_width": 10, "merge": 4}),
    MLPProjector: Case(of_projector, WIDTHS, VISION_WIDTH | SCALES | {"language_width": 10, "depth": 1}),
    PatchInfoMining: Case(
        of_module(
            lambda module: module(
                TwoMaps(features()[:, None, :4], torch.randn(2, 1, 4, 4, 6, generator=torch.Generator().manual_seed(0)))
            )
        ),
        WIDTHS | {"second_width": 6},
        VISION_WIDTH | SCALES | {"second_width": 5, "language_width": 10, "scale_by_width": True},
    ),
    PairedQFormer: Case(
        of_module(call_paired),
        WIDTHS | QFORMER | {"vocab_size": 9, "reads_text": True},
        VISION_WIDTH
        | QFORMER_OTHERS
        | {
            "vocab_size": 10,
            "max_positions": 2,
            "head": True,
            "contrast_width": 4,
            "reads_text": False,
            "norm_eps": 0.5,
        }
        | WEIGHTS,
        DECODER_ID,
    ),
    QFormerProjector: Case(of_projector, WIDTHS | QFORMER, VISION_WIDTH | QFORMER_OTHERS),
    NormalisedResampler: Case(
        of_projector,
        WIDTHS | {"grid_size": 2, "heads": 2},
        VISION_WIDTH
        | {
            "language_width": 16,
            "grid_size": 3,
            "heads": 3,
            "eps": 0.5,
            "standardise": True,
            "local": 2.0,
            "start": 0.5,
        }
        | WEIGHTS,
    ),
    SliceResampler: Case(
        of_module(lambda module: module(features())),
        WIDTHS | {"side": 2, "heads": 2},
        VISION_WIDTH
        | {
            "language_width": 16,
            "side": 3,
            "heads": 4,
            "regions": False,
            "eps": 0.5,
            "start": 0.5,
            "standardise": True,
            "local": With(2.0, {"regions": False}),
        },
    ),
}


# --- vision encoders -------------------------------------------------------------------------------------------------
def pixels(size: int = 28) -> torch.Tensor:
    """[2, 3, size, size] normalised pixels."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def call_at_sizes(module: torch.nn.Module, sizes: tuple[int, int] = (28, 42)) -> Any:
    """Features of views of the first size, and of the second if the encoder takes them."""
    outputs = [module(pixels(sizes[0]))]
    try:
        outputs.append(module(pixels(sizes[1])))
    except UserError:
        outputs.append(torch.zeros(()))
    return outputs


of_encoder = of_module(call_at_sizes)
VIT = {"image_size": 28, "patch": 14, "width": 8, "layers": 2, "heads": 2}
VIT_OTHERS = {"image_size": 42, "patch": 7, "width": 12, "layers": 3, "heads": 4, "mlp_ratio": 2.0, "eps": 0.5}
SMALL = {"embed_dim": 8, "depth": 2, "num_heads": 2}
NORM = {"name": "vit_tiny_patch16_224", "image_size": 32, "overrides": SMALL}


def encoder(**changes: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(**VIT | changes)


VISION = {
    ViT: Case(
        of_encoder,
        VIT,
        VIT_OTHERS
        | {
            "ffn_width": 20,
            "activation": "gelu",
            "drop_cls": False,
            "select_layer": -2,
            "class_token": False,
            "any_size": True,
            "activation_checkpointing": "full",
        }
        | WEIGHTS,
        COMPILED | {"position_size": RESIZED},
    ),
    TimmViT: Case(
        of_encoder,
        VIT,
        VIT_OTHERS | WEIGHTS | {"drop_path": 0.9, "any_view": True, "activation_checkpointing": "full"},
        {
            "position_size": POSITIONS,
        },
    ),
    LinearPatches: Case(
        of_module(lambda module: module(pixels())),
        {"patch": 14, "width": 8},
        WEIGHTS | {"patch": 7, "width": 12, "start": 0.3},
    ),
    DualEncoder: Case(
        of_module(lambda module: module(pixels(56))),
        {"low": encoder(), "high": encoder(image_size=56, patch=7)},
        {
            "low": encoder(width=12),
            "high": encoder(image_size=56, patch=7, width=12),
            "tiles": 2,
            "overview": With(True, {"tiles": 2}),
        },
    ),
    TimmEncoder: Case(
        of_module(partial(call_at_sizes, sizes=(32, 48))),
        NORM,
        {
            "name": "vit_base_patch16_clip_224",
            "image_size": 48,
            "select_layer": -2,
            "norm": True,
            "drop_cls": False,
            "drop_path": 0.9,
            "any_size": True,
            "overrides": SMALL | {"embed_dim": 12},
            "eps": 0.5,
            "activation_checkpointing": "full",
        }
        | WEIGHTS,
        COMPILED | {"position_size": TIMM_RESIZED, "pyramid": PYRAMID},
    ),
}


# --- language models -------------------------------------------------------------------------------------------------
SAMPLES = tuple(torch.arange(2, 2 + length) for length in (17, 4))
ANSWERS = tuple(torch.arange(3, 3 + length) for length in (3, 2))


def call_decoder(module: Any) -> Any:
    batch = flat(SAMPLES)
    return module.logits(module.learn(module.embed(batch.ids), batch).hidden)


def call_t5(module: Any) -> Any:
    batch = flat(SAMPLES, answers=ANSWERS)
    return module.logits(module.learn(module.embed(batch.ids), batch).hidden)


def call_med(module: Any) -> Any:
    hidden = module.decode(torch.cat(SAMPLES)[None], [len(ids) for ids in SAMPLES], features())
    return module.logits(hidden)


DECODER = {"width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 24, "vocab_size": 40}
DECODER_OTHERS = {
    "width": 32,
    "layers": 3,
    "heads": 2,
    "kv_heads": 1,
    "ffn_width": 28,
    "vocab_size": 44,
    "head_width": 8,
    "rope_theta": 10.0,
    "norm_eps": 0.5,
    "attention_bias": True,
    "tie_embeddings": True,
    "activation_checkpointing": "full",
    "attention": "varlen",  # refused on a CPU
}
HF = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
}
LANGUAGE = {
    Llama: Case(of_module(call_decoder), DECODER, DECODER_OTHERS | WEIGHTS, COMPILED | LONGEST),
    Pretrained: Case(
        of_module(call_decoder),
        {"config": HF},
        WEIGHTS | {"config": HF | {"hidden_size": 32}, "activation_checkpointing": "full", "attention": "varlen"},
        {"compile": "tests/options/test_options.py::test_the_layers_of_a_model_of_transformers_are_compiled"},
    ),
    T5: Case(
        of_module(call_t5),
        {"width": 16, "layers": 2, "heads": 2, "ffn_width": 24, "vocab_size": 40},
        {
            "width": 24,
            "layers": 3,
            "heads": 4,
            "ffn_width": 28,
            "vocab_size": 44,
            "decoder_layers": 1,
            "head_width": 4,
            "dropout": 0.5,
            "activation": "gelu",
            "buckets": 4,
            "max_distance": With(12, {"buckets": 8}),
            "norm_eps": 0.5,
            "start_id": 3,
            "activation_checkpointing": "full",
        }
        | WEIGHTS,
        {"config": "tests/weights/test_agreement.py::test_a_t5_takes_its_numbers_from_a_folder_of_transformers"},
    ),
    MED: Case(
        of_module(call_med),
        {"vision_width": 8, "vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "ffn_width": 24},
        {
            "vision_width": 6,
            "vocab_size": 44,
            "width": 24,
            "layers": 3,
            "heads": 4,
            "ffn_width": 28,
            "max_positions": 5,
            "dropout": 0.5,
            "eps": 0.5,
            "activation_checkpointing": "full",
        }
        | WEIGHTS,
    ),
}


# --- data modules ----------------------------------------------------------------------------------------------------
@cache
def processor_of_pictures() -> Processor:
    processor = xcomposer2().processor
    assert isinstance(processor, Processor)
    return processor


@cache
def processor_of_texts() -> Processor:
    return Processor(load_tokenizer("nano"), TextToText(), writes_target=True)


def nano_source(count: int, questions: int = 1) -> NanoSource:
    return NanoSource("questions", count, split="train", seed=0, skills=("read_large",), questions=questions)


of_pictures = of_data(processor_of_pictures, "connector")
STREAM = {"global_batch": 4, "row_tokens": 400, "window": 16, "num_workers": 0}
STREAM_OTHERS = {
    "global_batch": 6,
    "micro_batch": 1,
    "row_tokens": 300,
    "row_views": 1,
    "window": 2,
    "num_workers": 1,
    "worker_start": With("spawn", {"num_workers": 1}),
}
POLICY = {"too_long": "truncate", "on_bad_sample": "skip", "max_bad": 0.5, "max_unsupervised": 0.5}
WORLD = {"world_seed": 1, "questions": 1, "heldout_documents": 3}
MEMBERS = [Member(nano_source(24)), Member(nano_source(12, questions=3), name="more")]
DATA = {
    NanoDocuments: Case(
        of_pictures,
        STREAM | {"documents": 24, "heldout_documents": 2},
        STREAM_OTHERS
        | WORLD
        | {"kind": "captions", "documents": 30, "split": "pixels", "skills": ["chart"], "heldout_kind": "captions"},
    ),
    NanoInterleaved: Case(
        of_pictures,
        STREAM | {"documents": 24, "heldout_documents": 2},
        STREAM_OTHERS | WORLD | {"kind": "blended", "documents": 30, "questions": With(1, {"kind": "blended"})},
    ),
    NanoTextPairs: Case(
        of_data(processor_of_texts, "language"),
        STREAM | {"pairs": 24, "heldout_documents": 2},
        {key: value for key, value in STREAM_OTHERS.items() if key not in ("row_views", "worker_start")}
        | WORLD
        | {"pairs": 30, "split": "pixels"},
    ),
    NanoPrints: Case(
        of_data(lambda: None, "vision"),
        {"pages": 24, "size": 28, "patch": 7, "global_batch": 4, "num_workers": 0},
        {
            "pages": 30,
            "size": 56,
            "split": "train",
            "world_seed": 1,
            "patch": 14,
            "close_ups": 1.0,
            "global_batch": 6,
            "micro_batch": 1,
            "num_workers": 1,
        },
    ),
    Mixture: Case(
        of_pictures,
        STREAM | {"sources": MEMBERS},
        STREAM_OTHERS | POLICY | {"sources": MEMBERS[:1], "weights": "sqrt", "heldout_source": nano_source(2)},
    ),
    NanoSource: Case(
        lambda source: (len(source), [repr(source[number]) for number in range(6)]),
        {
            "kind": "questions",
            "count": 24,
            "split": "train",
            "seed": 0,
            "skills": ("read_large", "chart"),
            "questions": 3,
        },
        {
            "kind": "captions",
            "count": 30,
            "split": "pixels",
            "seed": 1,
            "skills": ("chart",),
            "questions": 1,
            "source_of": {"chart": "charts"},
        },
    ),
}

TABLES = (TILINGS, SCHEDULES, PROMPTS, CONNECTORS, VISION, LANGUAGE, DATA, SETTINGS, FAMILIES, FURTHER)
CASES: dict[type, Case] = {kind: case for table in TABLES for kind, case in table.items()}
