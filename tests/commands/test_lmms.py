"""lmms-eval asks a checkpoint the questions of its tasks, and its score is that of our answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lit_mm.inference.decoding import Decoding
from tests.test_cli import ROOT, TINY

MISSING = find_spec("lmms_eval") is None or not entry_points(group="lmms_eval.models", name="lit_mm")
TASK = """
task: nano_pages
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 12, until: ["\\n\\n"], temperature: 0, do_sample: false, num_beams: 1}}
process_results: !function utils.process
metric_list:
  - {{metric: first_letter, aggregation: mean, higher_is_better: true}}
metadata: [{{version: 0.1}}]
"""
UTILS = """
def visual(doc):
    return [doc["image"].convert("RGB")]


def process(doc, results):
    return {"first_letter": float(results[0][:1] == doc["answer"][:1])}
"""
ASK = """
import json, os, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

scores = {}
for kind in ("chat", "simple"):
    manager = TaskManager("ERROR", include_path="tasks", model_name="lit_mm")
    result = simple_evaluate(
        model="lit_mm", model_args="checkpoint=run,accelerator=cpu", tasks=["nano_pages"], task_manager=manager,
        batch_size=4, device="cpu", log_samples=True, force_simple=kind == "simple", bootstrap_iters=10,
        distributed_executor_backend=sys.argv[1],
    )
    if result is not None:
        samples = sorted(result["samples"]["nano_pages"], key=lambda sample: sample["doc_id"])
        texts = [sample["filtered_resps"][0] for sample in samples]
        scores[kind] = (result["results"]["nano_pages"]["first_letter,none"], texts)
if int(os.environ.get("RANK", "0")) == 0:
    json.dump(scores, open("scores.json", "w"))
"""
OURS = """
import json
from lit_mm.commands.trained import open_model
from lit_mm.datamodules.nano import NanoDocuments
from lit_mm.inference.generate import answer

pages = NanoDocuments(documents=8, global_batch=2).heldout(40)
documents = [document for document in pages if len(document.pictures) == 1][:7]
answers = answer(open_model("run", accelerator="cpu"), documents, max_new_tokens=12)
json.dump([[d.question, text] for d, text in zip(documents, answers)], open("ours.json", "w"))
import os
os.makedirs("pictures")
for number, document in enumerate(documents):
    document.pictures[0].read().save(f"pictures/{number}.png")
"""


@pytest.mark.parametrize(
    ("arguments", "decoding", "until"),
    [
        ({}, Decoding(1024), ()),
        ({"max_new_tokens": 5, "until": "\n", "temperature": 0, "do_sample": True}, Decoding(5), ("\n",)),
        ({"do_sample": False, "temperature": 1.0, "top_p": None, "num_beams": 3}, Decoding(1024, beams=3), ()),
        (
            {"do_sample": True, "temperature": 0.2, "top_p": 0.9, "until": ["a", "b"]},
            Decoding(1024, sample=True, temperature=0.2, top_p=0.9, seed=7),
            ("a", "b"),
        ),
    ],
)
def test_the_generation_arguments_of_a_task_become_settings_of_decoding(arguments, decoding, until) -> None:
    pytest.importorskip("lmms_eval")
    from lit_mm.commands.lmms import settings_of

    assert settings_of(arguments, seed=7) == (decoding, until)


def test_generation_arguments_that_are_not_read_cause_a_warning() -> None:
    pytest.importorskip("lmms_eval")
    from lit_mm.commands.lmms import settings_of

    with pytest.warns(UserWarning, match="image_aspect_ratio"):
        settings_of({"image_aspect_ratio": "original"}, seed=0)


def write_task(folder: Path, questions: list[list[str]]) -> None:
    """Write the task with a parquet of its pictures; every second target is our answer."""
    rows = []
    for number, (question, text) in enumerate(questions):
        image = {"bytes": (folder / f"pictures/{number}.png").read_bytes(), "path": None}
        rows.append({"image": image, "question": question, "answer": text if number % 2 else "\x00"})
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image_type), ("question", pa.string()), ("answer", pa.string())])
    text_feature = {"dtype": "string", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "question": text_feature, "answer": text_feature}
    table = pa.Table.from_pylist(rows, schema=schema)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "nano.parquet")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "nano_pages.yaml").write_text(TASK.format(data=folder / "nano.parquet"))
    (folder / "tasks" / "utils.py").write_text(UTILS)


@pytest.mark.slow
@pytest.mark.skipif(MISSING, reason="needs lmms-eval and lit_mm's entry point, see constraints/lmms-eval.txt")
def test_lmms_eval_gets_our_answers_and_our_score(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"track": False, "examine_documents": 2}))
    run("-m", "lit_mm", "fit", "--config", "tiny.yaml", "--run_dir", "run")
    run("-c", OURS)
    questions = json.loads((tmp_path / "ours.json").read_text())
    write_task(tmp_path, questions)
    (tmp_path / "ask.py").write_text(ASK)
    for launcher, backend in (((), "accelerate"), (("-m", "torch.distributed.run", "--nproc_per_node=2"), "torchrun")):
        run(*launcher, "ask.py", backend)
        scores = json.loads((tmp_path / "scores.json").read_text())
        for score, texts in scores.values():
            assert texts == [text for _, text in questions]
            assert score == pytest.approx(sum(number % 2 for number in range(len(questions))) / len(questions))
        assert set(scores) == {"chat", "simple"}
