"""Checkpoints are measured on benchmarks, compared, and an evaluation that was killed goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from lit_mm.checkpoints.manifest import find
from lit_mm.cli import main
from lit_mm.commands import benchmarks
from lit_mm.commands.examinations import ExaminedRun, compare, writable
from lit_mm.documents.examination import Score
from lit_mm.errors import UserError
from lit_mm.evaluation import answering
from lit_mm.evaluation.benchmarks.benchmark import FOLDER
from lit_mm.evaluation.measurement import Measurement
from lit_mm.evaluation.metrics import METRICS
from lit_mm.evaluation.statistics import Interval
from tests.command_line import run_command
from tests.commands.test_trained import conversations, recipe
from tests.evaluation.benchmarks.files import MAKERS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the runs a and b, and with benchmarks in data/."""
    place = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit_mm"])
        patch.chdir(place)
        conversations(place / "data/train.json", 6)
        conversations(place / "heldout/asked.json", 3)
        Path("tiny.yaml").write_text(yaml.safe_dump(recipe(), sort_keys=False))
        main(["fit", "--config", "tiny.yaml", "--run_dir", "runs/a"])
        shutil.copytree("runs/a", "runs/b")
        content = yaml.safe_load((FOLDER / "vsr.yaml").read_text())
        ours = content["procedures"][-1] | {"answering": "generation", "metric": "mmbench_circular"}
        ours.pop("candidates", None)
        split = next(iter(content["splits"].values()))
        Path("mine.yaml").write_text(yaml.safe_dump(content | {"splits": {"val": split}, "procedures": [ours]}))
        for name in ("textvqa", "vsr", "vizwiz", "flickr30k"):
            MAKERS[name](place / "files")
        shutil.move("files/vizwiz/val", "files/vizwiz/test")
        shutil.move("files/vizwiz/val.json", "files/vizwiz/test.json")
        yield place
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


