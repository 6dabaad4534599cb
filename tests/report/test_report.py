from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from lit_mm.documents.document import Document, Turn
from lit_mm.evaluation.score import Prediction, Score, score
from lit_mm.evaluation.statistics import Interval
from lit_mm.report import curves, samples, summary, tables


@dataclass(frozen=True)
class Colour:
    color: tuple[int, int, int]
    width: int = 60
    height: int = 40

    def read(self) -> Image.Image:
        return Image.new("RGB", (self.width, self.height), self.color)


def prediction(skill: str, answer: str, *, correct: bool, pictures: tuple[Colour, ...]) -> Prediction:
    turns = (Turn("user", (*pictures, f"what is the {skill}?")), Turn("assistant", ("$7 & 50 %",)))
    return Prediction(Document(f"{skill}/{answer}", turns, skill=skill), answer, correct)


def metrics(steps: int) -> list[dict]:
    return [
        {
            "step": step,
            "stage": "pretrain" if step <= steps // 2 else "finetune",
            "loss": 4 * math.exp(-step / 10),
            "tokens": 100,
            "seconds": step * 0.5,
            "lr_connector": 1e-3 / step,
            "lr_vision": 0.0,
        }
        for step in range(1, steps + 1)
    ]


def share(image: Image.Image, color: tuple[int, int, int]) -> float:
    """Share of the pixels that have exactly one colour."""
    counts = {c: n for n, c in image.convert("RGB").getcolors(image.width * image.height)}
    return counts.get(color, 0) / (image.width * image.height)


