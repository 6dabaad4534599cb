"""W&B's sweep specifications, read and checked without the network. No torch is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_mm.errors import UserError, first_line, nearest
from lit_mm.sweeps.parameters import Choice, Parameter, Range, ServerOnly, grid_size

METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")
KEYS = (
    "program",
    "command",
    "method",
    "metric",
    "parameters",
    "name",
    "description",
    "project",
    "entity",
    "run_cap",
    "early_terminate",
)
LAUNCH = ("controller", "scheduler", "job", "image_uri", "settings")  # keys of W&B Launch
HYPERBAND = {"type": str, "min_iter": int, "max_iter": int, "s": int, "eta": (int, float), "strict": bool}  # its keys
ARGUMENTS = ("${args}", "${args_no_equals}")  # macros of the agent that `fit` reads
MACROS = ("${env}", "${interpreter}", "${program}")
# distribution -> keys that it needs beside `distribution`
UNIFORM = ("uniform", "int_uniform", "q_uniform")
LOGARITHMIC = ("log_uniform", "log_uniform_values", "inv_log_uniform", "inv_log_uniform_values")
ELSEWHERE = (
    "normal",
    "q_normal",
    "log_normal",
    "q_log_normal",
    "beta",
    "q_beta",
    "q_log_uniform",
    "q_log_uniform_values",
)
DISTRIBUTIONS = ("constant", "categorical", *UNIFORM, *LOGARITHMIC, *ELSEWHERE)
# distribution -> keys that it reads, `min` and `max` where it is not listed
READ_KEYS = {
    "constant": ("value",),
    "categorical": ("values", "probabilities"),
    "beta": ("a", "b"),
    "q_beta": ("a", "b", "q"),
    **dict.fromkeys(("normal", "log_normal"), ("mu", "sigma")),
    **dict.fromkeys(("q_normal", "q_log_normal"), ("mu", "sigma", "q")),
    **dict.fromkeys(("q_uniform", "q_log_uniform", "q_log_uniform_values"), ("min", "max", "q")),
}
PARAMETER_KEYS = ("value", "values", "probabilities", "distribution", "min", "max", "q", "mu", "sigma", "a", "b")
LAUNCH_OPTIONS = ("config", "run_dir", "take_over")  # keys of `fit` that belong to one launch


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise yaml.MarkedYAMLError(problem=f"the key {repeated[0]!r} is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Metric:
    """The figure by which trials are ranked.

    Attributes:
        name: name of the figure in W&B, such as accuracy, accuracy/overall or loss.
        goal: "minimize" or "maximize".
    """

    name: str
    goal: Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Specification:
    """A checked sweep specification.

    Attributes:
        name: name of the sweep.
        method: "grid", "random" or "bayes".
        metric: figure by which trials are ranked.
        parameters: address of a recipe's key -> parameter, in the order of the file.
        command: words of the command, with the agent's macros.
        run_cap: most trials; None if the specification has no limit.
        early_terminate: W&B's rule for ending trials early; None for no rule.
        content: the specification as W&B takes it, with flat addresses as the names of parameters.
    """

    name: str
    method: str
    metric: Metric
    parameters: dict[str, Parameter]
    command: tuple[str, ...]
    run_cap: int | None
    early_terminate: Mapping[str, Any] | None
    content: dict[str, Any]

    @property
    def trials(self) -> int | None:
        """The number of trials of the whole sweep; None if nothing limits it."""
        points = grid_size(self.parameters) if self.method == "grid" else None
        return min((count for count in (points, self.run_cap) if count is not None), default=None)

    def fit_words(self, arguments: Sequence[str]) -> list[str]:
        """Return the words that `fit` receives.

        Args:
            arguments: words in place of the macro of the arguments.
        """
        words = self.command[_after_fit(self.command) :]
        return [part for word in words for part in (arguments if word in ARGUMENTS else [word])]


def read_specification(file: str | Path) -> Specification:
    """Read and check a sweep specification.

    Raises:
        UserError: the file cannot be read, or a key of it is wrong; the message names the file and the key.
    """
    path = Path(file)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"the sweep {str(path)!r} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else first_line(error)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}{where} is not YAML: {problem}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys of a W&B sweep such as method, metric and parameters")
    try:
        return specification_of(content, path.stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def specification_of(content: Mapping[str, Any], name: str) -> Specification:
    """Check the content of a sweep specification.

    Args:
        content: keys of the specification.
        name: name of the sweep if the specification has no `name`.
    Raises:
        UserError: a key is unknown, missing or has a wrong value.
    """
    _check_keys(content, KEYS, "")
    method = content.get("method")
    if method not in METHODS:
        raise UserError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(
            f"parameters: expected addresses of recipe keys with `values` or `min` and `max`, got {parameters!r}"
        )
    flat = flattened(parameters)
    for address in flat:
        if address.partition(".")[0] in LAUNCH_OPTIONS:
            raise UserError(f"parameters.{address}: every trial has its own launch; this key cannot be searched")
    run_cap = content.get("run_cap")
    if run_cap is not None and (not _is_whole(run_cap) or run_cap < 1):
        raise UserError(f"run_cap: expected a whole number of trials from 1, got {run_cap!r}")
    checked = {address: parameter_of(address, keys) for address, keys in flat.items()}
    if method == "grid":
        grid_size(checked)
    title = content.get("name", name)
    if not isinstance(title, str) or not title.strip():
        raise UserError(f"name: expected a text, got {title!r}")
    early_terminate = content.get("early_terminate")
    if early_terminate is not None:
        _check_early_end(early_terminate)
    command = _command(content.get("command"))
    fixed = {word.removeprefix("--").partition("=")[0] for word in command if word.startswith("--")}
    if searched := sorted(fixed & flat.keys()):
        raise UserError(f"command: --{searched[0]} is a parameter of the sweep, too. Remove one of the two")
    return Specification(
        name=title,
        method=method,
        metric=_metric(content.get("metric")),
        parameters=checked,
        command=command,
        run_cap=run_cap,
        early_terminate=early_terminate,
        content={**content, "name": title, "parameters": flat},
    )


def flattened(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Join the names of nested `parameters` to addresses of recipe keys.

    {"trainer": {"parameters": {"max_time": {"value": "1:00"}}}} -> {"trainer.max_time": {"value": "1:00"}}

    Raises:
        UserError: a parameter has no keys, two names join to the same address, or a name inside has dots.
    """
    flat: dict[str, dict[str, Any]] = {}
    for name, keys in parameters.items():
        address = f"{prefix}{name}"
        if not isinstance(name, str) or not re.fullmatch(r"[\w*+-]+(\.[\w*+-]+)*", name):
            raise UserError(
                f"parameters.{address}: expected the address of a recipe's key, such as model.init_args.rank"
            )
        if prefix and "." in name:
            raise UserError(
                f"parameters.{address}: W&B's agent does not split the dots of a name inside nested `parameters`. Nest "
                "each name, or write the whole address at the top"
            )
        if not isinstance(keys, dict):
            raise UserError(f"parameters.{address}: expected `value`, `values`, or `min` and `max`, got {keys!r}")
        if "parameters" in keys:
            if len(keys) > 1 or not isinstance(keys["parameters"], dict) or not keys["parameters"]:
                raise UserError(f"parameters.{address}: nested `parameters` stand alone and hold names, got {keys!r}")
            inner = flattened(keys["parameters"], f"{address}.")
        else:
            inner = {address: keys}
        if repeated := flat.keys() & inner.keys():
            raise UserError(f"parameters.{min(repeated)}: the address is there twice. Remove one of the two")
        flat |= inner
    return flat


