"""`fit` runs a recipe's stages in order. The same command resumes an interrupted run."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import lightning as L

from lit_mm.callbacks.checkpointing import Checkpointing
from lit_mm.callbacks.early_end import EarlyEnd
from lit_mm.callbacks.examination import Examination, accuracy_at, read_accuracy
from lit_mm.callbacks.figures import StageFigures, score_by
from lit_mm.callbacks.finite_loss import FiniteLoss
from lit_mm.callbacks.freeze_audit import FreezeAudit
from lit_mm.callbacks.interruption import Interruption
from lit_mm.callbacks.latest import LatestLink
from lit_mm.callbacks.learning import Learning
from lit_mm.callbacks.ledger import DataLedger
from lit_mm.callbacks.memory_trim import MemoryTrim
from lit_mm.callbacks.metrics_csv import MetricsCSV, read_metrics
from lit_mm.callbacks.progress import StageProgress
from lit_mm.callbacks.throughput import Throughput
from lit_mm.callbacks.tracking import (
    RunLogger,
    Tracking,
    check_mode,
    finish,
    log_examples,
    sync_command,
    tracking_logger,
)
from lit_mm.callbacks.watchdog import Watchdog
from lit_mm.checkpoints import reading
from lit_mm.commands.examined import measures_of
from lit_mm.commands.recipe import RecipeCLI, experiment_name, quiet
from lit_mm.commands.results import read_summary
from lit_mm.documents.document import Document
from lit_mm.evaluation.examiners import examine
from lit_mm.evaluation.score import of_each_skill
from lit_mm.module import MultimodalModule, family_of
from lit_mm.report.curves import draw_curves
from lit_mm.report.samples import draw_samples
from lit_mm.report.summary import stage_summaries, write_summary
from lit_mm.report.tables import accuracy_table
from lit_mm.run.agreement import agree
from lit_mm.run.determinism import use_deterministic_algorithms
from lit_mm.run.folder import LAUNCHED, RunFolder, check_run_dir, peak_memory_mb
from lit_mm.run.interruption import Interrupted, requeue, say
from lit_mm.run.lock import FolderLock
from lit_mm.run.lost_rank import lost_rank_named
from lit_mm.run.lost_worker import lost_worker_named
from lit_mm.run.origin import check_start, recorded_origin, starting_point
from lit_mm.run.stages import run_stages
from lit_mm.stages.adapter import fates
from lit_mm.stages.stage import Stage, adapters_of, best_figure, branches, lasting_ends


def fit(arguments: Sequence[str]) -> None:
    """Train stage after stage, then examine on held-out documents beside the blind baseline, and draw the result."""
    quiet()
    use_deterministic_algorithms()
    cli = RecipeCLI(arguments, "fit", data_first=True)
    if cli.config.track:
        check_mode(os.environ)
    check_run_dir(cli.config.run_dir)
    init_from, record = cli.config.init_from, recorded_origin(cli.config.run_dir)
    if record is not None and (not init_from or os.path.realpath(init_from) == os.path.realpath(cli.config.run_dir)):
        init_from, cli.config.init_from = None, record["checkpoint"]  # `runs/latest` is this run by now
    cli.check_stages()
    names = [stage.name for stage in cli.config_init.stages]
    check_start([stage.name for stage in cli.stages], names, cli.config.run_dir, cli.config.init_from)
    launch = cli.trainer_of([], [])
    folder = RunFolder.open(cli.config.run_dir, experiment_name(arguments), launch)
    with FolderLock(folder.path, take_over=cli.config.take_over) if launch.is_global_zero else nullcontext():
        train(arguments, cli, folder, launch, init_from)


def train(
    arguments: Sequence[str], cli: RecipeCLI, folder: RunFolder, launch: L.Trainer, init_from: str | None
) -> None:
    """Run the stages in a run folder that no other job uses.

    Args:
        arguments: the words of the command line, for the command that resumes.
        cli: the recipe.
        launch: a Trainer that knows rank and number of ranks; it does not train.
        init_from: run folder or checkpoint that the command line names.
    """
    module, stages, experiment = cli.model, cli.stages, experiment_name(arguments)
    config = module.config_text = cli.resolved()
    if launch.is_global_zero:
        folder.keep_config(config)
    if start := agree(launch, "init_from", partial(starting_point, folder, init_from)):
        reading.load_weights(module, reading.read(Path(start)), family_of(module), module.parts_read(stages[0]))
        module.end_adapters(fates(module.adapters, adapters_of(stages)[stages[0].name]))
    module.save_frozen = cli.config.save_frozen

    tracked = cli.config.track and launch.is_global_zero
    logger = tracking_logger(folder.path, experiment, config) if tracked else None
    if logger is not None:
        logger.open()
    watchdog, best = Watchdog(cli.config.step_timeout), best_figure(stages)
    observers: list[L.Callback] = [
        watchdog,
        *measuring(cli, stages, folder, tracked=logger is not None),
        EarlyEnd(folder.path),
        LatestLink(folder.point_latest),
    ]
    checkpointing = Checkpointing(
        folder.checkpoints,
        cli.config.checkpoint_every,
        cli.config.keep_checkpoints,
        score_by(folder.path / "figures.csv", best) if best else partial(accuracy_at, folder.path / "accuracy.csv"),
        lasting_ends(stages),
    )
    interruption = Interruption(checkpointing, cli.time_limit)
    observers += [checkpointing, interruption]  # in this order and last, see their docstrings
    with interruption, resumable(arguments, folder), lost_rank_named(module), lost_worker_named(module):
        data = run_stages(
            module,
            stages,
            folder,
            data_of=cli.data_of,
            trainer_of=partial(cli.trainer_of, observers, [logger] if logger else []),
            seed=cli.seed,
            pretrained=not start,
            other_data=cli.config.other_data,
        )
        if launch.is_global_zero:
            folder.point_latest()  # no stage of a finished run has moved the link
        documents = data.heldout(cli.config.examine_documents if cli.rehearsal else None)
        if documents:
            with watchdog.watching(module, "examining the trained model"):
                table = next(observer for observer in observers if isinstance(observer, MetricsCSV))
                conclude(module, documents, folder, logger, branches(stages), table.run_seconds)
    if module.trainer.is_global_zero and not cli.rehearsal:  # a rehearsal keeps no folder
        print(next_steps(folder, documents, logger, lasting_ends(stages) - {stages[-1].name}))


def measuring(cli: RecipeCLI, stages: Sequence[Stage], folder: RunFolder, *, tracked: bool) -> list[L.Callback]:
    """Build the callbacks that measure a run and write its tables, in their order.

    Args:
        cli: the recipe.
        stages: stages to run.
        folder: run folder.
        tracked: True adds the callback of W&B.
    """
    every, documents = cli.config.examine_every, cli.config.examine_documents
    observers: list[L.Callback] = [
        FiniteLoss(),
        # Lightning refuses this progress bar if `enable_progress_bar` is False
        *([] if cli.config.trainer.enable_progress_bar is False else [StageProgress(stages)]),
        Throughput(),
        FreezeAudit(),
        MetricsCSV(folder.path / "metrics.csv", LAUNCHED),
        DataLedger(folder.path),
        MemoryTrim(),
    ]
    if cli.datamodule.heldout(1):
        observers.append(Examination(every, documents, folder.path / "accuracy.csv"))
    if measures := measures_of(stages, lambda count: cli.datamodule.heldout(count or documents)):
        observers.append(StageFigures(every, measures, folder.path / "figures.csv", best_figure(stages)))
    if cli.config.learning_every:
        observers.append(Learning(cli.config.learning_every, folder.path / "learning.csv"))
    if tracked:
        observers.append(Tracking())
    return observers


@contextmanager
def resumable(arguments: Sequence[str], folder: RunFolder) -> Iterator[None]:
    """Add to a `KeyboardInterrupt` inside a `with` block how to resume, and requeue the job when SLURM's time is up."""
    has_folder = any(argument.partition("=")[0] == "--run_dir" for argument in arguments)
    again = shlex.join([*arguments, *([] if has_folder else ["--run_dir", str(folder.path)])])
    try:
        yield
    except Interrupted as stop:
        if not stop.rank:
            say(f"lit_mm: {stop} To resume: python -m lit_mm fit {again}")
        if stop.wants_requeue and (outcome := requeue()):
            say(f"lit_mm: {outcome}")
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        # While a Trainer runs, Lightning makes `sys.exit(1)` of Ctrl+C
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(f"To resume: python -m lit_mm fit {again}") from stop


