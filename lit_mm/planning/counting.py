"""Counting of operations and of bytes kept for the backward pass, as polynomials in the sizes of a sample.

A probe has sizes that are large primes, such as 20029 text positions. An operation over all text positions then costs
a number that 20029 divides, and attention over them a number that its square divides. So one run on the meta device
gives the cost of samples of any size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

Monomial = tuple[str, ...]  # names of sizes, sorted: ("l", "l") is the square of l, () a constant
Polynomial = Mapping[Monomial, int]
Kind = Literal["forward", "backward", "recompute", "causal", "saved"]
Costs = dict[Kind, Counter[Monomial]]
KINDS: tuple[Kind, ...] = ("forward", "backward", "recompute", "causal", "saved")
PRODUCTS = ("linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv2d")
FULL = ("layer_norm", "softmax", "log_softmax", "cross_entropy", "pow", "exp", "sum")  # fp32 under autocast


def factored(value: int, sizes: Mapping[str, int]) -> tuple[Monomial, int]:
    """Divide a cost by the sizes of the probe as often as they divide it.

    Example: with sizes {"l": 7}, 98 is 2 l^2, so the result is (("l", "l"), 2).

    Args:
        value: cost, positive.
        sizes: name -> size of the probe, a prime or twice a prime.
    Returns:
        The monomial and its coefficient.
    """
    names = []
    for name, size in sizes.items():
        while size > 1 and value % size == 0:
            value //= size
            names.append(name)
    return tuple(sorted(names)), value


def evaluated(polynomial: Polynomial, moments: Mapping[Monomial, float]) -> float:
    """Evaluate a polynomial summed over samples.

    Args:
        polynomial: monomial -> coefficient.
        moments: monomial -> its sum over the samples; 1 for (), the cost of a call. A missing monomial counts 0.
    """
    return sum(coefficient * moments.get(monomial, 0) for monomial, coefficient in polynomial.items())


class MetaResults:
    """Results of operations on meta tensors, from the memory of earlier equal calls.

    The meta device computes shapes in Python, up to a millisecond for a normalisation. Layers of a model repeat each
    other, and a result without values depends on the layouts of the operands alone, so equal calls share the layout.
    Operations that change or alias an operand always run.
    """

    def __init__(self) -> None:
        self._layouts: dict[Hashable, Any] = {}  # call -> layouts of its results; None: the call always runs

    def __call__(self, operation: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """Run an operation, or make tensors of the layout that its results had before."""
        if not _is_functional(operation):
            return operation(*args, **kwargs)
        call = operation, _call_layout(args), _call_layout(tuple(kwargs.items()))
        layouts = self._layouts.get(call)
        if layouts is not None:
            return _tensors(layouts)
        results = operation(*args, **kwargs)
        if call not in self._layouts:
            self._layouts[call] = _layouts(results) if _are_new(results, (args, kwargs)) else None
        return results


@dataclass(frozen=True, slots=True)
class _Layout:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@cache
def _is_functional(operation: Any) -> bool:
    """True if an operation neither writes to an operand nor returns a view of one."""
    schema = operation._schema
    return not schema.is_mutable and all(result.alias_info is None for result in schema.returns)


def _call_layout(value: Any) -> Hashable:
    """Return all of an operand that the layout of a result can depend on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple(map(_call_layout, value))
    return type(value), value  # 1 and 1.0 are equal keys, but promote differently


def _layouts(results: Any) -> Any:
    if isinstance(results, Tensor):
        return _Layout(results.shape, results.stride(), results.dtype)
    return type(results)(map(_layouts, results)) if isinstance(results, (tuple, list)) else results


def _tensors(layouts: Any) -> Any:
    """Make meta tensors of the layouts of results."""
    if isinstance(layouts, _Layout):
        return torch.ops.aten.empty_strided.default(layouts.shape, layouts.stride, dtype=layouts.dtype, device="meta")
    return type(layouts)(map(_tensors, layouts)) if isinstance(layouts, (tuple, list)) else layouts


