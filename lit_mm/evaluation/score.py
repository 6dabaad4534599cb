"""The score of predictions, over all documents and per skill."""

from __future__ import annotations

from collections.abc import Sequence

from lit_mm.documents.examination import Prediction, Score, skills_of


def score(predictions: Sequence[Prediction]) -> Score:
    """Compute the share of correct answers over all documents and per skill, with skills in order of appearance."""
    correct: dict[str, list[bool]] = {skill: [] for skill in skills_of(each.document for each in predictions)}
    for prediction in predictions:
        if prediction.document.skill:
            correct[prediction.document.skill].append(prediction.correct)
    return Score(
        overall=sum(prediction.correct for prediction in predictions) / max(1, len(predictions)),
        skills={skill: sum(answers) / len(answers) for skill, answers in correct.items()},
        count=len(predictions),
    )


def of_each_skill(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """Return the first `count` predictions of every skill, skill by skill, whether or not they are correct."""
    skills: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        skills.setdefault(prediction.document.skill, []).append(prediction)
    return [prediction for group in skills.values() for prediction in group[:count]]
