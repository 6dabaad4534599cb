"""This program launches a tiny recipe that dies at chosen moments: `python -m tests.kills JOBS.json`.

Jobs run one after another, each in a process forked before torch starts a thread, so imports are done once. It prints
one exit status per line, as `os.waitstatus_to_exitcode` gives it (-9 after a kill).
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_mm.callbacks import early_end, steps
from lit_mm.callbacks.freeze_audit import FreezeAudit
from lit_mm.callbacks.learning import Learning
from lit_mm.callbacks.throughput import Throughput
from lit_mm.checkpoints import writing
from lit_mm.cli import main as command_line
from lit_mm.commands import fit  # noqa: F401 - imported once, before the forks
from lit_mm.distributed.shares import share_of
from lit_mm.distributed.zero import ZeRO
from lit_mm.evaluation.examiners import examine
from lit_mm.model import MultimodalModel
from lit_mm.module import MultimodalModule
from lit_mm.prompts.xcomposer2 import XComposer2Prompt
from lit_mm.run.determinism import use_deterministic_algorithms
from lit_mm.samples.batch import Batch
from lit_mm.samples.inputs import Inputs
from lit_mm.stages import Cosine
from lit_mm.stages.adapter import Adapter
from lit_mm.stages.stage import Stage, Start, Train
from tests import text_only, tiny_blip, tiny_blip2
from tests.faulty import FaultyMixture
from tests.preloaded import Program
from tests.tiny import PARTS, PROMPT, run_recipe, stages, xcomposer2

# Of a checkpoint: weights, moments, state, config, manifest, its folder, published; the folder it lies in
FSYNCS = 7

PATIENCE = 300  # seconds for a launch, on a machine that does much else

KILL = "LIT_MM_TESTS_KILL_AT"

OF_BLIP = ("pairs", "pretrain", "captions", "retrieval", "matching")  # recipes of BLIP
HARDEST = ("pretrain", "retrieval", "matching", "queries", "exact queries")  # recipes whose negatives are not drawn


@dataclass(frozen=True)
class Launch:
    """One launch of the command.

    Attributes:
        folder: run folder. A launch in the folder of a killed one resumes it.
        workers, micro_batch: arguments of the data module.
        ranks: number of processes, joined by gloo.
        config: a recipe for the real command line, in place of the tiny one that runs inside the process. Its callbacks
            must include `tests.kills.Kill`; it saves every two steps.
        faulty: folder of a mixture with bad samples (`tests.faulty`), in place of the plain documents.
        policy: further arguments of the data module of that mixture.
        dropout: dropout of the partial LoRA.
        strategy: a registered name, or arguments of `lit_mm.distributed.zero.ZeRO`.
        accelerator: accelerator of the Trainer.
        recipe: "two" or "three" stages; "inputs", in which the inputs of a stage change; "branches", in which two
            stages start from the end of one; "unread", in which the first stage does not read the language model and
            the second does; "adapters", in which the second of three stages trains an adapter on the language model,
            which is merged then; "thaw", in which the vision encoder thaws after two steps; "muon"; "average", in which
            the second stage starts from the averages of the first; "pairs", BLIP's three stages; or "captions", the
            captioner of BLIP alone.
            The recipe "queries" is BLIP-2's first stage with the hardest negatives in place of drawn ones; "exact
            queries" leaves out the contrast, whose gradient depends on the split. "matching" is the matching of BLIP's
            retrieval model alone, with the hardest negatives. "cogvlm" and "cogagent" are their stages with a frozen
            language model; each rank writes the differences of `tests.text_only.TextLogits`. "pretrain" and "retrieval"
            are these stages of BLIP alone, with the hardest negatives.
        adapter: type of the adapter of the recipe "adapters".
        lr: peak learning rate of every part.
        base: file with the initial weights of the language model.
        meddle: a fault to inject. "plant" puts a frozen parameter into the optimizer; "touch" changes a frozen
            parameter after the first step; "full" fills the disk of the last rank before the second checkpoint; "stray"
            changes BLIP's queue on the last rank alone.
        keep: number of checkpoints to keep.
        throughput: if True, metrics.csv has the figures of the throughput, and learning.csv the norms of every step.
        examine: if True, held-out documents are answered at the end of every stage and written to answers.json.
        fails: text expected on standard error if the launch must fail.
        kill: moment of the `kill -9`: "pretrain step 3" (after the optimizer has stepped, before anything is written),
            "finetune start", "pretrain end" (before the last checkpoint of the stage), "fsync 4" (the fourth fsync of
            the run; a checkpoint has `FSYNCS`, the last one after it is published), or "tick 40" (the fortieth tick of
            the rank `victim`; ticks are starts and ends of micro-batches and of calls that write). "" never kills.
        victim: rank that "tick" kills.
        late: if True, figures of a step are read one step later, as on a GPU.
        alone: if True, the other ranks are not killed with the first one, and have to end by themselves.
    """

    folder: str
    workers: int = 0
    micro_batch: int = 2
    dropout: float = 0.1
    kill: str = ""
    victim: int = 0
    alone: bool = False
    late: bool = False
    ranks: int = 1
    config: str = ""
    faulty: str = ""
    policy: dict[str, Any] = field(default_factory=dict)
    steps: int = 5
    strategy: str | dict[str, Any] = ""
    accelerator: str = "cpu"
    precision: str = "32-true"
    recipe: str = "two"
    adapter: str = "lora"
    lr: float = 1e-2
    base: str = ""
    meddle: str = ""
    keep: int = 2
    fails: str = ""
    examine: bool = False
    throughput: bool = False


def launch_all(launches: list[Launch], folder: Path) -> None:
    """Run the launches in order in one program.

    It fails if a launch ends otherwise than expected, or if a loader worker outlives a killed trainer.
    """
    jobs, said = folder / "jobs.json", folder / "stderr.txt"
    jobs.write_text(json.dumps([asdict(launch) for launch in launches]))
    out = folder / "stdout.txt"
    program = Program(["-m", "tests.kills", str(jobs)], cwd=folder, stdout=out, stderr=said)
    try:
        assert not program.wait(PATIENCE * len(launches)), said.read_text()[-4000:]
    finally:
        orphans = outlives(program.pid, seconds=20)
    codes = [int(line) for line in out.read_text().split()]
    wrong = [job for job, code in zip(launches, codes, strict=True) if code != ending(job)]
    text = said.read_text()
    assert not wrong, f"{codes}: {wrong}\n{text[-4000:]}"
    unsaid = [job.fails for job in launches if job.fails not in text]
    assert not unsaid, f"{unsaid} was not said:\n{text[-4000:]}"
    assert not orphans, "a worker outlived its trainer"


def ending(launch: Launch) -> int:
    return -signal.SIGKILL if launch.kill else int(bool(launch.fails))


def outlives(group: int, seconds: float) -> bool:
    """True if a process of the group still exists after a while; it is then killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return True


