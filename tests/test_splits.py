"""Loss and gradients of a global batch are equal for any ranks x accumulation, packed or not, over gloo."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from tests.preloaded import run_program
from tests.splits import MODELS, PACKED, PRECISIONS, SPLITS, name_of

RTOL = 1e-6  # fp32; of the loss, of the norm of the whole gradient, and of each tensor's where rows are the same
# Rows of another length sum their scores in another order: measured up to 1.4e-6 of a tensor's norm on the nano model,
# 1e-15 in fp64
RTOL_PACKED = 2e-6
EPS_BF16 = 2**-8  # of a tensor's norm; measured up to 2.5e-3
Kept = dict[str, dict[str, Any]]
ALL = [
    pytest.param(model, *split, packed, marks=pytest.mark.slow if model.startswith("nano") else (), id=None)
    for model, split, packed in product(MODELS, SPLITS, PACKED)
    if (split != SPLITS[0] or packed) and model not in PRECISIONS
]


@pytest.fixture(scope="module")
def kept_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kept]:
    """Model -> results of each split by file name."""
    done: dict[str, Kept] = {}

    def run(model: str) -> Kept:
        if model not in done:
            folder = tmp_path_factory.mktemp("splits")
            ended = run_program(["-m", "tests.splits", str(folder), model])
            assert ended.returncode == 0, ended.stderr[-4000:]
            done[model] = {path.name: torch.load(path) for path in folder.glob("*.pt")}
        return done[model]

    return run


@pytest.mark.parametrize(("model", "ranks", "turns", "packed"), ALL)
def test_loss_and_gradients_do_not_depend_on_ranks_accumulation_and_packing(
    kept_of: Callable[[str], Kept], model: str, ranks: int, turns: int, packed: bool
) -> None:
    kept = kept_of(model)
    whole, split = kept[name_of(model, *SPLITS[0], False)], kept[name_of(model, ranks, turns, packed)]
    assert split["tokens"] == whole["tokens"] > 0
    torch.testing.assert_close(split["loss"], whole["loss"], rtol=RTOL, atol=0)
    assert split["gradients"].keys() == whole["gradients"].keys()
    apart = {name: float((split["gradients"][name] - g).norm() / g.norm()) for name, g in whole["gradients"].items()}
    assert max(apart.values()) <= (RTOL_PACKED if packed else RTOL), max(zip(apart.values(), apart, strict=True))
    of_all, expected = (torch.cat([g.flatten() for g in one["gradients"].values()]) for one in (split, whole))
    assert float((of_all - expected).norm()) <= RTOL * float(expected.norm())


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=pytest.mark.slow if m.startswith("nano") else ()) for m in MODELS if "few" in m]
)
def test_some_ranks_had_no_image_at_all(kept_of: Callable[[str], Kept], model: str) -> None:
    kept = kept_of(model)
    for packed in PACKED:
        assert int(kept[name_of(model, 4, 1, packed)]["imageless"]) in (2, 3)
        assert int(kept[name_of(model, 1, 1, packed)]["imageless"]) == 0
    gradients = kept[name_of(model, 4, 1, True)]["gradients"]
    for part in ("vision.", "connector.", "language."):
        assert any(gradient.any() for name, gradient in gradients.items() if name.startswith(part))
    if "LLaVA-NeXT" in model:
        assert gradients["connector.newline"].any()


@pytest.mark.distributed
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(("ranks", "turns"), SPLITS[1:])
def test_in_bf16_the_loss_of_a_split_has_fp32s_digits_and_the_gradient_those_of_bf16(
    kept_of: Callable[[str], Kept], ranks: int, turns: int, packed: bool
) -> None:
    """Autocast rounds each product of a weight's gradient once per forward, so a split rounds other partial sums."""
    (model,) = PRECISIONS
    kept = kept_of(model)
    whole, split = kept[name_of(model, *SPLITS[0], packed)], kept[name_of(model, ranks, turns, packed)]
    assert split["tokens"] == whole["tokens"] > 0
    torch.testing.assert_close(split["loss"], whole["loss"], rtol=RTOL, atol=0)
    for name, gradient in whole["gradients"].items():
        assert float((split["gradients"][name] - gradient).norm()) <= EPS_BF16 * float(gradient.norm()), name
    of_all, expected = (torch.cat([g.flatten() for g in one["gradients"].values()]) for one in (split, whole))
    assert 1e-5 < float((of_all - expected).norm() / expected.norm()) <= EPS_BF16 / 2  # measured 1.4e-3
