"""Every nano recipe, one test for all families: train, save, resume, ask with no, one and two images, decode.

Another test evaluates the runs of all recipes by one command.

The models have the sizes of their recipes; only steps and data are cut. Recipes are found by their place, so a new
family is tested as soon as its recipe is there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lit_mm.callbacks.metrics_csv import read_metrics
from lit_mm.checkpoints import manifest, reading
from lit_mm.cli import main
from lit_mm.commands.trained import open_model
from lit_mm.documents.document import Document, Turn
from lit_mm.inference.decoding import Decoding
from lit_mm.inference.generate import decode, prompt_sample
from lit_mm.module import MultimodalModule
from lit_mm.samples.collate import collate
from lit_mm.samples.processor import TEXT, Sample
from tests.tiny import Noise

pytestmark = pytest.mark.usefixtures("place")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ELSEWHERE = ("own_data", "demo", "modern")  # they need a user's data, packages or published weights
RECIPES = [path.stem for path in sorted(EXPERIMENTS.glob("*.yaml")) if path.stem not in ELSEWHERE]
COUNTS = {"documents": 40, "heldout_documents": 9, "count": 40}  # keys that say how many documents there are
REFUSED = {
    "blip": (0, 2),
    "blip2": (0,),
    "minigpt4": (0,),
}  # recipe -> numbers of images that its family refuses in a sample


def cut(value: Any) -> Any:
    """Cut the numbers of documents in a part of a config."""
    if isinstance(value, list):
        return [cut(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {key: min(entry, COUNTS[key]) if key in COUNTS else cut(entry) for key, entry in value.items()}


def short(recipe: str) -> dict[str, Any]:
    """A recipe with two steps in every stage, and few documents."""
    config = yaml.safe_load((EXPERIMENTS / f"{recipe}.yaml").read_text())
    for stage in config["stages"]:
        stage.pop("epochs", None)
        stage["max_steps"] = 2
        if "inputs_from" in stage:
            stage["inputs_from"] = {1: next(iter(stage["inputs_from"].values()))}
        for train in stage["train"].values():
            train["from_step"] = min(train.get("from_step", 0), 1)
        stage["data"] = cut(stage.get("data", {}))
    config["data"] = cut(config["data"])
    return config | {"track": False, "examine_documents": 4, "examine_every": 0, "checkpoint_every": 1}


def exit_code(words: list[str]) -> int:
    try:
        return main(words) or 0
    except SystemExit as ended:
        return int(ended.code or 0)


def weights(run: str) -> dict[str, torch.Tensor]:
    return reading.read(manifest.find(run)).weights()


@torch.no_grad()
def without_cache(module: MultimodalModule, sample: Sample, tokens: int) -> list[int]:
    """Decode greedily with a whole forward for every token, which is appended to the prompt as text."""
    new: list[int] = []
    for _ in range(tokens):
        hidden, _ = module.network.begin(collate([sample], module.processor.for_questions()))
        new.append(int(module.network.language.logits(hidden)[0].argmax()))
        sample = replace(
            sample,
            input_ids=np.append(sample.input_ids, new[-1]),
            labels=np.append(sample.labels, -100),
            index=np.append(sample.index, TEXT),
        )
    return new


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_family_trains_saves_resumes_and_answers(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = short(recipe)
    Path("short.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    fit = ["fit", "--config", "short.yaml", "--run_dir", "run"]
    assert main(fit) in (0, None)
    rows = read_metrics("run/metrics.csv")
    assert [row["stage"] for row in rows] == [stage["name"] for stage in config["stages"] for _ in range(2)]
    unbroken = weights("run")

    shutil.rmtree(manifest.find("run"))  # as if the last step had not been finished
    assert main(fit) in (0, None)
    assert [row["loss"] for row in read_metrics("run/metrics.csv")] == [row["loss"] for row in rows]
    resumed = weights("run")
    assert resumed.keys() == unbroken.keys() and all(resumed[name].equal(unbroken[name]) for name in unbroken)

    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (90 + 40 * number, 60), colour).save(f"{number}.png")
    for images in range(3):
        shown = [word for number in range(images) for word in ("--image", f"{number}.png")]
        capsys.readouterr()
        code = exit_code(["generate", "run", *shown, "--question", "what is there?", "--max_new_tokens", "2"])
        out, err = capsys.readouterr()
        if images in REFUSED.get(recipe, ()):
            assert code == 2 and "picture" in err and err.count("\n") == 1
        else:
            assert code == 0 and out.endswith("\n"), err

    module = open_model("run").eval()
    assert all(parameter.ndim for parameter in module.parameters()), "FSDP2 and DeepSpeed refuse a shape of []"
    documents = [
        Document(str(images), (Turn("user", (*(Noise(number, 40, 60) for number in range(images)), "what?")),))
        for images in range(3)
        if images not in REFUSED.get(recipe, ())
    ]
    samples = [prompt_sample(module.processor, document) for document in documents]
    batch = collate(samples, module.processor.for_questions())
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        cached = decode(module.network.float(), batch, stop_ids=(), decoding=Decoding(4))
        assert cached == [without_cache(module, sample, 4) for sample in samples]
        beams = decode(module.network, batch, stop_ids=(), decoding=Decoding(4, beams=2))
    assert [len(row) for row in beams] == [4] * len(documents)


def evaluation(runs: list[str]) -> subprocess.Popen[str]:
    """Start the evaluation of runs in a process of its own."""
    words = [sys.executable, "-m", "lit_mm", "evaluate", *runs, "--documents", "2", "--batch_size", "1"]
    environment = os.environ | {"PYTHONPATH": str(EXPERIMENTS.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*words, "--format", "json"], env=environment, stdout=subprocess.PIPE, text=True)


def stored_answers() -> dict[Path, list[str]]:
    """File -> complete lines of the answers of all runs."""
    files = [file for recipe in RECIPES for file in Path("runs", recipe).glob("evaluations/held_out/*/answers-0.jsonl")]
    return {file: file.read_text().split("\n")[:-1] for file in files}


@pytest.mark.slow
def test_all_families_are_evaluated_by_one_command_that_goes_on_after_a_kill() -> None:
    for recipe in RECIPES:
        Path("short.yaml").write_text(yaml.safe_dump(short(recipe) | {"examine_documents": 2}, sort_keys=False))
        assert main(["fit", "--config", "short.yaml", "--run_dir", f"runs/{recipe}"]) in (0, None)
    runs = [f"runs/{recipe}" for recipe in RECIPES]

    process = evaluation(runs)
    while process.poll() is None and len(stored_answers()) < len(RECIPES):  # half of two files a run
        time.sleep(0.1)
    process.kill()
    process.communicate()
    before = stored_answers()
    assert process.returncode == -9 and len(RECIPES) <= len(before) < 2 * len(RECIPES)

    resumed, _ = evaluation(runs).communicate()
    after = stored_answers()
    assert len(after) == 2 * len(RECIPES)
    assert all(after[file][: len(lines)] == lines for file, lines in before.items())
    for lines in after.values():
        names = [json.loads(line)["id"] for line in lines]
        assert len(set(names)) == len(names)  # nothing was asked twice

    for run in runs:
        shutil.rmtree(f"{run}/evaluations")
    unbroken, _ = evaluation(runs).communicate()
    assert json.loads(unbroken) == json.loads(resumed)
    models = json.loads(unbroken)["models"]
    assert [model["model"] for model in models] == RECIPES
    assert len({model["family"] for model in models}) >= 15
    measures = {model["model"]: model["measure"] for model in models}
    assert {name for name, measure in measures.items() if measure == "recall@1"} == {"blip", "blip2"}
    assert set(measures.values()) == {"recall@1", "exact match"}
    for model in models:
        assert 0 <= model["interval"][0] <= model["accuracy"]["overall"] <= model["interval"][1] <= 1
