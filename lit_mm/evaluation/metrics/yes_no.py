"""Metrics of yes-or-no questions: POPE and MME."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from lit_mm.errors import UserError
from lit_mm.evaluation.metrics.rows import Row, Scored

PERCEPTION = ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
COGNITION = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]


def pope_f1(rows: Sequence[Row]) -> Scored:
    """Compute the F1 of "yes"; `details` has accuracy, precision, recall and the share of predicted yes.

    Scores are right or wrong. Precision, recall and F1 are 0 if nothing is predicted yes (the reference then divides by
    zero).
    Source: LLaVA llava/eval/eval_pope.py, `eval_pope`; one subset per call.
    """
    return _pope(rows, "f1")


def pope_accuracy(rows: Sequence[Row]) -> Scored:
    """Compute the accuracy of POPE, with the details of `pope_f1`. Source: LLaVA llava/eval/eval_pope.py."""
    return _pope(rows, "accuracy")


def mme(rows: Sequence[Row]) -> Scored:
    """Sum 100 * accuracy + 100 * accuracy+ over the subsets, at most 200 each and 2800 in all.

    Scores are right or wrong. accuracy+ is the share of images with both questions right. `Row.group` is the image,
    `Row.subset` the sub-task.
    `details` has "perception", "cognition" and the accuracy and accuracy+ of each sub-task.
    Source: lmms-eval lmms_eval/tasks/mme/utils.py.

    Raises:
        UserError: an image does not have two questions, or a sub-task is unknown.
    """
    scores = [float(mme_answer(row.prediction) == _label(row)) for row in rows]
    images: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row, score in zip(rows, scores, strict=True):
        if row.subset not in PERCEPTION + COGNITION:
            raise UserError(f"row {row.id!r}: unknown sub-task {row.subset!r} of MME, it has {PERCEPTION + COGNITION}")
        images[row.subset][row.group].append(score)
    details, sums = {}, {"perception": 0.0, "cognition": 0.0}
    for subset, pairs in images.items():
        lonely = next((image for image, pair in pairs.items() if len(pair) != 2), None)
        if lonely is not None:
            raise UserError(f"MME asks two questions per image, {lonely!r} of {subset} has {len(pairs[lonely])}")
        accuracy = sum(map(sum, pairs.values())) / (2 * len(pairs))
        accuracy_plus = sum(sum(pair) == 2 for pair in pairs.values()) / len(pairs)
        details |= {f"{subset}/accuracy": accuracy, f"{subset}/accuracy+": accuracy_plus}
        sums["perception" if subset in PERCEPTION else "cognition"] += 100 * accuracy + 100 * accuracy_plus
    return Scored(sum(sums.values()), tuple(scores), sums | details)


def pope_answer(text: str) -> str:
    """Return "no" if the first sentence has the word No, no or not, else "yes"; "NO" and "Nope" are yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def mme_answer(text: str) -> str:
    """Return "yes", "no" or "other": y or n alone decides, else the word in the first four characters."""
    text = text.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def _pope(rows: Sequence[Row], figure: str) -> Scored:
    pairs = [(pope_answer(row.prediction), _label(row)) for row in rows]
    counts = Counter(pairs)
    hits, predicted = counts["yes", "yes"], counts["yes", "yes"] + counts["yes", "no"]
    positive = counts["yes", "yes"] + counts["no", "yes"]
    details = {
        "accuracy": (hits + counts["no", "no"]) / len(rows),
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / positive if positive else 0.0,
        "f1": 2 * hits / (predicted + positive) if predicted + positive else 0.0,
        "yes_ratio": predicted / len(rows),
    }
    return Scored(details[figure], tuple(float(answer == label) for answer, label in pairs), details)


def _label(row: Row) -> str:
    label = row.references[0].lower().strip().replace(".", "")
    if label not in ("yes", "no"):
        raise UserError(f"row {row.id!r}: the reference of a question of yes or no is yes or no, got {label!r}")
    return label
