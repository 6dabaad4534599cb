"""This program measures how losses depend on the ranks of a step: `python -m tests.objective_ranks`.

It trains the tiny BLIP and BLIP-2 of the tests for four steps of four pairs, in one process and on two gloo ranks
under DDP, ZeRO-2 and ZeRO-3, and prints the measured columns of docs/objectives.md. The runs have no dropout, and the
hardest negatives in place of drawn ones.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from lit_mm.callbacks.metrics_csv import read_metrics
from tests.kills import Launch, launch_all
from tests.three_stages import CUT

ENGINES = {"ddp": "ddp", "zero2": "zero2", "zero3": CUT}
STEPS = 4


# family, objective, recipe of `tests.kills`. An objective that does not depend on the split is measured without those
# that do.
ROWS = (
    ("BLIP", "itc", "pretrain"),
    ("BLIP", "itm", "pretrain"),
    ("BLIP", "lm", "captions"),
    ("BLIP", "itc_finetune", "retrieval"),
    ("BLIP", "itm_finetune", "matching"),
    ("BLIP-2", "itc", "queries"),
    ("BLIP-2", "itm", "exact queries"),
    ("BLIP-2", "itg", "exact queries"),
)


def losses(folder: Path, objective: str) -> list[float]:
    """Loss of an objective in every step of a run; a stage of one objective has no columns of its objectives."""
    return [row.get(f"loss/{objective}", row["loss"]) for row in read_metrics(folder / "metrics.csv")]


def differences(folder: Path, recipe: str, objective: str) -> list[float]:
    """Largest relative difference to one process over the engines, of every step."""
    expected = losses(folder / f"{recipe} alone", objective)
    runs = [losses(folder / f"{recipe} {engine}", objective) for engine in ENGINES]
    assert {len(run) for run in (expected, *runs)} == {STEPS}
    return [max(abs(run[step] - loss) / abs(loss) for run in runs) for step, loss in enumerate(expected)]


def main() -> None:
    """Run all recipes and print a row for every objective: the first step, and the largest difference of all steps."""
    launches = []
    for recipe in dict.fromkeys(recipe for *_, recipe in ROWS):
        options = {"recipe": recipe, "steps": STEPS, "lr": 1e-3, "dropout": 0.0}
        launches.append(Launch(f"{recipe} alone", **options))
        launches += [
            Launch(f"{recipe} {engine}", ranks=2, strategy=strategy, **options) for engine, strategy in ENGINES.items()
        ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        launch_all(launches, folder)
        for family, objective, recipe in ROWS:
            first, *others = differences(folder, recipe, objective)
            print(f"| {family} `{objective}` | {first:.0e} | {max(first, *others):.0e} |", flush=True)


if __name__ == "__main__":
    main()
