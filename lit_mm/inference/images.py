"""Images from text: a prompt that a language model wrote is given to a pipeline of diffusers, or saved as text.

Mini-Gemini answers a question that ends with ` <GEN>` with text that has a prompt between `<h>` and `</h>`. The markers
are plain text, no special tokens, and nothing else joins the two models.

Source: arXiv:2403.18814, section 3.3; mgm/serve/cli.py of github.com/dvlab-research/MGM. The web demo of the release
takes the first prompt of an answer; its command line takes the last, and so does this module.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from lit_mm.errors import UserError, first_line

REQUEST = " <GEN>"  # end of a question that asks for an image
START, END = "<h>", "</h>"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
# Source: mgm/serve/cli.py
NEGATIVE = (
    "out of frame, lowres, text, error, cropped, worst quality, low quality, jpeg artifacts, ugly, duplicate, morbid, "
    "mutilated, out of frame, extra fingers, mutated hands, poorly drawn hands, poorly drawn face, mutation, deformed, "
    "blurry, dehydrated, bad anatomy, bad proportions, extra limbs, cloned face, disfigured, gross proportions, "
    "malformed limbs, missing arms, missing legs, extra arms, extra legs, fused fingers, too many fingers, long neck, "
    "username, watermark, signature"
)


class ImagePipeline(Protocol):
    """A pipeline of diffusers that makes images of text."""

    def __call__(self, prompt: str, *, negative_prompt: str, **options: Any) -> Any:
        """Return an object whose `images` are Pillow images."""
        ...


def image_prompt(answer: str) -> str | None:
    """Return the last complete prompt between `<h>` and `</h>` in an answer; None if there is none.

    Example: `Sure. <h>a cat</h> or <h>a dog</h> <h>cut` -> `a dog`.
    """
    before, end, _ = answer.rpartition(END)
    _, start, prompt = before.rpartition(START)
    return prompt.strip() if end and start else None


def has_diffusers() -> bool:
    """Return True if diffusers is installed."""
    return find_spec("diffusers") is not None


def load_pipeline(reference: str = SDXL, device: torch.device | str = "cpu") -> ImagePipeline:
    """Load a text-to-image pipeline of diffusers: in fp16 on a GPU, as released, else in fp32.

    Args:
        reference: folder or published name.
        device: device of the pipeline.
    Raises:
        UserError: diffusers is not installed, or the pipeline cannot be read.
    """
    if not has_diffusers():
        raise UserError("image generation needs diffusers, which is not installed: pip install 'lit_mm[images]'")
    from diffusers import DiffusionPipeline  # pyrefly: ignore[missing-import]  # an extra

    half = torch.device(device).type == "cuda"
    options = {"variant": "fp16"} if half and reference == SDXL else {}
    try:
        dtype = torch.float16 if half else torch.float32
        pipeline = DiffusionPipeline.from_pretrained(reference, torch_dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"the image pipeline {reference!r} cannot be read ({reason}). Give a folder in diffusers' layout or a "
            "published name that can be downloaded"
        ) from error
    return pipeline.to(device)


def draw(pipeline: ImagePipeline, prompt: str, **options: Any) -> Image.Image:
    """Make one image of a prompt, with the negative prompt of the release and otherwise the pipeline's defaults.

    Args:
        pipeline: see `load_pipeline`.
        prompt: description of the image.
        options: arguments of the pipeline, such as `num_inference_steps` or `generator`.
    """
    return pipeline(prompt, negative_prompt=NEGATIVE, **options).images[0]


def save_image(prompt: str, file: Path, pipeline: ImagePipeline | None, **options: Any) -> Path:
    """Write the image of a prompt to `file`; without a pipeline, write the prompt to a text file beside it.

    Args:
        prompt: description of the image.
        file: image file; its suffix is a format of Pillow.
        pipeline: see `load_pipeline`; None saves the prompt.
        options: see `draw`.
    Returns:
        The file that was written: `file`, or `file` with the suffix .txt.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if pipeline is None:
        text = file.with_suffix(".txt")
        text.write_text(f"{prompt}\n", encoding="utf-8")
        return text
    draw(pipeline, prompt, **options).save(file)
    return file