def conclude(
    module: MultimodalModule,
    documents: list[Document],
    folder: RunFolder,
    logger: RunLogger | None,
    origin_of: Mapping[str, str],
    run_seconds: Callable[[], float | None],
) -> None:
    """Examine the trained model with and without sight, and write figures, tables and pictures.

    The documents are shared out over the ranks, and rank 0 writes.

    Args:
        origin_of: branch -> stage at whose end it starts.
        run_seconds: function that returns the wall time of the run, see `MetricsCSV.run_seconds`. Without one, the run
            had ended before this launch, and the time in its summary stays.
    """
    examination = examine(module, documents)
    predictions, sighted = examination.predictions, examination.figures
    blind = examine(module, documents, blind=True).figures
    if not module.trainer.is_global_zero:
        return
    metrics = read_metrics(folder.path / "metrics.csv")
    trained = metrics[-1]["seconds"] if metrics else time.monotonic() - LAUNCHED  # killed before it had a summary
    seconds = run_seconds() or read_summary(folder.path).get("seconds") or trained
    draw_curves(metrics, read_accuracy(folder.path / "accuracy.csv"), blind, folder.path / "curves.png", origin_of)
    draw_samples(predictions, folder.path / "samples.png")
    summary = write_summary(
        folder.path / "summary.json",
        accuracy=sighted,
        blind=blind,
        seconds=round(seconds, 1),
        seconds_to_first_step=metrics[0]["seconds"] if metrics else None,
        peak_memory_mb=round(peak_memory_mb()),
        stages=stage_summaries(metrics, origin_of, module.ends),
        documents=sighted.count,
    )
    if logger is not None:
        log_examples(logger, of_each_skill(predictions, 3), step=module.first_step + module.total_steps)
        finish(logger, {"accuracy": sighted.overall, "blind": blind.overall, "seconds": summary["seconds"]})
    print(accuracy_table(sighted, blind, predictions))


def next_steps(
    folder: RunFolder, documents: Sequence[Document], logger: RunLogger | None, ends: Collection[str] = ()
) -> str:
    """Print the places of the results and the next commands, and store a held-out page for a question.

    Args:
        ends: earlier stages whose ends are kept.
    """
    lines = [
        f"the end of {stage!r} is kept, too: python -m lit_mm evaluate {folder.path} --stage {stage}"
        for stage in sorted(ends)
    ]
    example = next((document for document in documents if len(document.pictures) == 1), None)
    ask = ""
    if example is not None:
        page = folder.path / "page.png"
        example.pictures[0].read().save(page)
        question = example.question.strip()  # a question that begins with - would be an option
        words = [f"--question={question}"] if question.startswith("-") else ["--question", question]
        command = ["python", "-m", "lit_mm", "generate", str(folder.path), "--image", str(page), *words]
        ask = f"; ask it: {shlex.join(command)}"
    lines.append(f"everything is in {folder.path}{ask}")
    if logger is not None and (sync := sync_command(logger)):
        lines.append(f"tracked offline; to send it to an account: {sync}")
    return "\n".join(lines)
