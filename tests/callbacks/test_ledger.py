"""The ledger counts every sample exactly, for all kinds of faults, splits of a run, and kills."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mm.callbacks.ledger import read_lines, take_back
from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest, reading
from lit_mm.errors import UserError
from lit_mm.stages.stage import Stage, Train
from lit_mm.stream.mixture import Joined
from tests import tiny_blip
from tests.faulty import FAULTS, FaultyMixture, Planted, write
from tests.kills import Launch, launch_all
from tests.tiny import PARTS, run_recipe, xcomposer2

# (ranks, workers) of the launches of one run; all but the last are killed
Splits = dict[str, tuple[list[tuple[int, int]], str]]
RUNS: Splits = {
    "one rank": ([(1, 0)], ""),
    "one rank, more workers": ([(1, 2), (1, 3)], "pretrain step 3"),
    "two ranks": ([(2, 2)], ""),
}
MORE: Splits = {
    "one rank, read late": ([(1, 0)], ""),
    "two ranks, then one": ([(2, 2), (1, 3)], "pretrain step 3"),
    "one rank, killed in its second epoch": ([(1, 3), (1, 0)], "finetune step 4"),
    "two ranks, other workers": ([(2, 2), (2, 0)], "finetune step 3"),
    "two ranks, two workers": ([(2, 0), (2, 2)], "pretrain step 4"),
    "two ranks, read late": ([(2, 0), (2, 2)], "pretrain step 4"),
    "one rank, then two": ([(1, 2), (2, 2)], "finetune step 2"),
}
ALL = [*RUNS, *(pytest.param(name, marks=pytest.mark.distributed) for name in MORE)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Planted]]:
    """A mixture of 60 samples, 8 of which are bad."""
    folder = tmp_path_factory.mktemp("mixture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_MM_CACHE", str(folder / "cache"))
        yield folder, write(folder, count=40, each=1)


@pytest.fixture(scope="module")
def runs(planted: tuple[Path, Planted], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of packed runs with two stages of five steps, each longer than an epoch; micro-batches have one row."""
    folder = tmp_path_factory.mktemp("runs")
    launch(RUNS, planted, folder)
    return folder


@pytest.fixture(scope="module")
def more_runs(runs: Path, planted: tuple[Path, Planted]) -> Path:
    launch(MORE, planted, runs)
    return runs


@pytest.fixture
def run(name: str, request: pytest.FixtureRequest) -> Path:
    """Folder of the run `name`."""
    return request.getfixturevalue("more_runs" if name in MORE else "runs") / name


def launch(runs: Splits, planted: tuple[Path, Planted], folder: Path) -> None:
    launches = []
    for name, (splits, kill) in runs.items():
        for place, (ranks, workers) in enumerate(splits):
            dies = kill if place < len(splits) - 1 else ""
            launches.append(
                Launch(
                    name,
                    workers,
                    micro_batch=1,
                    kill=dies,
                    ranks=ranks,
                    faulty=str(planted[0]),
                    dropout=0.1,
                    late="late" in name,
                )
            )
    launch_all(launches, folder)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sources.csv").open() as file:
        return list(csv.DictReader(file))


def trained(folder: Path) -> list[tuple[str, list[str]]]:
    """Read (stage, sorted sample ids) of every optimizer step, joined over ranks and micro-batches.

    If a resumed run repeats a step, the samples must be the same, also on another number of ranks.
    """
    done: dict[int, list[dict[tuple[str, int], list[str]]]] = {}  # ranks of a launch -> by rank, micro-batch -> samples
    for path in sorted(folder.glob("ledger*.txt")):
        held: dict[tuple[str, int], list[str]] = {}
        for line in path.read_text().splitlines():
            stage, micro, *samples = line.split()
            assert held.setdefault((stage, int(micro)), samples) == samples
        ranks = int(path.stem.split("-")[1]) if "-" in path.stem else 1
        done.setdefault(ranks, []).append(held)
    steps: list[tuple[str, list[str]]] = []
    for stage, step in product(("pretrain", "finetune"), range(5)):
        versions = []
        for ranks, by_rank in done.items():
            micros = [
                (stage, m) for m in range(4 // ranks * step, 4 // ranks * (step + 1))
            ]  # rows are dealt one by one
            if all(micro in held for held in by_rank for micro in micros):
                versions.append(sorted(sample for held in by_rank for micro in micros for sample in held[micro]))
        assert versions
        assert all(version == versions[0] for version in versions)
        steps.append((stage, versions[0]))
    return steps


def without_loss(folder: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "loss"} for row in rows(folder)]


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("one rank", "two ranks")])
def test_a_killed_run_ends_with_the_account_of_an_unbroken_one(run: Path, name: str) -> None:
    unbroken = run.parent / "one rank"
    for file in ("ledger.json", "ledger.jsonl"):
        assert (run / file).read_text() == (unbroken / file).read_text()
    assert without_loss(run) == without_loss(unbroken)


