"""Multiple choice by letter: ScienceQA, SEED-Bench and MMBench."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from lit_mm.errors import UserError
from lit_mm.evaluation.metrics.rows import Row, Scored, mean_of

LETTERS = "ABCDE"
ROTATION = 10**6  # rotation j of question i has the id i + j * ROTATION
# (before, after) of a letter, in the order in which the reference tries them
FRAMES = [("", end) for end in (".", ",", ":", ")", ").")] + [("(", ")"), ("(", ").")]
FRAMES += [(":", end) for end in ("", ",", ".", ")", ").")]
STATEMENT = re.compile(r"The answer is ([A-Z]).")


def scienceqa_accuracy(rows: Sequence[Row]) -> Scored:
    """Compute the share of right letters by `scienceqa_letter`; `details` has the share of unparsed answers.

    Source: LLaVA llava/eval/eval_science_qa.py. The IMG figure is the same metric over the rows with an image.
    """
    letters = [scienceqa_letter(row.prediction, len(_choices(row))) for row in rows]
    return _letter_share(rows, letters)


def letter_accuracy(rows: Sequence[Row]) -> Scored:
    """Compute the share of right letters by `infer_letter`; `details` has the share of undecided answers."""
    return _letter_share(rows, [infer_letter(row.prediction, _choices(row)) for row in rows])


def mmbench_circular(rows: Sequence[Row]) -> Scored:
    """Compute the share of questions whose rotations are all right.

    There is one score per question, in the order of `Scored.ids`. `details` has the number of questions, the share of
    right first rotations and the share of undecided answers.
    Source: Qwen-VL eval_mm/mmbench/mmbench_evaluation.py.

    Raises:
        UserError: an id is no whole number, or a question lacks its first rotation.
    """
    bad = [row.id for row in rows if not row.id.isdecimal()]
    if bad:
        raise UserError(f"MMBench's ids are whole numbers (question + rotation * {ROTATION}), got {bad[0]!r}")
    alone = letter_accuracy(rows)
    scores = {int(row.id): score for row, score in zip(rows, alone.scores, strict=True)}
    right = {}
    for question, rotations in groupby(sorted(scores, key=lambda i: i % ROTATION), key=lambda i: i % ROTATION):
        if question not in scores:
            raise UserError(f"MMBench question {question} lacks its first rotation. Answer the whole table.")
        right[question] = min(scores[rotation] for rotation in rotations)
    first = sum(scores[question] for question in right) / len(right)
    details = {"questions": float(len(right)), "first_rotation": first, **alone.details}
    ids = tuple(map(str, right))
    return Scored(sum(right.values()) / len(right), tuple(right.values()), details, ids=ids)


def scienceqa_letter(text: str, choices: int) -> str:
    """Find the letter of a ScienceQA answer; "" if there is none or it is beyond the choices.

    An answer may be a letter alone, begin with "X. ", or contain exactly one "The answer is X." with any character at
    its end.
    """
    if text in LETTERS and len(text) == 1:
        letter = text
    elif text[:1] in LETTERS and text[1:3] == ". ":
        letter = text[:1]
    else:
        statements = STATEMENT.findall(text)
        letter = statements[0] if len(statements) == 1 else ""
    return letter if letter and letter in LETTERS[:choices] else ""


def infer_letter(text: str, choices: Sequence[str]) -> str:
    """Find the letter of an answer by MMBench's rules; "" if they do not decide.

    The first rule takes a single letter that stands alone or in one of `FRAMES`; an "A" among more than three words is
    an article. The second rule takes the only option whose text occurs in the answer.
    Source: lmms-eval lmms_eval/tasks/mmbench/mmbench_evals.py.
    """
    words = text.split()
    letters = [letter for letter in LETTERS if letter in words]
    if len(letters) == 1 and not ("A" in words and len(words) > 3):
        return letters[0]
    for before, after in FRAMES:
        letters = [letter for letter in LETTERS if before + letter + after in words]
        if len(letters) == 1:
            return letters[0]
    options = [letter for letter, option in zip(LETTERS, choices, strict=False) if option.lower() in text.lower()]
    return options[0] if len(options) == 1 else ""


def _choices(row: Row) -> tuple[str, ...]:
    if not 2 <= len(row.choices) <= len(LETTERS):
        raise UserError(f"row {row.id!r} is multiple choice and needs 2 to 5 choices, got {len(row.choices)}")
    return row.choices


def _letter_share(rows: Sequence[Row], letters: Sequence[str]) -> Scored:
    scores = [float(letter in row.references) for row, letter in zip(rows, letters, strict=True)]
    return mean_of(scores, {"undecided": letters.count("") / len(letters)})
