"""This benchmark measures the cost and the quality of the stream's plan, against naive methods, on one core.

    python benchmarks/planning.py                  # about a minute
    python benchmarks/planning.py --rows 100000    # quicker

No pixels are read; lengths are drawn from a distribution like that of visual instruction data. It prints

- CPU seconds to plan packed rows, and those of a plain best fit over all samples that tries every open row;
- CPU seconds to start the stream at its end, with and without the mark that a checkpoint keeps;
- the share of tokens wasted by windows of 1024, by next-fit in random order, and by best-fit-decreasing over all
  samples;
- the balance of steps over 8 ranks, with rows distributed by cost and with rows in order.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from lit_mm.samples.length import Length
from lit_mm.stream.order import Plan, Row
from lit_mm.stream.packing import pack, share_out

SAMPLES = 20_000
# Lognormal lengths of text as (share, median tokens, sigma) of short questions, detailed conversations, regions, text
# alone. All kinds together have mean 233, median 182 and 95th percentile 549 tokens
TEXT = ((0.56, 145, 0.45), (0.20, 370, 0.38), (0.18, 190, 0.52), (0.06, 280, 0.70))
STEP_ROWS, RANKS = 64, 8
NAIVE = 20_480  # samples for the naive packer
SHARED = 500  # steps for timing the distribution over ranks


def text_tokens(rng: np.random.Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw text lengths. Returns [N] tokens, and [N] True where the sample has no image."""
    kind = rng.choice(len(TEXT), size=samples, p=[share for share, _, _ in TEXT])
    _, median, sigma = np.array(TEXT).T
    tokens = np.exp(np.log(median[kind]) + sigma[kind] * rng.standard_normal(samples))
    return tokens.clip(20, 2000).astype(int), kind == len(TEXT) - 1


def several(rng: np.random.Generator, samples: int, *, tokens: int, low: int, high: int) -> np.ndarray:
    """Draw samples with `low` to `high` views of `tokens` tokens each. Returns [N, 2] visual tokens and views."""
    views = rng.integers(low, high + 1, samples)
    return np.stack([views * tokens, views], axis=1)


