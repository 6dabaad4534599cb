"""Rooms import only from lower rooms. See CONTRIBUTING.md, "The rooms"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up. A room imports from its own and from lower lines, never from a room beside it.
FLOORS = (
    ("errors", "assets"),
    ("environment", "layers", "documents", "weights"),
    ("tiling", "prompts"),
    ("samples",),
    ("stages",),
    ("checkpoints", "stream"),
    ("distributed",),
    ("vision", "connectors", "fusion", "language"),
    ("combination", "model"),
    ("objectives",),
    ("module",),
    ("inference", "planning"),
    ("evaluation",),
    ("run", "families"),
    ("nano", "composition", "report", "sweeps"),
    ("annotation",),
    ("datamodules", "callbacks"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_MODULES = 8  # directly in lit_mm/, its __init__ included


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the library, the data modules and the callbacks."""
    folders = {"lit_mm": "lit_mm", "lit_mm.datamodules": "datamodules", "lit_mm.callbacks": "callbacks"}
    return {
        ".".join((package, *file.relative_to(ROOT / folder).with_suffix("").parts)).removesuffix(".__init__"): file
        for package, folder in folders.items()
        for file in (ROOT / folder).rglob("*.py")
    }


def room_of(module: str) -> str:
    """Room of a module: lit_mm.samples.batch -> samples; lit_mm.datamodules.nano -> datamodules."""
    first, *rest = module.split(".")
    return rest[0] if first == "lit_mm" and rest else first


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the project that a file imports anywhere, inside functions and for type checkers included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (
                name if name in known else node.module for name in names if name in known or node.module in known
            )


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Module -> imported modules."""
    known = modules()
    return {name: set(imports(file, known)) - {name} for name, file in known.items()}


def test_the_table_of_rooms_in_contributing_has_the_same_floors() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## The rooms")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert tuple(tuple(re.findall(r"`(\w+)`", row)) for row in rows) == FLOORS


def test_every_room_has_a_floor(graph: dict[str, set[str]]) -> None:
    assert {room_of(module) for module in graph} - {"lit_mm"} <= FLOOR.keys()


def test_no_room_imports_from_a_room_above_or_beside_it(graph: dict[str, set[str]]) -> None:
    up = [
        f"{module} imports {imported}"
        for module, found in sorted(graph.items())
        for imported in sorted(found)
        if "lit_mm" not in (module, imported)
        and room_of(module) != room_of(imported)
        and FLOOR[room_of(module)] <= FLOOR[room_of(imported)]
    ]
    assert not up


def test_no_module_imports_itself_through_others(graph: dict[str, set[str]]) -> None:
    state: dict[str, int] = {}  # 1: on the path, 2: done
    circles: list[str] = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        state[module] = 1
        for imported in sorted(graph[module]):
            if state.get(imported) == 1:
                circles.append(" -> ".join((*path[path.index(imported) :], imported)))
            elif imported not in state:
                visit(imported, (*path, imported))
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            visit(module, (module,))
    assert not circles


def test_few_modules_lie_outside_of_rooms() -> None:
    flat = sorted(file.name for file in (ROOT / "lit_mm").glob("*.py"))
    assert len(flat) <= MOST_MODULES, flat
