"""Fuyu in the layout of transformers."""

from __future__ import annotations

import json

from transformers import FuyuConfig

from lit_mm.commands.conversions.conversion import (
    Conversion,
    Files,
    grown,
    id_of,
    rows_with,
    tensors_of_transformers,
    text_config,
)
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.tiling.canvas import Canvas
from lit_mm.vision.linear_patches import LinearPatches

DTYPE = "float16"  # of the published files
PLACEHOLDER = "|SPEAKER|"  # stands for a patch


def files(module: MultimodalModule) -> Files:
    """Describe the files of transformers.

    Raises:
        UserError: parts or inputs of the model are none of Fuyu's in transformers.
    """
    vision, tiling = module.network.vision, module.processor.tiling
    if not isinstance(vision, LinearPatches) or not isinstance(tiling, Canvas):
        raise UserError(
            f"transformers' Fuyu projects the patches of a canvas; the run has a {type(vision).__name__} and {tiling}"
        )
    text = text_config(module, ("persimmon",))
    rows, token_id = text.vocab_size, id_of(PLACEHOLDER, module)
    text.vocab_size = rows_with(token_id, rows)
    config = FuyuConfig(text_config=text.to_dict(), patch_size=vision.patch, image_token_id=token_id)
    tensors = tensors_of_transformers(config, DTYPE, rows)
    pixels = {
        "image_processor_type": "FuyuImageProcessor",
        "processor_class": "FuyuProcessor",
        "size": {"height": tiling.height, "width": tiling.width},
        "patch_size": {"height": vision.patch, "width": vision.patch},
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": vision.mean[0],
        "image_std": vision.std[0],
        "padding_mode": "constant",
        "padding_value": 1.0,
        "resample": 2,
        "rescale_factor": 1 / 255,
    }
    return Files(
        config.to_dict() | {"architectures": ["FuyuForCausalLM"], "dtype": DTYPE},
        tensors,
        grown(tensors, text.vocab_size),
        token=PLACEHOLDER,
        texts={
            "preprocessor_config.json": json.dumps(pixels, indent=1),
            "processor_config.json": json.dumps({"processor_class": "FuyuProcessor"}),
        },
    )


CONVERSIONS = (Conversion("fuyu/hf", "lit_mm.families.Fuyu", files),)
