"""The proof of an import or an export: the logits and pixels of a model beside those of transformers."""

from __future__ import annotations

import copy
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import psutil
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from lit_mm.checkpoints.contents import kept_tensors
from lit_mm.commands.proof_ids import compare_ids
from lit_mm.commands.published import Published
from lit_mm.documents.document import Document, Turn
from lit_mm.errors import UserError
from lit_mm.module import MultimodalModule
from lit_mm.samples.batch import Batch
from lit_mm.samples.collate import collate
from lit_mm.weights.convert import load_strict
from lit_mm.weights.files import TensorFiles, image_settings
from lit_mm.weights.layouts.layout import Layout
from lit_mm.weights.provenance import Plan

LAYER = re.compile(r"(network\.language\..*?\blayers\.)(\d+)(\..+)")  # tensor of a decoder layer of a model
FILE_LAYER = re.compile(r"(.*language_model\.(?:model\.)?(?:decoder\.)?layers\.)(\d+)(\..+)")  # the same in files
FIRST, LAST = 2, 1  # decoder layers of the proof in proportion
TOLERANCE = 1e-4  # of logits; fp32 on a CPU
PIXEL = 1 / 255  # of pixel values, before normalisation
SIZES = ((337, 500), (480, 200), (336, 336))  # (height, width) of the images, pixels
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


