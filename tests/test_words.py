"""Names are nouns of the field; attributes are declared and not looked up by their names."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("lit_mm", "callbacks", "datamodules")
ROLES = frozenset(
    (
        "own",
        "made",
        "found",
        "kept",
        "told",
        "said",
        "held",
        "given",
        "chosen",
        "shown",
        "named",
        "asked",
        "seen",
        "wanted",
        "known",
        "written",
        "taken",
        "drawn",
        "placed",
        "changed",
        "moved",
        "done",
        "its",
        "one",
        "ours",
        "theirs",
    )
)
MOST_ROLES = 0.002  # share of all bound names
MOST_LOOKUPS = 15  # calls of getattr and hasattr


def trees() -> Iterator[tuple[str, ast.Module]]:
    """(file, syntax tree) of every module."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield str(file.relative_to(ROOT)), ast.parse(file.read_text(encoding="utf-8"))


def bound_names(tree: ast.Module) -> Iterator[str]:
    """Names of functions, arguments and assigned variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg


def test_few_names_say_a_grammatical_role() -> None:
    total = 0
    roles: Counter[str] = Counter()
    for file, tree in trees():
        names = list(bound_names(tree))
        total += len(names)
        roles[file] = sum(name in ROLES for name in names)
    share = roles.total() / total
    assert share < MOST_ROLES, f"{roles.total()} of {total} names ({share:.2%}); most in {roles.most_common(10)}"


def test_few_attributes_are_looked_up_by_name() -> None:
    lookups: Counter[str] = Counter()
    for file, tree in trees():
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        lookups[file] = sum(isinstance(name, ast.Name) and name.id in ("getattr", "hasattr") for name in calls)
    assert lookups.total() <= MOST_LOOKUPS, f"{lookups.total()} calls; most in {lookups.most_common(10)}"
