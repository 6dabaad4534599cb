"""Metrics equal values computed by the cited implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lit_mm.evaluation.metrics import Row, score_rows
from lit_mm.evaluation.metrics.caption_tokens import tokenise
from lit_mm.evaluation.metrics.captions import cider_d
from lit_mm.evaluation.metrics.choice import LETTERS, ROTATION, infer_letter, scienceqa_letter
from lit_mm.evaluation.metrics.equality import short_answer
from lit_mm.evaluation.metrics.grounding import iou, parse_box
from lit_mm.evaluation.metrics.vqa import normalise, normalise_m4c
from lit_mm.evaluation.metrics.yes_no import mme_answer

Case = dict[str, Any]
Check = tuple[str, Any, Any]  # description, our value, expected value


def row(case: Case, index: int = 0, **fields: Any) -> Row:
    references = case.get("answers") or [case.get("target", case.get("answer"))]
    return Row(
        **{"id": str(index), "group": "", "prediction": case["prediction"], "references": tuple(references)} | fields
    )


def answers(**metrics: str) -> Callable[[Case], Iterator[Check]]:
    """Check metrics with one row each; `metrics` maps a field of the file, with dots for nesting, to a metric."""

    def checks(block: Case) -> Iterator[Check]:
        for case in block["cases"]:
            for field, metric in metrics.items():
                expected: Any = case
                for key in field.split("__"):
                    expected = expected[key]
                yield f"{field} of {case}", score_rows(metric, [row(case)]).figure, expected
        if "corpus_mean" in block:
            rows = [row(case, index) for index, case in enumerate(block["cases"])]
            for field, expected in means(block["corpus_mean"]):
                yield f"mean of {field}", score_rows(metrics[field], rows).figure, expected

    return checks


def means(corpus: Any) -> Iterator[tuple[str, float]]:
    yield from corpus.items() if isinstance(corpus, dict) else [("expected", corpus)]


def vqa(metric: str, clean: Callable[[str], str]) -> Callable[[Case], Iterator[Check]]:
    def checks(block: Case) -> Iterator[Check]:
        yield from answers(expected=metric)(block)
        for case in block["cases"]:
            yield f"normalised {case['prediction']!r}", clean(case["prediction"]), case["normalised_prediction"]

    return checks


def gqa(block: Case) -> Iterator[Check]:
    yield from answers(
        expected="gqa_accuracy_qwen_vl", qwen="gqa_accuracy_qwen_vl", monkey="gqa_containment", llava="gqa_accuracy"
    )(block)
    for case in block["cases"]:
        for field in ("qwen_post", "monkey_post"):
            yield f"{field} of {case['prediction']!r}", short_answer(case["prediction"]), case[field]


def cider(block: Case) -> Iterator[Check]:
    for corpus in block["corpora"]:
        items = corpus["items"]
        scores = cider_d(
            [item["tokenised_prediction"] for item in items], [item["tokenised_references"] for item in items]
        )
        yield corpus["id"], sum(scores) / len(scores), corpus["expected"]
        for item, score in zip(items, scores, strict=True):
            yield item["prediction"], score, item["expected"]


def pope(block: Case) -> Iterator[Check]:
    for case in block["cases"]:
        pairs = enumerate(zip(case["texts"], case["labels"], strict=True))
        rows = [Row(str(index), "", text, (label,)) for index, (text, label) in pairs]
        details = dict(score_rows("pope_f1", rows).details)
        if case["expected"] == "ZeroDivisionError":
            yield str(rows), [details[key] for key in ("precision", "recall", "f1")], [0, 0, 0]
            continue
        details["f1_score"] = details["f1"]
        for key, expected in case["expected"].items():
            if key == "tp_fp_tn_fn":
                hits, false, rejections, misses = expected
                details[key] = hits + rejections
                expected = details["accuracy"] * (hits + false + rejections + misses)
            yield f"{key} of {rows}", details[key], expected


def scienceqa(block: Case) -> Iterator[Check]:
    for case in block["cases"]:
        choices = tuple(f"choice {index}" for index in range(case["num_choices"]))
        letter = scienceqa_letter(case["prediction"], case["num_choices"])
        yield f"letter of {case}", LETTERS.index(letter) if letter else -1, case["parsed_index"]
        question = row(case, references=(LETTERS[case["answer_index"]],), choices=choices)
        yield str(case), score_rows("scienceqa_accuracy", [question]).figure, case["expected"]


def mmbench(block: Case) -> Iterator[Check]:
    for case in block["cases"]:
        rows = [
            row(rotation, question + number * ROTATION, choices=tuple(f"choice {n}" for n in range(4)))
            for question, rotations in enumerate(case["questions"])
            for number, rotation in enumerate(rotations)
        ]
        scored = score_rows("mmbench_circular", rows)
        yield str(case), scored.figure, case["expected"]
        yield f"questions of {case}", scored.details["questions"], case["total"]
        yield f"first rotations of {case}", scored.details["first_rotation"], case["vanilla_accuracy"]


def choices(block: Case) -> Iterator[Check]:
    for case in block["cases"]:
        yield str(case), infer_letter(case["prediction"], list(case["choices"].values())) or False, case["expected"]


def mme(block: Case) -> Iterator[Check]:
    for case in block["answer_parsing"]:
        yield str(case), mme_answer(case["prediction"]), case["expected"]
    for case in block["cases"]:
        rows = [
            row(line, index, group=line["question_id"], subset=line["category"])
            for index, line in enumerate(case["rows"])
        ]
        scored = score_rows("mme", rows)
        yield str(case), scored.figure, sum(case["expected"].values())
        for part, expected in case["expected"].items():
            yield f"{part} of {case}", scored.details[part], expected


def boxes(block: Case) -> Iterator[Check]:
    for case in block["cases"]:
        size, gold = tuple(case["height_width"]), case["gt_box_xyxy_pixels"]
        overlap = iou(parse_box(case["prediction"], *size), tuple(gold))
        yield f"IoU of {case}", overlap, pytest.approx(case["iou"], abs=2e-6)  # fp32 and six decimals in the file
        question = row(case, references=(",".join(map(str, gold)),), size=size)
        yield str(case), score_rows("grounding_accuracy", [question]).figure, case["expected"]


def due(block: Case) -> Iterator[Check]:
    def lines(document: list[Any]) -> list[str]:
        values = [(key, value) for key, entries in document for value in entries]
        return ["\t".join([key, *(value if isinstance(value, list) else [value])]) for key, value in values]

    for case in block["cases"]:
        documents = enumerate(zip(case["predictions"], case["references"], strict=True))
        rows = [
            Row(str(index), "", "\n".join(lines(predicted)), tuple(lines(expected)))
            for index, (predicted, expected) in documents
        ]
        scored = score_rows("due_f1", rows)
        figures = {"f1": scored.figure, **scored.details}
        for key, expected in case["expected"].items():
            yield f"{key} of {case}", figures[key], expected


def wtq(block: Case) -> Iterator[Check]:
    for case in block["cases"]:
        question = Row("0", "", "\n".join(case["prediction_values"]), tuple(case["reference_values"]))
        yield str(case), score_rows("wtq_accuracy", [question]).figure, case["expected"]


CHECKS: dict[str, Callable[[Case], Iterator[Check]]] = {
    "vqa_accuracy": vqa("vqa_accuracy", normalise),
    "textvqa_accuracy": vqa("textvqa_accuracy", normalise_m4c),
    "anls": answers(
        expected="anls", peers__official_style="anls", peers__lmms_eval="anls", peers__monkey="anls_monkey"
    ),
    "relaxed_accuracy": answers(expected="relaxed_accuracy", qwen_vl_pipeline="relaxed_accuracy_qwen_vl"),
    "exact_match": answers(expected="equality", monkey_containment="containment"),
    "gqa_accuracy": gqa,
    "cider": cider,
    "pope": pope,
    "scienceqa": scienceqa,
    "mmbench_circular": mmbench,
    "multiple_choice_parsing": choices,
    "mme": mme,
    "refexp_iou50": boxes,
    "due_f1": due,
    "wtq_denotation": wtq,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "metric" in metafunc.fixturenames:
        from tests.conftest import Golden

        golden = Golden(metafunc.config.getoption("--golden-dir"))
        metafunc.parametrize("metric", golden.json("metrics")["metrics"])


def test_every_case_of_the_file_has_its_value(golden: Any, metric: str) -> None:
    file = golden.json("metrics")
    assert metric in CHECKS, f"metrics.json has {metric!r}, for which this test has no check"
    tolerance = file["about"]["tolerance"]
    compared = 0
    mismatches = []
    for description, value, expected in CHECKS[metric](file["metrics"][metric]):
        compared += 1
        if isinstance(expected, float | int | list) and not isinstance(expected, bool):
            expected = pytest.approx(expected, rel=0, abs=tolerance)
        if value != expected:
            mismatches.append((description, value, expected))
    assert compared and not mismatches


@pytest.mark.parametrize("tokenizer", ["nltk", "pycocoevalcap"])
def test_captions_are_tokenised_as_by_the_reference(golden: Any, tokenizer: str, monkeypatch: Any) -> None:
    pytest.importorskip(tokenizer, reason="an extra: pip install 'lit_mm[captions]'")
    if tokenizer == "nltk":
        monkeypatch.setattr("shutil.which", lambda _: None)
    items = [item for corpus in golden.json("metrics")["metrics"]["cider"]["corpora"] for item in corpus["items"]]
    captions = [caption for item in items for caption in (item["prediction"], *item["references"])]
    expected = [text for item in items for text in (item["tokenised_prediction"], *item["tokenised_references"])]
    tokens, name = tokenise(captions)
    assert ("Java" in name) == (tokenizer == "pycocoevalcap")
    assert tokens == expected
