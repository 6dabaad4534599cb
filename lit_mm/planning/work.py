"""The work of a stage: operations and bytes kept for the backward pass, as a function of the sizes of a micro-batch."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lit_mm.language.protocol import Memory
from lit_mm.layers.activations import (
    Checkpointing,
    compiles_layers,
    has_lengths,
    kept_operations,
    outer_layers,
    prepare_layers,
    recompute,
)
from lit_mm.model import MultimodalModel
from lit_mm.objectives.image_text import ImageTextModel
from lit_mm.objectives.next_token import NextToken
from lit_mm.objectives.objective import Objective
from lit_mm.objectives.token_losses import chunk_rows
from lit_mm.planning.counting import FP32, KINDS, Costs, Kernels, Monomial, Precision, Trace, evaluated, measure
from lit_mm.planning.row import Row, Shape
from lit_mm.samples.batch import PAIRS, TOKENS, Batch, Target, Texts, Views

# Sizes of the probe: x text and r routed positions, l = x + r in all, and their mean is a prime as well
TEXT_POSITIONS, ROUTED, SUPERVISED, TARGETS, VECTORS = 20029, 32029, 21013, 21991, 22973
SIZES = {
    "l": TEXT_POSITIONS + ROUTED,
    "r": ROUTED,
    "x": TEXT_POSITIONS,
    "s": SUPERVISED,
    "t": TARGETS,
    "m": VECTORS,
}
VIEWS = 101  # views of the probe of a vision encoder, and pairs of one
LENGTHS = 3  # of the texts that are probed for a model that compares pairs


@dataclass(frozen=True)
class Operations:
    """Operations of a micro-batch. A product of an addition and a multiplication counts two, as in torch's counter.

    Attributes:
        forward: operations of the forward pass.
        backward: operations of the backward pass: a product costs its forward again for the gradient of its weight if
            that learns, and again for the gradient of its input if anything before it learns. The backward pass of
            attention costs 2.5 times its forward pass, because its kernel computes the scores again.
        recompute: operations of layers that the backward pass computes again for activation checkpointing.
        causal: part of `forward` and `backward` that is causal attention. It is counted in full; a kernel that skips
            the future computes half of it.
    """

    forward: float = 0
    backward: float = 0
    recompute: float = 0
    causal: float = 0

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.forward + other.forward,
            self.backward + other.backward,
            self.recompute + other.recompute,
            self.causal + other.causal,
        )

    def times(self, count: float) -> Operations:
        """Multiply all operations by a count of equal micro-batches."""
        return Operations(self.forward * count, self.backward * count, self.recompute * count, self.causal * count)

    @property
    def total(self) -> float:
        """Operations of forward and backward pass without recomputation: the operations of MFU."""
        return self.forward + self.backward


class Work(Protocol):
    """The cost of a stage as a function of sizes. Results of probes are cached."""

    def operations(self, row: Row) -> dict[str, Operations]:
        """Compute part -> operations of a micro-batch.

        The parts are vision, connector, language and head, or "all" for a model that compares pairs. Views are counted
        in their shapes, without the padding of a batch of several shapes.
        """
        ...

    def saved(self, row: Row) -> dict[str, float]:
        """Compute part -> bytes that the forward pass of a micro-batch keeps for the backward pass."""
        ...


def in_all(operations: Mapping[str, Operations]) -> Operations:
    """Sum the operations of all parts."""
    return reduce(add, operations.values(), Operations())


def operations_of(costs: Costs, moments: Mapping[Monomial, float]) -> Operations:
    """Evaluate costs at the moments of a micro-batch."""
    kinds = ("forward", "backward", "recompute", "causal")
    return Operations(*(evaluated(costs[kind], moments) for kind in kinds))


@runtime_checkable
class Checkpointed(Protocol):
    """A part with a choice of what its layers keep; see `lit_mm.layers.activations`."""

    activation_checkpointing: Checkpointing


def checkpointing_of(part: nn.Module) -> Checkpointing:
    """Return what the layers of a part keep for the backward pass; "none" if the part has no such choice."""
    kinds = [inner.activation_checkpointing for inner in part.modules() if isinstance(inner, Checkpointed)]
    return next(iter(kinds), "none")


@contextmanager
def eager(part: nn.Module, precision: Precision) -> Iterator[list[Tensor]]:
    """Let the layers of a part run without the compiler in a `with` block.

    Returns:
        A list, to which layers with selective checkpointing add the tensors that they keep.
    """
    checkpointed: list[Tensor] = []
    layered = [inner for inner in part.modules() if isinstance(inner, Checkpointed)]
    compiled = [compiles_layers(inner) for inner in layered]
    for inner in layered:
        kind = inner.activation_checkpointing
        prepare_layers(inner, "none" if kind == "none" else "full")
        run = partial(recompute_with, precision)
        if kind == "selective":
            run = partial(trace_selected, precision, checkpointed)
        for layer in outer_layers(inner):
            if layer.gradient_checkpointing:
                layer._gradient_checkpointing_func = run
    try:
        yield checkpointed
    finally:
        for inner, was_compiled in zip(layered, compiled, strict=True):
            prepare_layers(inner, inner.activation_checkpointing, was_compiled)


@runtime_checkable
class Limited(Protocol):
    """A language model that refuses samples of more than `max_length` tokens; None: it has no limit."""

    max_length: int | None


@contextmanager
def unlimited(language: object) -> Iterator[None]:
    """Let a language model read a probe of any length in a `with` block; the meta device reads no position table."""
    if not isinstance(language, Limited):
        yield
        return
    limit, language.max_length = language.max_length, None
    try:
        yield
    finally:
        language.max_length = limit


def recompute_with(precision: Precision, forward: partial, *args: Any) -> Any:
    """Run a layer as `recompute` does, with the kernels of the probe in the second run too.

    torch switches modes of functions off in the backward pass.
    """

    def run(*inputs: Any, **keywords: Any) -> Any:
        with Kernels(precision):
            return forward.func(*inputs, **keywords)

    return recompute(partial(run, *forward.args, **forward.keywords), *args)


def trace_selected(precision: Precision, checkpointed: list[Tensor], forward: partial, *args: Any) -> Any:
    """Run a layer as it is, and list the tensors that it keeps as `recompute_selected` runs it."""
    if has_lengths(args):
        return recompute_with(precision, forward, *args)
    with Trace(kept_operations()) as trace:
        results = forward(*args)
    checkpointed += trace.saved_tensors()
    return results


def learns(*parts: nn.Module | None) -> bool:
    """Return True if a parameter of these parts learns."""
    return any(parameter.requires_grad for part in parts if part is not None for parameter in part.parameters())


@dataclass(frozen=True)
class ViewCosts:
    """Costs of the views of one shape, as polynomials in their number v.

    Attributes:
        vision: costs of the vision encoder.
        connector: costs of the connector.
        tokens: number of vectors that a view becomes.
        width: width of these vectors.
    """

    vision: Costs
    connector: Costs
    tokens: int
    width: int


class PartwiseWork:
    """The work of a model of parts whose stage minimises next-token prediction. Each part is probed by itself.

    Args:
        network: network on the meta device, in a stage that has begun.
        precision: how the device computes.
    """

    def __init__(self, network: MultimodalModel, precision: Precision = FP32) -> None:
        self.network, self.precision = network, precision
        self._views: dict[tuple[Shape, bool, int], ViewCosts] = {}
        self._language: tuple[Costs, Costs] | None = None

    def operations(self, row: Row) -> dict[str, Operations]:
        """Compute part -> operations of a micro-batch; see `Work`."""
        total = {part: operations_of(costs, moments) for part, costs, moments in self._entries(row)}
        rows = chunk_rows(row.supervised, self.network.language.vocab_size)
        if rows < row.supervised:  # the loss is computed in chunks, each a second time in the backward pass
            head = total["head"]
            total["head"] = Operations(head.forward, head.backward, head.recompute + head.forward, head.causal)
        return total

    def saved(self, row: Row) -> dict[str, float]:
        """Compute part -> bytes of a micro-batch that are kept for the backward pass; see `Work`."""
        total: dict[str, float] = {}
        for part, costs, moments in self._entries(row):
            total[part] = total.get(part, 0) + evaluated(costs["saved"], moments)
        if chunk_rows(row.supervised, self.network.language.vocab_size) < row.supervised:
            total["head"] = 0  # chunks keep views of the hidden states, which the language model has kept
        return total

    def _entries(self, row: Row) -> Iterator[tuple[str, Costs, Mapping[Monomial, float]]]:
        """Yield (part, costs, moments at which the costs are evaluated)."""
        network, memory = self.network, ()
        if network.vision is not None and network.vision.reads_pixels and row.views:
            yield from self._view_entries("", row.views, second=False, reading=row.reading)
        if network.second_vision is not None and row.second_views:
            yield from self._view_entries("second_", row.second_views, second=True, reading=0)
            (shape,) = row.second_views
            memory = tuple(count * self._of_views(shape, True, 0).tokens for count in row.second_counts)
        language, head = self._of_language(next(iter(row.second_views), None))
        moments = row.moments(memory)
        yield "language", language, moments
        yield "head", head, moments

    def _view_entries(
        self, prefix: str, views: Mapping[Shape, int], *, second: bool, reading: int
    ) -> Iterator[tuple[str, Costs, Mapping[Monomial, float]]]:
        """Yield the entries of a vision encoder and its connector, each summed over the shapes of the views."""
        vision, connector = new_costs(), new_costs()
        once = self.network.together and not second  # all shapes share a call, so constants occur once
        for number, (shape, count) in enumerate(views.items()):
            of_shape = self._of_views(shape, second, reading)
            for total, costs in ((vision, of_shape.vision), (connector, of_shape.connector)):
                for kind, polynomial in costs.items():
                    constant = 0 if once and number else polynomial[()]
                    total[kind][()] += constant + count * polynomial["v",]
        yield f"{prefix}vision", vision, {(): 1}
        yield f"{prefix}connector", connector, {(): 1}

    def _of_views(self, shape: Shape, second: bool, reading: int) -> ViewCosts:
        key = shape, second, reading
        if key not in self._views:
            self._views[key] = self._probe_views(shape, second, reading)
        return self._views[key]

    def _probe_views(self, shape: Shape, second: bool, reading: int) -> ViewCosts:
        """Run vision encoder and connector on views of one shape."""
        network = self.network
        vision, connector = (
            (network.second_vision, network.second_connector) if second else (network.vision, network.connector)
        )
        dtype = next(vision.parameters()).dtype
        pixels = torch.empty(VIEWS, 3, *shape, device="meta", dtype=dtype)
        tiles = torch.zeros(VIEWS, dtype=torch.int64, device="meta")
        together = network.together and not second
        structure: Any = None

        def encode() -> Sequence[Tensor]:
            nonlocal structure
            views = (pixels,) if together else pixels
            leaves, structure = tree_flatten(vision(views, tiles) if vision.reads_tiles else vision(views))
            return leaves

        def connect() -> Sequence[Tensor]:
            features = tree_unflatten(leaves, structure)
            if connector is None:
                return leaves
            if together:
                return [connector(features, [vision.token_grid(shape)] * VIEWS)]
            if not second and connector.reads_text:
                ids = torch.zeros(VIEWS, reading, dtype=torch.int64, device="meta")
                return [connector(features, Texts(ids, torch.ones_like(ids, dtype=torch.bool)))]
            return [connector(features)]

        with eager(vision, self.precision) as checkpointed:
            costs, leaves = measure(encode, {"v": VIEWS}, vision.parameters(), self.precision, checkpointed)
        parameters = () if connector is None else tuple(connector.parameters())
        if connector is None:
            of_connector, outputs = new_costs(), leaves
        else:
            with eager(connector, self.precision) as checkpointed:
                of_connector, outputs = measure(connect, {"v": VIEWS}, parameters, self.precision, checkpointed)
        return ViewCosts(linear(costs), linear(of_connector), outputs[0].shape[1], outputs[0].shape[-1])

    def _of_language(self, second_shape: Shape | None) -> tuple[Costs, Costs]:
        """Return the costs of the language model and of its output projection with the loss."""
        if self._language is None:
            self._language = self._probe_language(second_shape)
        return self._language

    def _probe_language(self, second_shape: Shape | None) -> tuple[Costs, Costs]:
        network, language = self.network, self.network.language
        batch = probe_batch(language.writes_target, visual=network.vision is not None)
        before = learns(network.vision, network.connector)
        memories = []
        if network.second_vision is not None and second_shape is not None:
            width = self._of_views(second_shape, True, 0).width
            vectors = torch.empty(1, VECTORS, width, device="meta", dtype=next(language.parameters()).dtype)
            vectors.requires_grad_(learns(network.second_vision, network.second_connector))
            memories = [Memory(vectors, (VECTORS,))]

        def read() -> Sequence[Tensor]:
            embeds = language.embed(batch.ids)
            if before and not embeds.requires_grad:
                embeds = embeds.requires_grad_()
            return [language.learn(embeds, batch, *memories).hidden]

        def predict() -> Sequence[Tensor]:
            logits = language.logits(hidden).float()
            return [F.cross_entropy(logits, batch.labels, reduction="none")]

        with eager(language, self.precision) as checkpointed, unlimited(language):
            costs, (hidden,) = measure(read, SIZES, language.parameters(), self.precision, checkpointed)
        head, _ = measure(predict, SIZES, [*language.parameters(), hidden], self.precision)
        return costs, head


def new_costs() -> Costs:
    """Return costs of zero."""
    return {kind: Counter() for kind in KINDS}


def linear(costs: Costs) -> Costs:
    """Return costs in which the number of views occurs at most once.

    A size of the model that the number of views of the probe divides by chance would count as another factor.
    """
    result = new_costs()
    for kind, polynomial in costs.items():
        for monomial, coefficient in polynomial.items():
            result[kind][monomial[:1]] += coefficient * VIEWS ** max(len(monomial) - 1, 0)
    return result


def probe_batch(writes_target: bool, *, visual: bool) -> Batch:
    """Build a batch of one sample of the sizes `SIZES` on the meta device.

    Args:
        writes_target: True for an encoder-decoder.
        visual: True for a model that reads views; the batch holds none, because parts are probed by themselves.
    """
    length = TEXT_POSITIONS + ROUTED
    with torch.device("meta"):
        places, routed = torch.arange(length)[None], torch.arange(ROUTED)
        target = Target(torch.arange(TARGETS)[None], (TARGETS,)) if writes_target else None
        return Batch(
            ids=places,
            lengths=(length,),
            positions=places,
            visual=routed,
            bank=routed,
            supervised=torch.arange(SUPERVISED),
            labels=torch.arange(SUPERVISED),
            sample_ids=("probe",),
            views=Views((), routed[:0], routed[:0], 0) if visual else None,
            target=target,
        )


class WholeWork:
    """The work of a stage whose objectives compare pairs. The objectives run as a whole.

    The cost is a polynomial in the number of pairs, and one of degree 2 in the length of the padded texts. The first
    `LENGTHS` lengths are probed; those of all further lengths follow by interpolation.

    Args:
        network: network on the meta device, in a stage that has begun.
        objectives: objectives of the stage.
        precision: how the device computes.
    """

    def __init__(self, network: nn.Module, objectives: Sequence[Objective], precision: Precision = FP32) -> None:
        self.network, self.objectives, self.precision = network, objectives, precision
        self._probes: dict[Shape, dict[int, Costs]] = {}  # shape of the views -> length of the texts -> costs

    def operations(self, row: Row) -> dict[str, Operations]:
        """Compute the operations of a micro-batch of pairs; see `Work`."""
        pairs = self._moments(row)
        operations = (operations_of(costs, pairs).times(share) for costs, share in self._shares(row))
        return {"all": reduce(add, operations, Operations())}

    def saved(self, row: Row) -> dict[str, float]:
        """Compute the bytes of a micro-batch of pairs that are kept for the backward pass; see `Work`."""
        pairs = self._moments(row)
        return {"all": sum(evaluated(costs["saved"], pairs) * share for costs, share in self._shares(row))}

    @staticmethod
    def _moments(row: Row) -> dict[Monomial, float]:
        count = row.samples
        return {(): 1, ("v",): count, ("v", "v"): count**2}

    def _shares(self, row: Row) -> list[tuple[Costs, float]]:
        """Return costs at probed lengths, and their weights by Lagrange's formula; one if the length is probed."""
        (shape,), length = row.views, row.reading or max(row.lengths)
        probes = self._probes.setdefault(shape, {})
        if length not in probes and len(probes) < LENGTHS:
            probes[length] = self._probe(shape, length)
        if length in probes:
            return [(probes[length], 1.0)]
        return [
            (costs, math.prod((length - other) / (at - other) for other in probes if other != at))
            for at, costs in probes.items()
        ]

    def _probe(self, shape: Shape, length: int) -> Costs:
        """Run the objectives on a batch of pairs with texts of a length."""
        batch = probe_pairs(shape, VIEWS, length)

        def run() -> Sequence[Tensor]:
            return [objective(self.network, batch) for objective in self.objectives]

        with eager(self.network, self.precision) as checkpointed:
            costs, _ = measure(run, {"v": VIEWS}, self.network.parameters(), self.precision, checkpointed)
        return costs


