"""The recipes that come with the package, found by their names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "experiments"  # in a clone a link to the folder at the top

SWEEPS = "sweeps"  # folder of sweep specifications, which are no recipes


@cache
def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes, such as "xcomposer2" and "paper/llava", sorted with the plain ones first."""
    files = [file.relative_to(RECIPES.resolve()) for file in RECIPES.resolve().rglob("*.yaml")]
    names = [file.with_suffix("").as_posix() for file in files if file.parts[0] != SWEEPS]
    return tuple(sorted(names, key=lambda name: (name.count("/"), name)))


def recipe_file(reference: str) -> Path:
    """Return the file of a `--config`: a path, or the name of a recipe if no file has this path."""
    file = Path(reference)
    return RECIPES / f"{reference}.yaml" if not file.exists() and reference in recipe_names() else file