def parameter_of(address: str, keys: Mapping[str, Any]) -> Parameter:
    """Check the keys of one parameter.

    The distributions are those of W&B; ranges and values map to Optuna's as in W&B's Optuna scheduler. `log_uniform`
    has bounds in exponents of e, `log_uniform_values` has bounds in values, and the inverse ones are the same
    distributions with bounds of log(1/x). The multiples of `q` in q_uniform map to a step, so its bounds are multiples.

    Args:
        address: address of the key, for messages.
        keys: keys of the parameter.
    Raises:
        UserError: a key is unknown, missing or has a wrong value.
    Source: docs.wandb.ai, "Sweep configuration options"; wandb/launch-jobs, optuna_scheduler.py.
    """
    where = f"parameters.{address}"
    _check_keys(keys, PARAMETER_KEYS, where)
    distribution = keys.get("distribution") or _inferred(keys, where)
    if distribution not in DISTRIBUTIONS:
        raise UserError(
            f"{where}.distribution: expected one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}"
            f"{nearest(str(distribution), DISTRIBUTIONS)}"
        )
    read = READ_KEYS.get(distribution, ("min", "max"))
    if unread := [key for key in keys if key not in (*read, "distribution")]:
        raise UserError(f"{where}: {distribution} reads {' and '.join(read)}, but not `{unread[0]}`. Remove it")
    if distribution == "constant":
        _check_present(keys, ("value",), where, distribution)
        return Choice((keys["value"],))
    if distribution == "categorical":
        return _choice(keys, where)
    if distribution in ("normal", "q_normal", "log_normal", "q_log_normal"):
        mean = _number(keys.get("mu", 0), f"{where}.mu")
        _positive(keys.get("sigma", 1), f"{where}.sigma")
        return ServerOnly(
            f"distribution: {distribution}", (_exponential(mean, f"{where}.mu") if "log" in distribution else mean,)
        )
    if distribution in ("beta", "q_beta"):
        _check_present(keys, ("a", "b"), where, distribution)
        a, b = (_positive(keys[key], f"{where}.{key}") for key in ("a", "b"))
        return ServerOnly(f"distribution: {distribution}", (a / (a + b),))
    _check_present(keys, ("min", "max"), where, distribution)
    low, high = (_number(keys[key], f"{where}.{key}") for key in ("min", "max"))
    if distribution in ("log_uniform", "q_log_uniform"):
        low, high = _exponential(low, f"{where}.min"), _exponential(high, f"{where}.max")
    elif distribution == "inv_log_uniform":
        low, high = _exponential(-high, f"{where}.max"), _exponential(-low, f"{where}.min")
    if low >= high:
        raise UserError(f"{where}: expected min below max, got {keys['min']} and {keys['max']}")
    if "log" in distribution and low <= 0:
        raise UserError(f"{where}.min: a logarithmic range is above 0, got {keys['min']}")
    if distribution in ELSEWHERE:
        return ServerOnly(f"distribution: {distribution}", (low, high))
    if distribution in LOGARITHMIC:
        return Range(low, high, log=True)
    if distribution == "int_uniform":
        if not _is_whole(low) or not _is_whole(high):
            raise UserError(f"{where}: int_uniform has whole bounds, got {low} and {high}")
        return Range(low, high, whole=True)
    if distribution == "uniform":
        return Range(float(low), float(high))
    return _stepped(keys, low, high, where)


