"""Every recipe parses, the published one has the published size, and the nano one runs on the real command line."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lit_mm.callbacks.throughput import Throughput
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.nano.skills import SKILLS
from lit_mm.stages.stage import check_recipe
from tests.command_line import run_command
from tests.options.recording import recording, unread_keys

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
CONFIGS = sorted(path for path in EXPERIMENTS.rglob("*.yaml") if path.parent.name != "sweeps")
POST_NORM = (
    2 * 1024
)  # parameters of CLIP's last layer norm, which the release's features never pass and ours leaves out


def parse(*configs: Path) -> RecipeCLI:
    """Build the model of a recipe on the meta device, which needs no memory. Returns the recipe and the model."""
    with torch.device("meta"):
        return RecipeCLI([word for path in configs for word in ("--config", str(path))], "fit")


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns about arguments that are pytest's."""
    monkeypatch.setattr(sys, "argv", ["lit_mm"])


# --- every recipe ----------------------------------------------------------------------------------------------------
def is_overlay(path: Path) -> bool:
    return path.parent.name == "overlays"


def source_names(cli: RecipeCLI) -> set[str]:
    """Names of the data's sources, which `inputs.by_source` may name."""
    return set(re.findall(r"^\W*name: (\S+)", yaml.safe_dump(cli.config.data.as_dict()), re.MULTILINE))