def probe_pairs(shape: Shape, pairs: int, length: int) -> Batch:
    """Build a batch of pairs of one view and one text on the meta device. All but the first tokens are supervised."""
    with torch.device("meta"):
        ids = torch.zeros(1, pairs * length, dtype=torch.int64)
        supervised = torch.arange(pairs * (length - 1))
        texts = torch.zeros(pairs, length, dtype=torch.int64)
        return Batch(
            ids=ids,
            lengths=(length,) * pairs,
            positions=ids,
            visual=supervised[:0],
            bank=supervised[:0],
            supervised=supervised,
            labels=supervised,
            sample_ids=("probe",) * pairs,
            views=Views(
                (torch.empty(pairs, 3, *shape),), torch.arange(pairs), torch.zeros(pairs, dtype=torch.int64), 0
            ),
            texts=Texts(texts, torch.ones_like(texts, dtype=torch.bool)),
            valid=torch.ones(pairs, dtype=torch.bool),
            units={TOKENS: pairs * (length - 1), PAIRS: pairs},
        )


def work_of(network: nn.Module, objectives: Sequence[Objective], precision: Precision = FP32) -> Work | None:
    """Build the work of a stage; None for a model that reads pixels alone.

    Args:
        network: network on the meta device, with the parts that the stage reads, in a stage that has begun.
        objectives: objectives of the stage.
        precision: how the device computes.
    """
    if isinstance(network, MultimodalModel) and all(isinstance(each, NextToken) for each in objectives):
        return PartwiseWork(network, precision)
    if isinstance(network, MultimodalModel | ImageTextModel):
        return WholeWork(network, objectives, precision)
    return None


def meta_copy(network: nn.Module) -> nn.Module:
    """Copy a network without its tensors: parameters and buffers of the copy lie on the meta device.

    Call it before a strategy has changed the parameters.
    """
    tensors: dict[int, Tensor] = {}
    for parameter in network.parameters():
        empty = torch.empty_like(parameter, device="meta", requires_grad=False)
        tensors[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in network.buffers():
        tensors[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, tensors)
