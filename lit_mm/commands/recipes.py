"""`recipes` lists the recipes that come with the package, and copies one out. No torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_mm.commands.options import Arguments
from lit_mm.commands.recipe_files import RECIPES, recipe_names
from lit_mm.errors import UserError


def recipes(arguments: Sequence[str]) -> None:
    """List the recipes of the package, or copy one to a file. --config of every command takes their names."""
    parser = Arguments(
        prog="python -m lit_mm recipes",
        usage="python -m lit_mm recipes [NAME] [--to FILE]",
        description=recipes.__doc__,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe to copy, such as xcomposer2 or paper/llava")
    parser.add_argument("--to", metavar="FILE", help="new file (default: the recipe's name in the current folder)")
    choices = parser.parse_args(arguments)
    if choices.name is None:
        if choices.to is not None:
            raise UserError("recipes --to needs the NAME of a recipe (python -m lit_mm recipes lists them)")
        width = max(map(len, recipe_names()))
        for name in recipe_names():
            print(f"{name:<{width}}  {headline(RECIPES / f'{name}.yaml')}")
        return
    if choices.name not in recipe_names():
        raise UserError(f"there is no recipe {choices.name!r} (python -m lit_mm recipes lists them)")
    target = Path(choices.to or f"{Path(choices.name).name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write((RECIPES / f"{choices.name}.yaml").read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise UserError(f"{str(target)!r} exists. Choose another file with --to") from error
    except OSError as error:
        raise UserError(f"the recipe cannot be written to {str(target)!r} ({error.strerror})") from error
    print(f"{target}: next, python -m lit_mm fit --config {target}")


def headline(recipe: Path) -> str:
    """Return the first sentence of a recipe's leading comment."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    comment = " ".join(line.removeprefix("# ").strip() for line in lines[:count])
    return comment.partition(": ")[0].partition(". ")[0].rstrip(".")
