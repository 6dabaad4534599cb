"""The schedules of BLIP, BLIP-2 and MiniGPT-4 equal the released ones at every point."""

from __future__ import annotations

from typing import Any

import pytest

from lit_mm.stages import EpochCosine, EpochDecay, GlobalCosine, Schedule

FILE = "blip_family_lr_schedules"


def schedule_of(entry: dict[str, Any]) -> Schedule:
    """Our schedule for a released scheduler, by class and arguments."""
    args = entry["args"]
    peak = args["init_lr"]
    shares = {
        "warmup": args.get("warmup_steps", 0),
        "floor": args["min_lr"] / peak,
        "start": max(args.get("warmup_start_lr", peak), 0) / peak if args.get("warmup_start_lr", -1) >= 0 else 1.0,
    }
    if shares["start"] == 1:  # no warm-up: the released one then starts at the peak
        shares |= {"start": 0.0, "warmup": 0}
    if "iters_per_epoch" in args:
        return GlobalCosine(**shares)
    if "decay_rate" in args or "lr_decay_rate" in args:
        decay = args.get("decay_rate", args.get("lr_decay_rate"))
        return EpochDecay(epochs=args["max_epoch"], decay=decay, **shares)
    return EpochCosine(epochs=args["max_epoch"], **shares)


def test_every_point_of_the_released_schedulers_comes_out(golden: Any) -> None:
    schedules = golden.json(FILE)["schedules"]
    assert schedules
    for name, entry in schedules.items():
        longest = max(point["step_in_epoch"] for point in entry["points"]) + 1
        steps_per_epoch = entry["args"].get("iters_per_epoch", longest)
        schedule = schedule_of(entry)
        total = entry["args"]["max_epoch"] * steps_per_epoch
        for point in entry["points"]:
            step = point["epoch"] * steps_per_epoch + point["step_in_epoch"]
            found = entry["args"]["init_lr"] * schedule.factor(step, total)
            assert found == pytest.approx(point["lr"], rel=1e-9), (name, point)
