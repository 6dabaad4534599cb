"""Recipes in the form of the version before this one are refused, with the lines to write instead.

This module is deleted together with `lit_mm.checkpoints.before`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from lit_mm.checkpoints.before import translate_inputs
from lit_mm.errors import UserError


def refuse_old_keys(files: Sequence[str]) -> None:
    """Compare a recipe with its translation.

    Args:
        files: the config files, which are known to be YAML mappings; later ones override.
    Raises:
        UserError: the model's arguments are in the form of the version before, such as `by_stage`, `aspect`, `limits`
            or {function: ...}; with the lines that replace them.
    """
    recipe: dict[str, Any] = {}
    for file in files:
        recipe = merged(recipe, yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    translated = translate_inputs(deepcopy(recipe))
    if translated == recipe:
        return
    before, after = (config["model"].get("init_args") or {} for config in (recipe, translated))
    gone = sorted(key for key, value in before.items() if after.get(key) != value)
    arguments = {key: value for key, value in after.items() if before.get(key) != value}
    lines: dict[str, Any] = {"model": {"init_args": arguments}} if arguments else {}
    stages = [
        {"name": now["name"], "inputs": now["inputs"]}
        for was, now in zip(recipe.get("stages") or [], translated.get("stages") or [], strict=True)
        if was != now
    ]
    lines |= {"stages": stages} if stages else {}
    raise UserError(
        f"{', '.join(files)}: {', '.join(f'`model.init_args.{key}`' for key in gone)} "
        f"{'is' if len(gone) == 1 else 'are'} written otherwise since this version. Write instead, the stages beside "
        f"their other keys:\n{yaml.dump(lines, Dumper=Plain, sort_keys=False, default_flow_style=None, width=120)}"
    )


def merged(base: Any, changes: Any) -> Any:
    """`base` with `changes`, mapping by mapping."""
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return changes
    return {**base, **{key: merged(base.get(key), value) for key, value in changes.items()}}


class Plain(yaml.SafeDumper):
    """Writes YAML without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
