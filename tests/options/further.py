"""Cases of families with builders of their own, of prompts and parts of single families, and of data sets in files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lit_mm.connectors.glu import GLUProjector
from lit_mm.connectors.grouped import GroupedProjector
from lit_mm.connectors.linear import linear_projector
from lit_mm.connectors.mlp import MLPProjector
from lit_mm.connectors.patch_info_mining import PatchInfoMining
from lit_mm.datamodules.conversations import Conversations
from lit_mm.datamodules.corpora import Corpora, Corpus
from lit_mm.documents.document import Document
from lit_mm.errors import UserError
from lit_mm.families import (
    Blip,
    Blip2,
    CogAgent,
    EncoderDecoder,
    Fuyu,
    InstructBlip,
    MiniGemini,
    MiniGPT4,
    Recombined,
)
from lit_mm.language.cross_attention import CrossAttentionSettings
from lit_mm.language.llama import Llama
from lit_mm.language.med import MED
from lit_mm.language.partial_lora import PartialLoRA
from lit_mm.language.t5 import T5
from lit_mm.module import MultimodalModule
from lit_mm.nano.prints import PrintPretraining
from lit_mm.nano.typed import Templates, TypedPages
from lit_mm.nano.world import caption_document, question_document
from lit_mm.objectives.next_token import NextToken
from lit_mm.prompts.blip2 import Blip2Caption
from lit_mm.prompts.caption import Caption
from lit_mm.prompts.instructblip import InstructBlipPrompt
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.minigpt4 import MiniGPT4Prompt
from lit_mm.prompts.plain import Plain
from lit_mm.prompts.qwen_vl import QwenPlain
from lit_mm.prompts.template import ChatTemplate
from lit_mm.prompts.text_to_text import TextToText
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.reading import Reading
from lit_mm.stages.schedule import GlobalCosine
from lit_mm.stages.stage import Stage, Train
from lit_mm.tiling import Stretch
from lit_mm.vision.dual import DualEncoder
from lit_mm.vision.linear_patches import LinearPatches
from lit_mm.vision.timm_vit import TimmViT
from lit_mm.vision.window_adapters import WindowAdapters
from tests.families.test_cogvlm import SIZES as COGVLM
from tests.options.case import Case, Fresh, With
from tests.options.families import BASE, LARGER, OTHERS, SIZE, of_family, prompt, vision
from tests.options.probes import CHAT, Behaviour, numbers, of_module, of_prompt, of_schedule
from tests.tiny_blip import page
from tests.tiny_blip2 import language as small_language
from tests.tiny_blip2 import qformer
from tests.tiny_instructblip import question, reading_qformer

PLAIN = (bool, int, float, str, tuple, type(None))


def settings(thing: object) -> dict[str, str]:
    """Plain attributes of an object, as texts."""
    attributes = getattr(thing, "__dict__", {})  # an examiner may be a function
    return {key: repr(value) for key, value in attributes.items() if isinstance(value, PLAIN)}


def of_objectives(documents: Callable[[], list[Document]]) -> Callable[[MultimodalModule], Behaviour]:
    """Parameters, buffers, samples, and the settings of modules, objectives and examiner.

    What the settings do is tested with the objective and the examiner.

    Args:
        documents: function that returns documents of the family.
    """

    def probe(module: MultimodalModule) -> Behaviour:
        network, processor = module.network, module.processor
        tensors = [(name, numbers(x)) for name, x in (*network.named_parameters(), *network.named_buffers())]
        samples = [processor.sample(document) for document in documents()]
        views = [[view.size for plan in sample.plans for view in plan.views] for sample in samples]
        ids = [(sample.input_ids.tolist(), sample.labels.tolist()) for sample in samples]
        readings = [] if processor.reading is None else [processor.reading(d).tolist() for d in documents()]
        objectives = {name: (type(each).__name__, settings(each)) for name, each in module.objectives.items()}
        others = processor.max_length, settings(module.examiner), [settings(each) for each in network.modules()]
        return tensors, ids, views, readings, objectives, others

    return probe


of_pairs = of_objectives(lambda: [page(number) for number in (1, 2)])


# --- families --------------------------------------------------------------------------------------------------------
def fine(**changes: Any) -> Fresh:
    """A `DualEncoder` of 2 x 2 patches and 8 x 8 cells."""
    return Fresh(lambda: DualEncoder(vision(**changes).make(), vision(image_size=56, patch=7).make()))


def with_second(module: CogAgent) -> Behaviour:
    """What `of_family` says, and the parameters with their values."""
    with torch.no_grad():
        for part in ("visual_expert", "flags", "second_connector", "cross_attention"):
            for parameter in module.parts()[part].values():
                parameter.add_(0.1)
    return of_family(module)


def injected(injection: PartialLoRA) -> Behaviour:
    """What a family does whose language model has the injection."""
    return of_family(recombined(injection=injection))


def recombined(**changes: Any) -> Recombined:
    torch.manual_seed(0)
    values = {name: value.make() if isinstance(value, Fresh) else value for name, value in COMBINED.items()}
    return Recombined(**values | changes)


def of_combination(module: Recombined) -> Behaviour:
    """What `of_family` says, and the settings of the objective."""
    return of_family(module), [settings(objective) for objective in module.objectives.values()]


TEXTS_ALONE = (Document("chat", CHAT[3:]), Document("chats", (*CHAT[3:], *CHAT[3:])))
COMBINED = BASE | {
    "inputs": Inputs(tiling=Stretch(28), prompt=QwenPlain(image_start="", image_end=""), max_length=4096)
}
SMOOTH = {"next_token": NextToken(label_smoothing=0.2)}
SMALL_VISION = vision(drop_cls=False, layers=1)
T5_SIZES = {"width": 32, "layers": 1, "heads": 2, "ffn_width": 48, "vocab_size": 512}
TEXTS = {"vocab_size": 515, "width": 16, "layers": 2, "heads": 2, "ffn_width": 24}
BLIP_BASE = {
    "vision": Fresh(lambda: TimmViT(32, 16, 16, layers=1, heads=2)),
    "text": Fresh(lambda: MED(16, max_positions=48, **TEXTS)),
    "tokenizer": "nano",
    "encoder_id": 512,
    "decoder_id": 513,
    "grounded_id": 514,
    "width": 8,
    "queue_size": 8,
}
PAIRS_BASE = {"vision": SMALL_VISION, "language": Fresh(small_language), "tokenizer": "nano", "image_size": 28}
PAIRS_OTHERS = {
    "vision": vision(drop_cls=False, layers=2),
    "language": Fresh(partial(small_language, "encoder-decoder")),
    "tokenizer": "none/such",  # refused
    "image_size": 56,
    "label_smoothing": 0.3,
}
reading = partial(Reading, "nano", first_id=512, last_id=513)
FAMILIES = {
    Blip: Case(
        of_pairs,
        BLIP_BASE,
        {
            "vision": Fresh(lambda: TimmViT(32, 16, 16, layers=2, heads=2)),
            "text": Fresh(lambda: MED(16, max_positions=40, **TEXTS)),
            "tokenizer": "none/such",
            "encoder_id": 511,
            "decoder_id": 510,
            "grounded_id": 511,
            "width": 12,
            "temperature": 0.1,
            "momentum": 0.9,
            "queue_size": 12,
            "objectives": Fresh(lambda: {"next_token": NextToken()}),
            "candidates": 64,
            "inputs": Inputs(prompt=Caption(513, max_words=1)),
        },
    ),
    Blip2: Case(
        of_pairs,
        PAIRS_BASE | {"connector": qformer, "reading": reading(max_length=24)},
        PAIRS_OTHERS
        | {
            "connector": partial(qformer, queries=5),
            "reading": reading(max_length=3),
            "candidates": 64,
            "inputs": Inputs(prompt=Blip2Caption(max_tokens=3)),
        },
    ),
    InstructBlip: Case(
        of_objectives(lambda: [question(1), question(2)]),
        PAIRS_BASE | {"connector": reading_qformer, "reading": reading(text="instruction", max_length=24)},
        PAIRS_OTHERS
        | {
            "connector": partial(reading_qformer, queries=5),
            "reading": reading(text="instruction", max_length=3),
            "inputs": Inputs(prompt=InstructBlipPrompt(first="<s>")),
        },
    ),
    CogAgent: Case(
        with_second,
        {
            "vision": vision(),
            "second_vision": vision(image_size=42, width=12),
            "language": Fresh(lambda: Llama(**COGVLM)),
            "tokenizer": "nano",
            "image_size": 28,
            "second_size": 42,
            "cross_width": 16,
            "cross_heads": 4,
            "inputs": prompt("{question}"),
        },
        OTHERS
        | {
            "second_vision": vision(image_size=42, width=16),
            "language": Fresh(lambda: Llama(**COGVLM | {"layers": 3})),
            "image_size": 56,
            "second_size": 56,
            "connector": partial(GLUProjector, ffn_width=20),
            "cross_width": 32,
            "cross_heads": 2,
        },
    ),
    EncoderDecoder: Case(
        of_objectives(lambda: list(TEXTS_ALONE)),
        {"language": Fresh(lambda: T5(**T5_SIZES)), "tokenizer": "nano"},
        {
            "language": Fresh(lambda: T5(**T5_SIZES | {"layers": 2})),
            "tokenizer": "none/such",
            "prompt": TextToText(separator=" and "),
            "max_length": 64,
        }
        | SMOOTH,
    ),
    Fuyu: Case(
        of_family,
        BASE
        | {
            "vision": Fresh(lambda: LinearPatches(14, 32)),
            "canvas": (14, 14),
            "newline": "<pad>",
            "inputs": prompt("{question}"),
        },
        OTHERS
        | {
            "vision": Fresh(lambda: LinearPatches(7, 32)),
            "canvas": (28, 28),
            "newline": "<s>",
            "connector": MLPProjector,
        },
    ),
    MiniGPT4: Case(
        of_family,
        BASE | SIZE | {"connector": partial(GroupedProjector, group=2)},
        OTHERS | LARGER | {"connector": partial(GroupedProjector, group=1)},
    ),
    MiniGemini: Case(
        of_family,
        BASE | {"vision": fine()},
        OTHERS | {"vision": fine(layers=3), "connector": partial(PatchInfoMining, scale_by_width=True)},
    ),
    Recombined: Case(
        of_combination,
        COMBINED,
        OTHERS
        | SMOOTH
        | {
            "inputs": Inputs(tiling=Stretch(28), prompt=ChatPrompt(), max_length=4096),
            "connector": linear_projector,
            "learned": ["newline"],
            "injection": PartialLoRA(rank=2),
            "vision_injection": WindowAdapters(2, {"qkv": 2}),
            "second_vision": vision(image_size=42),  # refused without `cross_attention`
            "cross_attention": CrossAttentionSettings(16, 4),  # refused without `second_vision`
            "mining": PatchInfoMining,  # refused with a single encoder
        },
    ),
    PartialLoRA: Case(injected, {"rank": 2, "dropout": 0.1}, {"rank": 4, "alpha": 8.0, "dropout": 0.9}),
}


# --- schedules, connectors, prompts ----------------------------------------------------------------------------------
FEATURES = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}{% if loud %}!{% endif %}"
)
CONTENT = "{{ message['content'] }}{{ eos_token }}"
GENERATED = f"{{% generation %}}{CONTENT}{{% endgeneration %}}"
MARKED = TEMPLATE.replace(CONTENT, f"{{% if loop.last %}}{GENERATED}{{% else %}}{CONTENT}{{% endif %}}")
PARTS = {
    GlobalCosine: Case(of_schedule, {"warmup": 0.1}, {"warmup": 0.3, "start": 0.2, "floor": 0.1}),
    GroupedProjector: Case(
        of_module(lambda module: module(FEATURES)),
        {"vision_width": 8, "language_width": 12, "group": 2},
        {"vision_width": 10, "language_width": 10, "group": 4, "norm_eps": 0.5, "start": 0.3},
    ),
    InstructBlipPrompt: Case(
        of_prompt,
        {},
        {
            "first": "<s>",
            "writes_target": True,
            "max_instruction": 4,
            "max_response": 5,
            "question": "Question: {question} Answer:",
            "end": "!",
        },
    ),
    MiniGPT4Prompt: Case(
        of_prompt,
        {},
        {"template": "llama_2", "end": "!", "instructions": ("Say it.",), "max_tokens": 5, "clean": True},
    ),
    ChatTemplate: Case(
        of_prompt,
        {"template": TEMPLATE},
        {
            "template": TEMPLATE.replace("message['role']", "message['role'] | upper"),
            "system": "Be brief.",
            "variables": {"loud": True},
            "answers": "last",
            "markers": With(False, {"template": MARKED}),
            "image_start": "<s>",
            "image_end": "</s>",
            "placeholder": "<image>",
        },
    ),
    Templates: Case(
        of_prompt,
        {"chats": [ChatPrompt()], "captions": [Plain()]},
        {"chats": [QwenPlain(image_start="", image_end="")]},
        {
            "captions": "tests/nano/test_typed.py::"
            "test_templates_are_drawn_by_document_and_a_question_is_never_given_to_one_of_captions"
        },
    ),
}


# --- pre-training of the nano backbones ------------------------------------------------------------------------------
def of_typed(module: TypedPages) -> Behaviour:
    """Parameters, samples of two pages, stages with processors of their own, and the noise of a stage."""
    parameters = [(name, numbers(parameter)) for name, parameter in module.network.named_parameters()]
    processor = module.processor
    samples = [processor.sample(make(0, split="pixels", seed=0)) for make in (caption_document, question_document)]
    module.begin(Stage("first", {"language": Train(1e-3)}, max_steps=1), total_steps=1)
    laid_out = [(sample.input_ids.tolist(), sample.labels.tolist()) for sample in samples]
    return parameters, laid_out, sorted(module.drawing), module.network.vision.noise, processor.max_length


NANO = {
    TypedPages: Case(
        of_typed,
        {
            "language": Fresh(lambda: Llama(**COGVLM)),
            "tokenizer": "nano",
            "prompt": XComposer2Prompt(turn_start="<|im_start|>", turn_end="<|im_end|>"),
        },
        {
            "language": Fresh(lambda: Llama(**COGVLM | {"layers": 3})),
            "tokenizer": "none/such",
            "side": 16,
            "noise": {"first": 0.5},
            "prompt": ChatPrompt(),
            "views": {"first": ["whole"]},
            "max_length": 64,
        },
    ),
    PrintPretraining: Case(
        lambda module: [(name, numbers(parameter)) for name, parameter in module.network.named_parameters()],
        {"vision": vision()},
        {"vision": vision(layers=3)},
    ),
}


# --- data sets in files ----------------------------------------------------------------------------------------------
@cache
def folder() -> Path:
    """A folder with pictures and three files of conversations, removed at the end of the process."""
    place = tempfile.TemporaryDirectory()
    FOLDERS.append(place)
    root, outside = Path(place.name) / "data", Path(place.name) / "outside"
    for each, size in ((root, (40, 30)), (root / "other", (30, 40)), (outside, (20, 20))):
        each.mkdir()
        Image.new("RGB", size, "red").save(each / "a.png")
    for name, answer in (("one", "red"), ("two", "blue"), ("three", "green")):
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": answer}]
        text = [{"from": "human", "value": "is <image> a tag?"}, {"from": "gpt", "value": "yes"}]
        entries = [{"id": str(number), "image": "a.png", "conversations": turns} for number in range(8)]
        entries.append({"id": "8", "image": str(outside / "a.png"), "conversations": turns})
        entries.append({"id": "9", "conversations": text})
        (root / f"{name}.json").write_text(json.dumps(entries))
    return root


FOLDERS: list[tempfile.TemporaryDirectory] = []


def of_files(data: Any) -> Behaviour:
    """Documents or the errors of their entries, held-out documents, and the settings of the stream.

    What the settings of the stream do is tested with `Mixture`, of which they are settings, too.
    """
    source = data.source()
    documents = []
    for number in range(len(source)):
        try:
            document = source[number]
            sizes = [(picture.height, picture.width) for picture in document.pictures]
            documents.append((document.turns[-1].text, sizes, document.source))
        except UserError as error:
            documents.append(str(error))
    source_settings = getattr(source, "draws", ()), getattr(source, "limit_group", 0)
    held_out = [document.turns[-1].text for document in data.heldout()]
    stream = {key: value for key, value in settings(data).items() if not key.startswith("_")}
    return documents, source_settings, held_out, stream


def at(name: str) -> str:
    return str(folder() / f"{name}.json")


STREAM = {
    "global_batch": 6,
    "micro_batch": 1,
    "row_tokens": 300,
    "row_views": 1,
    "window": 2,
    "num_workers": 1,
    "too_long": "truncate",
    "on_bad_sample": "skip",
    "max_bad": 0.5,
    "max_unsupervised": 0.5,
    "worker_start": "spawn",
}


def corpus(name: str = "one", **options: Any) -> Corpus:
    return Corpus(name, "llava", at(name), **options)


def data_cases() -> dict[type, Case]:
    """Cases whose arguments name files."""
    return {
        Conversations: Case(
            of_files,
            {"path": at("one"), "format": "llava", "heldout_path": at("two"), "on_bad_sample": "quarantine"},
            STREAM
            | {
                "path": at("three"),
                "images": str(folder() / "other"),
                "heldout_path": at("three"),
                "format": "messages",
                "limit_pixels": 100,
                "literal_placeholders": True,
                "heldout_share": With(0.5, {"heldout_path": None}),
                "places": str(folder().with_name("outside")),
                "limit_group": 1000,  # its effect on a parquet file is tested in tests/documents/sources/test_pages.py
            },
        ),
        Corpora: Case(
            of_files,
            {"corpora": [corpus()], "heldout": corpus("two"), "on_bad_sample": "quarantine"},
            STREAM
            | {
                "corpora": [corpus("three")],
                "weights": With("sqrt", {"corpora": [corpus(), corpus("three")]}),
                "heldout": corpus("three"),
            },
        ),
    }


FURTHER: dict[type, Case] = FAMILIES | PARTS | NANO | data_cases()
