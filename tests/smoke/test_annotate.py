"""A tiny BLIP is trained for some steps, and CapFilt and Monkey's engine run with its checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from lit_mm.cli import main
from lit_mm.nano.world import caption_document

RECIPE = Path(__file__).parents[2] / "experiments/blip.yaml"
PAGES = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained run and pages with captions."""
    place = tmp_path_factory.mktemp("annotate")
    config = yaml.safe_load(RECIPE.read_text())
    model = config["model"]["init_args"]
    model["vision"]["init_args"].update(image_size=28, width=16, layers=1, heads=2, weights=None)
    model["text"]["init_args"].update(vision_width=16, width=16, layers=1, heads=2, ffn_width=24)
    model.update(width=8, queue_size=8, candidates=4)
    config["data"]["init_args"].update(documents=8, global_batch=4, window=8, heldout_documents=2, num_workers=0)
    for stage in config["stages"]:
        stage["max_steps"] = 1
    config |= {"track": False, "examine_documents": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lit_mm"])
        patch.chdir(place)
        Path("tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        assert main(["fit", "--config", "tiny.yaml", "--run_dir", "run"]) in (0, None)
        Path("pages").mkdir()
        entries = []
        for number in range(PAGES):
            document = caption_document(number, split="train", seed=0, skill="form")
            document.pictures[0].read().save(f"pages/{number}.png")
            entries.append({"image": f"{number}.png", "caption": document.answer})
        Path("pages/metadata.jsonl").write_text("\n".join(map(json.dumps, entries)))
        yield place
    torch.use_deterministic_algorithms(False)  # `fit` switches it on for its process


def test_capfilt_writes_sets_that_training_reads(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "--engine.init_args"
    words = ["--source", "{name: web, format: folder, path: pages}", f"{key}.threshold", "0.0"]
    words += [f"{key}.{expert}.init_args.checkpoint" for expert in ("captioner",)] + ["run"]
    words += [f"{key}.filter.init_args.checkpoint", "run"]
    assert main(["annotate", "--config", "capfilt", "--out", "filtered", *words]) in (0, None)
    ledger = json.loads(Path("filtered/ledger.json").read_text())
    assert ledger["subsets"] == {"web": PAGES, "synthetic": PAGES, "human": 0}
    plan = json.loads(Path("filtered/engine.json").read_text())
    weights = {expert["weights"] for expert in plan["experts"].values()}
    assert len(weights) == 2  # two stages of one run
    for subset in ("web", "synthetic"):
        source = f"{{name: {subset}, format: captions, path: 'filtered/{subset}-*.tar'}}"
        assert main(["data", "check", "--source", source]) in (0, None)


def test_monkey_runs_with_nano_experts(place: Path) -> None:
    captions = {"class_path": "lit_mm.annotation.checkpoints.CheckpointCaptions"}
    captions["init_args"] = {"checkpoint": "run", "stage": "caption", "decoding": {"max_new_tokens": 8}}
    regions = {"class_path": "lit_mm.annotation.checkpoints.CheckpointRegions"}
    regions["init_args"] = {"checkpoint": "run", "stage": "caption", "decoding": {"max_new_tokens": 8}}
    regions["init_args"]["form"] = {"class_path": "lit_mm.annotation.checkpoints.BracketRegions"}
    scores = {"class_path": "lit_mm.annotation.checkpoints.MatchScores"}
    scores["init_args"] = {"checkpoint": "run", "stage": "retrieval"}
    merge = {"class_path": "lit_mm.annotation.language_models.Template"}
    arguments = {"overall": captions, "regions": regions, "score": scores, "merge": merge}
    engine = {"class_path": "lit_mm.annotation.monkey.Monkey", "init_args": arguments}
    Path("monkey.yaml").write_text(yaml.safe_dump({"engine": engine, "sources": [{"name": "pages", "path": "pages"}]}))
    assert main(["annotate", "--config", "monkey.yaml", "--out", "described"]) in (0, None)
    ledger = json.loads(Path("described/ledger.json").read_text())
    assert ledger["rows"]["pages"]["annotated"] == PAGES
    assert ledger["texts"]["overall"]["texts"] == PAGES
    assert Path("described/page.html").is_file()
