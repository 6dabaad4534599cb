"""Skills of reading: signs ("read_large"), numbered lists ("read_small"), forms and tables.

Each skill has four functions of its facts, which draw, transcribe, ask about and place them. `squeeze` is the width of
letters relative to the font after the page is stretched to a square. `PX` is one pixel of the page stretched to
112 x 112, the input size of the smallest models.
"""

from __future__ import annotations

from random import Random

from lit_mm.nano.elements import Element, Rule, Text
from lit_mm.nano.render import text_width
from lit_mm.nano.words import HEADERS, LABELS, WORD_LABELS, draw_word, draw_words

PX = 1 / 112
EDGE = 5 * PX  # empty margin on every side
SPAN = 1 - 2 * EDGE

Words = tuple[str, ...]
List = tuple[Words, bool]  # words, fine print
Fields = tuple[tuple[str, str], ...]  # (label, value)
Table = tuple[str, str, tuple[Words, ...]]  # row letters, column letters, cells by row
Groups = list[tuple[float, list[tuple[str, str]]]]  # (weight, [(question, answer)])


def write(text: str, left: float, middle: float, cap: float, squeeze: float, align: float = 0.0) -> Text:
    """Place a text on a line.

    Args:
        text: the word or number.
        left: horizontal reference point, unit coordinates.
        middle: vertical middle of the capitals, unit coordinates.
        cap: height of the capitals, unit coordinates.
        squeeze: width of letters relative to the font.
        align: 0 starts the text at `left`, 0.5 centres it there, 1 ends it there.
    """
    width = text_width(text) * cap * squeeze
    return Text(text, left - align * width, middle - cap / 2, width, cap)


def draw_sign(rng: Random) -> Words:
    return draw_words(rng, 2) if rng.random() < 0.4 else (draw_word(rng),)


def transcribe_sign(words: Words) -> str:
    return " ; ".join(words)


def ask_sign(words: Words) -> Groups:
    groups: Groups = [(1.0, [("what does the sign say?", " ".join(words))])]
    if len(words) == 2:
        first, second = words
        groups.append((2.0, [("what is on the first line?", first), ("what is on the second line?", second)]))
    return groups


def place_sign(rng: Random, words: Words, squeeze: float) -> list[Element]:
    """Place one or two words with capitals of 14 to 30 px; two lines share one size."""
    widest = max(text_width(word) for word in words) * squeeze
    cap = rng.uniform(14 * PX, min(30 * PX, SPAN / widest, 0.36 * SPAN))
    pitch = cap * rng.uniform(1.4, 1.9)
    height = cap + pitch * (len(words) - 1)
    middle = EDGE + rng.random() * (SPAN - height) + cap / 2
    centred = rng.random() < 0.5
    left = EDGE + rng.random() * (SPAN - widest * cap)
    return [
        write(word, left + widest * cap / 2 if centred else left, middle + line * pitch, cap, squeeze, centred * 0.5)
        for line, word in enumerate(words)
    ]


def draw_list(rng: Random) -> List:
    return draw_words(rng, 3 if rng.random() < 0.6 else 4), rng.random() < 1 / 3


def transcribe_list(facts: List) -> str:
    return " ; ".join(f"{line} {word}" for line, word in enumerate(facts[0], 1))


def ask_list(facts: List) -> Groups:
    return [(1.0, [(f"what is on line {line}?", word) for line, word in enumerate(facts[0], 1)])]


def place_list(rng: Random, facts: List, squeeze: float) -> list[Element]:
    """Place numbered lines with capitals of 8.5 to 10.5 px; of 5 to 7 px in fine print."""
    words, fine = facts
    cap = rng.uniform(5, 7) * PX if fine else rng.uniform(8.5, 10.5) * PX
    indent = 1.7 * cap * squeeze
    widest = indent + max(text_width(word) for word in words) * cap * squeeze
    pitch = rng.uniform(1.7 * cap, min(SPAN / len(words), 3.2 * cap))
    middle = EDGE + rng.random() * (SPAN - pitch * (len(words) - 1) - cap) + cap / 2
    left = EDGE + rng.random() * (SPAN - widest)
    elements: list[Element] = []
    for line, word in enumerate(words):
        elements.append(write(str(line + 1), left, middle + line * pitch, cap, squeeze))
        elements.append(write(word, left + indent, middle + line * pitch, cap, squeeze))
    return elements


def draw_form(rng: Random) -> Fields:
    labels = rng.sample(LABELS, 3 if rng.random() < 0.6 else 4)
    return tuple(
        (
            label,
            draw_word(rng)
            if label in WORD_LABELS
            else str(10 + int(rng.random() * (90 if rng.random() < 0.5 else 990))),
        )
        for label in labels
    )