class Kill(L.Callback):
    """This callback kills its process at the moment in the environment; a resumed run must not change its config."""

    def _die(self, module: MultimodalModule, place: str) -> None:
        if f"{module.stage.name} {place}" == os.environ[KILL]:
            kill()

    def on_train_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._die(pl_module, "start")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: MultimodalModule, *_: object) -> None:
        self._die(pl_module, f"step {trainer.global_step}")

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        self._die(pl_module, "end")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_fsync(number: int) -> None:
    left = iter(range(number - 1, -1, -1))

    def fsync(descriptor: int) -> None:
        if next(left) == 0:
            kill()
        os.fsync(descriptor)

    writing.os = SimpleNamespace(**vars(os) | {"fsync": fsync})


class Ticks(L.Callback):
    """A counter that kills the process at its n-th tick."""

    def __init__(self, number: int) -> None:
        self.left = number
        calls = {name: self.around(getattr(os, name)) for name in ("fsync", "rename")}
        writing.os = SimpleNamespace(**vars(os) | calls)
        writing.save_file = self.around(writing.save_file)

    def tick(self) -> None:
        self.left -= 1
        if not self.left:
            kill()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> None:
            self.tick()
            call(*arguments)
            self.tick()

        return counted

    def on_train_batch_start(self, *_: object) -> None:
        self.tick()

    def on_train_batch_end(self, *_: object) -> None:
        self.tick()


class Touch(L.Callback):
    """This callback changes a frozen parameter after the first step."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: MultimodalModule, *_: object) -> None:
        if trainer.global_step == 1 and pl_module.stage.name == "pretrain":
            share_of(next(iter(pl_module.parts()["language"].values()))).data += 1


class Stray(L.Callback):
    """Changes BLIP's queue on the last rank before the first step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        if trainer.global_rank == trainer.world_size - 1:
            pl_module.network.queue.image += 1


