"""This benchmark trains published recipes with few layers on a GPU and compares memory with the plan, and speeds.

    python benchmarks/gpu.py [--recipes xcomposer2 llava_1_5 llava_next] [--layers 4] [--strategies auto zero2 zero3]
                             [--checkpointing full none] [--compile off on] [--row-tokens 0 4096 16384] [--steps 8]
                             [--json FILE] [--KEY VALUE ...]

It takes the last stage of each recipe as published (widths, vocabulary, image size, learning rates, frozen parts) with
the first `--layers` blocks of the language model, without pretrained weights and with the nano tokenizer. It trains the
stage on random photographs and words through `python -m lit_mm fit`, on one device with two micro-batches per step: of
two samples each, or of one packed row of --row-tokens positions. The columns:

- held, GiB: memory allocated by torch at the start of the second step, gradients of the first step included; beside it
  the plan, without parameters that ZeRO-3 gathers temporarily;
- peak, GiB: peak memory of the steps after the first; beside it the whole plan, which has no activations;
- time: median time of a step, relative to the undivided model (`auto` with the same checkpointing, if it was run);
- MFU: operations of a step per second, relative to the rate of one large bf16 matrix product, which is measured first.
  Operations are those of `describe` and of the throughput in metrics.csv, see docs/planning.md;
- loss: loss of the first step, which should be equal in all rows up to bf16.

Unknown options are passed to `fit`. A run ends before it would write a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from PIL import Image

from lit_mm.commands.describe import aligned
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.module import MultimodalModule
from lit_mm.planning.row import Row
from lit_mm.planning.work import in_all, work_of
from lit_mm.samples.batch import Batch

GIB = 1 << 30
PHOTOGRAPHS, MICRO_BATCH, MICRO_BATCHES = 16, 2, 2
WORDS = ["what", "is", "the", "colour", "of", "this", "large", "red", "circle", "near", "page", "one", "two", "three"]


class Meter(L.Callback):
    """This callback measures steps on a GPU, writes the figures to a file, and ends the process after the last step.

    Args:
        file: path of the file for the figures.
        steps: number of optimizer steps; the first is not measured.
    """

    def __init__(self, file: str, steps: int) -> None:
        self.file, self.steps = Path(file), steps
        self.begun: list[float] = []
        self.held = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: MultimodalModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx % MICRO_BATCHES:
            return
        torch.cuda.synchronize()
        self.begun.append(time.perf_counter())
        if len(self.begun) == 2:
            self.held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: MultimodalModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step < self.steps:
            return
        torch.cuda.synchronize()
        seconds = [after - before for before, after in zip(self.begun[1:], self.begun[2:], strict=False)]
        figures = {
            "held": self.held,
            "peak": torch.cuda.max_memory_allocated(),
            "seconds": statistics.median(seconds),
        }
        self.file.write_text(json.dumps(figures))
        sys.stdout.flush()
        os._exit(0)


def operations(module: MultimodalModule, batch: Batch) -> float:
    """Operations of a micro-batch, forward and backward; a product of an addition and a multiplication counts two.

    Args:
        module: on the meta device, in a stage.
        batch: of any device.
    """
    objectives = [module.objectives[name] for name in module.weights_of_objectives(module.current_stage)]
    work = work_of(module.network, objectives)
    assert work is not None, "the model reads pixels alone"
    return in_all(work.operations(Row.of_batch(batch))).total


def operations_of(recipe: Path, steps: int) -> int:
    """Operations of an optimizer step of a cut recipe, the mean over its first steps."""
    with torch.device("meta"):
        cli = RecipeCLI(["--config", str(recipe), "--data.init_args.num_workers=0"], "fit")
    (stage,) = cli.stages
    data, module = cli.data_of(stage), cli.model
    module.begin(stage, total_steps=data.begin(module.processor_of(stage), stage, seed=cli.seed))
    batches = islice(data.train_dataloader(), steps * MICRO_BATCHES)
    return round(statistics.mean(operations(module, batch) for batch in batches) * MICRO_BATCHES)


def cut(recipe: Path, layers: int, folder: Path, meter: dict[str, Any], row_tokens: int = 0) -> dict[str, Any]:
    """The last stage of a published recipe with few layers, on the photographs in a folder.

    Args:
        row_tokens: positions of a packed row; 0: samples are not packed.
    """
    config = yaml.safe_load(recipe.read_text())
    model = config["model"]["init_args"]
    for part in ("vision", "language"):
        model[part]["init_args"]["weights"] = None
    model["language"]["init_args"]["layers"] = layers
    model["tokenizer"] = "nano"
    if config["model"]["class_path"].rpartition(".")[2] == "XComposer2":  # turn markers of the nano tokenizer
        model.setdefault("inputs", {})["prompt"] = {
            "class_path": "lit_mm.prompts.xcomposer2.XComposer2Prompt",
            "init_args": {"turn_start": "<|im_start|>", "turn_end": "<|im_end|>"},
        }
    stage = config["stages"][-1]
    config["stages"] = [{key: value for key, value in stage.items() if key not in ("data", "epochs")}]
    config["stages"][0]["max_steps"] = meter["init_args"]["steps"] + 1  # the process ends before the last checkpoint
    config["data"] = {
        "class_path": "lit_mm.datamodules.conversations.Conversations",
        "init_args": {
            "path": str(folder / "data.jsonl"),
            "format": "llava",
            "global_batch": MICRO_BATCHES * (1 if row_tokens else MICRO_BATCH),
            "micro_batch": 1 if row_tokens else MICRO_BATCH,
            "row_tokens": row_tokens or None,
            "num_workers": 2,
        },
    }
    config["trainer"] = {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed", "callbacks": [meter]}
    return config | {"track": False, "checkpoint_every": 10**6}


def photographs(folder: Path) -> None:
    """Write JPEGs of random pixels, and a .jsonl file of conversations about them with about 400 tokens each."""
    rng, noise = Random(0), np.random.default_rng(0)
    with (folder / "data.jsonl").open("w") as file:
        for number in range(PHOTOGRAPHS * 16):
            if number < PHOTOGRAPHS:
                pixels = noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((640, 480)).save(folder / f"{number}.jpg")
            answer = " ".join(rng.choices(WORDS, k=150))
            turns = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": answer}]
            entry = {"id": str(number), "image": f"{number % PHOTOGRAPHS}.jpg", "conversations": turns}
            file.write(json.dumps(entry) + "\n")


def measure(case: dict[str, Any], chosen: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """Plan one case, train it in a process of its own, and put the figures side by side.

    Args:
        case: recipe, strategy, checkpointing, compile and row_tokens.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder)
        meter = {"class_path": "benchmarks.gpu.Meter"}
        meter |= {"init_args": {"file": str(folder / "figures.json"), "steps": chosen.steps}}
        recipe = Path(f"experiments/paper/{case['recipe']}.yaml")
        config = cut(recipe, chosen.layers, folder, meter, case["row_tokens"])
        for part in ("vision", "language"):
            arguments = config["model"]["init_args"][part]["init_args"]
            arguments["activation_checkpointing"] = case["checkpointing"]
            arguments["compile"] = case["compile"] == "on"
        config["trainer"]["strategy"] = case["strategy"]
        (folder / "cut.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "lit_mm"]
        recipe_of = ["--config", str(folder / "cut.yaml"), *rest]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
        plan = json.loads(run([*command, "describe", *recipe_of, "--format", "json"], environment))
        run([*command, "fit", *recipe_of, "--run_dir", str(folder / "run")], environment)
        figures = json.loads((folder / "figures.json").read_text())
        figures["operations"] = operations_of(folder / "cut.yaml", chosen.steps)
        first = (folder / "run" / "metrics.csv").read_text().splitlines()[:2]
    loss = float(dict(zip(first[0].split(","), first[1].split(","), strict=True))["loss"])
    planned = plan["stages"][0]["memory"]["device"]
    lasting = planned["total"] - planned["gathered"]
    return case | figures | {"loss": loss, "planned_held": lasting, "planned_peak": planned["total"]}


def run(command: list[str], environment: dict[str, str]) -> str:
    """Run a command and return its standard output. If it fails, the benchmark ends with the end of its output."""
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        output = f"{process.stdout[-2000:]}{process.stderr[-4000:]}"
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{output}")
    return process.stdout


def matmul_rate(size: int = 8192, times: int = 20) -> float:
    """Measure the operations per second of one bf16 matrix product; the median of `times` runs."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)


def row(case: dict[str, Any], cases: list[dict[str, Any]], rate: float) -> list[str]:
    alike = ("recipe", "checkpointing", "compile", "row_tokens")
    same = [c for c in cases if all(c[key] == case[key] for key in alike)]
    undivided = [c["seconds"] for c in same if c["strategy"] == "auto"]
    return [
        f"{case['recipe']} {case['strategy']}",
        case["checkpointing"],
        case["compile"],
        str(case["row_tokens"] or "-"),
        *(f"{case[key] / GIB:.2f}" for key in ("held", "planned_held", "peak", "planned_peak")),
        f"{case['seconds'] / undivided[0]:.2f}" if undivided else "-",
        f"{case['operations'] / case['seconds'] / rate:.0%}",
        f"{case['loss']:.4f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["xcomposer2", "llava_1_5", "llava_next"])
    parser.add_argument("--layers", type=int, default=4, help="blocks of the language model")
    parser.add_argument("--strategies", nargs="+", default=["auto", "zero2", "zero3"])
    parser.add_argument("--checkpointing", nargs="+", choices=("full", "none"), default=["full", "none"])
    parser.add_argument("--compile", nargs="+", choices=("off", "on"), default=["off"], help="compiled layers")
    parser.add_argument("--row-tokens", nargs="+", type=int, default=[0], help="positions of a packed row; 0: unpacked")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps; the first is not measured")
    parser.add_argument("--json", type=Path, help="file that also gets the figures")
    chosen, rest = parser.parse_known_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py measures on a CUDA device, and torch finds none")
    rate = matmul_rate()
    torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    cases: list[dict[str, Any]] = []
    names = ("recipe", "row_tokens", "compile", "checkpointing", "strategy")
    choices = (chosen.recipes, chosen.row_tokens, chosen.compile, chosen.checkpointing, chosen.strategies)
    for values in product(*choices):
        cases.append(measure(dict(zip(names, values, strict=True)), chosen, rest))
        print(json.dumps(cases[-1]), flush=True)
    head = ["case", "checkpointing", "compile", "row", "held", "planned", "peak", "planned", "time", "MFU", "loss"]
    print(aligned([head, *(row(case, cases, rate) for case in cases)]))
    if chosen.json:
        chosen.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "matmul": rate, "cases": cases}))


if __name__ == "__main__":
    main()