def _choice(keys: Mapping[str, Any], where: str) -> Parameter:
    _check_present(keys, ("values",), where, "categorical")
    values = keys["values"]
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}.values: expected a list of values, got {values!r}")
    texts = [repr(value) for value in values]
    if repeated := [text for text in texts if texts.count(text) > 1]:
        raise UserError(f"{where}.values: the value {repeated[0]} is there twice. Remove one of the two")
    if "probabilities" in keys:
        shares = keys["probabilities"]
        if not isinstance(shares, list) or len(shares) != len(values):
            raise UserError(f"{where}.probabilities: expected a list of {len(values)} numbers, got {shares!r}")
        if abs(sum(_number(share, f"{where}.probabilities") for share in shares) - 1) > 1e-6 or min(shares) < 0:
            raise UserError(f"{where}.probabilities: expected numbers from 0 with the sum 1, got {shares!r}")
        return ServerOnly("probabilities", tuple(values))
    return Choice(tuple(values))


def _stepped(keys: Mapping[str, Any], low: float, high: float, where: str) -> Range:
    step = _positive(keys.get("q", 1), f"{where}.q")
    for key, bound in (("min", low), ("max", high)):
        if abs(bound / step - round(bound / step)) > 1e-6:
            raise UserError(f"{where}.{key}: q_uniform draws multiples of q = {step}, and {bound} is none")
    return Range(low, high, whole=all(map(_is_whole, (low, high, step))), step=step)


def _inferred(keys: Mapping[str, Any], where: str) -> str:
    """Return the distribution of a parameter that does not name it, as W&B infers it."""
    if "value" in keys:
        return "constant"
    if "values" in keys:
        return "categorical"
    if "min" in keys and "max" in keys:
        return "int_uniform" if _is_whole(keys["min"]) and _is_whole(keys["max"]) else "uniform"
    raise UserError(f"{where}: expected `value`, `values`, or `min` and `max`, got {', '.join(keys) or 'nothing'}")


def _metric(metric: Any) -> Metric:
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UserError(f"metric: expected `name` and `goal`, by which trials are ranked, got {metric!r}")
    _check_keys(metric, ("name", "goal", "target"), "metric")
    if "target" in metric:
        raise UserError("metric.target: a sweep cannot stop at a value of the metric. Remove it")
    goal = metric.get("goal")
    if goal not in GOALS:
        raise UserError(f"metric.goal: expected one of {', '.join(GOALS)}, got {goal!r}")
    return Metric(metric["name"], goal)


