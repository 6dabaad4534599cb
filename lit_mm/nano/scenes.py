"""Skills with coloured shapes: counting ("count"), naming ("shape"), locating ("locate") and stories ("story")."""

from __future__ import annotations

from random import Random

from lit_mm.nano.elements import Element, Shape
from lit_mm.nano.reading import EDGE, PX, SPAN, Groups, write
from lit_mm.nano.render import text_width
from lit_mm.nano.words import COLOUR_NAMES, SHAPE_NAMES, SHAPES, draw_word

COUNT_SIDE, NAME_SIDE = 4, 3  # shapes to count lie in 4 x 4 cells, shapes to name in 3 x 3
MOST = 6  # most shapes to count
SIZES = ((2, 2), (3, 3), (4, 4), (3, 3), (2, 2), (2, 3), (3, 2), (3, 4), (4, 3))  # (width, height), tenths

Counted = tuple[str, int, str, tuple[tuple[int, str], ...]]  # kind to count, count, other kind, (cell, kind) pairs
Named = tuple[tuple[str, str], ...]  # (colour, kind)
Tenths = tuple[int, int, int, int]  # left, top, right, bottom
Located = tuple[tuple[str, str, Tenths], ...]  # (colour, kind, box)
Scene = tuple[str, str, str, bool]  # colour, kind, word, word above the shape


def draw_count(rng: Random) -> Counted:
    """Draw 1 to 6 shapes of one kind, all counts equally likely, and 0 to 3 of another kind."""
    kind, other = rng.sample(SHAPE_NAMES, 2)
    count, other_count = 1 + int(rng.random() * MOST), int(rng.random() * 4)
    cells = rng.sample(range(COUNT_SIDE**2), count + other_count)
    places = sorted((cell, kind if k < count else other) for k, cell in enumerate(cells))
    return kind, count, other, tuple(places)


def transcribe_count(facts: Counted) -> str:
    return " ".join(kind for _, kind in facts[3])


def identify_count(facts: Counted) -> str:
    """Name the page by its shapes and their cells: shapes alone give too few pages for splits without overlap."""
    return " ".join(f"{cell} {kind}" for cell, kind in facts[3])


def ask_count(facts: Counted) -> Groups:
    kind, count, other, places = facts
    groups: Groups = [(1.0, [(f"how many {SHAPES[kind]} are there?", str(count))])]
    if len(places) > count:  # these answers are less evenly spread, so they are asked last
        groups.append((0.0, [("how many shapes are there?", str(len(places)))]))
        groups.append((0.0, [(f"how many {SHAPES[other]} are there?", str(len(places) - count))]))
    return groups


def place_count(rng: Random, facts: Counted, squeeze: float) -> list[Element]:
    """Place shapes of one size, 17 to 21 px, in one colour per kind."""
    kind, _, _, places = facts
    colour, other_colour = rng.sample(COLOUR_NAMES, 2)
    side = rng.uniform(17, 21) * PX
    return [
        _shape_in_cell(rng, name, colour if name == kind else other_colour, cell, COUNT_SIDE, side, squeeze)
        for cell, name in places
    ]


def draw_named(rng: Random) -> Named:
    """Draw 2 to 4 shapes with different colours and different kinds."""
    count = 2 + int(rng.random() * 3)
    return tuple(zip(rng.sample(COLOUR_NAMES, count), rng.sample(SHAPE_NAMES, count), strict=True))


def transcribe_named(facts: Named) -> str:
    return " ; ".join(f"{colour} {kind}" for colour, kind in facts)


def ask_named(facts: Named) -> Groups:
    return [
        (1.0, [(f"what colour is the {kind}?", colour) for colour, kind in facts]),
        (1.0, [(f"what shape is {colour}?", kind) for colour, kind in facts]),
    ]


def place_named(rng: Random, facts: Named, squeeze: float) -> list[Element]:
    """Place shapes of 22 to 30 px."""
    cells = sorted(rng.sample(range(NAME_SIDE**2), len(facts)))
    return [
        _shape_in_cell(rng, kind, colour, cell, NAME_SIDE, rng.uniform(22, 30) * PX, squeeze)
        for cell, (colour, kind) in zip(cells, facts, strict=True)
    ]


