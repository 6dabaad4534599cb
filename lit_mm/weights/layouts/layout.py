"""The description of a published layout, and the choice of the one that a checkpoint has."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_mm.errors import UserError
from lit_mm.weights import layouts
from lit_mm.weights.files import image_settings, read_json
from lit_mm.weights.names import below
from lit_mm.weights.stream import Stored

Config = dict[str, Any]
State = dict[str, Tensor]
Ids = tuple[list[int], list[int]]  # ours, and those of transformers
WRITING = frozenset({"lm", "next_token"})  # objectives of a decoder, which `generate` runs
Start = str | Callable[[tuple[int, ...]], Tensor]  # the name of another tensor, or a function from a shape to values


@dataclass(frozen=True)
class Described:
    """What the files of a checkpoint say, without its tensors.

    Attributes:
        folder: folder of the checkpoint.
        config: config.json; {} if there is none.
        stored: dtype and shape of every tensor, by name.
        parts: part -> description of the checkpoint that `--with` names for it.
        template: name of the chat template that the user gives; None: the files tell.
    """

    folder: Path
    config: Config
    stored: Mapping[str, Stored]
    parts: Mapping[str, Described] = field(default_factory=dict)
    template: str | None = None

    def json(self, name: str) -> Config:
        """Read a JSON file of the folder; {} if it is not there."""
        return read_json(self.folder, name)

    @property
    def image_processor(self) -> Config:
        """The settings of the image processor, without those that are null; {} if no file has them.

        They are preprocessor_config.json, or the section `image_processor` of processor_config.json, where transformers
        5 writes them.
        """
        return image_settings(self.folder)

    def inside(self, name: str) -> Described:
        """Describe the part in a folder inside, see `lit_mm.weights.files.PART_FOLDERS`."""
        folder = self.folder / name
        config = read_json(folder, "config.json") if folder.is_dir() else {}
        return Described(folder, config, below(self.stored, f"{name}/"), template=self.template)

    def shape(self, *endings: str) -> tuple[int, ...] | None:
        """Return the shape of the first tensor whose name ends in one of `endings`; None if there is none."""
        return next((stored.shape for name, stored in self.stored.items() if name.endswith(endings)), None)


@dataclass(frozen=True)
class Layout:
    """One layout in which checkpoints of a family are published.

    Attributes:
        name: name of the family and of the layout, such as "llava_1_5/hf".
        example: a published name that has this layout.
        recognises: function that returns True for a checkpoint of this layout.
        model: function that builds the `model` section of the recipe.
        rename: key map, a function from a state and the `model` section to the state of the model.
        stage: the `train` section of the fine-tuning stage.
        accepts: function that returns True for a checkpoint whose user may name this layout; None: `recognises`.
        separate: part -> (key map of `lit_mm.weights.source.MAPS`, key of config.json with the published name) for
            parts that a checkpoint may leave out.
        in_transformers: True if transformers opens a checkpoint of this layout.
        objectives: the `objectives` section of the fine-tuning stage; {} for the family's first.
        places: part of `separate` -> its path in the network, where that is not the name of the part.
        copies: function that returns, for names in the files, the names of the tensors that they repeat.
        start: function from the name of a tensor of the model, which no file of this layout holds, to its start value:
            that of another tensor of the model, or values by shape. None: the files must hold the tensor.
        outputs: function of our module, transformers' model and a batch that returns what both compute of it; None
            compares the logits of all positions.
        ids: function of our module, transformers' processor, a batch of one image with a question and an answer, the
            image, and the texts of both, that returns what is compared -> (our token ids, those of the processor); None
            compares questions with their images.
        pixels: function of transformers' preprocessor, an image and our views that returns the pixels of the
            preprocessor; None takes its `pixel_values`.
    """

    name: str
    example: str
    recognises: Callable[[Described], bool]
    model: Callable[[Described], Config]
    rename: Callable[[State, Config], State]
    stage: Config
    separate: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    in_transformers: bool = False
    objectives: Config = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    copies: Callable[[Described], Mapping[str, str]] = lambda described: {}
    start: Callable[[str], Start | None] = lambda name: None
    outputs: Callable[[Any, Any, Any], tuple[Tensor, Tensor]] | None = None
    accepts: Callable[[Described], bool] | None = None
    ids: Callable[[Any, Any, Any, Any, str, str], dict[str, Ids]] | None = None
    pixels: Callable[[Any, Any, Tensor], Tensor] | None = None

    @property
    def writes(self) -> bool:
        """True if models of this layout were trained to write text; False if they only compare images with texts."""
        return not self.objectives or not WRITING.isdisjoint(self.objectives)

    def place(self, part: str) -> str:
        """Return the prefix of the names of a part of `separate` in the model."""
        return f"network.{self.places.get(part, part)}"


def all_layouts() -> list[Layout]:
    """List the layouts of all families."""
    names = [name for _, name, _ in pkgutil.iter_modules(layouts.__path__)]
    modules = [importlib.import_module(f"{layouts.__name__}.{name}") for name in sorted(names)]
    return [layout for module in modules for layout in vars(module).get("LAYOUTS", ())]


def layout_named(name: str) -> Layout:
    """Return the layout of a name, such as "llava_1_5/hf"."""
    return next(layout for layout in all_layouts() if layout.name == name)


def layout_of(described: Described, name: str | None = None) -> Layout:
    """Find the layout of a checkpoint.

    Args:
        described: files of the checkpoint.
        name: name of the layout, for files that say too little; None recognises it.
    Raises:
        UserError: no layout fits, several do, or there is none of this name.
    """
    known = {layout.name: layout for layout in all_layouts()}
    if name is not None:
        if name not in known:
            raise UserError(f"--layout: there is no layout {name!r}; expected one of {', '.join(known)}")
        if (known[name].accepts or known[name].recognises)(described):
            return known[name]
    fitting = [layout for layout in known.values() if layout.recognises(described)]
    if len(fitting) == 1 and name is None:
        return fitting[0]
    kind = described.config.get("model_type"), described.config.get("architectures")
    files = (
        f"its config.json (model_type {kind[0]!r}, architectures {kind[1]!r})" if described.config else "no config.json"
    )
    files += f" and its {len(described.stored)} tensors such as {sorted(described.stored)[:3]}"
    if name is not None:
        others = ", ".join(layout.name for layout in fitting) or "none of the known ones"
        raise UserError(f"--layout {name}: {str(described.folder)!r} with {files} fits {others}")
    cure = f"Name one of {', '.join(layout.name for layout in fitting)} with --layout"
    if not fitting:
        cure = (
            "python -m lit_mm import --list shows the layouts. A language model or an encoder alone is no layout: "
            "`weights:` of a part in a recipe reads it, or --with beside a multimodal checkpoint"
        )
    count = f"{len(fitting)} layouts fit" if fitting else "no known layout fits"
    raise UserError(f"{str(described.folder)!r} with {files}: {count}. {cure}")


def require(described: Described, config: Config, values: Mapping[str, Collection[Any]]) -> None:
    """Refuse a checkpoint whose config has a value that no part of the family has.

    Args:
        values: key of the config -> values that it may have; a key that is absent is accepted.
    Raises:
        UserError: a value is another one.
    """
    for key, accepted in values.items():
        if key in config and config[key] not in accepted:
            raise UserError(
                f"{str(described.folder / 'config.json')!r}: {key} is {config[key]!r}, and only "
                f"{', '.join(map(repr, accepted))} can be imported"
            )
