"""Results on the meta device come from the memory of equal calls, with the layouts that torch computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_mm.planning.counting import MetaResults

aten = torch.ops.aten


class Remembered(TorchDispatchMode):
    """Answers operations from `MetaResults`, and lists the results of each."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[list[Any]] = []
        self._run = MetaResults()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        results = self._run(func, args, kwargs or {})
        self.results.append(tree_leaves(results))
        return results


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)


def layouts(leaves: list[Any]) -> list[Any]:
    return [
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.untyped_storage().nbytes())
        if isinstance(leaf, Tensor)
        else leaf
        for leaf in leaves
    ]


def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x = torch.nn.functional.layer_norm(x, x.shape[-1:], bias, bias)
    attended = torch.nn.functional.softmax(x @ x.transpose(-1, -2), -1) @ x
    x = torch.nn.functional.gelu(torch.nn.functional.linear(attended, weight, bias)) * 2 + 1.5
    x = torch.cat([x.transpose(0, 1), x.to(torch.bfloat16).transpose(0, 1)], -1)
    return torch.nn.functional.dropout(x.clamp(-1, 1), 0.1).float().pow(2).mean(-1)


class Computed(TorchDispatchMode):
    """Lists the results of each operation that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[list[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.results.append(tree_leaves(results))
        return results


def test_a_layer_that_is_repeated_has_the_layouts_of_torch_forward_and_backward() -> None:
    remembered, computed = Remembered(), Computed()
    for mode in (remembered, computed):
        weight, bias = meta(6, 6), meta(6)
        with mode:
            for _ in range(3):
                layer(meta(2, 5, 6), weight, bias).sum().backward()
    assert list(map(layouts, remembered.results)) == list(map(layouts, computed.results))


class Calls:
    """Counts the calls of an operation."""

    def __init__(self, operation: Any) -> None:
        self.operation, self._schema, self.count = operation, operation._schema, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self.operation(*args, **kwargs)


@pytest.mark.parametrize(
    ("operation", "operands", "runs"),
    [
        (aten.gelu.default, lambda: (meta(2, 3),), 1),
        (aten.native_layer_norm.default, lambda: (meta(2, 3), [3], None, None, 1e-5), 1),
        (aten.add_.Tensor, lambda: (meta(2, 3).detach(), 1), 3),  # in place
        (aten.transpose.int, lambda: (meta(2, 3), 0, 1), 3),  # a view
        (aten._unsafe_view.default, lambda: (meta(2, 3), [6]), 3),  # a view whose schema hides it
        (aten.gelu.default, lambda: (torch.ones(2, 3),), 3),  # on another device
    ],
)
def test_equal_calls_run_once_unless_they_write_to_an_operand_or_share_its_storage(
    operation: Any, operands: Callable[[], tuple], runs: int
) -> None:
    calls, remembered = Calls(operation), MetaResults()
    first, _, last = (remembered(calls, operands(), {}) for _ in range(3))
    assert calls.count == runs and layouts(tree_leaves(first)) == layouts(tree_leaves(last))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((meta(2, 3), 1.0), torch.float32),  # 1 == 1.0
        ((meta(2, 3, dtype=torch.int64), 1.0), torch.float32),
        ((meta(2, 3, dtype=torch.int64), True), torch.int64),
    ],
)
def test_operands_of_another_dtype_are_another_call(other: tuple, expected: torch.dtype) -> None:
    remembered = MetaResults()
    assert remembered(aten.mul.Tensor, (meta(2, 3, dtype=torch.int64), 1), {}).dtype == torch.int64
    assert remembered(aten.mul.Tensor, other, {}).dtype == expected
    assert remembered(aten._to_copy.default, (meta(2, 3),), {"dtype": torch.float64}).dtype == torch.float64
    assert remembered(aten._to_copy.default, (meta(2, 3),), {"dtype": torch.float16}).dtype == torch.float16