def _are_new(results: Any, operands: Any) -> bool:
    """True if all results are meta tensors, each with a storage that no operand and no other result has."""
    tensors = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
    before = {_storage(leaf) for leaf in tree_leaves(operands) if isinstance(leaf, Tensor)}
    storages = {_storage(tensor) for tensor in tensors}
    on_meta = all(type(tensor) is Tensor and tensor.device.type == "meta" for tensor in tensors)
    return bool(tensors) and on_meta and len(storages) == len(tensors) and not storages & before


class Tally(TorchDispatchMode):
    """Adds up the operations of all products that run inside a `with` block, by torch's own formulas.

    An operation in the backward pass that runs with gradients enabled belongs to a layer that is computed again.

    Args:
        sizes: see `factored`.
    Attributes:
        costs: kind -> polynomial. "causal" is the part of forward and backward in causal attention.
        backward: True during the backward pass.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.costs: Costs = {kind: Counter() for kind in KINDS}
        self.backward = False
        self._results = MetaResults()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = self._results(func, args, kwargs or {})
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            again = self.backward and torch.is_grad_enabled()
            kind: Kind = "recompute" if again else "backward" if self.backward else "forward"
            operations = formula(*args, **(kwargs or {}), out_val=out)
            self.add(kind, operations)
            if not again and _is_causal(func, args, kwargs or {}):
                self.add("causal", operations)
        return out

    def add(self, kind: Kind, value: int) -> None:
        if value:
            monomial, coefficient = factored(value, self.sizes)
            self.costs[kind][monomial] += coefficient


def _is_causal(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    bound = dict(zip(names, args, strict=False)) | dict(kwargs)
    return bool(bound.get("is_causal", False))


@dataclass(frozen=True)
class Precision:
    """How the device that is planned for computes.

    Attributes:
        autocast: dtype of products under autocast; None: no autocast.
        repeats_keys: True if heads that share keys get copies of them, as on a CPU in fp32.
    """

    autocast: torch.dtype | None = None
    repeats_keys: bool = False


FP32 = Precision()


class Kernels(TorchFunctionMode):
    """Runs attention of meta tensors as the fused kernel of a GPU, and may round products as autocast does.

    On the meta device torch would decompose attention into products, which keep all scores. Masks and biases are left
    out, because they change neither the products nor what the kernel keeps. Masks that select samples or tokens select
    all of them, because a probe loses none.

    Args:
        precision: see `Precision`.
    """

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self.autocast, self.repeats_keys = precision.autocast, precision.repeats_keys
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}  # id of a parameter -> parameter and its rounded copy

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name == "scaled_dot_product_attention" and args[0].device.type == "meta":
            operands = tree_map(self._rounded, args[:3]) if self.autocast is not None else args[:3]
            if self.repeats_keys:
                shared = operands[0].shape[1] // operands[1].shape[1]
                operands = (operands[0], *(x.repeat_interleave(shared, dim=1) for x in operands[1:]))
            return fused_attention(*operands, *args[3:], **kwargs)
        if name == "__getitem__" and _is_mask(args[1]) and args[0].device.type == "meta":
            return args[0].flatten(0, args[1].dim() - 1)
        if self.autocast is not None and name in PRODUCTS:
            args, kwargs = tree_map(self._rounded, (args, kwargs))
        elif self.autocast is not None and name in FULL:
            args, kwargs = tree_map(_single, (args, kwargs))
        return func(*args, **kwargs)

    def _rounded(self, x: Any) -> Any:
        """Round a floating-point tensor; a parameter is rounded once."""
        if not isinstance(x, Tensor) or x.dtype == self.autocast or not x.is_floating_point():
            return x
        if not x.is_leaf or not x.requires_grad:
            return x.to(self.autocast)
        if id(x) not in self._casts:
            self._casts[id(x)] = x, x.to(self.autocast)
        return self._casts[id(x)][1]


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


def _single(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Run `F.scaled_dot_product_attention` on meta tensors of 4 dimensions by the flash kernel's operations."""
    return _Fused.apply(query, key, value, is_causal)