class Examine(L.Callback):
    """Writes the answers to held-out documents at the end of every stage: stage -> answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, list[str]] = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: MultimodalModule) -> None:
        examination = examine(pl_module, trainer.datamodule.heldout(5), batch_size=2)
        self.answers[pl_module.stage.name] = [prediction.answer for prediction in examination.predictions]
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.answers))


def fill_disk(write: Callable[..., Any] = writing.save_file) -> None:
    """Make every write fail from the third file on, which belongs to the second checkpoint."""
    left = iter([write, write])

    def full(*arguments: Any) -> None:
        next(left, no_space)(*arguments)

    writing.save_file = full


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def plant(module: MultimodalModule) -> None:
    """Put a parameter of the frozen language model into the optimizer of the first stage."""
    configure = module.configure_optimizers

    def planted() -> dict[str, Any]:
        made = configure()
        made["optimizer"].param_groups[0]["params"].append(next(iter(module.parts()["language"].values())))
        return made

    module.configure_optimizers = planted


class Sight:
    """Keeps visual tokens near one: it reads no language model."""

    unit, parts = "tokens", frozenset({"vision", "connector"})

    def __call__(self, model: MultimodalModel, batch: Batch) -> Tensor:
        if batch.views is None:
            return 0 * sum(p.sum() for part in (model.vision, model.connector) for p in part.parameters())
        return (model.bank(batch.views) - 1).square().sum()


def recipe_of(launch: Launch) -> list[Stage]:
    everything = {part: Train(lr=launch.lr) for part in PARTS}
    if launch.recipe == "thaw":
        return [Stage("thaw", everything | {"vision": Train(lr=launch.lr, from_step=2)}, max_steps=launch.steps)]
    if launch.recipe == "muon":
        return [Stage("muon", {"language": Train(lr=launch.lr, optimizer="muon")}, max_steps=launch.steps)]
    if launch.recipe == "unread":
        sight = {part: everything[part] for part in ("vision", "connector")}
        return [
            Stage("align", sight, max_steps=launch.steps, objectives={"sight": 1.0}),
            Stage("finetune", everything, max_steps=launch.steps),
        ]
    if launch.recipe == "inputs":
        swapped = XComposer2Prompt(PROMPT.turn_end, PROMPT.turn_start)
        return [Stage("phases", everything, max_steps=launch.steps, inputs_from={2: Inputs(prompt=swapped)})]
    if launch.recipe == "pairs":
        return tiny_blip.stages(steps=launch.steps)
    if launch.recipe in ("queries", "exact queries"):
        (first, *_) = tiny_blip2.stages(steps=launch.steps)
        inexact = {"itc", "contrast"} if launch.recipe == "exact queries" else set()
        weights = {name: weight for name, weight in first.objectives.items() if name not in inexact}
        train = {part: Train(lr=launch.lr) for part in first.train if part not in inexact}
        return [replace(first, train=train, objectives=weights)]
    if launch.recipe in ("pretrain", "retrieval"):
        (alone,) = (stage for stage in tiny_blip.stages(steps=launch.steps) if stage.name == launch.recipe)
        return [replace(alone, starts_from=None)]
    if launch.recipe == "matching":
        (retrieval,) = (stage for stage in tiny_blip.stages(steps=launch.steps) if stage.name == "retrieval")
        train = {part: Train(lr=launch.lr) for part in retrieval.train if part != "contrast"}
        return [replace(retrieval, train=train, objectives={"itm_finetune": 1.0}, starts_from=None)]
    if launch.recipe in text_only.BUILDERS:
        return text_only.stages(launch.recipe, steps=launch.steps)
    if launch.recipe == "captions":
        (captioner,) = (stage for stage in tiny_blip.stages(steps=launch.steps) if stage.name == "caption")
        return [captioner]
    if launch.recipe == "branches":
        trunk, branch = stages(steps=launch.steps)
        return [trunk, replace(branch, name="wide"), replace(branch, name="deep", starts_from="pretrain")]
    if launch.recipe == "average":
        decays = {"connector": 0.5, "partial_lora": 0.9, "vision": 0.7}
        averaged = {part: replace(everything[part], average=decay) for part, decay in decays.items()}
        averaged["vision"].from_step = 2
        return [
            Stage("pretrain", averaged, max_steps=launch.steps),
            Stage("finetune", everything, max_steps=launch.steps, starts_from=Start("pretrain", averaged=True)),
        ]
    if launch.recipe == "three":
        learning = {"align": PARTS[1:3], "pretrain": PARTS[:3], "finetune": PARTS}
        return [
            Stage(name, {part: everything[part] for part in parts}, max_steps=launch.steps, schedule=Cosine(0.3))
            for name, parts in learning.items()
        ]
    if launch.recipe == "adapters":
        adapter = Adapter(type=launch.adapter, rank=2, after="merge")
        trains = [
            {"connector": everything["connector"]},
            {"connector": everything["connector"], "language": replace(everything["language"], adapter=adapter)},
            {"connector": everything["connector"], "partial_lora": everything["partial_lora"]},
        ]
        return [
            Stage(name, train, max_steps=launch.steps, schedule=Cosine(0.3))
            for name, train in zip(("align", "tune", "rest"), trains, strict=True)
        ]
    return stages(steps=launch.steps)


def measuring(launch: Launch) -> list[L.Callback]:
    """Callbacks that measure every step, if the launch has them."""
    return [Throughput(always=True), Learning(1, Path(launch.folder) / "learning.csv")] if launch.throughput else []


def run(launch: Launch, rank: int) -> None:
    torch.set_num_threads(1)
    use_deterministic_algorithms()
    os.environ[KILL] = launch.kill
    if launch.late:
        steps.reads_late = lambda trainer: True
        early_end.may_log = lambda callback: False  # the callbacks here read no figures
    if launch.kill.startswith("fsync"):
        kill_at_fsync(int(launch.kill.split()[1]))
    if launch.config:
        command_line(arguments_of(launch))
        return
    callbacks: list[L.Callback] = [FreezeAudit(), Kill(), *measuring(launch)]
    if launch.examine:
        callbacks.append(Examine(Path(launch.folder) / "answers.json"))
    if launch.kill.startswith("tick") and rank == launch.victim:
        callbacks.append(Ticks(int(launch.kill.split()[1])))
    options: dict[str, Any] = {"num_workers": launch.workers, "micro_batch": launch.micro_batch}
    if launch.faulty:
        options |= {"data_class": FaultyMixture, "place": launch.faulty} | launch.policy
    module = xcomposer2(dropout=launch.dropout)
    if launch.recipe in HARDEST:
        torch.multinomial = lambda weights, _: weights.argmax(dim=1, keepdim=True)
    if launch.recipe in OF_BLIP:
        module = tiny_blip.blip(dropout=launch.dropout)
        options |= {"data_class": tiny_blip.Pages, "micro_batch": None}
        callbacks.append(tiny_blip.Buffers(Path(launch.folder)))
    if launch.recipe in ("queries", "exact queries"):
        module = tiny_blip2.blip2()
        options |= {"data_class": tiny_blip.Pages, "micro_batch": None}
    if launch.recipe in text_only.BUILDERS:
        module = text_only.build(launch.recipe)
        callbacks.append(text_only.TextLogits(module, Path(launch.folder) / "text.json"))
    if launch.recipe == "unread":
        module.objectives["sight"] = Sight()
    if launch.base:
        module.network.language.weights = f"llama:{launch.base}"
    if launch.meddle == "plant":
        plant(module)
    elif launch.meddle == "touch":
        callbacks.append(Touch())
    elif launch.meddle == "stray":
        callbacks.append(Stray())
    elif launch.meddle == "full" and rank == launch.ranks - 1:
        fill_disk()
    strategy = launch.strategy or None
    run_recipe(
        module,
        recipe_of(launch),
        Path(launch.folder),
        callbacks=callbacks,
        every=2,
        ranks=launch.ranks,
        strategy=partial(ZeRO, **strategy) if isinstance(strategy, dict) else strategy,
        precision=launch.precision,
        accelerator=launch.accelerator,
        keep=launch.keep,
        **options,
    )


def arguments_of(launch: Launch) -> list[str]:
    """Command line of a launch."""
    options = {
        "config": launch.config,
        "run_dir": launch.folder,
        "checkpoint_every": 2,
        "track": "false",
        "data.init_args.num_workers": launch.workers,
        "data.init_args.micro_batch": launch.micro_batch,
        "trainer.accelerator": "cpu",
        "trainer.devices": launch.ranks,
        "trainer.strategy": launch.strategy or ("ddp" if launch.ranks > 1 else "auto"),
    }
    return ["fit", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def main(jobs: str) -> None:
    launches = [Launch(**job) for job in json.loads(Path(jobs).read_text())]
    if any(launch.strategy for launch in launches):
        with redirect_stdout(sys.stderr):  # the exit codes have it for themselves
            import deepspeed  # noqa: F401  once, before the forks
    for launch in launches:
        sys.stdout.flush()
        port = free_port()
        left = {start(launch, rank, port) for rank in range(launch.ranks)}
        codes = []
        while left:
            child, status = os.waitpid(-1, 0)
            left.remove(child)
            codes.append(os.waitstatus_to_exitcode(status))
            # A job ends as a whole; of a mistake each rank must learn by itself
            if codes[-1] and not launch.fails and not launch.alone:
                for other in left:
                    os.kill(other, signal.SIGKILL if codes[-1] < 0 else signal.SIGTERM)
        # A rank that waits for one that was killed a moment before ends by an error of its own
        print(-signal.SIGKILL if codes[0] < 0 or (launch.kill and -signal.SIGKILL in codes) else max(codes))


def start(launch: Launch, rank: int, port: int) -> int:
    """Run one process of a launch."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(2, 1)  # what a run prints is not an exit code
        if launch.ranks > 1:  # what torchrun sets
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "kills"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.environ |= {"WORLD_SIZE": str(launch.ranks), "LOCAL_WORLD_SIZE": str(launch.ranks)}
        run(launch, rank)
        sys.stderr.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main(sys.argv[1])