def transcribe_form(fields: Fields) -> str:
    return " ; ".join(f"{label} {value}" for label, value in fields)


def ask_form(fields: Fields) -> Groups:
    return [(1.0, [(f"what is the {label}?", value) for label, value in fields])]


def place_form(rng: Random, fields: Fields, squeeze: float) -> list[Element]:
    """Place labels and values with capitals of 8.5 to 10.5 px; values form a column or follow their labels."""
    cap = rng.uniform(8.5, 10.5) * PX
    gap = 0.9 * cap * squeeze
    aligned = rng.random() < 0.5
    labels = [text_width(label) * cap * squeeze for label, _ in fields]
    values = [text_width(value) * cap * squeeze for _, value in fields]
    starts = [max(labels) + gap if aligned else label + gap for label in labels]
    widest = max(start + value for start, value in zip(starts, values, strict=True))
    shrink = min(1.0, SPAN / widest)  # narrower letters where a long label stands beside a long word
    pitch = rng.uniform(max(1.8 * cap, 0.6 * SPAN / len(fields)), SPAN / len(fields))
    middle = EDGE + rng.random() * (SPAN - pitch * (len(fields) - 1) - cap) + cap / 2
    left = EDGE + rng.random() * (SPAN - widest * shrink)
    ruled = rng.random() < 0.35 and pitch > 2.1 * cap
    elements: list[Element] = []
    for line, (label, value) in enumerate(fields):
        y = middle + line * pitch
        elements.append(write(label, left, y, cap, squeeze * shrink))
        elements.append(write(value, left + starts[line] * shrink, y, cap, squeeze * shrink))
        if ruled and line:
            elements.append(Rule((EDGE, y - pitch / 2, 1 - EDGE, y - pitch / 2), 0.3))
    return elements


def draw_table(rng: Random) -> Table:
    num_rows, num_columns = (2 if rng.random() < 0.6 else 3 for _ in range(2))
    letters = rng.sample(HEADERS, num_rows + num_columns)
    numbers = [str(number) for number in rng.sample(range(1, 100), num_rows * num_columns)]
    rows = tuple(tuple(numbers[row * num_columns : (row + 1) * num_columns]) for row in range(num_rows))
    return "".join(letters[:num_rows]), "".join(letters[num_rows:]), rows


def transcribe_table(table: Table) -> str:
    rows, columns, cells = table
    lines = [" ".join(columns)] + [f"{row} {' '.join(numbers)}" for row, numbers in zip(rows, cells, strict=True)]
    return " ; ".join(lines)


def ask_table(table: Table) -> Groups:
    rows, columns, cells = table
    return [
        (
            1.0,
            [
                (f"what is in row {row} column {column}?", number)
                for row, numbers in zip(rows, cells, strict=True)
                for column, number in zip(columns, numbers, strict=True)
            ],
        )
    ]


def place_table(rng: Random, table: Table, squeeze: float) -> list[Element]:
    """Place a table with capitals of 9 to 11 px; cells are centred, column letters on top, row letters on the left."""
    rows, columns, cells = table
    cap = rng.uniform(9, 11) * PX
    across = rng.uniform(0.82, 1.0) * SPAN / (len(columns) + 1)
    down = rng.uniform(0.7, 1.0) * SPAN / (len(rows) + 1)
    left = EDGE + rng.random() * (SPAN - across * (len(columns) + 1))
    top = EDGE + rng.random() * (SPAN - down * (len(rows) + 1))
    right, bottom = left + across * (len(columns) + 1), top + down * (len(rows) + 1)
    widest = max(text_width(number) for numbers in cells for number in numbers) * cap
    squeeze = min(squeeze, 0.78 * across / widest)  # else "33 19 13" runs into one number in narrow columns

    def cell(text: str, row: int, column: int) -> Text:
        return write(text, left + (column + 0.5) * across, top + (row + 0.5) * down, cap, squeeze, 0.5)

    elements: list[Element] = [
        Rule((left, top + down, right, top + down), 0.5),
        Rule((left + across, top, left + across, bottom), 0.5),
    ]
    if rng.random() < 0.5:
        elements += [Rule((left, top + k * down, right, top + k * down), 0.25) for k in range(2, len(rows) + 1)]
        elements += [
            Rule((left + k * across, top, left + k * across, bottom), 0.25) for k in range(2, len(columns) + 1)
        ]
    elements += [cell(letter, 0, column) for column, letter in enumerate(columns, 1)]
    for row, (letter, numbers) in enumerate(zip(rows, cells, strict=True), 1):
        elements.append(cell(letter, row, 0))
        elements += [cell(number, row, column) for column, number in enumerate(numbers, 1)]
    return elements