class _Fused(torch.autograd.Function):
    """The flash kernel on the meta device. Its output is contiguous over positions, as on every real device."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
        with torch.enable_grad():  # so that `Tally` sees a layer that is computed again
            operands = (x.detach() for x in (query, key, value))
            attended, sums, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*operands, 0.0, is_causal, False)
        batch, heads, length, _ = query.shape
        out = attended.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.is_causal = is_causal
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        nothing = sums.new_empty(0)
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient,
            query,
            key,
            value,
            out,
            sums,
            nothing,
            nothing,
            query.shape[2],
            key.shape[2],
            0.0,
            ctx.is_causal,
            nothing,
            nothing,
        )
        return *gradients, None


class Trace(TorchDispatchMode):
    """Records a layer that runs inside a `with` block: the operands of every storage, and the tensors that it saves.

    It counts what a selective checkpoint of torch.compile keeps. The compiler computes every operation again in the
    backward pass that the policy does not keep, and drops the kept results that the backward pass does not need.

    Args:
        kept_operations: operations whose results the checkpoint keeps.
    """

    def __init__(self, kept_operations: Container[Any]) -> None:
        super().__init__()
        self.kept_operations = kept_operations
        self._operands: dict[int, list[Tensor]] = {}  # storage -> operands of the operations that wrote it
        self._results: list[Tensor] = []  # the tensors live until the end, so that no address comes twice
        self._needed: list[Tensor] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def __enter__(self) -> Trace:
        self._hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = {_storage(operand) for operand in operands}
        for result in (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            address = _storage(result)
            if address in self._operands:  # a view, or an operation in place
                self._operands[address] += [operand for operand in operands if _storage(operand) != address]
            elif address not in before and func not in self.kept_operations:
                self._operands[address] = operands
            self._results.append(result)
        return out

    def _note(self, tensor: Tensor) -> Tensor:
        self._needed.append(tensor)
        return tensor

    def saved_tensors(self) -> list[Tensor]:
        """Return the inputs of the layer and the results of kept operations from which the rest is computed again."""
        saved, open_tensors, visited = [], list(self._needed), set()
        while open_tensors:
            tensor = open_tensors.pop()
            address = _storage(tensor)
            if address in visited:
                continue
            visited.add(address)
            if address in self._operands:
                open_tensors += self._operands[address]
            else:
                saved.append(tensor)
        return saved


def _storage(tensor: Tensor) -> int:
    """Return a number that tensors with the same storage share."""
    return tensor.untyped_storage()._cdata


def measure(
    run: Callable[[], Sequence[Tensor]],
    sizes: Mapping[str, int],
    parameters: Iterable[Tensor],
    precision: Precision = FP32,
    checkpointed: Sequence[Tensor] = (),
) -> tuple[Costs, list[Tensor]]:
    """Run a part forward and backward on the meta device, and count.

    Args:
        run: forward pass; it returns the results whose gradients arrive from the parts behind.
        sizes: see `factored`.
        parameters: parameters of the model; their storages are not counted as kept. Gradients on them are removed.
        precision: how the device computes.
        checkpointed: list that `run` fills with the tensors that selective checkpointing keeps.
    Returns:
        The costs, and the results of `run`, detached. Results that had a gradient still need one.
    """
    parameters = list(parameters)
    storages = {_storage(parameter) for parameter in parameters}
    saved: dict[int, Tensor] = {}  # the tensors live until the end, so that no address comes twice

    def note(tensor: Tensor) -> Tensor:
        address = _storage(tensor)
        if address not in storages:
            saved[address] = tensor
        return tensor

    tally = Tally(sizes)
    with torch.enable_grad(), Kernels(precision), tally:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            results = list(run())
            for tensor in checkpointed:
                note(tensor)
        tally.backward = True
        ends = [result for result in results if result.requires_grad]
        if ends:
            torch.autograd.backward(ends, [torch.empty_like(end) for end in ends])
    for tensor in saved.values():
        tally.add("saved", tensor.untyped_storage().nbytes())
    for parameter in parameters:
        parameter.grad = None
    return tally.costs, [result.detach().requires_grad_(result.requires_grad) for result in results]
