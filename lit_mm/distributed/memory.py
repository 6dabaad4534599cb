"""What training will hold in memory per rank, before anything is loaded: weights, masters, gradients, moments, buffers.

The figures are those of the engines that this room configures (DeepSpeed 0.19's ZeRO, torch's DDP), counted tensor by
tensor with their padding. Activations are not among them: they depend on the batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from torch import nn

from lit_mm.errors import UserError
from lit_mm.stages.groups import layered, parameter_groups
from lit_mm.stages.stage import Stage

FP32, BF16 = 4, 2  # bytes
ALIGNMENT = 2  # elements that DeepSpeed aligns a rank's partition of a group to (ZeRO-1 and 2)


@dataclass(frozen=True)
class Weight:
    """A parameter, without its values.

    Attributes:
        numel: elements.
        owner: path of the module that holds it; ZeRO-3 gathers a module's own parameters together.
        group: number of its optimizer group, None where it is frozen.
        moments: tensors of its size that the optimizer keeps: 2 with AdamW, 1 with Muon.
    """

    numel: int
    owner: str = ""
    group: int | None = None
    moments: int = 2


@dataclass(frozen=True)
class Spread:
    """How a stage is spread over ranks; the defaults are those of `lit_mm.distributed.zero.ZeRO`.

    Attributes:
        zero: ZeRO stage; 0 for DDP, and for a single process.
        ranks: processes.
        bf16: precision bf16-mixed or bf16-true. DDP keeps fp32 weights under bf16-mixed, see `pure`.
        pure: precision bf16-true, or 16-true: without ZeRO the weights themselves have two bytes an element.
        accumulation: micro-batches of an optimizer step.
        offload_optimizer, offload_parameters: to the CPU's memory.
        keep_whole: largest parameter that ZeRO-3 keeps whole on every rank, elements.
        bucket: largest message in which gradients are reduced, elements.
        prefetch: elements that ZeRO-3 gathers ahead; None for a quarter of the bucket.
        reuse: distance, in elements, within which ZeRO-3 keeps a gathered parameter that is needed again.
        overlap_comm: gradients are reduced during the backward pass, below stage 3 out of two buffers in turn.
    """

    zero: Literal[0, 1, 2, 3] = 0
    ranks: int = 1
    bf16: bool = False
    pure: bool = False
    accumulation: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    keep_whole: int = 100_000
    bucket: int = 200_000_000
    prefetch: int | None = None
    reuse: int = 1_000_000_000
    overlap_comm: bool | None = None

    def __post_init__(self) -> None:
        if self.zero not in (0, 1, 2, 3) or self.ranks < 1 or self.accumulation < 1:
            raise UserError(
                f"memory is planned for ZeRO 0 to 3 on at least 1 rank, with accumulation from 1, got {self}"
            )
        if (self.offload_optimizer and not self.zero) or (self.offload_parameters and self.zero < 3):
            raise UserError(f"the optimizer is offloaded under ZeRO, parameters under ZeRO-3 only, got {self}")


@dataclass(frozen=True)
class Holding:
    """Bytes that a rank holds in one memory.

    Attributes:
        weights: parameters as the forward pass reads them, between steps: whole, or this rank's shards and what stays
            whole beside them.
        masters: the fp32 copies that the optimizer updates.
        gradients: what is there when the last micro-batch's backward pass is over.
        moments: of the optimizer.
        gathered: parameters gathered temporarily under ZeRO-3, between the largest module and the reuse and prefetch
            limits.
        buckets: buffers in which gradients are reduced.
    """

    weights: int = 0
    masters: int = 0
    gradients: int = 0
    moments: int = 0
    gathered: int = 0
    buckets: int = 0

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class RankMemory:
    """What the fullest rank holds, apart from activations.

    Attributes:
        device: in the memory that computes (of the GPU; on a CPU the two are one).
        host: in the CPU's memory, through offloading.
        largest_layer: bytes of the largest set of modules that ZeRO-3 must have whole at once; part of
            `device.gathered`, and what that can be brought down to (`stage3_max_reuse_distance: 0`).
    """

    device: Holding
    host: Holding
    largest_layer: int = 0


def plan_memory(weights: Sequence[Weight], spread: Spread) -> RankMemory:
    """What a stage will hold on its fullest rank.

    Example: 10 trainable and 6 frozen elements under ZeRO-2 on 4 ranks in bf16. The group is padded to 16 (4 ranks x an
    alignment of 2 makes multiples of 8), so a rank updates 4: 16 bytes of masters, of gradients, twice that of moments;
    and holds all weights, (16 + 6) x 2 bytes.

    Source: arXiv:1910.02054, section 3, for the principle; DeepSpeed's stage_1_and_2.py and stage3.py for the padding.
    """
    if spread.zero == 0:
        return _replicated(weights, spread)
    if spread.zero == 3:
        return _sharded(weights, spread)
    return _partitioned(weights, spread)


def _replicated(weights: Sequence[Weight], spread: Spread) -> RankMemory:
    """DDP: everything on every rank, and a copy of the gradients in the buckets they are reduced in."""
    size = BF16 if spread.pure else FP32
    learnt = sum(w.numel for w in weights if w.group is not None)
    memory = Holding(
        weights=size * sum(w.numel for w in weights),
        gradients=size * learnt,
        moments=size * sum(w.numel * w.moments for w in weights if w.group is not None),
        buckets=size * learnt if spread.ranks > 1 else 0,
    )
    return RankMemory(memory, Holding())


def _partitioned(weights: Sequence[Weight], spread: Spread) -> RankMemory:
    """ZeRO-1 and 2: each group is laid out flat, padded, and its rank-th part updated by a rank."""
    size = BF16 if spread.bf16 or spread.pure else FP32
    groups = _groups(weights)
    flat = [_up(sum(group), ALIGNMENT * spread.ranks) for group in groups]
    part = sum(flat) // spread.ranks
    learnt = sum(map(sum, groups))
    if spread.zero == 1:
        gradients = size * learnt
    elif size == FP32 and spread.accumulation > 1:
        # Accumulated in the gradients themselves, which are kept whole where a rank's part touches them
        gradients = FP32 * max(
            sum(_touched(group, length, rank, spread.ranks) for group, length in zip(groups, flat, strict=True))
            for rank in range(spread.ranks)
        )
    else:
        gradients = FP32 * part
    frozen = sum(w.numel for w in weights if w.group is None)
    buckets = size * min(spread.bucket, learnt) * (2 if spread.overlap_comm else 1)
    device = {"weights": size * (frozen + sum(flat)), "buckets": buckets, "gradients": gradients}
    host: dict[str, int] = {}
    moments_by_group = {w.group: w.moments for w in weights if w.group is not None}.values()
    moments = FP32 * sum(length // spread.ranks * count for length, count in zip(flat, moments_by_group, strict=True))
    _put(host if spread.offload_optimizer else device, masters=FP32 * part, moments=moments)
    if spread.offload_optimizer:
        _put(host, gradients=FP32 * part)  # a copy, which the update on the host reads
    return RankMemory(Holding(**device), Holding(**host))


def _sharded(weights: Sequence[Weight], spread: Spread) -> RankMemory:
    """ZeRO-3: each parameter is cut into equal shards; small ones stay whole as well."""
    size = BF16 if spread.bf16 or spread.pure else FP32
    shards = size * sum(_shard(w, spread) for w in weights)
    whole = size * sum(w.numel for w in weights if w.numel <= spread.keep_whole)
    part = sum(_shard(w, spread) for w in weights if w.group is not None)
    large = [w for w in weights if w.numel > spread.keep_whole]
    chain = max(chains(large), default=0)
    ahead = spread.bucket // 4 if spread.prefetch is None else spread.prefetch
    gathered = min(sum(w.numel for w in large), chain + ahead + spread.reuse)
    learnt = sum(w.numel for w in weights if w.group is not None)
    device = {"weights": whole, "gathered": size * gathered, "buckets": size * min(spread.bucket, learnt)}
    host: dict[str, int] = {}
    _put(host if spread.offload_parameters else device, weights=shards)
    _put(
        host if spread.offload_optimizer else device,
        masters=FP32 * part,
        gradients=FP32 * part,
        moments=FP32 * sum(_shard(w, spread) * w.moments for w in weights if w.group is not None),
    )
    return RankMemory(Holding(**device), Holding(**host), size * chain)


def _put(memory: dict[str, int], **sizes: int) -> None:
    for name, size in sizes.items():
        memory[name] = memory.get(name, 0) + size


def chains(weights: Iterable[Weight]) -> list[int]:
    """Elements that are whole at once while each module runs: its own, and those of the modules around it."""
    elements: Counter[str] = Counter()
    for weight in weights:
        elements[weight.owner] += weight.numel
    return [sum(elements[around] for around in _with_those_around(owner) if around in elements) for owner in elements]


def _with_those_around(owner: str) -> list[str]:
    """A module's path and the paths of the modules that it lies in: a.b, a and "" for a.b."""
    names = owner.split(".") if owner else []
    return [".".join(names[:depth]) for depth in range(len(names) + 1)]


