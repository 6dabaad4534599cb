"""Tracking in W&B: one run for all stages of a recipe, offline without an account, online with one."""

from __future__ import annotations

import json
import netrc
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import lightning as L
import yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from callbacks.steps import Step, StepObserver
from lit_mm.errors import UserError
from lit_mm.evaluation.score import Prediction
from lit_mm.module import MultimodalModule


class RunLogger(WandbLogger):
    """Lightning's logger with another step axis: optimizer steps counted through all stages.

    A resumed run repeats steps that it has logged before the kill; they are not logged a second time. The file
    `wandb_steps.json` in the run folder has the last step of each kind of row, because W&B cannot tell it offline.

    wandb is neither imported nor started before the first value is logged.

    Args:
        arguments: arguments of Lightning's WandbLogger, among them `save_dir`, the run folder.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._steps_file = Path(arguments["save_dir"]) / "wandb_steps.json"
        self._steps: dict[str, int] = json.loads(self._steps_file.read_text()) if self._steps_file.exists() else {}
        self._wandb_init.pop("anonymous", None)  # Lightning always passes it, and W&B warns of it

    @property
    def experiment(self) -> Any:
        fresh = self._experiment is None
        run = super().experiment
        if fresh and self._experiment is not None:  # the first call on rank 0
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if step is None:
            self.experiment.log(dict(metrics))
            return
        kind = min(metrics)
        if step <= self._steps.get(kind, -1):
            return
        self.experiment.log({**metrics, "step": step})
        self._steps[kind] = step
        part = self._steps_file.with_name(self._steps_file.name + ".part")
        part.write_text(json.dumps(self._steps))
        os.replace(part, self._steps_file)  # a kill at any time leaves a whole file


def tracking_logger(
    run_dir: str | Path, name: str, config: Mapping[str, Any] | str, *, project: str = "lit_mm"
) -> RunLogger:
    """Build the logger of a run folder. A second logger for the same folder continues the same W&B run.

    Args:
        run_dir: run folder, which gets W&B's files and the file `wandb_id` with the id of the run.
        name: name of the W&B run.
        config: resolved config, as a mapping or as YAML.
        project: W&B project; WANDB_PROJECT overrides it.
    """
    run_dir, mode = Path(run_dir), tracking_mode(os.environ)
    run_dir.mkdir(parents=True, exist_ok=True)
    return RunLogger(
        name=name,
        save_dir=run_dir,
        id=_run_id(run_dir / "wandb_id"),
        project=os.environ.get("WANDB_PROJECT") or project,
        config=yaml.safe_load(config) if isinstance(config, str) else dict(config),
        mode=mode,
        resume="allow" if mode == "online" else None,  # offline W&B cannot resume, and warns
        # The progress bar redraws its line, which would fill W&B's console log with control characters
        settings={"silent": True, "console": "off"},
    )


def tracking_mode(environment: Mapping[str, str]) -> str:
    """The mode in `WANDB_MODE`; without one, "online" with an account (key or netrc entry), else "offline".

    Raises:
        UserError: the netrc file cannot be parsed.
    """
    if environment.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(environment["WANDB_MODE"], environment["WANDB_MODE"])
    if environment.get("WANDB_API_KEY"):
        return "online"
    host = urlparse(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    file = environment.get("NETRC")
    for path in [Path(file)] if file else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        if path.is_file():
            try:
                hosts = netrc.netrc(path).hosts
            except netrc.NetrcParseError as error:
                raise UserError(
                    f"looking for a W&B account, {str(path)!r} cannot be read ({error.msg}, line {error.lineno}). "
                    "Correct it, or set WANDB_MODE=offline"
                ) from error
            return "online" if host in hosts else "offline"
    return "offline"


def sync_command(logger: WandbLogger) -> str | None:
    """The command that sends an offline run to an account; None if there is nothing to send."""
    offline = sorted(Path(logger.save_dir, "wandb").glob("offline-run-*"))
    # Every resumed launch makes another folder of the same run
    append = "--append " if len(offline) > 1 else ""
    return f"wandb sync {append}{' '.join(str(path) for path in offline)}" if offline else None


def _run_id(path: Path) -> str:
    """The id of the run: that of a sweep agent, of an earlier launch, or a new one. Rank 0 alone writes it."""
    if os.environ.get("WANDB_RUN_ID"):
        return os.environ["WANDB_RUN_ID"]
    if path.exists() and (identity := path.read_text().strip()):
        return identity
    fresh = secrets.token_hex(4)
    if rank_zero_only.rank == 0:  # pyrefly: ignore[missing-attribute]  # Lightning sets it
        part = path.with_name(path.name + ".part")
        part.write_text(fresh + "\n")
        os.replace(part, path)
    return fresh


class Tracking(StepObserver):
    """Logs loss, useful tokens, tokens per second, stage, and the learning rates of parts after every step."""

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        metrics: dict[str, float] = {
            "loss": step.loss,
            "tokens": step.tokens,
            "tokens_per_second": step.tokens / step.seconds,
            **{f"lr/{part}": rate for part, rate in step.learning_rates.items()},
        }
        for logger in trainer.loggers:
            # Other loggers take numbers only
            extra = {"stage": step.stage} if isinstance(logger, WandbLogger) else {}
            logger.log_metrics({**metrics, **extra}, step=step.number)


@rank_zero_only
def log_examples(logger: WandbLogger, predictions: Sequence[Prediction], *, step: int | None = None) -> None:
    """Log a table of predictions with their pictures as `examples`.

    Args:
        logger: logger of the run.
        predictions: predictions of the table, all of which are logged.
        step: number of finished optimizer steps, counted through all stages.
    """
    import wandb  # here, because the import takes 0.7 s

    with _data_below(Path(logger.save_dir)):
        table = wandb.Table(columns=["skill", "image", "question", "truth", "answer", "correct"])
        for p in predictions:
            image = wandb.Image(side_by_side([picture.read() for picture in p.document.pictures]))
            table.add_data(p.document.skill, image, p.document.question.strip(), p.document.answer, p.answer, p.correct)
        logger.log_metrics({"examples": table}, step=step)


def side_by_side(pages: Sequence[Image.Image]) -> Image.Image:
    """Join pages from left to right, because a cell of a W&B table shows a single image.

    Returns:
        A picture with the height of the highest page; a white pixel if there are no pages.
    """
    width, height = sum(page.width for page in pages), max((page.height for page in pages), default=1)
    strip = Image.new("RGB", (max(1, width + 4 * (len(pages) - 1)), height), "white")  # 4 pixels between pages
    left = 0
    for page in pages:
        strip.paste(page, (left, 0))
        left += page.width + 4
    return strip


@contextmanager
def _data_below(folder: Path) -> Iterator[None]:
    """Keep the files of tables in the run folder; W&B would keep them in the home directory until they are sent.

    An environment variable alone sets W&B's folder. A folder that the user has set stays.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute() / "wandb")
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


@rank_zero_only
def finish(logger: WandbLogger, summary: Mapping[str, Any] | None = None) -> None:
    """Write the final figures of the run and end it. An online run is sent."""
    if summary:
        logger.experiment.summary.update(dict(summary))
    logger.experiment.finish()
