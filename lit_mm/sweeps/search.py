"""The search of a sweep without a server: an Optuna study that workers on one host or several share."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_mm.errors import UserError, first_line
from lit_mm.stream.order import stable_hash
from lit_mm.sweeps.parameters import Choice, Parameter, Point, ServerOnly, grid_points, random_point
from lit_mm.sweeps.specification import Specification

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial

FILES = {"sqlite": "optuna.sqlite3", "journal": "optuna.journal"}  # kind of storage -> file in the sweep's folder
STUDY = "sweep"
FAILURES, ERROR = "failures", "error"  # attributes of a trial in the study
PATIENCE = 60.0  # seconds that a worker waits for the database
NO_OPTUNA = (
    "a sweep without W&B's server searches by Optuna, which is not installed. Install the extra: pip install "
    "'lit_mm[sweeps]'"
)


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
        number: number of the trial, from 0.
        point: address of every parameter -> value.
        state: "running" from the choice of the point to the end, also while no worker is at it; "failed" if its last
            run failed, also while a worker runs it again.
        value: figure of the metric; None before the end and after a failure.
        failures: number of runs that failed.
        error: reason of the last failure, "" for none.
    """

    number: int
    point: Point
    state: Literal["running", "finished", "failed"]
    value: float | None = None
    failures: int = 0
    error: str = ""


def check_offline(specification: Specification) -> None:
    """Refuse a specification that only W&B's server can execute.

    Raises:
        UserError: a distribution, `probabilities` or `early_terminate` has no equivalent, or nothing ends the search.
    """
    for address, parameter in specification.parameters.items():
        if isinstance(parameter, ServerOnly):
            raise UserError(
                f"parameters.{address}: {parameter.feature} has no equivalent in Optuna. Take `values`, uniform, "
                "int_uniform, q_uniform or log_uniform_values, or run the sweep on W&B's server"
            )
    if specification.early_terminate is not None:
        raise UserError(
            "early_terminate: only W&B's server ends trials early. Remove the key, or run the sweep on that server"
        )
    if specification.trials is None:
        raise UserError(f"run_cap: a {specification.method} search goes on for ever. Add the number of trials")


