"""Worked examples and edge cases of the metrics."""

from __future__ import annotations

import numpy as np
import pytest

from lit_mm.errors import UserError
from lit_mm.evaluation.metrics import METRICS, Row, caption_tokens, check_metric, resample, score_rows
from lit_mm.evaluation.metrics.anls import levenshtein
from lit_mm.evaluation.metrics.captions import cider_d
from lit_mm.evaluation.metrics.choice import infer_letter, scienceqa_letter
from lit_mm.evaluation.metrics.equality import short_answer
from lit_mm.evaluation.metrics.grounding import iou, parse_box
from lit_mm.evaluation.metrics.retrieval import rank, rerank
from lit_mm.evaluation.metrics.vqa import agreement, normalise
from lit_mm.evaluation.metrics.wtq import normalise_cell, same_denotation
from lit_mm.evaluation.metrics.yes_no import mme_answer, pope_answer


def question(prediction: str, *references: str, **fields: object) -> Row:
    return Row(**{"id": "0", "group": "image", "prediction": prediction, "references": references} | fields)


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_leaves_out_each_annotator_in_turn(matches: int, score: float) -> None:
    assert agreement("red", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("None of the ten", "0 of 10"),
        ("dont\n", "don't"),
        ("couldntve couldn'tve", "couldntve couldn't've"),
        ("3.5", "3.5"),
        ("1,000-5", "10005"),
        ("a-b", "b"),
        ("somebody'd", "somebodyd"),
        ("." * 40, "." * 8),
    ],
)
def test_vqa_normalisation(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("metric", "prediction", "references", "score"),
    [
        ("vqa_accuracy", "", ["red"] * 10, 0),
        ("anls", "", ["a"], 0),
        ("anls", "", [""], 1),
        ("anls", "CAFÉ", ["café"], 1),
        ("anls_monkey", "a  b", ["a b"], 0.75),
        ("relaxed_accuracy", "", ["5"], 0),
        ("relaxed_accuracy", "1e400", ["5"], 0),
        ("relaxed_accuracy", "5", ["no", "5.1"], 1),
        ("relaxed_accuracy_qwen_vl", "105.1", ["100"], 1),
        ("relaxed_accuracy_qwen_vl", " Red\n", ["red"], 1),  # the answer is stripped
        ("anls", "ß", ["x"], 0.5),  # 1 letter of 2, as "ß" in upper case is "SS"
        ("anls_monkey", "ß", ["x"], 0),
        ("anls_monkey", "  ab  ", ["ac"], 0.5),  # the answer is stripped, 1 letter of 2
        ("relaxed_accuracy", "105.1", ["100"], 0),
        ("equality", " Red ", ["blue", "red"], 1),
        ("equality", "red.", ["red"], 0),
        ("containment", "13", ["3"], 1),
        ("containment", "1.5", ["1.5"], 0),
        ("gqa_accuracy", "Red..", ["red"], 1),
        ("wtq_accuracy", "b\na", ["a", "b"], 1),
        ("due_f1", "", ["a\t1"], 0),
        ("due_f1", "a\tx", ["A\ty\tX"], 1),
    ],
)
def test_one_answer_has_its_score(metric: str, prediction: str, references: list[str], score: float) -> None:
    scored = score_rows(metric, [question(prediction, *references)])
    assert scored.figure == pytest.approx(score) and scored.scores == pytest.approx((score,))


def test_short_answers_of_gqa_keep_the_bug_of_the_reference() -> None:
    assert short_answer("this is an image of a cat") == ""


@pytest.mark.parametrize(("a", "b", "distance"), [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("é", "e", 1)])
def test_levenshtein(a: str, b: str, distance: int) -> None:
    assert levenshtein(a, b) == levenshtein(b, a) == distance


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("A", 4, "A"),
        ("", 4, ""),
        ("E", 4, ""),
        ("AB", 4, ""),
        ("C. lion", 4, "C"),
        ("The answer is B.", 4, "B"),
        ("The answer is B. The answer is C.", 4, ""),
        ("The answer is B", 4, ""),
    ],
)
def test_letters_of_scienceqa(text: str, choices: int, letter: str) -> None:
    assert scienceqa_letter(text, choices) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [("", ""), ("(B).", "B"), ("A lion on the grass", "B"), ("A B", ""), ("lion and cat", ""), (":C,", "C")],
)
def test_letters_of_mmbench(text: str, letter: str) -> None:
    assert infer_letter(text, ["cat", "lion", "dog"]) == letter


