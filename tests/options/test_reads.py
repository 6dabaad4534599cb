"""Every argument of a recipe is read: by its constructor, or from the attribute that the constructor fills."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

import lit_mm
from lit_mm.commands.options import RECIPE_OPTIONS
from lit_mm.commands.signatures import resolve
from lit_mm.documents.sources.source import Source
from lit_mm.samples.augmentation import Augmentation
from lit_mm.samples.inputs import Inputs
from lit_mm.samples.layout import Layout
from lit_mm.samples.reading import Reading
from lit_mm.stages.adapter import Adapter
from lit_mm.stages.examine import Examine
from lit_mm.stages.schedule import Schedule
from lit_mm.stages.stage import Stage, Start, Train
from lit_mm.stream.datamodule import StreamDataModule
from lit_mm.tiling.plan import Tiling
from tests.options.recording import RecordingMapping, recording, unread_keys

ROOT = Path(__file__).parents[2]
PACKAGES = ("lit_mm", "callbacks", "datamodules")
SETTINGS = (Stage, Start, Train, Adapter, Examine, Inputs, Augmentation, Reading)
KINDS = (Tiling, Layout, Schedule, StreamDataModule, Source)  # all their subclasses can be named in a recipe


@cache
def attributes_read() -> frozenset[str]:
    """Names of attributes that any module of the library reads."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    loads = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return frozenset(node.attr for node in loads if isinstance(node.ctx, ast.Load))


def classes_of_recipes() -> set[type]:
    """Classes that recipes name by `class_path`."""

    def paths(content: Any) -> Iterator[str]:
        if isinstance(content, dict):
            yield from (path for path in [content.get("class_path")] if isinstance(path, str))
        for inner in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
            yield from paths(inner)

    files = [file for file in (ROOT / "experiments").rglob("*.yaml") if file.parent.name != "sweeps"]
    found = {resolve(path) for file in files for path in paths(yaml.safe_load(file.read_text()))}
    return {each for each in found if inspect.isclass(each) and each.__module__.startswith("lit_mm.")}


def subclasses(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def classes() -> list[type]:
    """Settings, all classes that recipes name, and all others of their kinds."""
    for module in pkgutil.walk_packages(lit_mm.__path__, "lit_mm."):
        if module.name.split(".")[1] in ("tiling", "samples", "stages", "datamodules", "documents"):
            importlib.import_module(module.name)
    others = {each for kind in KINDS for each in subclasses(kind)}
    named = {each for each in {*classes_of_recipes(), *others} if each.__module__.startswith("lit_mm.")}
    return [*SETTINGS, *sorted(named, key=lambda kind: kind.__qualname__)]


def is_of_self(target: ast.expr) -> bool:
    """Return True for an attribute of `self`."""
    return isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"


def unread(kind: type, read: Collection[str]) -> list[str]:
    """Arguments of a class that nothing reads.

    An argument counts as read if the constructor uses it in another way than to fill an attribute, or if anything
    reads an attribute of that name.

    Args:
        kind: class with a constructor written in Python.
        read: names of attributes that are read anywhere.
    """
    if is_dataclass(kind):
        return [field.name for field in fields(kind) if field.init and field.name not in read]
    if "__init__" not in vars(kind):
        return []  # the constructor is that of a base
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind.__init__))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    arguments = [argument.arg for argument in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs)][1:]
    stored: dict[int, str] = {}  # id of a name on the right -> attribute that it fills
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                stored |= {id(value): left.attr for left, value in pairs if is_of_self(left)}
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    used = {node.id for node in loads if id(node) not in stored or stored[id(node)] in read}
    return [argument for argument in arguments if argument not in used]


def test_every_argument_of_every_class_is_read() -> None:
    arguments = {kind.__qualname__: unread(kind, attributes_read()) for kind in classes()}
    assert {name: names for name, names in arguments.items() if names} == {}
    assert len(arguments) > 80


def test_every_option_of_a_recipe_is_read() -> None:
    assert {option.name for option in RECIPE_OPTIONS} - attributes_read() == set()


def test_an_argument_that_nothing_reads_is_found() -> None:
    class Part:
        def __init__(self, width: int, depth: int, unused: int, forgotten: int) -> None:
            self.width, self.never = width, forgotten
            self.layers = [None] * depth

    assert unread(Part, {"width", "layers"}) == ["unused", "forgotten"]
    assert unread(Train, {"lr"})[0] == "weight_decay"


class Reader:
    """A part that reads one key of a mapping."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.small = sizes["small"]


def test_a_key_of_a_mapping_that_nothing_reads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reader, "part")
    part = {"class_path": f"{Reader.__module__}.Reader", "init_args": {"sizes": {"small": 1, "large": 2}}}
    with recording(monkeypatch) as mappings:
        parser.instantiate(parser.parse_object({"part": part}))
    assert unread_keys(mappings) == ["Reader.sizes.large"]


@pytest.mark.parametrize("copy", [dict, lambda m: {**m}, list, lambda m: dict(m.items()), lambda m: {} | m])
def test_a_copy_reads_all_keys_of_a_mapping(copy: Callable[[RecordingMapping], Any]) -> None:
    mapping = RecordingMapping({"a": 1, "b": 2}, "Reader.sizes")
    copy(mapping)
    assert unread_keys([mapping]) == []
