"""The layout of Fuyu in transformers, in the names of version 5 or before."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_mm.weights.config_file import half_of
from lit_mm.weights.fuyu import VISION, fuyu_to_model
from lit_mm.weights.layouts.layout import Config, Described, Ids, Layout, require
from lit_mm.weights.layouts.llava import without_sizes
from lit_mm.weights.layouts.sizes import component, pretrained_part, tokenizer

CANVAS = {"height": 1080, "width": 1920}  # pixels, as released
PATCH = 30
STAGE = {part: {"lr": 1e-5, "weight_decay": 0.0} for part in ("vision", "language")}


def model(described: Described) -> Config:
    """Build the `model` section from `config.json`, and the canvas from the image processor.

    Raises:
        UserError: the config or the preprocessor has a value that cannot be imported.
    """
    config, processor = described.config, described.image_processor
    require(described, config, {"num_channels": (3,)})
    require(described, processor, {"do_resize": (True,), "do_pad": (True,), "padding_value": (1.0,), "resample": (2,)})
    language = pretrained_part(half_of(config, "text_config"))
    numbers = language["init_args"]["config"]
    size = processor.get("size", CANVAS)
    patch = config.get("patch_size", PATCH)
    return {
        "class_path": "lit_mm.families.Fuyu",
        "init_args": {
            "vision": component(
                "lit_mm.vision.linear_patches.LinearPatches", patch=patch, width=numbers["hidden_size"]
            ),
            "language": language,
            "tokenizer": tokenizer(described),
            "canvas": [size["height"], size["width"]],
            "inputs": {"max_length": numbers["max_position_embeddings"]},
        },
    }


def outputs(module: Any, reference: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Return the logits at the supervised positions of both models; transformers' reads flat patches, not views."""
    patch = reference.config.patch_size
    (views,) = batch.views.groups
    columns = F.unfold(views, patch, stride=patch)  # [V, 3 * P * P, N], channel by channel
    patches = columns.unflatten(1, (3, -1)).permute(0, 3, 2, 1).flatten(2)
    ids = batch.ids.index_fill(1, batch.visual, reference.config.image_token_id)
    expected = reference(input_ids=ids, pixel_values=patches, attention_mask=torch.ones_like(ids)).logits[0]
    return module.network.language.logits(module.network(batch).hidden), expected[batch.supervised]


def ids(module: Any, processor: Any, batch: Any, image: Any, question: str, answer: str) -> dict[str, Ids]:
    """Return the ids of an image and a question, up to the token at which an answer begins."""
    places = batch.ids.index_fill(1, batch.visual, processor.image_token_id)
    row = places[0, : int(batch.supervised[0]) + 1].tolist()
    text = module.processor.prompt.question.replace("{question}", question)
    return {"one image": (row, processor(images=image, text=text)["input_ids"][0].tolist())}


def pixels(processor: Any, image: Any, views: Tensor) -> Tensor:
    """Return the pixels of the preprocessor, which pads to the whole canvas, cut to the size of our view."""
    height, width = views.shape[-2:]
    return processor(images=image, return_tensors="pt")["images"][0][..., :height, :width]


LAYOUTS = (
    Layout(
        "fuyu/hf",
        "adept/fuyu-8b",
        lambda described: any(name.startswith(VISION[0]) for name in described.stored),
        model,
        without_sizes(fuyu_to_model),
        STAGE,
        in_transformers=True,
        outputs=outputs,
        ids=ids,
        pixels=pixels,
    ),
)