def test_one_wrong_rotation_spoils_its_question() -> None:
    rows = [question("A", "A", id="7", choices=("x", "y")), question("A", "B", id="1000007", choices=("y", "x"))]
    scored = score_rows("mmbench_circular", rows)
    assert (
        scored.figure == 0 and (scored.ids, scored.scores) == (("7",), (0,)) and scored.details["first_rotation"] == 1
    )
    with pytest.raises(UserError, match="first rotation"):
        score_rows("mmbench_circular", rows[1:])


@pytest.mark.parametrize(("text", "answer"), [("NO", "yes"), ("Nope", "yes"), ("no, it is", "no"), ("", "yes")])
def test_answers_of_pope(text: str, answer: str) -> None:
    assert pope_answer(text) == answer


@pytest.mark.parametrize(("text", "answer"), [("n", "no"), ("It is no", "other"), ("", "other"), (" Yes. ", "yes")])
def test_answers_of_mme(text: str, answer: str) -> None:
    assert mme_answer(text) == answer


def test_mme_refuses_an_image_with_one_question() -> None:
    with pytest.raises(UserError, match="two questions per image"):
        score_rows("mme", [question("yes", "Yes", subset="count")])


@pytest.mark.parametrize("text", ["", "(1,2)", "(a,b),(c,d)", "(1,2,3),(4,5,6)", "(,),(,)"])
def test_a_box_that_cannot_be_parsed_is_wrong(text: str) -> None:
    assert parse_box(text, 10, 10) == (0, 0, 0, 0)
    assert score_rows("grounding_accuracy", [question(text, "0,0,5,5", size=(10, 10))]).figure == 0


def test_an_iou_of_one_half_is_right() -> None:
    assert iou((0, 0, 10, 10), (0, 0, 5, 10)) == 0.5
    row = question("(0,0),(999,999)", "0,0,5,10", size=(10, 10))
    assert score_rows("grounding_accuracy", [row]).figure == 1


def test_a_missing_tokenizer_is_named_before_questions_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_tokens.importlib.util, "find_spec", lambda name: None)
    for metric in ("cider", "bleu4"):
        with pytest.raises(UserError, match=r"pip install 'lit_mm\[captions\]'"):
            check_metric(metric)
    check_metric("anls")


def test_cider_of_one_image_is_zero_and_of_an_empty_caption_too() -> None:
    assert cider_d(["a cat"], [["a cat"]]) == [0]
    assert cider_d(["", "red dog runs fast"], [["a cat"], ["red dog runs fast"]]) == pytest.approx([0, 10])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("New York (city)", "new york"), ("Café[1]", "cafe"), ('"A  b".', '"a b"'), ("–5", "-5"), ("", "")],  # noqa: RUF001
)
def test_cells_of_wtq(text: str, expected: str) -> None:
    assert normalise_cell(text) == expected


@pytest.mark.parametrize(
    ("predictions", "references", "same"),
    [
        (["3.0"], ["3"], True),
        (["1,000"], ["1000"], False),
        (["2010-05-01"], ["2010-5-1"], True),
        (["2010-xx-xx"], ["2010"], True),
        (["a", "a"], ["a"], True),
        ([""], ["a"], False),
    ],
)
def test_denotations(predictions: list[str], references: list[str], same: bool) -> None:
    assert same_denotation(predictions, references) is same


def test_recall_counts_a_query_once_and_ties_keep_their_order() -> None:
    rows = [question("b\na\nc", "a", "c", id="0"), question("a\nb\nc", "a", id="1")]
    scored = score_rows("recall", rows)
    assert scored.figure == 0.5 and scored.details == {"recall@1": 0.5, "recall@5": 1, "recall@10": 1}
    assert rank(np.array([[1.0, 2.0, 2.0]])).tolist() == [[1, 2, 0]]
    ties = np.arange(200)[None] % 3 / 1.0
    assert rank(ties)[0, :66].tolist() == list(range(2, 200, 3))