# --- curves ----------------------------------------------------------------------------------------------------------
def test_curves_show_all_that_is_known(tmp_path: Path):
    accuracy = [
        {"step": s, "stage": "pretrain", "overall": s / 40, "read": s / 50, "count": s / 80} for s in (0, 10, 20)
    ]
    blind = Score(0.2, {"read": 0.1, "count": 0.3}, 10)
    curves.draw_curves(metrics(20), accuracy, blind, tmp_path / "curves.png")
    with_all = Image.open(tmp_path / "curves.png").convert("RGB")
    curves.draw_curves(metrics(20), [], None, tmp_path / "bare.png")
    bare = Image.open(tmp_path / "bare.png").convert("RGB")
    assert share(with_all, (0x44, 0x77, 0xAA)) > 0.001  # the loss
    assert share(with_all, (0x22, 0x22, 0x22)) > 3 * share(bare, (0x22, 0x22, 0x22))  # overall and the blind baseline
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_curves_of_a_run_that_has_hardly_begun_are_drawn(tmp_path: Path, steps: int):
    curves.draw_curves(metrics(steps), [], None, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 500


def test_smoothing_has_no_lag_and_keeps_a_line_a_line():
    assert curves.smooth([1.0, 2.0, 3.0, 4.0, 5.0], 1)[1:-1] == [2.0, 3.0, 4.0]
    assert curves.smooth([5.0, 5.0], 3) == [5.0, 5.0]
    assert curves.smooth([], 2) == []
    step = curves.smooth([0.0] * 10 + [1.0] * 10, 2)
    assert step[:8] == [0.0] * 8 and step[12:] == [1.0] * 8 and step[9] < 0.5 < step[10]


def test_every_line_has_its_own_colour_however_many_there_are():
    for count in (1, 6, 12, 30):
        assert len(set(curves.colours(count))) == count


# --- samples ---------------------------------------------------------------------------------------------------------
def test_samples_show_the_first_of_each_skill_with_answers_in_green_or_red(tmp_path: Path):
    teal, pink, never = (0, 128, 128), (255, 105, 180), (1, 2, 3)
    good = prediction("read", "$7 & 50 %", correct=True, pictures=(Colour(teal),))
    bad = prediction("count", "9", correct=False, pictures=(Colour(pink),))
    more = prediction("read", "late", correct=True, pictures=(Colour(never),))
    samples.draw_samples([good, bad, more], tmp_path / "samples.png", per_skill=1)
    sheet = Image.open(tmp_path / "samples.png")
    green, red = (0x1A, 0x7F, 0x37), (0xC1, 0x27, 0x2D)
    assert share(sheet, teal) > 0.05 and share(sheet, pink) > 0.05 and share(sheet, never) == 0
    assert share(sheet, green) > 0 and share(sheet, red) > 0
    samples.draw_samples([good], tmp_path / "good.png")
    assert share(Image.open(tmp_path / "good.png"), red) == 0


def test_a_story_shows_all_its_pages_and_a_long_one_still_fits(tmp_path: Path):
    colors = [(10 * i, 255 - 10 * i, 77) for i in range(9)]
    story = prediction("story", "x", correct=True, pictures=tuple(Colour(c) for c in colors))
    samples.draw_samples([story], tmp_path / "samples.png")
    sheet = Image.open(tmp_path / "samples.png")
    assert all(share(sheet, color) > 0.004 for color in colors)
    assert sheet.width == samples.SHEET + 2 * samples.MARGIN


def test_a_picture_keeps_its_aspect():
    assert samples.fit(Image.new("L", (100, 20))).size == (samples.PICTURE[1], round(samples.PICTURE[1] / 5))
    assert samples.fit(Image.new("RGB", (500, 2000))).size == (samples.PICTURE[0] // 4, samples.PICTURE[0])


@pytest.mark.parametrize("answer", ["", "x" * 400, "ein \u00df und \u4e2d", "one two " * 80])
def test_any_answer_can_be_drawn(tmp_path: Path, answer: str):
    samples.draw_samples([prediction("", answer, correct=False, pictures=())], tmp_path / "samples.png")
    assert Image.open(tmp_path / "samples.png").height > 100


def test_wrapped_lines_fit_and_what_is_cut_off_is_marked():
    font: ImageFont.FreeTypeFont = samples._font(20)
    lines = samples.wrap("a few words and " + "y" * 90, font, 200, most=20)
    assert all(font.getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == "afewwordsand" + "y" * 90
    cut = samples.wrap("y" * 900, font, 200, most=3)
    assert len(cut) == 3 and cut[-1].endswith("...")
    assert samples.wrap("", font, 200) == [""]


# --- table and summary -----------------------------------------------------------------------------------------------
def test_the_table_has_each_skill_beside_its_blind_baseline_and_count():
    predictions = [
        prediction("read", "a", correct=True, pictures=()),
        prediction("read", "b", correct=False, pictures=()),
        prediction("count", "c", correct=True, pictures=()),
    ]
    text = tables.accuracy_table(score(predictions), Score(0.125, {"read": 0.25, "count": 0.0}, 3), predictions)
    cells = [line.split() for line in text.splitlines()]
    assert ["skill", "accuracy", "blind", "n"] in cells
    assert ["read", "50.0", "%", "25.0", "%", "2"] in cells
    assert ["count", "100.0", "%", "0.0", "%", "1"] in cells
    assert ["overall", "66.7", "%", "12.5", "%", "3"] in cells
    assert "\x1b" not in text


def test_documents_without_a_skill_have_no_row_of_their_own():
    predictions = [prediction("", "a", correct=True, pictures=())]
    lines = tables.accuracy_table(score(predictions), Score(0.5, {"": 0.5}, 1), predictions).splitlines()
    assert [line.split() for line in lines if "100.0" in line] == [["overall", "100.0", "%", "50.0", "%", "1"]]
    assert sum("━" in line for line in lines) == 1  # a rule below the head, and none around an empty body


def test_names_with_colons_and_brackets_stay_as_they_are_in_tables():
    line = tables.RunLine("stvqa:monkey: [a]", "Family", "exact match", 50.0, Interval(25.0, 75.0), 12.5, 4)
    text = tables.run_table([line])
    assert "stvqa:monkey: [a]" in text
    assert text.splitlines()[-1 if text.splitlines()[-1].strip() else -2].split()[-6:] == [
        *("50.0", "25.0", "to", "75.0", "12.5", "4"),
    ]


def test_the_summary_has_its_keys_and_what_is_added(tmp_path: Path):
    written = summary.write_summary(
        tmp_path / "summary.json",
        accuracy=Score(0.5, {"read": 0.5}, 4),
        blind=Score(0.25, {"read": 0.25}, 4),
        seconds=12.5,
        seconds_to_first_step=2.5,
        peak_memory_mb=800.0,
        stages=summary.stage_summaries(metrics(4)),
        parameters=7,
    )
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored == written
    assert set(stored) == {
        "accuracy",
        "blind",
        "seconds",
        "seconds_to_first_step",
        "peak_memory_mb",
        "stages",
        "parameters",
    }
    assert stored["accuracy"] == {"overall": 0.5, "skills": {"read": 0.5}}
    assert stored["blind"] == {"overall": 0.25, "skills": {"read": 0.25}}


def test_stages_are_summed_up_from_their_rows():
    rows = metrics(4)
    assert summary.stage_summaries(rows) == [
        {
            "name": name,
            "steps": 2,
            "tokens": 200,
            "seconds": 1.0,
            "first_loss": rows[first]["loss"],
            "last_loss": rows[first + 1]["loss"],
        }
        for name, first in (("pretrain", 0), ("finetune", 2))
    ]


def test_importing_the_report_needs_neither_torch_nor_matplotlib():
    code = "import sys; from lit_mm.report import curves, samples, summary, tables; "
    code += "sys.exit(bool({'torch', 'matplotlib', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_the_throughput_of_a_stage_leaves_its_first_step_out() -> None:
    steps = [(9.0, 10, 0.1), (2.0, 30, 0.4), (1.0, 60, 0.1)]
    rows = [
        {"tokens": tokens, "visual_tokens": 2.0, "images": 1.0, "num_samples": 3.0, "step_seconds": seconds}
        | {"waste": 0.1, "token_imbalance": 0.2, "view_imbalance": 0.0, "data_wait": 0.3, "mfu": mfu}
        | {"peak_memory_mb": 100.0 * seconds}
        for seconds, tokens, mfu in steps
    ]
    throughput = summary.throughput_of(rows)
    assert (throughput["tokens_per_second"], throughput["samples_per_second"]) == (30.0, 2.0)
    assert (throughput["mfu"], throughput["data_wait"], throughput["peak_memory_mb"]) == (0.3, 0.2, 900.0)
    assert summary.throughput_of([row | {"mfu": float("nan")} for row in rows])["mfu"] is None
