"""The prompt by which a language model merges the descriptions of one image."""

from __future__ import annotations

from collections.abc import Sequence

from lit_mm.annotation.description import Description
from lit_mm.annotation.experts import Blocks
from lit_mm.annotation.filters import write_block

# A change of any text below needs another number: outputs name the version that made them
VERSION = "lit_mm/merge 2"

ROLE = (
    "Several people have looked at one and the same image, and each of them has noted something else. You write the "
    "caption of the image: combine their notes into one coherent description. A place in the image is written as "
    "[left, top, right, bottom], where 0 is the left or upper edge and 1 the right or lower edge."
)
OVERALL = "Overall caption: {}"
REGIONS = "Dense caption 1, objects and their places: {}"
SEGMENTS = "Dense caption 2, parts of the image and their places: {}"
TEXT = "Texts in the image and their places: {}"
RULES = """Rules for the description:
1. Say what the scene as a whole is about.
2. Notes about the same place describe the same object: mention it once. Pieces of text that form a sentence belong \
together.
3. Name the main objects with their colours and other attributes.
4. Say where objects are relative to each other.
5. Write fewer than six sentences.
6. Write no numbers and no coordinates.
7. Do not list single letters.
Answer with the description alone."""


def merge_prompt(blocks: Blocks) -> str:
    """Write the request for one image. An empty block of regions or segments says "none"; empty texts are left out.

    Source: the blocks, their order and the rules are those of data_generation/ of github.com/Yuliang-Liu/Monkey; the
        words are our own.
    """
    lines = [ROLE, "", OVERALL.format(blocks.overall), _line(REGIONS, blocks.regions), _line(SEGMENTS, blocks.segments)]
    if blocks.text:
        lines.append(_line(TEXT, blocks.text))
    return "\n".join([*lines, "", RULES])


def _line(label: str, descriptions: Sequence[Description]) -> str:
    return label.format(write_block(descriptions).strip() or "none")