def draw_located(rng: Random) -> Located:
    """Draw 1 to 3 shapes of different colours on a lattice of tenths, at least a tenth apart."""
    count = (1, 1, 2, 2, 3)[int(rng.random() * 5)]
    boxes: list[Tenths] = []
    while len(boxes) < count:
        width, height = SIZES[int(rng.random() * len(SIZES))]
        left, top = int(rng.random() * (11 - width)), int(rng.random() * (11 - height))
        right, bottom = left + width, top + height
        if all(left > r or right < x or top > b or bottom < y for x, y, r, b in boxes):
            boxes.append((left, top, right, bottom))
    boxes.sort(key=lambda box: (box[1], box[0]))
    colours = rng.sample(COLOUR_NAMES, count)
    return tuple((c, SHAPE_NAMES[int(rng.random() * 6)], box) for c, box in zip(colours, boxes, strict=True))


def write_box(box: Tenths) -> str:
    """Write a box as "[left,top,right,bottom]" in tenths of the page."""
    return "[{},{},{},{}]".format(*box)


def transcribe_located(facts: Located) -> str:
    return " ; ".join(f"{colour} {kind} {write_box(box)}" for colour, kind, box in facts)


def ask_located(facts: Located) -> Groups:
    return [(1.0, [(f"where is the {colour} {kind}?", write_box(box)) for colour, kind, box in facts])]


def place_located(rng: Random, facts: Located, squeeze: float) -> list[Element]:
    """Place the shapes exactly on the lattice, because their boxes are the answers."""
    return [Shape(kind, colour, (x / 10, y / 10, r / 10, b / 10)) for colour, kind, (x, y, r, b) in facts]


def draw_scene(rng: Random) -> Scene:
    colour, kind = COLOUR_NAMES[int(rng.random() * 8)], SHAPE_NAMES[int(rng.random() * 6)]
    return colour, kind, draw_word(rng), rng.random() < 0.5


def transcribe_scene(scene: Scene) -> str:
    colour, kind, word, word_first = scene
    return f"{word} ; {colour} {kind}" if word_first else f"{colour} {kind} ; {word}"


def ask_scene(scene: Scene) -> Groups:
    colour, kind, word, _ = scene
    return [(1.0, [(f"what colour is the {kind}?", colour)]), (1.0, [("what does the page say?", word)])]


def ask_story(scenes: tuple[Scene, ...]) -> Groups:
    """Ask across several pages. Page numbers have the lowest weight, because they are easy to guess."""
    pages = list(enumerate(scenes, 1))
    return [
        (1.0, [(f"on which page is the {kind}?", str(page)) for page, (_, kind, _, _) in pages]),
        (1.5, [(f"what colour is the {kind} on page {page}?", colour) for page, (colour, kind, _, _) in pages]),
        (1.5, [(f"what does page {page} say?", word) for page, (_, _, word, _) in pages]),
    ]


def place_scene(rng: Random, scene: Scene, squeeze: float) -> list[Element]:
    """Place a shape of 34 to 44 px and a word with capitals of 14 to 22 px, one above the other."""
    colour, kind, word, word_first = scene
    natural = text_width(word) * squeeze
    cap = rng.uniform(14 * PX, min(22 * PX, SPAN / natural))
    side = rng.uniform(34, 44) * PX
    width, height = side * squeeze**0.5, side / squeeze**0.5
    slack = SPAN - cap - height
    before = slack * rng.uniform(0.05, 0.4)
    between = slack * rng.uniform(0.2, 0.5)
    word_top = EDGE + before if word_first else EDGE + before + height + between
    top = EDGE + before + cap + between if word_first else EDGE + before
    left = EDGE + rng.random() * (SPAN - width)
    shape = Shape(kind, colour, (left, top, left + width, top + height))
    text = write(word, EDGE + rng.random() * (SPAN - natural * cap), word_top + cap / 2, cap, squeeze)
    return [text, shape] if word_first else [shape, text]


def _shape_in_cell(rng: Random, kind: str, colour: str, cell: int, num_side: int, side: float, squeeze: float) -> Shape:
    """Place a shape at random inside a cell of a `num_side` x `num_side` lattice; `squeeze` keeps circles round."""
    pitch = SPAN / num_side
    row, column = divmod(cell, num_side)
    width, height = side * squeeze**0.5, side / squeeze**0.5
    gap = 1.5 * PX  # neighbours never touch
    left = EDGE + column * pitch + gap / 2 + rng.random() * max(0.0, pitch - width - gap)
    top = EDGE + row * pitch + gap / 2 + rng.random() * max(0.0, pitch - height - gap)
    return Shape(kind, colour, (left, top, left + width, top + height))
