"""Inputs are the settings by which documents become samples, as plain data in a recipe for a model or a stage."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from lit_mm.errors import UserError
from lit_mm.prompts.prompt import Prompt
from lit_mm.samples.augmentation import Augmentation
from lit_mm.samples.layout import Layout
from lit_mm.samples.reading import Reading
from lit_mm.tiling.plan import Tiling

MEAN_COLOUR = (122, 116, 104)  # CLIP's mean, 255 times
BLACK = (0, 0, 0)
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Inputs:
    """Settings by which documents become samples. A field that is None keeps the value that it would change.

    Attributes:
        tiling: rule that cuts an image into views.
        layout: rule that places the visual tokens of the views in the text.
        prompt: template and label rule; "template": the chat template of the tokenizer, see
            `lit_mm.prompts.template.ChatTemplate`.
        max_length: length of the longest sample, tokens.
        fill: colour of padding, RGB, 0 to 255.
        by_source: name of a data source -> tiling of its documents; {} removes all entries. Published for 4KHD: 55
            tiles for DocVQA and InfoVQA, 25 elsewhere.
        augmentation: random changes of pictures in training; examinations and answers never change pictures.
        reading: rule for the second text of every sample, which a Q-Former or a text encoder reads.
        image_ids: True numbers the images of samples by their pixels, for fine-tuning for retrieval, in which an image
            has several right texts. Each image is then decoded once more, small.
        whole_jpegs: True decodes every image at its own size, as the authors' code does; False decodes a JPEG that is
            more than twice as large as its first resize at a fraction of its size, see
            `lit_mm.samples.pixels.Normalise`.
    Raises:
        UserError: the length is below 1, or the colour is not three numbers from 0 to 255.
    """

    tiling: Tiling | None = None
    layout: Layout | None = None
    prompt: Literal["template"] | Prompt | None = None
    max_length: int | None = None
    fill: tuple[int, int, int] | None = None
    by_source: dict[str, Tiling] | None = None
    augmentation: Augmentation | None = None
    reading: Reading | None = None
    image_ids: bool | None = None
    whole_jpegs: bool | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"inputs: `max_length` is at least 1 token, got {self.max_length}")
        if self.fill is not None and not all(0 <= value <= 255 for value in self.fill):
            raise UserError(f"inputs: `fill` is a colour, three numbers from 0 to 255, got {list(self.fill)}")

    def over(self, base: Inputs) -> Inputs:
        """Return a copy of `base` with every field that is set in this object."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(base, **{name: value for name, value in values.items() if value is not None})
