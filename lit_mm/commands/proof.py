"""The proof of an import: what was placed, and the logits and pixels beside those of transformers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from lit_mm.commands.proof_ids import compare_ids
from lit_mm.commands.published import Published, build
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.weights.convert import load_strict
from lit_mm.weights.files import read_json
from lit_mm.weights.layouts.layout import Config

OURS = re.compile(r"(network\.language\..*?\blayers\.)(\d+)(\..+)")
THEIRS = re.compile(r"(.*language_model\.(?:model\.)?(?:decoder\.)?layers\.)(\d+)(\..+)")
FIRST, LAST = 2, 1  # decoder layers of the proof in proportion
TOLERANCE = 1e-4  # of logits; fp32 on a CPU
PIXEL = 1 / 255  # of pixel values, before normalisation
SIZES = ((337, 500), (480, 200), (336, 336))  # (height, width) of the images, pixels
LANGUAGES = ("language", "text")  # arguments of a family that hold its decoder
QUESTION = "What is in the picture?"


@dataclass(frozen=True)
class Drawing:
    """A picture of smooth random colours.

    Attributes:
        height, width: pixels.
    """

    height: int
    width: int

    def read(self) -> Image.Image:
        """Draw the picture."""
        colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Image.fromarray(colours).resize((self.width, self.height), Image.Resampling.BICUBIC)


def prove(
    published: Published,
    weight: Callable[[str], Tensor],
    memory: float | None,
    whole: bool,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """Compare the weights of a run with the published files that it came from, or was written to.

    Against transformers, if it has the family, the embeddings, the head, the encoder, the connector and the first two
    and the last decoder layers run in fp32 on three images.

    Args:
        published: files of the checkpoint.
        weight: function from the name of a tensor of the model to its value in the run.
        memory: gigabytes that the comparison may take; None for those that are free now.
        whole: True takes all decoder layers.
        adapter: folder of an adapter of peft that transformers' model gets, which needs all decoder layers; None for
            none.
    Returns:
        Figures of the proof, for `proof.json`.
    Raises:
        UserError: logits differ by more than 1e-4, or pixels by more than 1 of 255.
    """
    plan = published.plan
    figures: dict[str, Any] = {
        "layout": published.layout.name,
        "tensors_of_the_model": len(plan.targets),
        "tensors_of_the_files": len(plan.sources),
        "unread": list(plan.unused),
    }
    if not published.layout.in_transformers:
        return figures | {"against": "none: every tensor is placed once, with the shape that config.json says"}
    config, pictures = AutoConfig.from_pretrained(published.folder), (Drawing(*SIZES[0]), Drawing(*SIZES[1]))
    special = published.layout.ids
    figures["token_ids"] = compare_ids(published.module, config, published.folder, pictures, QUESTION, special)
    sizes, key = layers_of(published.recipe)
    total = sizes[key]
    some = sorted({*range(min(FIRST, total)), *range(max(0, total - LAST), total)})
    layers = some if not whole and any(OURS.fullmatch(name) for name in plan.targets) else list(range(total))
    names = [name for name in plan.targets if (match := OURS.fullmatch(name)) is None or int(match[2]) in layers]
    needed = 2 * 4 * sum(plan.targets[name].elements for name in names) / 1e9  # two models in fp32
    limit = psutil.virtual_memory().available / 1e9 if memory is None else memory
    if needed > limit:
        text = f"none: the comparison needs {needed:.1f} GB of memory, and {limit:.1f} GB may be used (--proof_memory)"
        return figures | {"against": text}
    ours = our_model(published, weight, layers, names)
    theirs = model_of_transformers(published, layers)
    if adapter is not None:
        theirs = PeftModel.from_pretrained(theirs, adapter).merge_and_unload()
    compared = [compare(ours, theirs, published, size) for size in SIZES]
    figures |= {
        "against": f"transformers' {type(theirs).__name__}",
        "decoder_layers": layers,
        "decoder_layers_of_the_checkpoint": total,
        "images": compared,
    }
    for image in compared:
        if image["logits"] > TOLERANCE or (image["pixels"] or 0) > PIXEL:
            raise UserError(
                f"the proof of {str(published.place)!r} failed on an image of {image['size']} pixels: logits differ by "
                f"{image['logits']:.1e} (at most {TOLERANCE}), pixels by {image['pixels']} of 1 (at most {PIXEL:.4f})"
            )
    return figures


def summary(figures: dict[str, Any]) -> str:
    """Say in one line what a proof has shown."""
    line = f"proof: {figures['tensors_of_the_model']} tensors placed once; against {figures['against']}"
    ids = figures.get("token_ids", {})
    equal, other = ([name for name, value in ids.items() if value is kind] for kind in (True, False))
    texts = [f"token ids equal ({', '.join(equal)})"] if equal else []
    texts += [f"token ids differ ({', '.join(other)}): ours are the authors'"] if other else []
    texts += [f"token ids not compared: {ids['not compared']}"] if "not compared" in ids else []
    if "images" in figures:
        logits = max(image["logits"] for image in figures["images"])
        pixels = [image["pixels"] for image in figures["images"] if image["pixels"] is not None]
        line += f", decoder layers {figures['decoder_layers']} of {figures['decoder_layers_of_the_checkpoint']}: "
        line += f"logits differ by {logits:.1e} at most"
        line += f", pixels by {255 * max(pixels):.2f} of 255" if pixels else "; no preprocessor to compare pixels with"
    return "; ".join([line, *texts])


def renumbered(pattern: re.Pattern[str], layers: list[int], name: str) -> str | None:
    """Rename a tensor of a decoder layer to its number among `layers`; None for a layer that is not among them."""
    match = pattern.fullmatch(name)
    if match is None:
        return name
    number = int(match[2])
    return f"{match[1]}{layers.index(number)}{match[3]}" if number in layers else None


def layers_of(recipe: Config) -> tuple[Config, str]:
    """Return the section of a recipe that has the number of decoder layers, and the key of the number."""
    model = recipe["model"]["init_args"]
    arguments = model[next(part for part in LANGUAGES if part in model)]["init_args"]
    return (arguments["config"], "num_hidden_layers") if "config" in arguments else (arguments, "layers")


def our_model(
    published: Published, weight: Callable[[str], Tensor], layers: list[int], names: list[str]
) -> MultimodalModule:
    """Build our model with some decoder layers, filled from the run."""
    recipe = yaml.safe_load(yaml.safe_dump(published.recipe))
    sizes, key = layers_of(recipe)
    sizes[key] = len(layers)
    module, _ = build(recipe)
    state = {renumbered(OURS, layers, name): as_float(weight(name)) for name in names}
    state |= {renumbered(OURS, layers, name): published.start_value(name) for name in published.fresh}
    load_strict(module, state)
    return module.eval()


def as_float(tensor: Tensor) -> Tensor:
    """Convert floating-point values to fp32; counts and numbers stay as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def class_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return transformers' class of a checkpoint: the one that its config names, or the one that writes text."""
    (name,) = config.architectures or [AutoModelForImageTextToText._model_mapping[type(config)].__name__]
    return resolve_name(f"transformers:{name}")