@pytest.fixture
def command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """A command in the folder of the runs. Returns exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    monkeypatch.chdir(place)

    def typed(*arguments: str) -> tuple[int, str, str]:
        return run_command(capsys, *arguments)

    return typed


def test_a_run_is_measured_and_its_answers_are_computed_once(
    place: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate", "runs/a", "--benchmarks", "textvqa,vsr", "--data", "files", "--format", "json", "--blind")
    code, output, error = command(*words)
    assert code == 0, error
    text, spatial = json.loads(output)["benchmarks"]
    assert (text["benchmark"], text["split"], text["metric"]) == ("textvqa", "val", "textvqa_accuracy")
    assert text["questions"] == 5 and text["procedure"] == "ours" and text["blind"] is not None
    assert text["interval"][0] <= text["figure"] <= text["interval"][1]
    assert spatial["metric"] == "equality"
    assert text["prompt"]["mark"] == "ours" and "short-answer line" in text["prompt"]["source"]
    assert text["published"][0]["model"] == "XComposer2 7B"
    folder = Path(text["folder"])
    assert folder.is_relative_to(place / "runs/a/evaluations/textvqa-val")
    assert len((folder / "answers-0.jsonl").read_text().splitlines()) == 5
    assert json.loads((folder / "ours.json").read_text())["figure"] == text["figure"]
    with monkeypatch.context() as patch:
        patch.setattr(answering, "generated", lambda *_: pytest.fail("stored answers were computed again"))
        assert json.loads(command(*words)[1])["benchmarks"] == [text, spatial]
    (folder / "answers-0.jsonl").write_text((folder / "answers-0.jsonl").read_text()[:70])
    assert json.loads(command(*words)[1])["benchmarks"] == [text, spatial]


def test_averages_of_weights_are_measured_apart_and_refused_where_there_are_none(place: Path, command) -> None:
    words = ("evaluate", "runs/a", "--benchmarks", "textvqa", "--data", "files", "--averaged")
    code, _, error = command(*words)
    assert code == 2 and "has no averages of weights" in error
    checkpoint = find("runs/a")
    digests = {benchmarks.digest_of_weights(checkpoint, None, averaged=averaged) for averaged in (False, True)}
    assert len(digests) == 2


def test_the_table_has_interval_and_published_figure(command) -> None:
    code, output, error = command("evaluate", "runs/a", "--benchmarks", "textvqa", "--data", "files")
    assert code == 0, error
    assert "95 % interval" in output and "0.0 to" in output
    assert "XComposer2 7B 70.1 r" in " ".join(output.split())
    assert "No OCR words in the prompt" in output


def test_progress_is_printed_every_half_minute(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    clock = iter((0.0, 10.0, 30.0, 40.0, 70.0))
    monkeypatch.setattr(benchmarks.time, "monotonic", lambda: next(clock))
    progress = benchmarks.Progress("a: textvqa:val")
    for answered in (1, 2, 3, 4):
        progress(answered, 6)
    assert capsys.readouterr().err.splitlines() == [
        "lit_mm: a: textvqa:val, 2 of 6 batches, 1 minutes left",
        "lit_mm: a: textvqa:val, 4 of 6 batches, 1 minutes left",
    ]


def test_two_runs_are_compared(command) -> None:
    words = ("evaluate", "runs/a", "runs/b", "--benchmarks", "textvqa,vsr", "--data", "files")
    code, output, error = command(*words, "--format", "json")
    assert code == 0, error
    result = json.loads(output)
    assert len(result["benchmarks"]) == 4
    graded, binary = result["comparisons"]
    assert (graded["test"], binary["test"]) == ("paired bootstrap", "McNemar")
    assert graded["comparison"]["difference"] == 0 and binary["adjusted"] == 1
    assert graded["benchmark"] == "textvqa:val: b - a"
    assert "p by Holm" in command(*words)[1]


def test_runs_are_examined_by_one_command_and_compared(place: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("evaluate", "runs/a", "runs/b", "--batch_size", "1")
    code, output, error = command(*words, "--format", "json")
    assert code == 0, error
    result = json.loads(output)
    first, second = result["models"]
    assert (first["model"], first["family"], first["measure"]) == ("a", "XComposer2", "exact match")
    assert first["interval"][0] <= first["accuracy"]["overall"] <= first["interval"][1]
    assert second["accuracy"] == first["accuracy"] and second["documents"] == first["documents"] == 3
    (comparison,) = result["comparisons"]
    assert (comparison["benchmark"], comparison["test"], comparison["adjusted"]) == ("b - a", "McNemar", 1.0)
    assert len(list((place / "runs/a/evaluations/held_out").glob("*/answers-0.jsonl"))) == 2  # sighted and blind
    with monkeypatch.context() as patch:
        patch.setattr("lit_mm.evaluation.held_out.generated", lambda *_: pytest.fail("an answer was computed again"))
        table = command(*words)[1]
        assert "exact match" in table and "95 % interval" in table and "p by Holm" in table
        alone = json.loads(command("evaluate", "runs/a", "--batch_size", "1", "--format", "json")[1])
        assert alone == first


def test_runs_with_other_questions_are_not_compared(command) -> None:
    pages = ("--data", "{format: llava, path: data/train.json}", "--documents", "2")
    code, output, error = command("evaluate", "runs/a", "runs/b", *pages, "--format", "json")
    assert code == 0 and len(json.loads(output)["comparisons"]) == 1, error
    other = compare([examined("a", ("q", "r")), examined("b", ("q",)), examined("c", ("q",))])
    assert [contrast.benchmark for contrast in other[0]] == ["c - b"]
    assert other[1] and "comparable are: a | b, c." in other[1][0]


def examined(name: str, questions: tuple[str, ...]) -> ExaminedRun:
    """A run that answered questions rightly."""
    rates = Score(1.0, {}, len(questions))
    scores, groups = dict.fromkeys(questions, 1.0), {question: question for question in questions}
    measurement = Measurement("exact match", 100.0, Interval(100.0, 100.0), len(questions), {}, scores, groups)
    return ExaminedRun(name, f"runs/{name}", "Family", rates, rates, measurement)


def test_answers_are_not_stored_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert writable(tmp_path / "evaluations/a") == tmp_path / "evaluations/a"
    monkeypatch.setattr("lit_mm.commands.examinations.os.access", lambda *_: False)
    assert writable(tmp_path / "evaluations/a") is None
    assert f"'{tmp_path}' cannot be written" in capsys.readouterr().err


def test_another_procedure_can_be_chosen(command) -> None:
    words = ("evaluate", "runs/a", "--benchmarks", "textvqa", "--data", "files", "--format", "json")
    (line,) = json.loads(command(*words, "--procedure", "monkey")[1])["benchmarks"]
    assert (line["procedure"], line["metric"]) == ("monkey", "vqa_accuracy")
    assert line["prompt"]["mark"] == "v"
    assert "monkey, prompt v" in " ".join(command(*words[:-2], "--procedure", "monkey")[1].split())


def test_answers_that_are_not_public_are_written_for_the_server(command) -> None:
    words = ("evaluate", "runs/a", "--benchmarks", "vizwiz:test", "--data", "files")
    code, output, error = command(*words)
    assert code == 0, error
    assert "pending" in output and "the server takes" in output
    (line,) = json.loads(command(*words, "--format", "json")[1])["benchmarks"]
    entries = json.loads(Path(line["submission"]).read_text())
    assert [set(entry) for entry in entries] == [{"image", "answer"}] * 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--benchmarks", "textvqa"), "--benchmarks needs --data DIR"),
        (("--benchmarks", "textvqas", "--data", "files"), "Did you mean 'textvqa'"),
        (("--benchmarks", "textvqa:test", "--data", "files"), "has no split 'test'"),
        (("--benchmarks", "docvqa", "--data", "files"), "The layout under"),
        (("--benchmarks", "vqav2:test_dev", "--data", "files"), "the questions that the server of vqav2:test_dev"),
        (("--benchmarks", "flickr30k_retrieval", "--data", "none"), "dataset_flickr30k.json"),
        (("--benchmarks", "textvqa", "--data", "files", "--procedure", "x"), "has no procedure 'x'"),
        (("--benchmarks", "vizwiz:test", "--data", "files", "--documents", "2"), "Leave out --documents"),
        (("runs/a", "--benchmarks", "textvqa", "--data", "files"), "is given twice"),
        (("--benchmarks", "textvqa,textvqa:val", "--data", "files"), "names textvqa:val twice"),
        (("--benchmarks", "none.yaml", "--data", "files"), "the benchmark 'none.yaml' cannot be read"),
        (("--benchmarks", "mine.yaml", "--data", "files"), "mine:val: row '0' is multiple choice and needs"),
        (("--blind",), "need --benchmarks"),
        (("--benchmarks", "textvqa,flickr30k", "--data", "files"), "no tokenizer"),
        (("--difference", "1"), "needs at least two checkpoints to compare, got 1 and 1"),
        (("runs/b", "--difference", "0"), "--difference is above 0"),
    ],
)
def test_a_mistake_is_told_in_words(words: tuple[str, ...], message: str, command, monkeypatch) -> None:
    def missing() -> None:
        raise UserError("no tokenizer")

    monkeypatch.setitem(METRICS, "cider", replace(METRICS["cider"], check=missing))
    monkeypatch.setattr(benchmarks, "answer_questions", lambda *_, **__: pytest.fail("a question was asked"))
    code, _, error = command("evaluate", "runs/a", *words)
    assert code == 2 and message in error, error


def test_the_list_says_where_files_must_lie(command) -> None:
    code, output, _ = command("evaluate", "--list")
    assert code == 0
    assert "vqav2:test_dev, 107394 questions, answers at https://eval.ai" in output
    assert "DIR/vqav2/v2_OpenEnded_mscoco_test2015_questions.json" in output
    assert "DIR/coco/val2014/COCO_val2014_{image_id:012d}.jpg" in output
    assert "procedure llava (Llava15, LlavaNext, LlavaUHD): textvqa_accuracy" in output
    assert "hateful_memes" in output and "roc_auc, by candidates; prompt r: InstructBLIP appendix E" in output
    assert command("evaluate", "--list", "--benchmarks", "mme")[1].count("mme:all") == 1


@pytest.mark.distributed
def test_torchrun_shares_the_questions_out_and_prints_the_figures_of_one_process(place: Path, command) -> None:
    words = ("evaluate", "runs/b", "--benchmarks", "textvqa,vizwiz:test", "--data", "files", "--format", "json")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lit_mm")
    small = ("--batch_size", "2")
    root = str(Path(__file__).parents[2])
    finished = subprocess.run(
        [*launcher, *words, *small],
        cwd=place,
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    lines = json.loads(finished.stdout)["benchmarks"]
    folder = Path(lines[0]["folder"])
    assert sorted(path.name for path in folder.glob("answers-*")) == ["answers-0.jsonl", "answers-1.jsonl"]
    shutil.rmtree(folder)
    (alone, _) = json.loads(command(*words, *small)[1])["benchmarks"]
    assert alone == lines[0]