def _groups(weights: Sequence[Weight]) -> list[list[int]]:
    """Elements of the trainable parameters, by group, in order."""
    groups: dict[int, list[int]] = {}
    for weight in weights:
        if weight.group is not None:
            groups.setdefault(weight.group, []).append(weight.numel)
    return list(groups.values())


def _touched(group: Sequence[int], flat: int, rank: int, ranks: int) -> int:
    """Elements of the parameters that a rank's part of a flat group touches."""
    begin, end = flat // ranks * rank, flat // ranks * (rank + 1)
    touched = start = 0
    for numel in group:
        if start < end and start + numel > begin:
            touched += numel
        start += numel
    return touched


def _shard(weight: Weight, spread: Spread) -> int:
    return -(-weight.numel // spread.ranks)


def _up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


class Staged(Protocol):
    """A model whose stage has begun."""

    stage: Stage

    def modules_by_part(self) -> dict[str, nn.Module]: ...

    def parts(self) -> dict[str, dict[str, nn.Parameter]]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


def weights_of(module: Staged) -> list[Weight]:
    """The weights of a model whose stage has begun, those of a group in its order. The meta device will do."""
    groups: dict[int, tuple[int, int]] = {}
    for number, group in enumerate(parameter_groups(module.parts(), module.stage, layered(module.modules_by_part()))):
        for parameter in group["params"]:
            groups[id(parameter)] = (number, 1 if group["muon"] else 2)
    owners = {id(parameter): name.rpartition(".")[0] for name, parameter in module.named_parameters()}
    frozen = [Weight(p.numel(), owners[id(p)]) for p in module.parameters() if id(p) not in groups]
    sizes = {id(parameter): parameter.numel() for parameter in module.parameters()}
    learnt = [Weight(sizes[key], owners[key], group, moments) for key, (group, moments) in groups.items()]
    return frozen + learnt