def test_only_the_best_candidates_are_reordered() -> None:
    first, second = np.array([[0.9, 0.8, 0.1]]), np.array([[0.0, 0.5, 9.0]])
    assert rerank(first, second, 2).tolist() == [[1, 0, 2]]
    assert rerank(first, second, 3).tolist() == [[2, 1, 0]]
    with pytest.raises(UserError, match="k=4"):
        rerank(first, second, 4)


@pytest.mark.parametrize(
    ("scores_of_yes", "scores_of_no", "area"),
    [
        ([3, 2], [1, -1], 1),
        ([1], [3, 2], 0),
        ([2, 0.5], [1, -1], 0.75),  # 3 of 4 pairs
        ([1, 1], [1, 0], 0.75),  # two ties count half
        ([1000, 999], [998, 999.5], 0.75),  # far beyond the range of a sigmoid
        ([-0.0001], [-0.0002, -7, 0.5], 2 / 3),
    ],
)
def test_the_area_under_the_curve_is_the_share_of_pairs_in_order(
    scores_of_yes: list[float], scores_of_no: list[float], area: float
) -> None:
    table = [("yes", value) for value in scores_of_yes] + [("no", value) for value in scores_of_no]
    rows = [question(repr(value), label, id=str(n)) for n, (label, value) in enumerate(table)]
    scored = score_rows("roc_auc", rows)
    assert scored.figure == pytest.approx(area) and np.mean(scored.scores) == pytest.approx(area)
    right = [(value > 0) == (label == "yes") for label, value in table]
    assert scored.details == {"accuracy": np.mean(right), "share_of_yes": len(scores_of_yes) / len(table)}


def test_scores_of_the_area_have_the_variance_of_delong() -> None:
    draws = np.random.default_rng(0)
    yes, no = draws.normal(0.7, 1, 11), draws.normal(0, 1, 23)
    table = [("yes", value) for value in yes] + [("no", value) for value in no]
    rows = [question(repr(float(value)), label, id=str(n)) for n, (label, value) in enumerate(table)]
    of_yes, of_no = (yes[:, None] > no).mean(1), (yes[:, None] > no).mean(0)
    scored = score_rows("roc_auc", rows)
    assert np.var(scored.scores) / len(rows) == pytest.approx(of_yes.var() / 11 + of_no.var() / 23)


def test_labels_that_are_all_alike_have_an_area_of_one_half_and_a_text_is_no_score() -> None:
    scored = score_rows("roc_auc", [question("1", "yes"), question("-1", "yes", id="1")])
    assert scored.figure == 0.5 and "all 2 references are yes" in scored.note
    for prediction, reference, message in (
        ("yes", "yes", "needs a number"),
        ("nan", "no", "number"),
        ("1", "1", "yes or no"),
    ):
        with pytest.raises(UserError, match=message):
            score_rows("roc_auc", [question(prediction, reference)])


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_cannot_be_scored_are_refused(metric: str) -> None:
    for rows, message in (
        ([], "at least one row"),
        ([question("a")], "no reference"),
        ([question("a", "a"), question("b", "a")], "occurs twice"),
    ):
        with pytest.raises(UserError, match=message):
            score_rows(metric, rows)


def test_copies_of_an_image_stay_apart_when_it_is_drawn_twice() -> None:
    rows = [question(text, "Yes", id=text, subset="count") for text in ("yes", "no")]
    rows += [question(f"yes{text}", "Yes", id=text, group="other", subset="count") for text in ("a", "b")]
    assert score_rows("mme", rows).figure == 75 + 50
    sample = resample(rows, [0, 1, 0, 1, 2, 3])
    assert [row.id for row in sample] == ["yes", "no", "yes#1", "no#1", "a", "b"]
    assert score_rows("mme", sample).figure == pytest.approx(100 * 4 / 6 + 100 / 3)


def test_an_unknown_metric_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"unknown metric 'cidr'.*cider"):
        score_rows("cidr", [question("a", "a")])
