"""The score of predictions, over all documents and per skill."""

from __future__ import annotations

from collections.abc import Sequence

from lit_mm.documents.examination import Prediction, Score


def score(predictions: Sequence[Prediction]) -> Score:
    """Compute the share of correct answers over all documents and per skill, with skills in order of appearance."""
    skills: dict[str, list[bool]] = {}
    for prediction in predictions:
        skills.setdefault(prediction.document.skill, []).append(prediction.correct)
    correct = [c for answers in skills.values() for c in answers]
    return Score(
        overall=sum(correct) / max(1, len(correct)),
        skills={skill: sum(answers) / len(answers) for skill, answers in skills.items()},
        count=len(correct),
    )


def of_each_skill(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """Return the first `count` predictions of every skill, skill by skill, whether or not they are correct."""
    skills: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        skills.setdefault(prediction.document.skill, []).append(prediction)
    return [prediction for group in skills.values() for prediction in group[:count]]
