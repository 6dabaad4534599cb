"""What parts keep for the backward pass, counted on the meta device before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lit_mm.layers.activations import Checkpointing, compiles_layers, prepare_layers
from lit_mm.samples.batch import Batch, Target, Views

POSITIONS = 64  # of the row that is counted


class MultimodalParts(Protocol):
    """A network of parts; `vision` and `connector` are None for a language model alone."""

    vision: nn.Module | None
    connector: nn.Module | None
    language: nn.Module


@runtime_checkable
class Checkpointed(Protocol):
    """A part that says what its layers keep; see `lit_mm.layers.activations`."""

    activation_checkpointing: Checkpointing


@dataclass(frozen=True)
class Activations:
    """What a part keeps in a stage.

    Attributes:
        checkpointing: what a layer keeps: "none" is all of its activations.
        compiled: the layers are compiled.
        per_position: values kept for the backward pass per patch of a vision encoder or position of a language model;
            each has two bytes in bf16 and four in fp32. None: the compiler decides it.
    """

    checkpointing: Checkpointing
    compiled: bool
    per_position: float | None


def activations_of(network: MultimodalParts) -> dict[str, Activations]:
    """The activations of vision encoder and language model by part, where the parts say what they keep.

    Args:
        network: on the meta device, in a stage that has begun.
    """
    activations: dict[str, Activations] = {}
    before = [part for part in (network.vision, network.connector) if part is not None]
    if isinstance(network.vision, Checkpointed):
        activations["vision"] = vision_activations(network.vision)
    if isinstance(network.language, Checkpointed):
        learning = any(parameter.requires_grad for part in before for parameter in part.parameters())
        activations["language"] = language_activations(network.language, behind_learning=learning)
    return activations


def vision_activations(vision: Any) -> Activations:
    """The activations of a vision encoder on the meta device, in a stage that has begun."""
    side = vision.image_size
    pixels = torch.zeros(1, 3, side, side, device="meta")
    rows, columns = vision.token_grid((side, side))
    return _activations(vision, lambda: vision(pixels), rows * columns)


def language_activations(language: Any, *, behind_learning: bool) -> Activations:
    """The activations of a language model on the meta device, in a stage that has begun.

    Args:
        behind_learning: parts before the language model learn, so gradients flow through it even if it is frozen.
    """
    batch = probe(language.writes_target)

    def run() -> Tensor:
        embeds = language.embed(batch.ids)
        if behind_learning and not embeds.requires_grad:
            embeds = embeds.requires_grad_()
        return language.learn(embeds, batch).hidden

    return _activations(language, run, POSITIONS)


def _activations(part: Any, run: Callable[[], Tensor], positions: int) -> Activations:
    checkpointing, compiled = part.activation_checkpointing, compiles_layers(part)
    if checkpointing == "selective":
        return Activations(checkpointing, compiled, None)
    if compiled:  # the layers keep no more without the compiler, which takes its time
        prepare_layers(part, checkpointing)
    total = kept_values(run, part)
    if compiled:
        prepare_layers(part, checkpointing, compiled)
    return Activations(checkpointing, compiled, total / positions)


def kept_values(run: Callable[[], Tensor], model: nn.Module) -> int:
    """Values that a forward saves for its backward pass: those of each storage once, parameters left out."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}  # the tensors live until the end, so that no address comes twice

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in parameters:
            saved[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in saved.values())


def probe(writes_target: bool) -> Batch:
    """One sample of `POSITIONS` positions on the meta device, half of them visual, all of them learnt."""
    with torch.device("meta"):
        places = torch.arange(POSITIONS)
        half = torch.arange(POSITIONS // 2)
        return Batch(
            ids=places[None],
            lengths=(POSITIONS,),
            positions=places[None],
            visual=half,
            bank=half,
            supervised=places,
            labels=places,
            sample_ids=("probe",),
            views=Views((), places[:0], places[:0], 0),
            target=Target(places[None], (POSITIONS,)) if writes_target else None,
        )