def _command(command: Any) -> tuple[str, ...]:
    """Check the command of a specification.

    Raises:
        UserError: it does not run `fit` of this package, has no macro of arguments that `fit` reads, or fixes what a
            trial chooses.
    """
    example = 'such as [python, -m, lit_mm, fit, --config, experiments/llava.yaml, "${args}"]'
    if not isinstance(command, list) or not command:
        raise UserError(f"command: expected a list of words, {example}, got {command!r}")
    words = tuple(str(word) for word in command)
    rest = words[_after_fit(words, example) :]
    if sum(word in ARGUMENTS for word in rest) != 1:
        other = next((word for word in words if word.startswith("${args")), "none")
        raise UserError(f"command: `fit` reads one of {' and '.join(ARGUMENTS)}, once and after `fit`; got {other}")
    for word in rest:
        option = word.partition("=")[0]
        if option in ("--run_dir", "--take_over"):
            raise UserError(f"command: {option} is chosen for each trial. Remove it")
        if word.startswith("${") and word not in (*ARGUMENTS, *MACROS) and not word.startswith("${envvar:"):
            raise UserError(f"command: the macro {word} is not one of W&B's that `fit` reads")
    return words


def _after_fit(words: Sequence[str], example: str = "") -> int:
    """Return the index of the first word that `fit` receives.

    Raises:
        UserError: the words do not run `fit` of this package.
    """
    for index, word in enumerate(words[1:], start=1):
        if word == "fit" and (words[index - 1] == "lit_mm" or Path(words[index - 1]).name == "lit-mm"):
            return index + 1
    raise UserError(f"command: expected words that run `lit_mm fit`, {example}, got {' '.join(words)!r}")


def _check_keys(keys: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for key in keys:
        if key in LAUNCH and not where:
            raise UserError(f"{key}: the key belongs to W&B Launch, and a sweep runs `command`. Remove it")
        if key not in names:
            if not where and key in ("model", "stages", "data"):
                raise UserError(
                    f"this is a recipe (it has the key `{key}`) and no sweep: `fit --config FILE` runs it. A sweep "
                    "names it in `command`; experiments/sweeps/llava.yaml is one"
                )
            hint = nearest(str(key), names) or f". There are {', '.join(names)}"
            raise UserError(f"{where or 'a sweep'}: there is no key {key!r}{hint}")


def _check_present(keys: Mapping[str, Any], names: Iterable[str], where: str, distribution: str) -> None:
    for name in names:
        if name not in keys:
            raise UserError(f"{where}: {distribution} needs `{name}`")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        text = isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value)
        hint = f". YAML reads {value} as a text; write {float(value)!r} as {_with_point(value)}" if text else ""
        raise UserError(f"{where}: expected a number, got {value!r}{hint}")
    return value


def _positive(value: Any, where: str) -> float:
    number = _number(value, where)
    if number <= 0:
        raise UserError(f"{where}: expected a number above 0, got {value!r}")
    return number


def _exponential(value: float, where: str) -> float:
    """Return e to the power of a bound."""
    try:
        return math.exp(value)
    except OverflowError as error:
        raise UserError(
            f"{where}: the bounds of a distribution without `_values` are exponents of e, and e^{abs(value):g} is no "
            "number. Take log_uniform_values for bounds in values"
        ) from error


def _check_early_end(rule: Any) -> None:
    """Check `early_terminate`, whose only type on W&B's server is hyperband.

    Source: docs.wandb.ai, "Sweep configuration options".

    Raises:
        UserError: a key is unknown or of another type, or the number of the first iteration is missing.
    """
    if not isinstance(rule, dict):
        raise UserError(f"early_terminate: expected keys such as type and min_iter, got {rule!r}")
    _check_keys(rule, tuple(HYPERBAND), "early_terminate")
    if rule.get("type") != "hyperband":
        raise UserError(f"early_terminate.type: expected hyperband, got {rule.get('type')!r}")
    for key, value in rule.items():
        numeric = HYPERBAND[key] not in (str, bool)
        if not isinstance(value, HYPERBAND[key]) or (numeric and (isinstance(value, bool) or value < 1)):
            raise UserError(
                f"early_terminate.{key}: expected {'a number from 1' if numeric else 'true or false'}, got {value!r}"
            )
    if "min_iter" not in rule and not {"max_iter", "s"} <= rule.keys():
        raise UserError("early_terminate: hyperband needs `min_iter`, or `max_iter` and `s`")


def _with_point(text: str) -> str:
    """Write a number in the exponent form that YAML 1.1 reads: 1e-5 -> 1.0e-5."""
    digits, _, exponent = text.lower().partition("e")
    digits = digits if "." in digits else f"{digits}.0"
    return f"{digits}e{exponent if exponent[0] in '+-' else '+' + exponent}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
