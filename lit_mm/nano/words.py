"""The vocabulary of nano pages: invented words, letters, numbers, labels, colours and shapes.

Answers that are read from a page consist of capital letters and digits; labels, colours, shapes and questions are lower
case. Letters occur only in words and headers, digits only in numbers, so O and 0 cannot be confused.
"""

from __future__ import annotations

from random import Random

CONSONANTS = "BDFHKLMNPRSTVZ"
VOWELS = "AEIOU"
SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)
HEADERS = "ABCDEFHKLMNPRSTUVXZ"  # single letters that label bars, rows and columns; without I, O and their like
AVOIDED = frozenset(("NAZI", "TIT", "TITS", "FAP", "HOMO", "PEDO", "PENIS", "PISS", "RAPE", "NUDE", "DILDO"))

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 38),
    "orange": (250, 138, 18),
    "yellow": (246, 214, 30),
    "green": (36, 156, 62),
    "cyan": (52, 200, 216),
    "blue": (42, 82, 222),
    "purple": (130, 48, 170),
    "pink": (244, 132, 190),
}
SHAPES: dict[str, str] = {  # name -> plural
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "diamond": "diamonds",
    "cross": "crosses",
}
COLOUR_NAMES = tuple(COLOURS)
SHAPE_NAMES = tuple(SHAPES)
WORD_LABELS = ("name", "city", "item", "shop")  # form fields that hold a word
NUMBER_LABELS = ("code", "date", "total", "room")  # form fields that hold a number
LABELS = WORD_LABELS + NUMBER_LABELS


def draw_word(rng: Random) -> str:
    """Draw a word of syllables, such as KALO (two in three), LOK (one in five) or SIMEP (the rest)."""
    while True:
        word = SYLLABLES[int(rng.random() * 70)]
        length = rng.random()
        if length > 0.2:
            word += SYLLABLES[int(rng.random() * 70)]
        if length < 0.2 or length > 0.87:
            word += CONSONANTS[int(rng.random() * 14)]
        if word not in AVOIDED:
            return word


def draw_words(rng: Random, count: int) -> tuple[str, ...]:
    """Draw `count` different words."""
    words: dict[str, None] = {}
    while len(words) < count:
        words[draw_word(rng)] = None
    return tuple(words)