@pytest.mark.parametrize(
    ("name", "unbroken"),
    [
        ("one rank, more workers", "one rank"),
        pytest.param("one rank, read late", "one rank", marks=pytest.mark.distributed),
        pytest.param("two ranks, read late", "two ranks", marks=pytest.mark.distributed),
        pytest.param("one rank, killed in its second epoch", "one rank", marks=pytest.mark.distributed),
        pytest.param("two ranks, other workers", "two ranks", marks=pytest.mark.distributed),
        pytest.param("two ranks, two workers", "two ranks", marks=pytest.mark.distributed),
    ],
)
def test_on_as_many_ranks_it_ends_bit_for_bit_the_same(run: Path, name: str, unbroken: str) -> None:
    folders = run, run.parent / unbroken
    losses = [[row["loss"] for row in read_metrics(folder / "metrics.csv")] for folder in folders]
    assert losses[0] == losses[1]
    assert rows(run) == rows(run.parent / unbroken)
    ours, theirs = (reading.read(manifest.find(folder)).weights() for folder in folders)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ALL)
def test_every_split_trains_on_the_same_samples_in_every_step(run: Path, name: str) -> None:
    assert trained(run) == trained(run.parent / "one rank")
    tokens = [row["tokens"] for row in read_metrics(run / "metrics.csv")]
    assert tokens == [row["tokens"] for row in read_metrics(run.parent / "one rank" / "metrics.csv")]


@pytest.mark.parametrize("name", ["one rank", "two ranks"])
def test_what_the_ledger_counts_is_what_the_batches_held(runs: Path, planted: tuple[Path, Planted], name: str) -> None:
    stages = json.loads((runs / name / "ledger.json").read_text())["stages"]
    held = Counter((stage, i.split("/")[0]) for stage, ids in trained(runs / name) for i in ids)
    cut = Counter((stage, "words") for stage, ids in trained(runs / name) for i in ids if i in planted[1].long)
    for account in stages:
        for own in account["sources"]:
            key = account["stage"], own["source"]
            assert own["size"] == planted[1].sizes[own["source"]]
            assert own["trained"] + own["truncated"] == held[key]
            assert own["truncated"] == cut[key]
            assert own["trained"] + own["truncated"] + own["quarantined"] == own["drawn"]
            assert own["drawn"] + own["not_reached"] == own["passes"] * own["size"]
            assert own["skipped"] == 0
    assert all(own["passes"] == 2 for account in stages for own in account["sources"])  # over an epoch's end


def test_every_planted_fault_is_quarantined_once_with_its_reason(runs: Path, planted: tuple[Path, Planted]) -> None:
    found = json.loads((runs / "two ranks" / "ledger.json").read_text())["quarantined"]
    assert {(one["source"], one["id"]): one["kind"] for one in found} == planted[1].kinds
    assert len(found) == len(planted[1].kinds) == len(FAULTS)
    assert all((one["reason"] and one["where"]) or one["kind"] == "no_supervision" for one in found)


def test_what_a_source_learns_adds_up_to_the_loss_of_the_step(runs: Path) -> None:
    for name in ("one rank", "two ranks"):
        for row in read_metrics(runs / name / "metrics.csv"):
            own = [r for r in rows(runs / name) if int(r["step"]) == row["step"]]
            assert {r["source"] for r in own} == {"chat", "words"}
            total, tokens = (sum(float(r["loss"]) ** power * int(r["tokens"]) for r in own) for power in (1, 0))
            # The planned denominator of the step also counts what was lost in it
            assert row["loss"] <= total / tokens * (1 + 1e-6)
            if not any(int(r["quarantined"]) for r in own):
                assert row["loss"] == pytest.approx(total / tokens, rel=1e-6)


# --- one per cent of each of eight faults ----------------------------------------------------------------------------
COUNT, EACH = 200, 2


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Planted]]:
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_MM_CACHE", str(folder / "cache"))
        yield folder, write(folder, COUNT, EACH)


EPOCH = [Stage("pretrain", {part: Train(lr=1e-3) for part in PARTS}, epochs=1)]


def one_epoch(folder: Path, data: Path, **options: Any) -> dict[str, Any]:
    """Compute the account of one epoch in this process."""
    given = {"global_batch": 16, "micro_batch": 16, "window": 64, "max_bad": 0.1, "max_unsupervised": 0.1}
    module = xcomposer2()
    run_recipe(module, EPOCH, folder, every=100, data_class=FaultyMixture, place=str(data), **given | options)
    return json.loads((folder / "ledger.json").read_text())


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
def test_an_epoch_with_bad_samples_finishes_and_trains_on_all_the_others(
    many: tuple[Path, Planted], tmp_path: Path, policy: str
) -> None:
    data, planted = many
    ledger = one_epoch(tmp_path, data, on_bad_sample=policy)
    lines = (tmp_path / "ledger.txt").read_text().splitlines()
    seen = Counter(sample for line in lines for sample in line.split()[2:])
    assert set(seen) == planted.sound
    outcome = {"skip": "skipped", "quarantine": "quarantined"}[policy]
    chat, words = ledger["stages"][0]["sources"]
    told = Counter(chat["reasons"])
    first_pass = Counter(planted.kinds.values())
    assert all(first_pass[kind] <= told[kind] <= 2 * first_pass[kind] for kind in {*first_pass, *told})
    assert chat[outcome] == sum(told.values()) > 0
    assert sum(own["trained"] + own["truncated"] for own in (chat, words)) == sum(seen.values())
    listed = {(one["source"], one["id"]): one["kind"] for one in ledger["quarantined"]}
    assert listed == (planted.kinds if policy == "quarantine" else {})


