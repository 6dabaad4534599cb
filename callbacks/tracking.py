"""Tracking in W&B: one run for all stages of a recipe, offline without an account, online with one."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from lit_mm.callbacks.steps import Step, StepObserver
from lit_mm.errors import UserError, first_line, suggestion
from lit_mm.evaluation.score import Prediction
from lit_mm.module import MultimodalModule
from lit_mm.run.files import write_whole
from lit_mm.run.interruption import say

MODES = {mode: mode for mode in ("online", "offline", "disabled", "shared")} | {"run": "online", "dryrun": "offline"}
STEPS, FOLDER = "wandb_steps.json", "wandb_folder"
PATIENCE = 10.0  # seconds of attempts to reach the network


class RunLogger(WandbLogger):
    """Lightning's logger with another step axis: optimizer steps counted through all stages.

    A resumed run repeats steps that it has logged before the kill; they are not logged a second time. The file
    `wandb_steps.json` in the run folder has the last step of each metric, because W&B cannot tell it offline.

    Args:
        arguments: arguments of Lightning's WandbLogger, among them `save_dir`, the run folder.
    Attributes:
        is_lost: True after W&B has failed during the run, which then goes on without it.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._steps_file = Path(arguments["save_dir"]) / STEPS
        self._steps = _steps_of(self._steps_file)
        self.is_lost = False
        self._wandb_init.pop("anonymous", None)  # Lightning always passes it, and W&B warns of it

    def open(self) -> None:
        """Start the W&B run, before the first step.

        The network is tried once, for at most `PATIENCE` seconds; without it the run goes on offline, under its id.

        Raises:
            UserError: W&B cannot write its files.
        """
        import wandb

        try:
            self.experiment  # noqa: B018  the property starts the run on first access
        except (wandb.Error, OSError) as error:
            if self._wandb_init["mode"] != "online" or isinstance(error, OSError):
                raise UserError(
                    f"W&B cannot be started: {first_line(error)}. To train without it: --track false"
                ) from error
            print(f"lit_mm: W&B cannot be reached and is kept offline: {first_line(error)}.", file=sys.stderr)
            wandb.teardown()  # wandb's own process would go on trying for minutes
            self._wandb_init |= {"mode": "offline", "resume": None}
            self.experiment  # noqa: B018

    @property
    def experiment(self) -> Any:
        fresh = self._experiment is None
        run = super().experiment
        if fresh and self._experiment is not None:  # the first call on rank 0
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
        return run

    @contextmanager
    def goes_on(self) -> Iterator[None]:
        """Report an error of W&B inside a `with` block in one line; from then on the run goes on without W&B.

        W&B's own process may be killed, as systems do that run out of memory. All figures are in the tables of the run
        folder, too, so the training does not end for it.
        """
        import wandb
        from wandb.sdk.mailbox import MailboxClosedError

        lost = (MailboxClosedError, OSError)
        try:
            yield
        except (wandb.Error, *lost) as error:
            self.is_lost = True
            if isinstance(error, lost):  # W&B would try its process again at the end of this one, with a traceback
                with suppress(*lost):
                    wandb.teardown()
            say(
                f"lit_mm: W&B has failed ({type(error).__name__}: {first_line(error)}). The run goes on without it. "
                "From here on, its figures are only in metrics.csv and the other tables of the run folder"
            )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if self.is_lost:
            return
        if step is None:
            with self.goes_on():
                self.experiment.log(dict(metrics))
            return
        # Lightning adds the number of the epoch, which is 0: a stage is one epoch of the loader
        new = {name: v for name, v in metrics.items() if name != "epoch" and step > self._steps.get(name, -1)}
        if not new:
            return
        with self.goes_on():
            self.experiment.log({**new, "step": step})
        if self.is_lost:
            return
        self._steps |= dict.fromkeys(new, step)
        write_whole(self._steps_file, json.dumps(self._steps))


def tracking_logger(
    run_dir: str | Path, name: str, config: Mapping[str, Any] | str, *, project: str = "lit_mm"
) -> RunLogger | None:
    """Build the logger of a run folder; None where W&B is switched off. Only the first rank calls it.

    Another logger of the same folder continues the same W&B run. wandb's own settings take precedence: environment
    variables, `wandb login`, `wandb init`, `wandb offline` and `wandb disabled`. The names of a sweep
    and of an existing run do not change.

    Args:
        run_dir: run folder; W&B's files go below it, and the run's id is kept in `wandb_id`.
        name: name of a new W&B run, unless WANDB_NAME sets another.
        config: the resolved config, as a mapping or as YAML.
        project: W&B project, unless wandb's settings name one.
    Raises:
        UserError: wandb's settings or its key cannot be used.
    """
    run_dir, mode = Path(run_dir), tracking_mode()
    if mode == "disabled":
        return None
    run_dir.mkdir(parents=True, exist_ok=True)
    identity, is_new = _run_id(run_dir, os.environ)
    settings = wandb_settings()
    has_name = settings.run_name or os.environ.get("WANDB_SWEEP_ID") or not is_new
    return RunLogger(
        name=None if has_name else name,
        save_dir=run_dir,
        id=identity,
        project=settings.project or project,
        config=yaml.safe_load(config) if isinstance(config, str) else dict(config),
        mode=mode,
        resume="allow" if mode == "online" else None,  # offline W&B cannot resume, and warns
        # The progress bar redraws its line, which would fill W&B's console log with control characters
        settings={"silent": True, "console": "off", "init_timeout": PATIENCE},
    )