def model_of_transformers(published: Published, layers: list[int]) -> nn.Module:
    """Build transformers' model with some decoder layers, filled from the published files."""
    config = AutoConfig.from_pretrained(published.folder)
    config.text_config.num_hidden_layers = len(layers)
    files = published.files[""]
    names = {name: renumbered(THEIRS, layers, name) for name in files}
    state = {new: files[name].float() for name, new in names.items() if new is not None}
    return class_of(config).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()


@torch.inference_mode()
def compare(ours: MultimodalModule, theirs: nn.Module, published: Published, size: tuple[int, int]) -> dict[str, Any]:
    """Compare logits and pixels of both models for one image of (height, width) pixels."""
    picture = Drawing(*size)
    document = Document("proof", (Turn("user", (picture, QUESTION)), Turn("assistant", ("yes",))))
    batch = collate([ours.processor.sample(document)], ours.processor)
    outputs = published.layout.outputs or (lambda ours, theirs, batch: logits_of_both(ours, theirs, batch, size))
    logits, expected = outputs(ours, theirs, batch)
    return {
        "size": list(size),
        "visual_tokens": len(batch.visual),
        "logits": float((logits - expected).abs().max()),
        "pixels": pixel_difference(torch.cat(list(batch.views.groups)), picture, published),
    }


def logits_of_both(
    ours: MultimodalModule, theirs: nn.Module, batch: Batch, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the logits [T, vocabulary] of both models for the flat row of one sample.

    Args:
        size: (height, width) of the image, pixels.
    """
    image_token = theirs.config.image_token_id
    ids = batch.ids.index_fill(1, batch.visual, image_token)
    views = torch.cat(list(batch.views.groups))
    sized = "image_grid_pinpoints" in theirs.config.to_dict()  # its pixels are [images, views, 3, H, W]
    extra = {"image_sizes": torch.tensor([size])} if sized else {}
    if batch.texts is not None:
        extra |= {"qformer_input_ids": batch.texts.ids, "qformer_attention_mask": batch.texts.mask.long()}
    learnt = batch.ids if batch.target is None else batch.target.ids
    if batch.target is not None:
        extra["labels"] = learnt
    pixels = views[None] if sized else views
    expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), **extra).logits[0]
    every = replace(batch, supervised=torch.arange(learnt.shape[1]), labels=learnt[0])
    return ours.network.language.logits(ours.network(every).hidden), expected


def pixel_difference(views: Tensor, picture: Drawing, published: Published) -> float | None:
    """Compute the largest difference between our pixels and those of the published preprocessor, of pixels from 0 to 1.

    Args:
        views: [V, 3, H, W] normalised pixels.
        picture: the image that they were made of.
        published: source of the checkpoint.
    Returns:
        The difference; infinite if the preprocessor makes other views; None if the folder names no preprocessor.
    """
    from transformers import AutoImageProcessor

    if "image_processor_type" not in read_json(published.folder, "preprocessor_config.json"):
        return None
    processor = AutoImageProcessor.from_pretrained(published.folder)
    if published.layout.pixels is not None:
        pixels = published.layout.pixels(processor, picture.read(), views)
    else:
        pixels = processor(images=picture.read(), return_tensors="pt")["pixel_values"].flatten(0, -4)
    if pixels.shape != views.shape:
        return float("inf")
    deviation = torch.tensor(processor.image_std).view(-1, 1, 1)
    return float(((pixels - views) * deviation).abs().max())
