"""The keys of stages: each stage is addressed by its name, as in `--stages.pretrain.train.connector.lr 0.01`.

Stages are a list in the recipe, because their order counts. Every later config and option changes stages by name:

    --stages.pretrain.max_steps 2           a key of one stage
    --stages.*.max_steps 2                  the key of all stages
    --stages "{pretrain: {max_steps: 2}}"   the same as a mapping, or as a list of mappings with `name`
    --stages.replace "[{name: only, ...}]"  another list of stages, in place of the one before

The parser addresses items of a list only by their numbers, so it reads the merged list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields

from lit_mm.commands.config_text import COMMAND_LINE, Entry, agent_form, flow, read_config, spoken
from lit_mm.commands.signatures import SUBCLASS_KEYS, is_part, merged, name_of, signature_of
from lit_mm.errors import UserError, nearest
from lit_mm.stages.stage import ALL_STAGES, REPLACE, Stage


def merged_recipe(base: Entry, override: Entry) -> Entry:
    """Merge two configs, with stages by name.

    Raises:
        UserError: `override` changes a stage that `base` does not have.
    """
    stages = override.keys.get("stages")
    if stages is None:
        return merged(base, override)
    keys = {key: entry for key, entry in override.keys.items() if key != "stages"}
    both = merged(base, Entry(keys, override.place)) if keys else base
    return Entry({**both.keys, "stages": merged_stages(base.keys.get("stages"), stages)}, both.place or override.place)


def merged_stages(base: Entry | None, override: Entry) -> Entry:
    """Merge changes by name into a list of stages.

    Args:
        base: earlier list of stages; None if there is none.
        override: a list of stages with names, or a mapping of names to changes. Null removes all stages.
    Raises:
        UserError: `override` has a name that `base` does not have, or a key without the name of its stage.
    """
    if REPLACE in override.keys:
        if len(override.keys) > 1 or not isinstance(override.keys[REPLACE].value, list):
            raise UserError(
                f"{spoken(override, ('stages', REPLACE))}: expected a list of stages and no other key beside it"
            )
        return override.keys[REPLACE]
    if base is None or not isinstance(base.value, list):
        if override.keys:
            raise UserError(
                f"{spoken(override, ('stages',))}: the first config lists its stages, as in `stages: [{{name: ...}}]`; "
                f"got the keys {', '.join(override.keys)}"
            )
        return override
    if override.appends:
        return merged(base, override)
    stages = dict(base.items)
    for entry in (base, override):
        names = [name for name, _ in entry.items]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{spoken(entry, ('stages',))}: stage names must differ, got {', '.join(repeated)} twice")
    if not isinstance(override.value, (list, dict)):
        return override  # null, or a text, which the parser reports
    for name, change in override.items:
        if not isinstance(change.value, dict) and (name == ALL_STAGES or name in stages):
            raise UserError(
                f"{spoken(change, ('stages', name))}: expected keys of the stage, such as max_steps, got "
                f"{change.value!r}"
            )
        if name == ALL_STAGES:
            stages = {each: merged(stage, change) for each, stage in stages.items()}
        elif name in stages:
            stages[name] = merged(stages[name], change)
        else:
            raise UserError(_unknown_stage(name, change, list(stages)))
    for name, stage in stages.items():
        if (new := stage.keys.get("name")) is not None and new.value != name:
            raise UserError(
                f"{spoken(new, ('stages', name, 'name'))}: the name of a stage cannot be changed, got {new.value!r}"
            )
    return Entry([_complete(stage) for stage in stages.values()], base.place)


def _unknown_stage(name: str, change: Entry, names: list[str]) -> str:
    place = spoken(change, ("stages", name))
    if name in signature_of(Stage).arguments:
        addresses = ", ".join(f"`stages.{stage}.{name}`" for stage in names)
        return (
            f"{place}: a key of a stage needs the name of its stage: {addresses}, or `stages.{ALL_STAGES}.{name}` for "
            "all stages"
        )
    return (
        f"{place}: the recipe has no stage {name!r}{nearest(name, names) or '.'} It has {', '.join(names)}. "
        f"`stages.{REPLACE}` takes another list of stages"
    )


def _complete(stage: Entry) -> Entry:
    """Add `class_path` and `init_args` to the parts of a stage, because the command line may leave both out."""
    keys = {}
    for key, entry in stage.keys.items():
        default = _default_class(key)
        if default and isinstance(entry.value, dict) and "class_path" not in entry.keys:
            entry = Entry({"class_path": Entry(default, entry.place), **entry.keys}, entry.place)
        keys[key] = nested(entry)
    return Entry(keys, stage.place)


def _default_class(key: str) -> str | None:
    """Return the class of a stage's default part, such as the schedule; None for any other key."""
    argument = signature_of(Stage).arguments.get(key)
    if argument is None or not is_part(argument.annotation):
        return None
    factories = {field.name: field.default_factory for field in fields(Stage)}
    return None if factories[key] is MISSING else name_of(factories[key])


def nested(entry: Entry) -> Entry:
    """Move arguments beside a `class_path` into its `init_args`."""
    if not isinstance(entry.value, dict):
        return entry
    keys = {key: nested(inner) for key, inner in entry.keys.items()}
    short = {key: inner for key, inner in keys.items() if key not in SUBCLASS_KEYS and inner.place == COMMAND_LINE}
    if "class_path" in keys and short:
        arguments = keys.get("init_args", Entry({}, entry.place))
        keys = {key: inner for key, inner in keys.items() if key not in short}
        keys["init_args"] = (
            nested(merged(arguments, Entry(short, COMMAND_LINE))) if arguments.keys else Entry(short, "")
        )
    return Entry(keys, entry.place)


def parser_words(arguments: Sequence[str], entries: Entry) -> list[str]:
    """Build a command line for the parser from configs as texts without stages, and the merged stages.

    Args:
        arguments: words of the user.
        entries: merged config.
    """
    words = list(_without_stages(arguments))
    stages = entries.keys.get("stages")
    return words if stages is None or stages.value is None else [*words, f"--stages={flow(stages)}"]


def _without_stages(arguments: Sequence[str]) -> Iterator[str]:
    rest = iter(arguments)
    for word in rest:
        option, equals, value = word.partition("=")
        if option in ("--config", "-c") and (equals or (value := next(rest, ""))):
            config = read_config(value)
            keys = {key: entry for key, entry in config.keys.items() if key != "stages"}
            yield f"--config={flow(Entry(keys, config.place))}"
        elif option.split(".")[0].removesuffix("+") == "--stages":
            value = value if equals else next(rest, "")
            if not value or (not equals and value.startswith("--")):
                raise UserError(f"{option} needs a value")
        else:
            yield agent_form(word)