def check_mode(environ: Mapping[str, str]) -> None:
    """Refuse a WANDB_MODE that W&B does not have.

    Raises:
        UserError: it is none of `MODES`.
    """
    mode = environ.get("WANDB_MODE") or "online"
    if mode not in MODES:
        guess = suggestion(mode, MODES, otherwise=f"It is one of {', '.join(MODES)}.")
        raise UserError(f"the environment variable WANDB_MODE is {mode!r}. {guess}")


def wandb_settings() -> Any:
    """Return wandb's settings from the environment and its files.

    Raises:
        UserError: they cannot be read.
    """
    import wandb  # only here: importing it takes 0.7 s

    try:
        return wandb.setup().settings
    except (ValueError, wandb.Error) as error:
        raise UserError(
            f"the settings of wandb cannot be used: {first_line(error)}. Correct them, or switch W&B off with "
            "--track false"
        ) from error


def tracking_mode() -> str:
    """Return W&B's mode by wandb's settings, such as "online"; "offline" if they name no account.

    Raises:
        UserError: WANDB_MODE, the settings or the key cannot be used.
    """
    check_mode(os.environ)
    settings = wandb_settings()
    mode = MODES[settings.mode]
    if mode != "online" or os.environ.get("WANDB_MODE"):
        return mode
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import authenticate_session

    try:
        account = authenticate_session(host=settings.base_url, source="lit_mm", prompt=False, update_session=False)
    except AuthenticationError as error:
        raise UserError(
            f"the key of the W&B account cannot be used: {first_line(error)}. Log in again (wandb login), or "
            "set WANDB_MODE=offline"
        ) from error
    return mode if account else "offline"


def sync_command(logger: WandbLogger) -> str | None:
    """Return the command that sends an offline run to an account; None if there is nothing to send."""
    offline = sorted(Path(logger.save_dir, "wandb").glob("offline-run-*"))
    # Every resumed launch makes another folder of the same run
    append = "--append " if len(offline) > 1 else ""
    return f"wandb sync {append}{' '.join(str(path) for path in offline)}" if offline else None


def _run_id(run_dir: Path, environ: Mapping[str, str]) -> tuple[str, bool]:
    """Return the id of a run folder's W&B run, and True if it is new. W&B or an earlier launch may have set it.

    It is written to `wandb_id`, and the run folder to `wandb_folder`. The steps that were logged to a run of another id
    do not count for this one. A copy of a run folder gets another id, because two runs would mix their figures in one.
    """
    path, record, place = run_dir / "wandb_id", run_dir / FOLDER, str(run_dir.resolve())
    earlier = path.read_text().strip() if path.exists() else ""
    owner = record.read_text().strip() if record.exists() else ""
    is_copy = bool(earlier and owner) and _is_original(Path(owner, path.name), path)
    identity = environ.get("WANDB_RUN_ID") or ("" if is_copy else earlier) or secrets.token_hex(4)
    if is_copy and identity != earlier:
        say(f"lit_mm: {str(run_dir)!r} is a copy of {owner!r}, and goes on as a new run in W&B")
    if identity != earlier:
        (run_dir / STEPS).unlink(missing_ok=True)
        write_whole(path, identity + "\n")
    if place != owner:
        write_whole(record, place + "\n")
    return identity, identity != earlier


def _is_original(file: Path, copy: Path) -> bool:
    """Return True if a file is another one than its copy and still has the same content."""
    return file.is_file() and not file.samefile(copy) and file.read_bytes() == copy.read_bytes()


def _steps_of(file: Path) -> dict[str, int]:
    """Read metric -> number of the last step that was logged.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return {}
    try:
        return {name: int(step) for name, step in json.loads(file.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{str(file)!r} is damaged ({type(error).__name__}). Remove the file. W&B then ignores steps that "
            "were already logged"
        ) from error


class Tracking(StepObserver):
    """Logs loss, useful tokens, tokens per second, stage, learning rates of parts, and figures after every step."""

    def due(self, trainer: L.Trainer, module: MultimodalModule) -> bool:
        return False

    def on_step_end(self, trainer: L.Trainer, module: MultimodalModule, step: Step) -> None:
        metrics: dict[str, float] = {
            "loss": step.loss,
            "tokens": step.tokens,
            "tokens_per_second": step.tokens / step.seconds,
            **{f"lr/{part}": rate for part, rate in step.learning_rates.items()},
            **{f"throughput/{name}": value for name, value in step.figures.items() if value == value},  # without NaN
        }
        for logger in trainer.loggers:
            # Other loggers take numbers only
            extra = {"stage": step.stage} if isinstance(logger, WandbLogger) else {}
            logger.log_metrics({**metrics, **extra}, step=step.number)


@rank_zero_only
def log_examples(logger: RunLogger, predictions: Sequence[Prediction], *, step: int | None = None) -> None:
    """Log a table of predictions with their pictures as `examples`.

    Args:
        logger: logger of the run.
        predictions: predictions of the table, all of which are logged.
        step: number of finished optimizer steps, counted through all stages.
    """
    import wandb  # here, because the import takes 0.7 s

    if logger.is_lost:
        return
    with logger.goes_on(), _data_below(Path(logger.save_dir)):
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
def finish(logger: RunLogger, summary: Mapping[str, Any] | None = None) -> None:
    """Write the final figures of the run and end it. An online run is sent."""
    if logger.is_lost:
        return
    with logger.goes_on():
        if summary:
            logger.experiment.summary.update(dict(summary))
        logger.experiment.finish()
