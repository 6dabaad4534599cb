"""`--model.help` and `--data.help` without a class: the classes that a recipe may name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Sequence

WIDTH = 80  # columns of a terminal


def bare_help(arguments: Sequence[str]) -> str | None:
    """The key, model or data, whose `.help` has no class behind it; None if there is no such option."""
    for number, argument in enumerate(arguments):
        if argument in ("--model.help", "--data.help"):
            following = arguments[number + 1] if number + 1 < len(arguments) else "--"
            if following.startswith("--"):
                return argument.removeprefix("--").removesuffix(".help")
    return None


def class_list(key: str) -> str:
    """The families (key "model") or data modules (key "data") with the first sentence of each docstring."""
    from lightning import LightningDataModule

    from lit_mm.module import MultimodalModule

    base, package = {
        "model": (MultimodalModule, "lit_mm.families"),
        "data": (LightningDataModule, "datamodules"),
    }[key]
    root = importlib.import_module(package)
    classes: dict[type, str] = {}  # class -> shortest import path
    for module in (
        root,
        *(importlib.import_module(i.name) for i in pkgutil.iter_modules(root.__path__, f"{package}.")),
    ):
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, base) and value.__module__.startswith(f"{package}."):
                classes.setdefault(value, f"{module.__name__}.{name}")
    lines = [f"Classes for `{key}.class_path`. --{key}.help CLASS lists the arguments.", ""]
    for value, path in sorted(classes.items(), key=lambda item: item[1]):
        paragraph = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
        sentence = paragraph.partition(". ")[0].rstrip(".") + "."
        lines += [f"  {path}", *textwrap.wrap(sentence, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return "\n".join(lines)
