"""The data section after a change of its class: bare class names, and keys of the earlier class."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L

from lit_mm import datamodules  # its classes are known by their bare names
from lit_mm.commands.config_text import Entry, spoken
from lit_mm.commands.signatures import class_of, name_of, signature_of
from lit_mm.errors import UserError

OWN_DATA = "own_data"  # the recipe for a file of conversations


def with_class_path(override: Entry) -> Entry:
    """Turn an option `--data CLASS` into a mapping with `class_path`. Arguments that the class has then stay.

    Args:
        override: one option of the command line. Options other than `--data CLASS` are returned unchanged.
    """
    data = override.keys.get("data")
    if data is None or not isinstance(data.value, str):
        return override
    loaded = class_of(data, [L.LightningDataModule], ("data",))
    class_path = data if loaded is None else Entry(name_of(loaded), data.place)
    return Entry({**override.keys, "data": Entry({"class_path": class_path}, data.place)}, override.place)


def refuse_keys_of_other_classes(config: Entry) -> None:
    """Refuse keys of a data section that belong to another data module than its class.

    Raises:
        UserError: there are such keys. The message lists those of `data` and of the stages' `data` with their lines.
    """
    data = config.keys.get("data")
    class_path = None if data is None else data.keys.get("class_path")
    loaded = None if class_path is None else class_of(class_path, [L.LightningDataModule], ("data", "class_path"))
    if loaded is None:
        return
    signature = signature_of(loaded)
    if signature.open:
        return
    modules = [module for module in vars(datamodules).values() if isinstance(module, type)]
    arguments = {module: signature_of(module).arguments for module in modules}
    left_over: list[str] = []
    owners: set[str] = set()
    for path, entry in _data_keys(config):
        key = path[-1]
        names = {name_of(module) for module in modules if key in arguments[module]}
        if key not in signature.arguments and names:
            left_over.append(spoken(entry, path))
            owners = owners & names or names
    if left_over:
        owner = f"{min(owners)} has" if len(owners) == 1 else "other data modules have"
        raise UserError(
            f"the data are {class_path.value}, and {owner} these keys: {'; '.join(left_over)}. Delete them, "
            f"or start from {OWN_DATA}"
        )


def _data_keys(config: Entry) -> Iterator[tuple[tuple[str, ...], Entry]]:
    """Return the keys of `data` and of every stage's `data`, with their paths."""
    arguments = config.keys["data"].keys.get("init_args")
    if arguments is not None:
        yield from ((("data", "init_args", key), entry) for key, entry in arguments.keys.items())
    stages = config.keys.get("stages")
    for name, stage in stages.items if stages is not None else ():
        if "data" in stage.keys:
            yield from ((("stages", name, "data", key), entry) for key, entry in stage.keys["data"].keys.items())
