"""InstructBLIP draws its data sets with the released probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lit_mm.stream.mixture import draws_per_epoch, square_root_shares

TOLERANCE = 1e-12  # relative, of the golden file


def tables(content: dict[str, Any]) -> Iterator[tuple[list[int], list[float]]]:
    """Yield sizes and probabilities."""
    released = content["official_released_ratios"]["datasets"].values()
    yield [entry["size"] for entry in released], [entry["ratio"] for entry in released]
    paper = content["heldin_13_from_paper_appendix_sizes"]
    yield list(paper["sizes"].values()), [paper["p"][name] for name in paper["sizes"]]
    yield from ((case["sizes"], case["p"]) for case in content["synthetic_cases"])


def test_shares_are_the_released_ratios(golden: Any) -> None:
    for sizes, expected in tables(golden.json("instructblip_sampling")):
        assert square_root_shares(sizes, [1.0] * len(sizes)) == pytest.approx(expected, rel=TOLERANCE)


def test_an_epoch_draws_every_source_by_its_share_to_within_a_sample(golden: Any) -> None:
    for sizes, expected in tables(golden.json("instructblip_sampling")):
        lengths, shares = zip(*[pair for pair in zip(sizes, expected, strict=True) if pair[0]], strict=True)
        draws = draws_per_epoch(lengths, square_root_shares(lengths, [1.0] * len(lengths)), list(map(str, lengths)))
        assert sum(draws) == sum(sizes)
        assert all(abs(count - share * sum(sizes)) < 1 for count, share in zip(draws, shares, strict=True))
