"""Refusal of recipes in the form of the previous version, with the lines to write instead.

This module is deleted together with `lit_mm.checkpoints.before`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import yaml

from lit_mm.checkpoints.before import translate_inputs, translate_schedules
from lit_mm.errors import UserError

SCHEDULE_KEYS = ("schedule", "warmup", "floor")  # of a stage


def refuse_old_keys(files: Sequence[str], text: str) -> None:
    """Compare a recipe with its translation.

    Args:
        files: config files, for messages.
        text: YAML of the merged files.
    Raises:
        UserError: arguments of the model (`by_stage`, `aspect`, `limits`, {function: ...}) or keys of a stage
            (`schedule: cosine`, `warmup`, `floor`) have the old form. The message has the new lines.
    """
    recipe: dict[str, Any] = yaml.safe_load(text)
    if not isinstance(recipe.get("stages") or [], list):
        return  # the parser reports the mistake
    translated = translate_schedules(translate_inputs(deepcopy(recipe)))
    if translated == recipe:
        return
    before, after = ((config.get("model") or {}).get("init_args") or {} for config in (recipe, translated))
    gone = [f"model.init_args.{key}" for key, value in sorted(before.items()) if after.get(key) != value]
    arguments = {key: value for key, value in after.items() if before.get(key) != value}
    lines: dict[str, Any] = {"model": {"init_args": arguments}} if arguments else {}
    stages = []
    for earlier, stage in zip(recipe.get("stages") or [], translated.get("stages") or [], strict=True):
        changes = {key: stage[key] for key in ("inputs", "schedule") if earlier.get(key) != stage.get(key)}
        stages += [{"name": stage.get("name"), **changes}] if changes else []
        keys = [key for key in SCHEDULE_KEYS if key in earlier and "schedule" in changes]
        gone += [f"stages.{stage.get('name')}.{key}" for key in keys]
    lines |= {"stages": stages} if stages else {}
    raise UserError(
        f"{', '.join(files)}: {', '.join(f'`{key}`' for key in gone)} "
        f"{'is' if len(gone) == 1 else 'are'} written otherwise since this version. Write instead, the stages beside "
        f"their other keys:\n{yaml.dump(lines, Dumper=Plain, sort_keys=False, default_flow_style=None, width=120)}"
    )


class Plain(yaml.SafeDumper):
    """A writer of YAML without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