def require_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        UserError: it is not.
    """
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(NO_OPTUNA) from error


class Search:
    """A study in the folder of a sweep. Every worker opens one, and the storage keeps them apart.

    The points of a grid and of a random search depend on the number of a trial and the seed. Those of `bayes` come from
    Optuna's TPE, seeded by (seed, number of the trial), and depend on the trials that ended before.

    Args:
        folder: folder of the sweep, which exists.
        specification: specification without features of the server, see `check_offline`.
        seed: seed of the search.
        storage: "sqlite" for a local disk, "journal" for a file system that several hosts share; None for the storage
            that the folder has, or else "sqlite".
    Raises:
        UserError: Optuna is not installed, or the folder has a storage of the other kind.
    """

    def __init__(
        self,
        folder: Path,
        specification: Specification,
        *,
        seed: int = 0,
        storage: Literal["sqlite", "journal"] | None = None,
    ) -> None:
        require_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.specification, self.seed = specification, seed
        if specification.trials is None:
            raise UserError(f"run_cap: a {specification.method} search goes on for ever. Add the number of trials")
        self.limit = specification.trials
        self.constants = {
            address: parameter.values[0]
            for address, parameter in specification.parameters.items()
            if isinstance(parameter, Choice) and len(parameter.values) == 1
        }
        self.free = {
            address: parameter
            for address, parameter in specification.parameters.items()
            if address not in self.constants
        }
        self.lock = folder / ".lock"
        with locked(self.lock):  # one worker creates the tables of a database
            self.study = optuna.create_study(
                storage=open_storage(folder, storage),
                sampler=numbered(self._sampler),
                study_name=STUDY,
                direction=specification.metric.goal,
                load_if_exists=True,
            )

    def trials(self) -> list[Trial]:
        """Return the trials of the sweep by number."""
        trials = self.study.get_trials(deepcopy=False)
        return [self._trial(trial) for trial in trials if trial.number < self.limit]

    def ask(self) -> Trial | None:
        """Begin the next trial; None if the sweep has all trials."""
        with locked(self.lock):
            if len(self.study.get_trials(deepcopy=False)) >= self.limit:
                return None
            trial = self.study.ask()
            for address, parameter in self.free.items():
                suggest(trial, address, parameter)
        return self.trials()[trial.number]

    def complete(self, number: int) -> Trial:
        """Choose the values that a trial lacks because its worker was killed while it chose them.

        Args:
            number: number of a running trial.
        """
        import optuna

        with locked(self.lock):
            stored = self.study.get_trials(deepcopy=False)[number]
            if self.free.keys() - stored.params.keys():
                trial = optuna.trial.Trial(self.study, stored._trial_id)
                for address, parameter in self.free.items():
                    suggest(trial, address, parameter)
        return self.trials()[number]

    def finish(self, number: int, value: float) -> None:
        """Store the figure of a trial. A trial that has ended before stays as it is."""
        self.study.tell(number, value, skip_if_finished=True)

    def fail(self, number: int, error: str) -> None:
        """Store that a run of a trial has failed, and why. A trial that has ended before stays as it is.

        The failure is an attribute of the trial. Optuna's own state stays "running", because a state of failure could
        not be left again when the trial is retried. Samplers use finished trials alone.

        Args:
            number: number of the trial.
            error: reason of the failure.
        """
        import optuna

        with locked(self.lock):
            stored = self.study.get_trials(deepcopy=False)[number]
            if not stored.state.is_finished():
                trial = optuna.trial.Trial(self.study, stored._trial_id)
                trial.set_user_attr(FAILURES, stored.user_attrs.get(FAILURES, 0) + 1)
                trial.set_user_attr(ERROR, error)

    def importances(self) -> dict[str, float]:
        """Return address -> importance, the largest first; the sum is 1. {} before two trials with different figures.

        Parameters with a single value in all finished trials are left out.

        Source: Watanabe et al., "PED-ANOVA" (IJCAI 2023), as Optuna computes it.
        """
        import optuna

        finished = [trial for trial in self.trials() if trial.state == "finished"]
        varied = [address for address in self.free if len({repr(trial.point[address]) for trial in finished}) > 1]
        if len({trial.value for trial in finished}) < 2 or not varied:
            return {}
        return optuna.importance.get_param_importances(
            self.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), params=varied
        )

    def _trial(self, trial: FrozenTrial) -> Trial:
        states = {"COMPLETE": "finished", "FAIL": "failed", "PRUNED": "failed"}
        point = {}
        for address, parameter in self.specification.parameters.items():
            if address in self.constants:
                point[address] = self.constants[address]
            elif address in trial.params:
                value = trial.params[address]
                point[address] = json.loads(value) if isinstance(parameter, Choice) else value
        failures = trial.user_attrs.get(FAILURES, 0)
        state = states.get(trial.state.name, "failed" if failures else "running")
        value = trial.value if state == "finished" else None
        return Trial(trial.number, point, state, value, failures, trial.user_attrs.get(ERROR, ""))

    def _sampler(self, number: int) -> BaseSampler:
        """Return the sampler of one trial."""
        import optuna

        method, parameters = self.specification.method, self.specification.parameters
        if method == "bayes":
            return optuna.samplers.TPESampler(seed=stable_hash(self.seed, number) % 2**32)
        if method == "grid":
            points = list(grid_points(parameters))
            point = points[number % len(points)]
        else:
            point = random_point(parameters, self.seed, number)
        encoded = {
            address: json.dumps(point[address]) if isinstance(parameters[address], Choice) else point[address]
            for address in self.free
        }
        with warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore"):
            return optuna.samplers.PartialFixedSampler(encoded, optuna.samplers.RandomSampler(seed=0))


def suggest(trial: optuna.Trial, address: str, parameter: Parameter) -> None:
    """Choose a value of a trial, unless it has one, as W&B's Optuna scheduler does. Listed values are JSON texts.

    Raises:
        UserError: Optuna has no equivalent of the parameter.
    Source: wandb/launch-jobs, jobs/sweep_schedulers/optuna_scheduler/optuna_scheduler.py, `_make_trial`.
    """
    if isinstance(parameter, Choice):
        trial.suggest_categorical(address, [json.dumps(value) for value in parameter.values])
    elif isinstance(parameter, ServerOnly):
        raise UserError(f"parameters.{address}: {parameter.feature} has no equivalent in Optuna")
    elif parameter.whole:
        trial.suggest_int(address, int(parameter.low), int(parameter.high), step=int(parameter.step or 1))
    else:
        trial.suggest_float(address, parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def open_storage(folder: Path, kind: Literal["sqlite", "journal"] | None) -> BaseStorage:
    """Open the storage of a sweep, or create it.

    Args:
        folder: folder of the sweep.
        kind: kind of storage; None for the storage that the folder has, or else "sqlite".
    Raises:
        UserError: the folder has a storage of another kind.
    """
    from optuna.storages import JournalStorage, RDBStorage

    present = storage_of(folder)
    if kind is not None and present not in (None, kind):
        raise UserError(f"the sweep in {str(folder)!r} has a storage of kind {present}, got --storage {kind}")
    kind = present or kind or "sqlite"
    file = (folder / FILES[kind]).absolute()
    if kind == "journal":
        return JournalStorage(journal_backend(file))
    return RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": PATIENCE}})


def storage_of(folder: Path) -> str | None:
    """Return the kind of storage that the folder of a sweep has; None if it has none."""
    return next((name for name, file in FILES.items() if (folder / file).exists()), None)


def journal_backend(file: Path) -> JournalFileBackend:
    """Return a backend for a journal that a kill or a full disk may have cut.

    Optuna appends behind a line that was cut, and can then never read the two again. This backend first removes such a
    line; its operation has not taken place, because readers leave out a last line without an end.

    Args:
        file: file of the journal.
    """
    from optuna.exceptions import StorageInternalError
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(file))

    class Journal(JournalFileBackend):
        """A journal whose last line may be cut."""

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            lock.acquire()  # another worker may be writing its line
            try:
                cut_to_lines(file)
            finally:
                lock.release()
            super().append_logs(logs)

        def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
            try:
                yield from super().read_logs(log_number_from)
            except ValueError as error:
                raise StorageInternalError(f"a line of it is no JSON ({first_line(error)})") from None

    return Journal(str(file), lock)


def cut_to_lines(file: Path) -> None:
    """Remove the end of a file behind its last whole line."""
    with file.open("r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - 1))
        if end and stream.read(1) != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the storage inside a `with` block into an error that names the file and the cure.

    Args:
        folder: folder of the sweep.
    Raises:
        UserError: the storage is damaged, full or locked for too long, or Optuna is not installed.
    """
    require_optuna()
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(
            f"the storage of the sweep, {str(folder / FILES[storage_of(folder) or 'sqlite'])!r}, cannot be used: "
            f"{reason}. On a full disk, make room, and the same command goes on. A damaged file goes on from a copy; "
            "without one, remove it: the search begins anew, and finished trials are read from their run folders"
        ) from error


def numbered(make: Callable[[int], BaseSampler]) -> BaseSampler:
    """Return a sampler that asks another sampler for each trial, so that the state of a random generator never counts.

    Args:
        make: function that returns the sampler of a trial's number.
    """
    import optuna

    class Numbered(optuna.samplers.BaseSampler):
        """Passes every call on to the sampler of the trial's number."""

        def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
            self.inner = make(trial.number)
            self.inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return self.inner.infer_relative_search_space(study, trial)

        def sample_relative(
            self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            return self.inner.sample_relative(study, trial, search_space)

        def sample_independent(
            self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            return self.inner.sample_independent(study, trial, param_name, param_distribution)

        def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: Any, values: Any) -> None:
            make(trial.number).after_trial(study, trial, state, values)

    return Numbered()


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for the lock of a file and keep it inside a `with` block; a killed process loses its lock."""
    with file.open("w") as stream:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
        yield
