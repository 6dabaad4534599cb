"""VQA accuracy, the agreement with ten annotators, under the two normalisations in use."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lit_mm.evaluation.metrics.rows import Row, Scored, mean_of

MARKS = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # the reference passes re.UNICODE (32) as the count of re.sub
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(DIGITS)}
ARTICLES = {"a", "an", "the"}
# Forms in capitals (I'm, I've, I'd've) are left out, because words are looked up in lower case.
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# A key is its word without one apostrophe: dont, couldnt've, couldn'tve. The last entry is a slip of the reference that
# is part of published figures.
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}


def vqa_accuracy(rows: Sequence[Row]) -> Scored:
    """Compute the mean agreement with the annotators, normalised as for VQAv2, OKVQA and VizWiz.

    The prediction gets the full normalisation. References get only the rules of punctuation, and no rule if all
    references are equal.
    Source: Qwen-VL eval_mm/vqa_eval.py, LAVIS lavis/common/vqa_tools/vqa_eval.py.
    """
    return mean_of([agreement(normalise(row.prediction), _references(row.references)) for row in rows])


def textvqa_accuracy(rows: Sequence[Row]) -> Scored:
    """Compute the mean agreement with the annotators as LLaVA does for TextVQA: both sides are normalised in full.

    Source: LLaVA llava/eval/m4c_evaluator.py, `TextVQAAccuracyEvaluator`.
    """
    return mean_of(
        [agreement(normalise_m4c(row.prediction), [normalise_m4c(text) for text in row.references]) for row in rows]
    )


def agreement(prediction: str, references: Sequence[str]) -> float:
    """Average min(1, matches among the other annotators / 3) over the annotators.

    Annotators with equal texts count separately. For ten annotators, 0, 1, 2, 3 and 4 matches give 0, 0.3, 0.6, 0.9
    and 1.
    """
    matches = sum(reference == prediction for reference in references)
    return sum(min(1.0, (matches - (text == prediction)) / 3) for text in references) / len(references)


def normalise(text: str) -> str:
    """Normalise a VQA prediction: "The T-shirt, dont" -> "t shirt don't", unless `strip_marks` deletes the hyphen."""
    return _words(strip_marks(text.replace("\n", " ").replace("\t", " ").strip()))


def normalise_m4c(text: str) -> str:
    """Normalise a text of TextVQA: delete commas and question marks, split off "'s", then `normalise`."""
    return normalise(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def strip_marks(text: str) -> str:
    """Delete each mark that touches a space, or every mark if a number has a comma; replace other marks by a space.

    Full stops are deleted unless a digit follows: "9 a.m." -> "9 am", "3.5" stays.
    """
    numeric = COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in MARKS:
        joined = numeric or f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if joined else " ")
    return PERIOD.sub("", stripped, count=MOST_PERIODS)


def _words(text: str) -> str:
    numbers = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbers if word not in ARTICLES)


def _references(references: Sequence[str]) -> Sequence[str]:
    clean: Callable[[str], str] = strip_marks if len(set(references)) > 1 else str
    return [clean(text) for text in references]