@dataclass(frozen=True)
class Comparison:
    """A model beside the one that transformers builds of files.

    Attributes:
        layout: layout of the files.
        folder: folder of the files.
        files: tensors of the files.
        module: model without weights.
        weight: function from the name of a tensor of the model to its value.
        adapter: folder of an adapter of peft that transformers' model gets, which needs all decoder layers; None for
            none.
        differences: numbers in which the program of the files differs from the model, one line each.
    """

    layout: Layout
    folder: Path
    files: TensorFiles
    module: MultimodalModule
    weight: Callable[[str], Tensor]
    adapter: Path | None = None
    differences: tuple[str, ...] = ()

    def figures(self, memory: float | None, whole: bool) -> dict[str, Any]:
        """Run both models in fp32 on three images: the embeddings, the head, the encoder, the connector and the first
        two and the last decoder layers.

        Args:
            memory: gigabytes that the comparison may take; None for those that are free now.
            whole: True takes all decoder layers.
        Raises:
            UserError: logits differ by more than 1e-4, or pixels by more than 1 of 255.
        """
        figures: dict[str, Any] = {}
        if self.differences:
            figures["differences"] = list(self.differences)
        config, pictures = AutoConfig.from_pretrained(self.folder), (Drawing(*SIZES[0]), Drawing(*SIZES[1]))
        figures["token_ids"] = compare_ids(self.module, config, self.folder, pictures, QUESTION, self.layout.ids)
        stack = decoder_layers(self.module)
        total = number_of_layers(self.module) if stack is None else len(stack)
        layers = list(range(total))
        if stack is not None and not whole:
            layers = sorted({*range(min(FIRST, total)), *range(max(0, total - LAST), total)})
        tensors = dict(kept_tensors(self.module))
        tensors = {name: of for name, of in tensors.items() if renumbered(LAYER, layers, name) is not None}
        needed = 2 * 4 * sum(tensor.numel() for tensor in tensors.values()) / 1e9  # two models in fp32
        limit = psutil.virtual_memory().available / 1e9 if memory is None else memory
        if needed > limit:
            text = f"the comparison needs {needed:.1f} GB of memory, and {limit:.1f} GB may be used (--proof_memory)"
            return figures | {"against": f"none: {text}"}
        logging.disable_progress_bar()
        model, reference = self.model(layers), model_of_transformers(self, layers)
        if self.adapter is not None:
            reference = PeftModel.from_pretrained(reference, self.adapter).merge_and_unload()
        images = [self.compare(model, reference, size) for size in SIZES]
        figures |= {
            "against": f"transformers' {type(reference).__name__}",
            "decoder_layers": layers,
            "decoder_layers_of_the_checkpoint": total,
            "images": images,
        }
        for image in images:
            if image["logits"] > TOLERANCE or (image["pixels"] or 0) > PIXEL:
                reasons = f". {'; '.join(self.differences)}" if self.differences else ""
                raise UserError(
                    f"the proof of {str(self.folder)!r} failed on an image of {image['size']} pixels: logits differ by "
                    f"{image['logits']:.1e} (at most {TOLERANCE}), pixels by {image['pixels']} of 1 (at most "
                    f"{PIXEL:.4f}){reasons}"
                )
        return figures

    def model(self, layers: list[int]) -> MultimodalModule:
        """Copy the model with some of its decoder layers, and fill it."""
        processor = self.module.processor
        model = copy.deepcopy(self.module, {id(processor): processor})
        stack = decoder_layers(model)
        for number in reversed(range(0 if stack is None else len(stack))):
            if number not in layers:
                del stack[number]
        for part in model.modules():
            if "attention" in vars(part):  # a backend of a recipe may need another device
                vars(part)["attention"] = "auto"
        names = {name: renumbered(LAYER, layers, name) for name, _ in kept_tensors(self.module)}
        load_strict(model, {new: as_float(self.weight(name)) for name, new in names.items() if new is not None})
        return model.eval()

    @torch.inference_mode()
    def compare(self, model: MultimodalModule, reference: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
        """Compare logits and pixels of both models for one image of (height, width) pixels."""
        picture = Drawing(*size)
        document = Document("proof", (Turn("user", (picture, QUESTION)), Turn("assistant", ("yes",))))
        batch = collate([model.processor.sample(document)], model.processor)
        if self.layout.outputs is None:
            logits, expected = logits_of_both(model, reference, batch, size)
        else:
            logits, expected = self.layout.outputs(model, reference, batch)
        expected = expected[..., : logits.shape[-1]]  # an export may have more rows for special tokens
        return {
            "size": list(size),
            "visual_tokens": len(batch.visual),
            "logits": float((logits - expected).abs().max()),
            "pixels": pixel_difference(torch.cat(list(batch.views.groups)), picture, self),
        }


def prove(published: Published, weight: Callable[[str], Tensor], memory: float | None, whole: bool) -> dict[str, Any]:
    """Compare the weights of an imported run with the published files that it came from.

    Args:
        published: files of the checkpoint.
        weight: function from the name of a tensor of the model to its value in the run.
        memory, whole: see `Comparison.figures`.
    Returns:
        Figures of the proof, for `proof.json`.
    Raises:
        UserError: see `Comparison.figures`.
    """
    layout, figures = published.layout, counts(published.layout, published.plan)
    if not layout.in_transformers:
        shapes = "none: every tensor is placed once, with the shape that config.json says"
        parity = "The family's arithmetic is compared with values of its authors' code in tests/parity"
        return figures | {"against": f"{shapes}. {parity}"}
    if any(file.read_bytes().startswith(BOM_UTF8) for file in published.folder.glob("*.json")):
        return figures | {"against": "none: transformers reads no JSON with a byte order mark. The run's copy has none"}
    comparison = Comparison(layout, published.folder, published.files[""], published.module, weight)
    return figures | comparison.figures(memory, whole)


def counts(layout: Layout, plan: Plan) -> dict[str, Any]:
    """Return the counts of tensors of a proof."""
    return {
        "layout": layout.name,
        "tensors_of_the_model": len(plan.targets),
        "tensors_of_the_files": len(plan.sources),
        "unread": list(plan.unused),
    }


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
    return "; ".join([line, *texts, *figures.get("differences", [])])


def renumbered(pattern: re.Pattern[str], layers: list[int], name: str) -> str | None:
    """Rename a tensor of a decoder layer to its number among `layers`; None for a layer that is not among them."""
    match = pattern.fullmatch(name)
    if match is None:
        return name
    number = int(match[2])
    return f"{match[1]}{layers.index(number)}{match[3]}" if number in layers else None


def decoder_layers(module: MultimodalModule) -> nn.ModuleList | None:
    """Return the decoder layers of a model whose layers can be left out one by one; None if it has no such layers."""
    stacks = (
        part
        for name, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and LAYER.fullmatch(f"{name}.0.weight")
    )
    return next(stacks, None)


def number_of_layers(module: MultimodalModule) -> int:
    """Return the number of layers of a text model whose layers all run."""
    parts = dict(module.network.named_children())
    return parts.get("language", parts.get("text")).num_layers


def as_float(tensor: Tensor) -> Tensor:
    """Convert floating-point values to fp32; counts and numbers stay as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor


def class_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return transformers' class of a checkpoint: the one that its config names, or the one that writes text."""
    (name,) = config.architectures or [AutoModelForImageTextToText._model_mapping[type(config)].__name__]
    return resolve_name(f"transformers:{name}")


def model_of_transformers(comparison: Comparison, layers: list[int]) -> nn.Module:
    """Build transformers' model with some decoder layers, filled from the files."""
    config = AutoConfig.from_pretrained(comparison.folder)
    config.text_config.num_hidden_layers = len(layers)
    files = comparison.files
    names = {name: renumbered(FILE_LAYER, layers, name) for name in files}
    state = {new: files[name].float() for name, new in names.items() if new is not None}
    return class_of(config).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()


def logits_of_both(
    model: MultimodalModule, reference: nn.Module, batch: Batch, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the logits [T, vocabulary] of both models for the flat row of one sample.

    Args:
        size: (height, width) of the image, pixels.
    """
    image_token = reference.config.image_token_id
    ids = batch.ids.index_fill(1, batch.visual, image_token)
    views = torch.cat(list(batch.views.groups))
    sized = "image_grid_pinpoints" in reference.config.to_dict()  # its pixels are [images, views, 3, H, W]
    extra = {"image_sizes": torch.tensor([size])} if sized else {}
    if batch.texts is not None:
        extra |= {"qformer_input_ids": batch.texts.ids, "qformer_attention_mask": batch.texts.mask.long()}
    learnt = batch.ids if batch.target is None else batch.target.ids
    if batch.target is not None:
        extra["labels"] = learnt
    pixels = views[None] if sized else views
    expected = reference(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), **extra).logits[0]
    every = replace(batch, supervised=torch.arange(learnt.shape[1]), labels=learnt[0])
    return model.network.language.logits(model.network(every).hidden), expected


def pixel_difference(views: Tensor, picture: Drawing, comparison: Comparison) -> float | None:
    """Compute the largest difference between our pixels and those of the published preprocessor, of pixels from 0 to 1.

    Args:
        views: [V, 3, H, W] normalised pixels.
        picture: the image that they were made of.
        comparison: files with their preprocessor.
    Returns:
        The difference; infinite if the preprocessor makes other views; None if the folder names no preprocessor.
    """
    from transformers import AutoImageProcessor

    if "image_processor_type" not in image_settings(comparison.folder):
        return None
    processor = AutoImageProcessor.from_pretrained(comparison.folder)
    if comparison.layout.pixels is not None:
        pixels = comparison.layout.pixels(processor, picture.read(), views)
    else:
        pixels = processor(images=picture.read(), return_tensors="pt")["pixel_values"].flatten(0, -4)
    if pixels.shape != views.shape:
        return float("inf")
    deviation = torch.tensor(processor.image_std).view(-1, 1, 1)
    return float(((pixels - views) * deviation).abs().max())
