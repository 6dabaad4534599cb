"""Planned memory of a rank in training: weights, masters, gradients, moments and buffers. Nothing is loaded for it.

The figures are those of the engines that this room configures (DeepSpeed 0.19's ZeRO, torch's DDP), counted tensor by
tensor with their padding. Activations are left out, because they depend on the batch.
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
    """The size and role of a parameter, without its values.

    Attributes:
        numel: number of elements.
        owner: path of the module that the parameter is an attribute of. ZeRO-3 gathers the parameters of one module
            together.
        group: number of the optimizer group; None if the parameter is frozen.
        moments: number of optimizer tensors of the parameter's size: 2 with AdamW, 1 with Muon, 1 more with an average.
    """

    numel: int
    owner: str = ""
    group: int | None = None
    moments: int = 2


@dataclass(frozen=True)
class Spread:
    """The distribution of a stage over ranks. The defaults are those of `lit_mm.distributed.zero.ZeRO`.

    Attributes:
        zero: ZeRO stage; 0 for DDP and for a single process.
        ranks: number of processes.
        bf16: True for precision bf16-mixed or bf16-true. DDP keeps fp32 weights under bf16-mixed, see `pure`.
        pure: True for precision bf16-true or 16-true: without ZeRO the weights have two bytes per element.
        accumulation: micro-batches per optimizer step.
        offload_optimizer: True if masters and moments lie in the CPU's memory.
        offload_parameters: True if parameters lie in the CPU's memory while no layer needs them.
        keep_whole: size of the largest parameter that ZeRO-3 keeps whole on every rank, elements.
        bucket: size of the largest message in which gradients are reduced, elements.
        prefetch: number of elements that ZeRO-3 gathers ahead; None for a quarter of the bucket.
        reuse: distance within which ZeRO-3 keeps a gathered parameter that is needed again, elements.
        overlap_comm: True if gradients are reduced during the backward pass, below stage 3 with two buffers in turn.
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
    """Bytes that a rank uses in one memory.

    Attributes:
        weights: parameters as the forward pass reads them, between two steps: all of them, or under ZeRO-3 this rank's
            shards and the small parameters that stay whole.
        masters: fp32 copies that the optimizer updates.
        gradients: gradients after the backward pass of the last micro-batch.
        moments: moments of the optimizer.
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
    """The memory of the fullest rank, without activations.

    Attributes:
        device: bytes in the memory of the device that computes. On a CPU, device and host share one memory.
        host: bytes in the CPU's memory through offloading.
        largest_layer: bytes of the largest set of modules that ZeRO-3 must gather at once. It is part of
            `device.gathered`, whose minimum it is (`stage3_max_reuse_distance: 0`).
    """

    device: Holding
    host: Holding
    largest_layer: int = 0


def plan_memory(weights: Sequence[Weight], spread: Spread) -> RankMemory:
    """Compute the memory of the fullest rank in a stage.

    Example: 10 trainable and 6 frozen elements under ZeRO-2 on 4 ranks in bf16. The group is padded to 16 elements, a
    multiple of 4 ranks x alignment 2, so a rank updates 4 elements. It has 16 bytes of masters, 16 of gradients, 32 of
    moments, and all weights, (16 + 6) x 2 bytes.

    Args:
        weights: parameters of the model; those of an optimizer group are in its order.
        spread: distribution of the stage.
    Source: arXiv:1910.02054, section 3, for the principle; DeepSpeed's stage_1_and_2.py and stage3.py for the padding.
    """
    if spread.zero == 0:
        return _replicated(weights, spread)
    if spread.zero == 3:
        return _sharded(weights, spread)
    return _partitioned(weights, spread)


def _replicated(weights: Sequence[Weight], spread: Spread) -> RankMemory:
    """Plan DDP: every rank has everything, and a copy of the gradients in the buckets in which they are reduced."""
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
    """Plan ZeRO-1 and 2: each group is flattened and padded, and each rank updates one part of it."""
    size = BF16 if spread.bf16 or spread.pure else FP32
    groups = _groups(weights)
    flat = [_up(sum(group), ALIGNMENT * spread.ranks) for group in groups]
    part = sum(flat) // spread.ranks
    learnt = sum(map(sum, groups))
    if spread.zero == 1:
        gradients = size * learnt
    elif size == FP32 and spread.accumulation > 1:
        # Gradients accumulate in place: those that a rank's part touches stay whole
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
        _put(host, gradients=FP32 * part)  # the update on the host reads a copy
    return RankMemory(Holding(**device), Holding(**host))


def _sharded(weights: Sequence[Weight], spread: Spread) -> RankMemory:
    """Plan ZeRO-3: each parameter is cut into equal shards; small parameters also stay whole on every rank."""
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
    """Count the elements that are gathered while each module runs: its own and those of the modules around it."""
    elements: Counter[str] = Counter()
    for weight in weights:
        elements[weight.owner] += weight.numel
    return [sum(elements[around] for around in _with_those_around(owner) if around in elements) for owner in elements]


def _with_those_around(owner: str) -> list[str]:
    """Return the paths of a module and of the modules around it: "", a and a.b for a.b."""
    names = owner.split(".") if owner else []
    return [".".join(names[:depth]) for depth in range(len(names) + 1)]


def _groups(weights: Sequence[Weight]) -> list[list[int]]:
    """Return the elements of the trainable parameters by group, in order."""
    groups: dict[int, list[int]] = {}
    for weight in weights:
        if weight.group is not None:
            groups.setdefault(weight.group, []).append(weight.numel)
    return list(groups.values())


def _touched(group: Sequence[int], flat: int, rank: int, ranks: int) -> int:
    """Count the elements of all parameters that a rank's part of a flat group overlaps."""
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
    """List the weights of a model whose stage has begun, in the order of the groups. The meta device will do."""
    groups: dict[int, tuple[int, int]] = {}
    for number, group in enumerate(parameter_groups(module.parts(), module.stage, layered(module.modules_by_part()))):
        for parameter in group["params"]:
            moments = (1 if group["muon"] else 2) + (group["average"] is not None)
            groups[id(parameter)] = (number, moments)
    owners = {id(parameter): name.rpartition(".")[0] for name, parameter in module.named_parameters()}
    frozen = [Weight(p.numel(), owners[id(p)]) for p in module.parameters() if id(p) not in groups]
    sizes = {id(parameter): parameter.numel() for parameter in module.parameters()}
    learnt = [Weight(sizes[key], owners[key], group, moments) for key, (group, moments) in groups.items()]
    return frozen + learnt