# Published recipes are also parsed and planned where tests/parity compares them with published integers
ALWAYS = ("blip2_t5", "cogagent", "instructblip_vicuna", "llava_next", "mini_gemini", "xcomposer2_4khd")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.parent.name == "paper" and path.stem not in ALWAYS else ())
        for path in CONFIGS
    ],
    ids=[str(path.relative_to(EXPERIMENTS)) for path in CONFIGS],
)
def test_the_recipe_parses_and_its_stages_fit_its_model_and_its_data(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording(monkeypatch) as mappings:
        cli = parse(EXPERIMENTS / "xcomposer2.yaml", path) if is_overlay(path) else parse(path)
        assert cli.stages
        check_recipe(cli.stages, cli.model.parts(), cli.model.objectives)
        assert all(parameter.dim() for parameter in cli.model.parameters())  # sharding takes no scalars
        for stage in cli.stages:
            assert type(cli.data_of(stage)) is type(cli.datamodule)
            for name, processor in itertools.product(source_names(cli), cli.model.processors_of(stage).values()):
                processor.tiling_of(name)
    assert unread_keys(mappings) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_the_recipe_says_how_to_run_it(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("lit_mm fit --config " in line and f"--config {path.relative_to(ROOT)}" in line for line in header)


def test_the_published_xcomposer2_has_the_published_number_of_parameters() -> None:
    golden = json.loads((ROOT / "tests/golden/xcomposer_qwen_monkey_params.json").read_text())
    published = golden["counts"]["xcomposer2_vl_7b_490"]
    parts = parse(EXPERIMENTS / "paper/xcomposer2.yaml").model.parts()
    count = {part: sum(p.numel() for p in parameters.values()) for part, parameters in parts.items()}
    assert count == {
        "language": published["llm"],
        "partial_lora": published["plora"],
        "vision": published["clip_vit_l"] - POST_NORM,
        "connector": published["vision_proj"],
    }
    assert sum(count.values()) == published["total"] - POST_NORM


# --- one recipe through the real command line ------------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """A finished tiny run."""

    place: Path  # where the command was typed
    folder: Path
    arguments: tuple[str, ...]
    output: str

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open() as file:
            return list(csv.DictReader(file))


def tiny(path: Path) -> dict:
    """A nano recipe with the same model, stages and data, but few and small steps, from random weights."""
    config = yaml.safe_load(path.read_text())
    model = config["model"]["init_args"]
    model["vision"]["init_args"].update(image_size=28, width=16, layers=1, heads=2, weights=None)
    model["language"]["init_args"].update(width=16, layers=1, heads=2, kv_heads=1, ffn_width=32, weights=None)
    model.update(image_size=28, rank=2)
    config["data"]["init_args"].update(documents=12, global_batch=2, window=8, heldout_documents=18)
    for stage in config["stages"]:
        stage["max_steps"] = 2
    return config | {"track": False, "examine_documents": 9, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run experiments/xcomposer2.yaml, made tiny, as a user does: in a separate process, in an empty folder."""
    place = tmp_path_factory.mktemp("smoke")
    (place / "tiny.yaml").write_text(yaml.safe_dump(tiny(EXPERIMENTS / "xcomposer2.yaml"), sort_keys=False))
    arguments = ("fit", "--config", "tiny.yaml", "--run_dir", "runs/smoke")
    done = subprocess.run(
        [sys.executable, "-m", "lit_mm", *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return Run(place, place / "runs/smoke", arguments, done.stdout)


@pytest.fixture
def command(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable]:
    """Run another command in the same folder. Returns exit code, standard output and standard error."""
    monkeypatch.chdir(run.place)

    def typed(*arguments: str) -> tuple[int, str, str]:
        return run_command(capsys, *arguments)

    yield typed
    latest = run.place / "runs/latest"  # each test finds it as the fixture's run left it
    latest.unlink()
    latest.symlink_to(run.folder, target_is_directory=True)
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


def test_a_run_leaves_its_figures_pictures_and_checkpoints(run: Run) -> None:
    for name in ("config.yaml", "metrics.csv", "accuracy.csv", "summary.json", "curves.png", "samples.png"):
        assert (run.folder / name).stat().st_size > 0, name
    for name in ("curves.png", "samples.png"):
        with Image.open(run.folder / name) as picture:
            assert min(picture.size) > 100
    kept = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert kept == ["02-finetune-step=000001.ckpt", "02-finetune-step=000002.ckpt"]
    assert (run.place / "runs/latest").resolve() == run.folder.resolve()
    assert "everything is in runs/smoke" in run.output


def test_the_metrics_have_a_row_for_each_step_of_each_stage(run: Run) -> None:
    rows = run.rows("metrics.csv")
    rates = [f"lr_{part}" for part in ("connector", "language", "partial_lora", "vision")]
    assert list(rows[0]) == ["step", "stage", "loss", "tokens", "samples", "seconds", *rates, *Throughput.figure_names]
    assert [(row["step"], row["stage"]) for row in rows] == [
        ("1", "pretrain"),
        ("2", "pretrain"),
        ("3", "finetune"),
        ("4", "finetune"),
    ]
    assert all(3 < float(row["loss"]) < 10 for row in rows)  # ln 512 = 6.2: a random model guesses among 512 tokens
    assert all(int(row["tokens"]) > 0 for row in rows)
    assert [float(row["lr_language"]) > 0 for row in rows] == [False, False, True, True]


def test_the_accuracy_is_examined_at_the_start_and_at_each_stage_end(run: Run) -> None:
    rows = run.rows("accuracy.csv")
    assert list(rows[0]) == ["step", "stage", "overall", *SKILLS]
    assert [(row["step"], row["stage"]) for row in rows] == [("0", "pretrain"), ("2", "pretrain"), ("4", "finetune")]


def test_the_summary_has_sighted_and_blind_accuracy_time_and_memory(run: Run) -> None:
    summary = json.loads((run.folder / "summary.json").read_text())
    assert {"accuracy", "blind", "seconds", "seconds_to_first_step", "peak_memory_mb", "stages"} <= summary.keys()
    for score in (summary["accuracy"], summary["blind"]):
        assert 0 <= score["overall"] <= 1
        assert list(score["skills"]) == list(SKILLS)
    assert 0 < summary["seconds_to_first_step"] < summary["seconds"]
    assert summary["peak_memory_mb"] > 100
    assert len(summary["stages"]) == 2


def test_the_progress_bar_can_be_switched_off(run: Run, command: Callable) -> None:
    assert "pretrain 1/2: 2 optimizer steps" in run.output and "tokens/s" in run.output
    options = ("--stages", "pretrain", "--run_dir", "runs/quiet", "--trainer.enable_progress_bar", "false")
    code, output, errors = command("fit", "--config", "tiny.yaml", *options)
    assert code == 0, errors
    assert "everything is in runs/quiet" in output
    assert "optimizer steps" not in output and "tokens/s" not in output


def test_the_kept_config_is_complete_and_leaves_out_the_launch(run: Run) -> None:
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["vision"]["init_args"]["mlp_ratio"] == 4.0  # a default, filled in
    assert not {"config", "run_dir", "init_from"} & config.keys()


def test_evaluate_prints_json_for_a_run_folder(command: Callable) -> None:
    code, output, _ = command("evaluate", "runs/smoke", "--documents", "9", "--format", "json")
    assert code == 0
    result = json.loads(output)
    assert result["documents"] == 9
    assert Path(result["checkpoint"]).name == "02-finetune-step=000002.ckpt"
    for score in (result["accuracy"], result["blind"]):
        assert 0 <= score["overall"] <= 1
        assert list(score["skills"]) == list(SKILLS)


def test_evaluate_finds_the_latest_run_and_prints_a_table(command: Callable) -> None:
    code, output, _ = command("evaluate", "--documents", "9")
    assert code == 0
    for skill in SKILLS:
        assert f" {skill} " in output


def test_generate_answers_about_an_image(run: Run, command: Callable) -> None:
    Image.new("RGB", (40, 30), "red").save(run.place / "page.png")
    question = ("--question", "what?", "--max_new_tokens", "4")
    code, output, _ = command("generate", "runs/latest", "--image", "page.png", *question)
    assert code == 0
    assert output.endswith("\n")
    checkpoint = str(run.folder / "checkpoints/02-finetune-step=000002.ckpt")
    assert command("generate", checkpoint, "--image", "page.png", *question)[1] == output  # greedy: the same again


def test_evaluate_refuses_a_config_of_another_family(command: Callable) -> None:
    code, _, error = command(
        "evaluate", "runs/smoke", "--config", str(EXPERIMENTS / "backbones/language.yaml"), "--documents", "9"
    )
    assert code == 2
    assert "is a checkpoint of lit_mm.families.XComposer2" in error
    assert "lit_mm.nano.typed.TypedPages" in error
    assert len(error.strip().splitlines()) <= 3


def test_evaluate_refuses_a_config_of_another_size(command: Callable) -> None:
    code, _, error = command("evaluate", "runs/smoke", "--config", str(EXPERIMENTS / "xcomposer2.yaml"))
    assert code == 2
    assert "does not fit this model" in error


def test_the_same_command_again_resumes_and_changes_neither_losses_nor_the_time_of_the_run(
    run: Run, command: Callable
) -> None:
    before, summary = (run.folder / "metrics.csv").read_text(), json.loads((run.folder / "summary.json").read_text())
    assert command(*run.arguments)[0] == 0
    assert (run.folder / "metrics.csv").read_text() == before
    assert json.loads((run.folder / "summary.json").read_text())["seconds"] == summary["seconds"]


def test_a_run_that_lost_its_last_step_makes_it_again(run: Run, command: Callable) -> None:
    before = [row["loss"] for row in run.rows("metrics.csv")]
    shutil.copytree(run.folder, run.place / "runs/cut")
    shutil.rmtree(run.place / "runs/cut/checkpoints/02-finetune-step=000002.ckpt")
    assert command("fit", "--config", "tiny.yaml", "--run_dir", "runs/cut")[0] == 0
    resumed = Run(run.place, run.place / "runs/cut", (), "")
    assert [float(row["loss"]) for row in resumed.rows("metrics.csv")] == pytest.approx([float(x) for x in before])


def test_another_config_in_the_same_run_folder_is_refused(run: Run, command: Callable) -> None:
    before = (run.folder / "metrics.csv").read_text()
    code, _, error = command(*run.arguments, "--data.init_args.global_batch", "4")
    assert code == 2
    assert "which differs in data.init_args.global_batch (2 there, 4 here). Resume with the same config" in error
    assert (run.folder / "metrics.csv").read_text() == before


def test_picked_stages_run_alone_from_given_weights(run: Run, command: Callable) -> None:
    picked = ("--stages", "finetune", "--init_from", "runs/smoke", "--run_dir", "runs/picked")
    assert command("fit", "--config", "tiny.yaml", *picked)[0] == 0
    rows = Run(run.place, run.place / "runs/picked", (), "").rows("metrics.csv")
    assert [(row["step"], row["stage"]) for row in rows] == [("1", "finetune"), ("2", "finetune")]