def native(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Draw samples with one view of lognormal size. Returns [N, 2] visual tokens and views."""
    tokens = np.exp(np.log(560) + 0.7 * rng.standard_normal(samples)).clip(64, 4000)
    return np.stack([tokens.astype(int), np.ones(samples, dtype=int)], axis=1)


FAMILIES: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], tuple[int, ...]]] = {
    "fixed 576": (partial(several, tokens=576, low=1, high=1), (4096,)),
    "fixed 5 x 256": (partial(several, tokens=256, low=5, high=5), (4096, 8192)),
    "2-7 slices of 64": (partial(several, tokens=64, low=2, high=7), (4096,)),
    "any-res 2-5 x 576": (partial(several, tokens=576, low=2, high=5), (4096, 8192)),
    "native": (native, (4096,)),
}


def lengths_of(visual: Callable[[np.random.Generator, int], np.ndarray], samples: int, seed: int = 0) -> np.ndarray:
    """Draw a length table [N, 3] of tokens, views and supervised tokens, as `lit_mm.stream.screen.Screen` has it."""
    rng = np.random.default_rng(seed)
    text, alone = text_tokens(rng, samples)
    images = visual(rng, samples) * ~alone[:, None]
    return np.stack([(text + images[:, 0]).clip(max=4096), images[:, 1], text // 3 + 1], axis=1).astype(np.int32)


def plan_of(table: np.ndarray, row_tokens: int, window: int = 1024) -> Plan:
    def length(number: int) -> Length:
        return Length(*table[number].tolist())

    return Plan(len(table), length, seed=0, row_tokens=row_tokens, window=window)


def best_fit_of_all(tokens: Sequence[int], limit: int) -> int:
    """Count the rows of a naive best fit, which tries every open row for each sample in input order."""
    left: list[int] = []
    for count in tokens:
        fitting = [row for row, room in enumerate(left) if room >= count]
        if fitting:
            left[min(fitting, key=left.__getitem__)] -= count
        else:
            left.append(limit - count)
    return len(left)


def next_fit(tokens: Sequence[int], limit: int) -> int:
    """Count the rows of next-fit, which tries only the last row."""
    rows, left = 0, 0
    for count in tokens:
        if count > left:
            rows, left = rows + 1, limit
        left -= count
    return rows


def spread(rows: Sequence[Row], table: np.ndarray, *, evenly: bool) -> tuple[float, float]:
    """Imbalance over 8 ranks: fullest rank / mean rank, in tokens and in views, averaged over the steps.

    Args:
        rows: rows of the stream.
        table: [N, 3] lengths.
        evenly: if True, rows are distributed by `share_out`, else in order.
    """
    costs = np.array([table[list(row), :2].sum(axis=0) for row in rows])
    ratios = []
    for start in range(0, len(rows) - STEP_ROWS + 1, STEP_ROWS):
        step = costs[start : start + STEP_ROWS]
        in_order = np.arange(len(step)).reshape(RANKS, -1)
        shares = share_out([tuple(cost) for cost in step.tolist()], RANKS) if evenly else in_order
        loads = np.array([step[list(places)].sum(axis=0) for places in shares])
        ratios.append(loads.max(axis=0) / loads.mean(axis=0))
    tokens, views = np.mean(ratios, axis=0)
    return float(tokens), float(views)


def planning(rows: int) -> None:
    table = lengths_of(FAMILIES["fixed 576"][0], 200_000)
    plan = plan_of(table, 4096)
    clock = time.process_time()
    samples = 0
    for start in range(0, rows, STEP_ROWS):
        samples += sum(len(row) for row in plan.rows(start, min(rows, start + STEP_ROWS)))
    seconds = time.process_time() - clock
    print(
        f"plan {rows:,} packed rows ({samples:,} samples): {seconds:.1f} s, {seconds / samples * 1e6:.1f} us a sample"
    )

    naive = sorted(table[:NAIVE, 0].tolist(), reverse=True)
    clock = time.process_time()
    best_fit_of_all(naive, 4096)
    each = (time.process_time() - clock) / len(naive)
    print(f"  naive best fit without windows: {each * 1e6:.0f} us a sample, for only {NAIVE:,} samples")

    clock = time.process_time()
    for start in range(0, SHARED * STEP_ROWS, STEP_ROWS):
        rows_of_step = plan.rows(start, start + STEP_ROWS)
        share_out([tuple(table[list(row), :2].sum(axis=0).tolist()) for row in rows_of_step], RANKS)
    each = (time.process_time() - clock) / SHARED
    print(f"  distribute a step of {STEP_ROWS} rows over {RANKS} ranks: {each * 1e3:.1f} ms")

    mark = plan.mark(rows - 1)
    for label, place, mark_of_start in (
        ("at row 0", 0, None),
        (f"at row {rows:,} with the mark", rows, mark),
        (f"at row {rows:,} without it", rows, None),
    ):
        fresh = plan_of(table, 4096)
        clock = time.process_time()
        if mark_of_start is not None:
            fresh.go_to(mark_of_start)
        first = fresh.rows(place, place + STEP_ROWS)
        seconds = time.process_time() - clock
        assert first == plan.rows(place, place + STEP_ROWS)
        print(f"  start {label}: {seconds:.3f} s to the first step")


def packing() -> None:
    head = ("visual tokens", "row", "mean", "next-fit", "window 1024", "whole set", "tokens", "views", "(in order)")
    print("\nwaste, % of all slots; and fullest / mean of 8 ranks, mean over steps of 64 rows")
    print("{:<18}{:>6}{:>6}{:>10}{:>13}{:>11}{:>9}{:>8}{:>14}".format(*head))
    for name, (visual, capacities) in FAMILIES.items():
        table = lengths_of(visual, SAMPLES)
        total = int(table[:, 0].sum())
        for capacity in capacities:
            plan = plan_of(table, capacity)
            rows = plan.rows(0, plan.rows_of(1))
            whole = pack(range(SAMPLES), [Length(*entry) for entry in table.tolist()], tokens=capacity)
            counts = (next_fit(table[:, 0].tolist(), capacity), len(rows), len(whole))
            waste = [100 * (1 - total / (count * capacity)) for count in counts]
            tokens, views = spread(rows, table, evenly=True)
            before = "{:.3f} {:.3f}".format(*spread(rows, table, evenly=False))
            print(
                f"{name:<18}{capacity:>6}{total / SAMPLES:>6.0f}{waste[0]:>10.1f}{waste[1]:>13.1f}{waste[2]:>11.1f}"
                f"{tokens:>9.3f}{views:>8.3f}{before:>14}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="packed rows to plan (default: 1,000,000)")
    rows = parser.parse_args().rows
    text, _ = text_tokens(np.random.default_rng(0), SAMPLES)
    print(f"text: mean {text.mean():.0f}, median {np.median(text):.0f}, p95 {np.percentile(text, 95):.0f} tokens")
    planning(rows)
    packing()


if __name__ == "__main__":
    main()
