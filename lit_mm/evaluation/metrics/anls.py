"""ANLS: average normalised Levenshtein similarity of short texts (DocVQA, InfographicVQA, ST-VQA, ESTVQA)."""

from __future__ import annotations

from collections.abc import Sequence

from lit_mm.evaluation.metrics.rows import Row, Scored, mean_of

THRESHOLD = 0.5  # similarities below it count as 0


def anls(rows: Sequence[Row]) -> Scored:
    """Compute ANLS as the challenges do, with inner white space collapsed.

    Source: DocVQA and InfographicVQA challenge script, as in Qwen-VL eval_mm/infographicsvqa_eval.py.
    """
    return mean_of([best_similarity(row.prediction, row.references) for row in rows])


def anls_monkey(rows: Sequence[Row]) -> Scored:
    """Compute ANLS as Monkey does: inner white space counts. Source: Monkey eval/evaluate_vqa.py, `evaluateANLS`."""
    return mean_of([best_similarity(row.prediction.strip(), row.references, official=False) for row in rows])


def best_similarity(prediction: str, references: Sequence[str], *, official: bool = True) -> float:
    """Compute the similarity to the closest reference; it is 0 if it would be below 0.5.

    The distance is taken between stripped texts in lower case; it is divided by the longer length of the raw texts.

    Args:
        prediction: answer.
        references: right answers.
        official: True collapses inner white space and takes lengths in upper case ("ß" has two letters), as the script
            of the challenges does; False does neither, as Monkey.
    """

    def plain(text: str) -> str:
        return " ".join(text.lower().split()) if official else text.lower().strip()

    def distance(reference: str) -> float:
        longest = max(len(text.upper() if official else text) for text in (prediction, reference))
        return levenshtein(plain(prediction), plain(reference)) / longest if longest else 0.0

    similarity = 1 - min(distance(reference) for reference in references)
    return similarity if similarity >= THRESHOLD else 0.0


def levenshtein(a: str, b: str) -> int:
    """Count the fewest insertions, deletions and substitutions that turn `a` into `b`."""
    previous = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        current = [i]
        for j, other in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (letter != other)))
        previous = current
    return previous[-1]