def test_the_first_bad_sample_stops_the_run_where_the_policy_is_fail(
    many: tuple[Path, Planted], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"chat\.jsonl:\d+|chat/\d+"):
        one_epoch(tmp_path, many[0], on_bad_sample="fail")


def test_more_bad_samples_than_allowed_stop_the_run_before_the_first_step(
    many: tuple[Path, Planted], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"of the first \d+ samples are bad, more than `max_bad: 0.02` allows.*jsonl:"):
        one_epoch(tmp_path, many[0], max_bad=0.02)
    assert not (tmp_path / "ledger.txt").exists()


def test_more_samples_without_supervision_than_allowed_stop_the_run_before_the_first_step(
    many: tuple[Path, Planted], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"have nothing to learn, more than `max_unsupervised: 0.003` allows"):
        one_epoch(tmp_path, many[0], max_unsupervised=0.003)
    assert not (tmp_path / "ledger.txt").exists()


def test_too_many_samples_lost_in_workers_stop_the_run_and_are_told(tmp_path: Path, monkeypatch: Any) -> None:
    data = tmp_path / "data"
    monkeypatch.setenv("LIT_MM_CACHE", str(tmp_path / "cache"))
    write(data, 40, 1)
    for number in range(40):  # whole headers, half the pixels: planning finds nothing
        file = data / f"{number}.jpg"
        if file.exists() and file.stat().st_size:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 + 200])
    with pytest.raises(UserError, match=r"samples are bad, more than `max_bad: 0\.25` allows"):
        one_epoch(tmp_path / "run", data, global_batch=2, micro_batch=2, max_bad=0.25)
    told = read_lines(tmp_path / "run" / "ledger.jsonl")
    assert sum(line["kind"] == "unreadable_image" for line in told) > 0.1 * 60


# --- files ------------------------------------------------------------------------------------------------------------
def test_lines_after_the_resumed_step_and_a_broken_last_one_are_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    line = {"stage": "a", "source": "b", "outcome": "skipped", "kind": "too_long", "count": 2}
    lines = [json.dumps({"step": step} | line) + "\n" for step in (1, 2, 3)]
    path.write_text("".join(lines) + '{"step"')
    take_back(path, 2)
    assert path.read_text() == "".join(lines[:2])
    assert os.listdir(tmp_path) == ["ledger.jsonl"]


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"7", b'{"step": 1}', b"\xff\xfe", b'{"step": "1", "stage": "a", "source": "b"}', b""]
)
def test_a_damaged_line_of_a_ledger_is_named_in_one_line(tmp_path: Path, line: bytes) -> None:
    whole = {"step": 1, "stage": "a", "source": "b", "outcome": "skipped", "kind": "too_long", "count": 2}
    file = tmp_path / "ledger.jsonl"
    file.write_bytes(json.dumps(whole).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=r"ledger.jsonl', line 2: .*Remove the line") as refusal:
        read_lines(file)
    assert "\n" not in str(refusal.value)
    file.write_bytes(json.dumps(whole).encode() + b"\n" + line)  # a kill cut it short
    assert read_lines(file) == [whole]


@pytest.mark.parametrize("text", ["", "[]", '{"stages": [{}]}', '{"stages": 3}', "{"])
def test_a_damaged_account_shows_before_the_first_step(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(UserError, match=r"ledger.json' is damaged"):
        run_recipe(xcomposer2(), [Stage("a", {"connector": Train(lr=1e-3)}, max_steps=1)], tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


class TwoSources(tiny_blip.Pages):
    """Pages of two sources."""

    def source(self) -> Joined:
        pages = super().source()
        return Joined([pages[:12], pages[12:]], ["web", "human"])


def test_objectives_that_compare_pairs_train_on_several_sources(tmp_path: Path) -> None:
    """Such objectives have no loss per source; the samples of each source are counted all the same."""
    run_recipe(tiny_blip.blip(), tiny_blip.stages(2)[:1], tmp_path, data_class=TwoSources)
    with (tmp_path / "sources.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["source"] for row in rows} == {"web", "human"}
    assert sum(int(row["trained"]) for row in rows) == 8  # two steps of four
    assert all((row["loss"], row["tokens"]) == ("nan", "0") for row in rows)
