"""The study of the data engines goes on with the same choices alone, and its parts end with it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.engines import agree, recipe, verdict, write_pages
from lit_mm.errors import UserError
from lit_mm.evaluation.statistics import Comparison, Interval

CHOICES = {"pages": 30, "steps": 2}
ROOT = Path(__file__).parents[2]


def test_a_study_with_other_choices_is_refused(tmp_path: Path) -> None:
    agree(tmp_path, CHOICES)
    agree(tmp_path, CHOICES)
    with pytest.raises(UserError, match="holds a study with --steps 2"):
        agree(tmp_path, CHOICES | {"steps": 3})


def test_planted_noise_is_written_once_and_belongs_to_other_pages(tmp_path: Path) -> None:
    noisy = write_pages(tmp_path / "web", 6, first=0, noise=0.5, seed=0)
    true = write_pages(tmp_path / "true", 6, first=0, noise=0.0, seed=0)
    assert 0 < sum(noisy) < 6 and not any(true)
    captions = [
        [json.loads(line)["caption"] for line in (tmp_path / name / "metadata.jsonl").read_text().splitlines()]
        for name in ("web", "true")
    ]
    assert [caption != original for caption, original in zip(*captions, strict=True)] == noisy
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "web").iterdir()}
    assert write_pages(tmp_path / "web", 6, first=0, noise=0.5, seed=0) == noisy
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "web").iterdir()} == before


def test_steps_are_cut_in_all_stages() -> None:
    human = {"name": "human", "format": "folder", "path": "/human"}
    stages = recipe([human], human, 4, finetunes=True)["stages"]
    assert [stage["max_steps"] for stage in stages] == [4, 1, 1]
    assert len(recipe([human], human, 4, finetunes=False)["stages"]) == 1


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(0.01, 0.2, "shown"), (-0.1, 0.2, "not shown"), (-0.2, -0.1, "not shown: it is the other way round")],
)
def test_a_claim_shows_if_its_interval_is_above_zero(low: float, high: float, text: str) -> None:
    assert verdict(Comparison(0.0, Interval(low, high), 0.5)) == text


@pytest.mark.distributed
@pytest.mark.skipif(sys.platform != "linux", reason="a child dies with its parent on Linux alone")
def test_a_killed_study_leaves_no_part_at_work(tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    child = f"import time\nwhile True:\n    open({str(beats)!r}, 'a').write('.')\n    time.sleep(0.05)"
    program = f"from benchmarks.engines import command\ncommand({child!r}, program=({sys.executable!r}, '-c'))"
    study = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while not beats.exists():
        assert study.poll() is None
        time.sleep(0.05)
    study.kill()
    study.wait()
    time.sleep(0.2)
    size = beats.stat().st_size
    time.sleep(0.5)
    assert beats.stat().st_size == size
