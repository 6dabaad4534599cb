"""`fit`: run a recipe's stages in order; the same command run again resumes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import lightning as L
import torch

from callbacks.examination import Examination
from callbacks.freeze_audit import FreezeAudit
from callbacks.metrics_csv import MetricsCSV, read_metrics
from callbacks.progress import StageProgress
from callbacks.tracking import Tracking, log_examples, tracking_logger
from lit_mm import checkpoints, report
from lit_mm.commands.recipe import RecipeCLI, experiment_name, quiet
from lit_mm.evaluate import evaluate, score
from lit_mm.module import MultimodalModule
from lit_mm.run import LAUNCHED, Progress, RunFolder, family_of, peak_memory_mb, run_stages


def fit(arguments: Sequence[str]) -> None:
    """Train stage after stage, then examine on held-out documents beside the blind baseline, and draw the result."""
    quiet()
    torch.use_deterministic_algorithms(True, warn_only=True)
    cli = RecipeCLI(arguments, "fit")
    folder = RunFolder.open(cli.config.run_dir, experiment_name(arguments))
    config = cli.resolved()
    folder.keep_config(config)
    module = cli.model
    module.config_text = config
    if cli.config.init_from:
        path = checkpoints.find(cli.config.init_from)
        checkpoints.load_weights(module, checkpoints.read(path), family_of(module), path)

    progress = Progress(folder.checkpoints, cli.config.checkpoint_every)
    logger = tracking_logger(folder.path, experiment_name(arguments), config) if cli.config.track else None
    watchers: list[L.Callback] = [FreezeAudit(), MetricsCSV(folder.path / "metrics.csv")]
    if cli.datamodule.heldout(1):
        watchers.append(Examination(cli.config.examine_every, cli.config.examine_documents))
    if logger is not None:
        watchers.append(Tracking())
    # Progress last: a checkpoint is published only after the rows of its steps are written
    watchers += [StageProgress(len(cli.stages)), progress]
    data = run_stages(
        module,
        cli.stages,
        folder,
        data_of=cli.data_of,
        trainer_of=partial(cli.trainer_of, watchers, [logger] if logger else []),
        seed=cli.seed,
        progress=progress,
    )
