"""This benchmark trains published recipes with few layers on a GPU and compares memory with the plan, and speeds.

    python benchmarks/gpu.py [--recipes xcomposer2 llava_1_5 llava_next] [--layers 4] [--strategies auto zero2 zero3]
                             [--checkpointing full none] [--steps 8] [--json FILE] [--KEY VALUE ...]

It takes the last stage of each recipe as published (widths, vocabulary, image size, learning rates, frozen parts) with
the first `--layers` blocks of the language model, without pretrained weights and with the nano tokenizer. It trains the
stage on random photographs and words through `python -m lit_mm fit`, on one device with two micro-batches per step.
The columns:

- held, GiB: memory allocated by torch at the start of the second step, gradients of the first step included; beside it
  the plan, without parameters that ZeRO-3 gathers temporarily;
- peak, GiB: peak memory of the steps after the first; beside it the whole plan, which has no activations;
- time: median time of a step, relative to the undivided model (`auto` with the same checkpointing, if it was run);
- matmul: rate of all products with weights, relative to the rate of one large bf16 matrix product, which is measured
  first. It counts 6 operations per element of the language model and token, and 6 or 2 per element of the vision
  encoder and patch; recomputation for activation checkpointing is not counted;
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
from pathlib import Path
from random import Random
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from PIL import Image

from lit_mm.commands.describe import aligned
from lit_mm.module import MultimodalModule
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
        self.held = self.operations = 0

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
        self.operations = max(self.operations, operations(pl_module, batch))
        if trainer.global_step < self.steps:
            return
        torch.cuda.synchronize()
        seconds = [after - before for before, after in zip(self.begun[1:], self.begun[2:], strict=False)]
        figures = {
            "held": self.held,
            "peak": torch.cuda.max_memory_allocated(),
            "seconds": statistics.median(seconds),
            "operations": self.operations * MICRO_BATCHES,
        }
        self.file.write_text(json.dumps(figures))
        sys.stdout.flush()
        os._exit(0)


def operations(module: MultimodalModule, batch: Batch) -> int:
    """Count the operations of products with weights, forward and backward, for a micro-batch."""
    parts = module.parts()

    def matrices(part: str) -> list[int]:
        shapes = [getattr(parameter, "ds_shape", parameter.shape) for parameter in parts[part].values()]
        return [shape.numel() for shape in shapes if len(shape) > 1]

    language = matrices("language")
    of_vision = 6 if "vision" in module.stage.train else 2
    patches = sum(len(group) * group.shape[-2] // 14 * (group.shape[-1] // 14) for group in batch.views.groups)
    # The input embedding, one of the two largest matrices, is looked up and not multiplied
    return 6 * batch.num_tokens * (sum(language) - max(language)) + of_vision * patches * sum(matrices("vision"))


def cut(recipe: Path, layers: int, folder: Path, meter: dict[str, Any]) -> dict[str, Any]:
    """Build the config of the last stage of a published recipe with few layers, on the photographs in a folder."""
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
        "class_path": "datamodules.conversations.Conversations",
        "init_args": {
            "path": str(folder / "data.jsonl"),
            "format": "llava",
            "global_batch": MICRO_BATCH * MICRO_BATCHES,
            "micro_batch": MICRO_BATCH,
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


def measure(recipe: str, strategy: str, checkpointing: str, chosen: argparse.Namespace, rest: list[str]) -> dict:
    """Plan one case, train it in a separate process, and return planned and measured figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder)
        meter = {"class_path": "benchmarks.gpu.Meter"}
        meter |= {"init_args": {"file": str(folder / "figures.json"), "steps": chosen.steps}}
        config = cut(Path(f"experiments/paper/{recipe}.yaml"), chosen.layers, folder, meter)
        for part in ("vision", "language"):
            config["model"]["init_args"][part]["init_args"]["activation_checkpointing"] = checkpointing
        config["trainer"]["strategy"] = strategy
        (folder / "cut.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "lit_mm"]
        recipe_of = ["--config", str(folder / "cut.yaml"), *rest]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
        plan = json.loads(run([*command, "describe", *recipe_of, "--format", "json"], environment))
        run([*command, "fit", *recipe_of, "--run_dir", str(folder / "run")], environment)
        figures = json.loads((folder / "figures.json").read_text())
        first = (folder / "run" / "metrics.csv").read_text().splitlines()[:2]
    loss = float(dict(zip(first[0].split(","), first[1].split(","), strict=True))["loss"])
    planned = plan["stages"][0]["memory"]["device"]
    lasting = planned["total"] - planned["gathered"]
    case = {"recipe": recipe, "strategy": strategy, "checkpointing": checkpointing, "loss": loss}
    return case | figures | {"planned_held": lasting, "planned_peak": planned["total"]}


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
    same = [c for c in cases if all(c[key] == case[key] for key in ("recipe", "checkpointing"))]
    undivided = [c["seconds"] for c in same if c["strategy"] == "auto"]
    return [
        f"{case['recipe']} {case['strategy']}",
        case["checkpointing"],
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
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps; the first is not measured")
    parser.add_argument("--json", type=Path, help="file that also gets the figures")
    chosen, rest = parser.parse_known_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py measures on a CUDA device, and torch finds none")
    rate = matmul_rate()
    torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    cases: list[dict[str, Any]] = []
    for recipe in chosen.recipes:
        for checkpointing in chosen.checkpointing:
            for strategy in chosen.strategies:
                cases.append(measure(recipe, strategy, checkpointing, chosen, rest))
                print(json.dumps(cases[-1]), flush=True)
    head = ["case", "checkpointing", "held", "planned", "peak", "planned", "time", "matmul", "loss"]
    print(aligned([head, *(row(case, cases, rate) for case in cases)]))
    if chosen.json:
        chosen.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "matmul": rate, "cases": cases}))


if __name__ == "__main__":
    main()
