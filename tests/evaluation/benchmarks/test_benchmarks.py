"""Every benchmark runs from the published format of its files to its figure."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from lit_mm.errors import UserError
from lit_mm.evaluation.benchmarks.benchmark import (
    FOLDER,
    Benchmark,
    Procedure,
    Published,
    benchmark_names,
    load_benchmark,
    parse_benchmark,
)
from lit_mm.evaluation.benchmarks.question import Question, as_document, prompt_text
from lit_mm.evaluation.benchmarks.reader import Join, Only, Reader
from lit_mm.evaluation.benchmarks.submission import write_submission, write_table
from lit_mm.evaluation.measurement import check_questions, contrast, difference_to, measure, rows_of
from lit_mm.evaluation.metrics import captions, score_rows
from lit_mm.prompts.llava import ChatPrompt
from lit_mm.prompts.prompt import PictureRun, TextRun
from lit_mm.prompts.qwen_vl import QwenPlain
from lit_mm.prompts.text_to_text import TextToText
from tests.evaluation.benchmarks.files import FIVE, MAKERS, WORDS, coco_vqa, docvqa, encoded, mmbench, vizwiz, write
from tests.tiny import decoder

WRONG = "nothing of the kind"
# benchmark -> figure when the first three questions are answered right and the others wrong
FIGURES = {name: 60.0 for name in MAKERS} | {
    "chartqa": 50.0,  # all three of the augmented half, none of the human half
    "mmbench": 50.0,
    "mmbench_cn": 50.0,
    "hateful_memes": 100 / 3,  # 2 of 6 pairs of yes and no are in order
}


def answers(name: str, procedure: Procedure, questions: list[Question]) -> dict[str, str]:
    """Right answers to the first questions, wrong ones to the others."""
    if procedure.answering == "retrieval":
        return {
            key: text
            for number, question in enumerate(questions)
            for right in [number < 3]
            for key, text in [
                (f"image/{question.id}", f"{question.id}/0" if right else "other/0"),
                *((f"caption/{question.id}/{k}", question.id if right else "other") for k in (0, 1)),
            ]
        }
    if procedure.metric == "grounding_accuracy":
        answers = {}
        for number, question in enumerate(questions):
            height, width = question.size
            x1, y1, x2, y2 = (int(999 * v / side) for v, side in zip((3, 2, 15, 10), (width, height) * 2, strict=True))
            answers[question.id] = f"({x1},{y1}),({x2},{y2})" if number < 3 else WRONG
        return answers
    if procedure.metric == "mme":
        return {q.id: q.references[0] if q.id.startswith("color/0") else "perhaps" for q in questions}
    if procedure.metric == "mmbench_circular":
        return {q.id: q.references[0] if int(q.id) % 10**6 == 1 else "Z" for q in questions}
    if procedure.metric == "roc_auc":
        signs = {"yes": 1, "no": -1}
        return {q.id: f"{signs[q.references[0]] * (1 if n < 3 else -2)}" for n, q in enumerate(questions)}
    gold = {q.id: (q.option_texts() if procedure.gold == "texts" else q.references)[0] for q in questions}
    first = {q.id for q in questions[:3]}
    return {id: text if id in first else WRONG for id, text in gold.items()}


@pytest.fixture
def plain_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions are split at spaces, as neither Java nor nltk need be installed."""
    monkeypatch.setattr(captions, "tokenise", lambda texts: ([text.lower() for text in texts], "spaces"))


def cases() -> list[tuple[str, str]]:
    return [(name, procedure.name) for name in benchmark_names() for procedure in load_benchmark(name).procedures]


def test_every_benchmark_has_a_made_file() -> None:
    assert benchmark_names() == sorted(MAKERS)


@pytest.mark.parametrize(("name", "procedure_name"), cases())
def test_a_benchmark_runs_from_its_files_to_its_figure(
    name: str, procedure_name: str, tmp_path: Path, plain_tokens: None
) -> None:
    MAKERS[name](tmp_path)
    benchmark = load_benchmark(name)
    reader = benchmark.reader_of(benchmark.split())
    procedure = benchmark.procedure_of("", procedure_name)
    questions = reader.questions(tmp_path)
    assert len(questions) == {"mme": 8, "mmbench": 5, "mmbench_cn": 5, "pope": 15}.get(name, 5)
    assert all(question.picture.read().height == 20 for question in questions)
    assert all("{" not in prompt_text(question, procedure.prompt) for question in questions)
    result = measure(benchmark, procedure, rows_of(questions, answers(name, procedure, questions), procedure))
    assert result.interval.low <= result.figure <= result.interval.high
    assert reader.digest(tmp_path) == reader.digest(tmp_path)
    if procedure.metric == "cider":
        assert 0 < result.figure < 1000
    elif procedure.metric == "pope_f1":
        assert set(result.details) >= {"coco_pope_random/accuracy", "coco_pope_popular", "coco_pope_adversarial/f1"}
    elif procedure.metric == "due_f1":
        assert result.figure == pytest.approx(60.0)
    elif procedure.metric == "mme":
        assert (result.figure, result.details["color/accuracy+"]) == (100.0, 0.5)
    else:
        assert result.figure == pytest.approx(FIGURES[name])


def test_questions_carry_what_prompts_need(tmp_path: Path) -> None:
    for name in ("scienceqa", "textvqa_ocr", "mme", "mmbench", "hateful_memes"):
        MAKERS[name](tmp_path)

    def prompts(name: str, procedure: str) -> list[str]:
        benchmark = load_benchmark(name)
        template = benchmark.procedure_of("", procedure).prompt
        return [prompt_text(q, template) for q in benchmark.reader_of(benchmark.split()).questions(tmp_path)]

    assert prompts("scienceqa", "qwen_vl")[0] == (
        "Context: N/A\nQuestion: Which colour?\nOptions: A. red\nB. green\nC. blue\nAnswer:"
    )
    assert prompts("scienceqa", "llava")[1].startswith("Context: Look.\nWhich colour?\nOptions: (A) red (B) green")
    assert "\nReference OCR token: BLUE, 5\n" in prompts("textvqa_ocr", "llava")[2]
    assert prompts("mme", "llava")[0] == "Is it red?\nAnswer the question using a single word or phrase."
    assert prompts("mme", "ours")[0] == "Is it red? Please answer yes or no."
    assert prompts("mmbench", "ours")[0].startswith("Which colour?\nA. red\nB. blue\nAnswer with")
    assert '"words 3"' in prompts("hateful_memes", "ours")[3]


def test_questions_about_one_image_in_the_rows_are_one_group(tmp_path: Path) -> None:
    ai2d_rows = [
        {"question": "?", "options": ["a", "b"], "answer": "0", "image": {"bytes": encoded(n // 2), "path": "x"}}
        for n in range(4)
    ]
    (tmp_path / "ai2d/data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(ai2d_rows)
    pyarrow.parquet.write_table(table, tmp_path / "ai2d/data/test-00000-of-00001.parquet")
    MAKERS["mmbench"](tmp_path)
    for name, pairs in (("ai2d", [(0, 1), (2, 3)]), ("mmbench", [(0, 1), (2, 3)])):
        questions = load_benchmark(name).reader_of(load_benchmark(name).split()).questions(tmp_path)
        for first, second in pairs:
            assert questions[first].group == questions[second].group != ""
            assert questions[first].picture == questions[second].picture  # so a blind question never shows it
        assert questions[0].group != questions[2].group


PROMPTS = {
    "plain": QwenPlain(image_start="", image_end=""),
    "chat": ChatPrompt("chatml_direct"),
    "text to text": TextToText(),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_templates_of_families_take_every_prompt(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    tokenizer = decoder().processor.tokenizer
    benchmark = load_benchmark(name)
    question = benchmark.reader_of(benchmark.split()).questions(tmp_path, limit=1)[0]
    for procedure in benchmark.procedures:
        if procedure.answering == "retrieval":
            continue
        document = as_document(question, procedure.prompt, name)
        for prompt in PROMPTS.values():
            runs = prompt.runs(document, tokenizer)
            text = tokenizer.decode([id for run in runs if isinstance(run, TextRun) for id in run.ids])
            assert sum(isinstance(run, PictureRun) for run in runs) == 1
            assert prompt_text(question, procedure.prompt).split()[-1] in text


def test_subsets_have_their_means_beside_the_figure(tmp_path: Path) -> None:
    MAKERS["seed"](tmp_path)
    benchmark = load_benchmark("seed")
    questions = benchmark.reader_of("image").questions(tmp_path)
    procedure = benchmark.procedure_of("any")
    right = {q.id: q.references[0] if q.subset == "1" else "Z" for q in questions}
    details = measure(benchmark, procedure, rows_of(questions, right, procedure)).details
    assert (details["1"], details["2"]) == (1.0, 0.0)


def test_a_document_shows_the_image_before_the_text(tmp_path: Path) -> None:
    docvqa(tmp_path)
    question = load_benchmark("docvqa").reader_of("val").questions(tmp_path, limit=1)[0]
    document = as_document(question, "{question} Answer:", "docvqa")
    assert document.turns[0].parts == (question.picture, "What colour? Answer:")
    assert (document.source, document.answer) == ("docvqa", "")


def test_questions_without_an_image_are_asked_where_a_split_has_them(tmp_path: Path) -> None:
    MAKERS["scienceqa"](tmp_path)
    questions = load_benchmark("scienceqa").reader_of("test_all").questions(tmp_path)
    assert [question.picture is None for question in questions] == [False] * 5 + [True]


def test_a_missing_file_is_named_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"TextVQA_0\.5\.1_val\.json") as caught:
        load_benchmark("textvqa").reader_of("val").questions(tmp_path)
    assert "textvqa/train_images/{image_id}.jpg" in str(caught.value)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    docvqa(tmp_path)
    (tmp_path / "docvqa/val/documents/d3.png").unlink()
    with pytest.raises(UserError, match=r"no image .*documents/d3\.png"):
        load_benchmark("docvqa").reader_of("val").questions(tmp_path)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_a_row_names_no_image_outside_of_the_folder_of_all_benchmarks(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": name, "question": "what?"}))
    with pytest.raises(UserError, match="lies outside of the folder of the pictures"):
        Reader("rows.jsonl", image="{image}", question="question").questions(tmp_path)


ROW = {"image": "a.png", "question": "what?", "answer": "A", "options": ["red", "blue"]}
LETTERED = {"choices": ("options",), "answer": "letters"}
BOXED = {"box": "corners", "size": ("height", "width")}
# what is wrong -> (changes of the row, keys of the reader, message)
BAD_ROWS = {
    "no answer": ({"answer": None}, {}, "'answer' has no answer, got [None]"),
    "an empty answer": ({"answer": ""}, {}, "'answer' has no answer"),
    "no answer of many": ({"answer": []}, {}, "'answer' has no answer"),
    "a flag as answer": ({"answer": True}, {}, '`labels` gives it a text, such as {true: "yes", false: "no"}'),
    "a mapping as answer": ({"answer": [{"text": "x"}]}, {}, "A path such as KEY.text descends into it"),
    "no question": ({"question": None}, {}, "the question 'question' is a text or a number, got 'None'"),
    "a letter outside": ({"answer": "C"}, LETTERED, "'answer' is one of the letters A, B, got 'C'"),
    "a small letter": ({"answer": "a"}, LETTERED, "'answer' is one of the letters A, B, got 'a'"),
    "a text for a letter": ({"answer": "red"}, LETTERED, "'answer' is one of the letters A, B, got 'red'"),
    "two letters in one": ({"answer": "AB"}, LETTERED, "'answer' is one of the letters A, B, got 'AB'"),
    "an index outside": ({"answer": 2}, LETTERED | {"answer": "index"}, "a whole number from 0 to 1, got 2"),
    "an index from behind": ({"answer": -1}, LETTERED | {"answer": "index"}, "a whole number from 0 to 1, got -1"),
    "a broken index": ({"answer": 0.5}, LETTERED | {"answer": "index"}, "a whole number from 0 to 1, got 0.5"),
    "a letter for an index": ({"answer": "B"}, LETTERED | {"answer": "index"}, "from 0 to 1, got 'B'"),
    "options in one text": ({"options": "['red', 'blue']"}, LETTERED, "are a list of texts, or texts by letters"),
    "one option": ({"options": ["red"]}, LETTERED, "are 2 to 10 texts, got 1"),
    "no options": ({"options": None}, LETTERED, "are a list of texts"),
    "a gap": ({"A": "red", "C": "blue"}, {"choices": ("A", "B", "C"), "answer": "letters"}, "have a gap"),
    "misspelt options": ({}, {"choices": ("a", "b"), "answer": "letters"}, "no row has the key 'a' of `choices`"),
    "a misspelt hint": ({}, {"hint": "hnt"}, "no row has the key 'hnt' of `hint`"),
    "a misspelt condition": ({}, {"image_if": "img"}, "no row has the key 'img' of `image_if`"),
    "an unknown label": ({"answer": 2}, {"labels": {0: "no", 1: "yes"}}, "one of the `labels` [0, 1], got 2"),
    "a label in a text": ({"answer": "1"}, {"labels": {0: "no", 1: "yes"}}, "Quote the labels, as the file has texts"),
    "three numbers": ({"answer": [1, 2, 3], "height": 9, "width": 9}, BOXED, "a box of four numbers, got [1, 2, 3]"),
    "a size of nothing": ({"answer": [1, 2, 3, 4], "height": None, "width": 9}, BOXED, "'height' is a whole number"),
    "a list as key": (
        {"question": ["what?"]},
        {"join": Join("rows.json", "question", "question")},
        "question is a text or a number that identifies a row",
    ),
    "a key that is not there": ({"key": "7"}, {"only": Only("rows.json", "image")}, "lists the key 'a.png', which"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_faulty_row_is_refused_with_its_place_and_value(name: str, tmp_path: Path) -> None:
    changes, keys, message = BAD_ROWS[name]
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    write(tmp_path / "rows.json", [ROW | changes])
    reader = Reader("rows.json", **({"image": "{image}", "question": "question", "references": "answer"} | keys))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        reader.questions(tmp_path)
    assert "rows.json" in str(caught.value)


def test_none_is_an_option_like_others(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    write(tmp_path / "rows.json", [ROW | {"A": "None", "B": "one", "C": float("nan"), "answer": "A"}])
    keys = {"image": "{image}", "question": "question", "choices": ("A", "B", "C"), "answer": "letters"}
    (question,) = Reader("rows.json", references="answer", **keys).questions(tmp_path)
    assert question.choices == ("None", "one")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", {"data": [ROW]}, r"no list of rows at 'the top', only the keys \['data'\]"),
        ("rows.json", [3], r"row 0: a row has keys, .* got '3'"),
        ("rows.json", None, "no list of rows"),
        ("rows.jsonl", b"3", "row 0: a row has keys"),
        ("rows.json", "[]é".encode("latin1"), "is not in UTF-8"),
        ("rows.csv", "image,question\né,what?\n".encode("latin1"), "Is it a table in UTF-8"),
        ("rows.csv", b"image,question\na.png,what?,red\n", r"row 0: more cells than keys"),
        ("rows.parquet", b"PAR", "is no Parquet file"),
    ],
)
def test_a_file_of_another_layout_is_refused(name: str, content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError, match=message):
        Reader(name, image="{image}", question="question").questions(tmp_path)


def test_files_as_people_write_them_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = ROW | {"question": "one\u2028two", "options": {"A": "red", "B": "blue"}}
    line = json.dumps(row, ensure_ascii=False)
    (tmp_path / "rows.jsonl").write_text(f"\ufeff{line}\r\n\n", encoding="utf-8")
    (tmp_path / "rows.txt").write_text("image,question,answer\na.png,what?,3\n")
    keys = {"image": "{image}", "question": "question", "references": "answer"}
    (question,) = Reader("rows.jsonl", **keys, **LETTERED).questions(tmp_path)
    assert (question.text, question.choices, question.references) == (row["question"], ("red", "blue"), ("A",))
    (question,) = Reader("rows.txt", format="csv", **keys).questions(tmp_path)
    assert question.references == ("3",)


def test_a_question_that_its_metric_cannot_score_is_refused_before_it_is_asked() -> None:
    questions = [Question(f"color/{n}", None, "?", ("yes",), group=str(n // 2), subset="color") for n in range(3)]
    check_questions(questions[:2], Procedure("ours", "mme"), "mine")
    with pytest.raises(UserError, match="two questions per image"):
        check_questions(questions, Procedure("ours", "mme"), "mine")


def test_tabs_and_line_breaks_of_a_text_part_no_values() -> None:
    questions = [Question("1", None, "?", ("12\n13",), group="1")]
    for answer, figure in (("12 13", 1.0), ("12\t13", 1.0), ("7\t12 13", 0.0)):
        rows = rows_of(questions, {"1": answer}, Procedure("ours", "due_f1", gold="pairs"))
        assert score_rows("due_f1", rows).figure == figure


def test_a_benchmark_of_the_user_is_a_file(tmp_path: Path) -> None:
    content = yaml.safe_load((FOLDER / "docvqa.yaml").read_text())
    file = tmp_path / "mine.yaml"
    for text, message in (
        (yaml.safe_dump(content | {"name": "x"}), "Remove `name`"),
        ("[1, 2]", "expected the keys of a benchmark"),
        ("a: [", "is not YAML"),
        (yaml.safe_dump(_with(content, prompt="{question} {")), "cannot be filled"),
        (yaml.safe_dump(content | {"reader": content["reader"] | {"image": ""}}), "`image` or `bytes`"),
        (yaml.safe_dump(content | {"reader": content["reader"] | {"answer": "index"}}), "need `choices`"),
        (yaml.safe_dump(content | {"reader": content["reader"] | {"size": ["h"]}}), "height and width"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_benchmark(str(file))
    file.write_text(yaml.safe_dump(content))
    assert load_benchmark(str(file)).name == "mine"
    with pytest.raises(UserError, match=r"none\.yaml' cannot be read"):
        load_benchmark(str(tmp_path / "none.yaml"))


def test_the_benchmark_of_the_docs_reads_its_row(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/benchmarks.md").read_text()
    (tmp_path / "mine.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    benchmark = load_benchmark(str(tmp_path / "mine.yaml"))
    row = {"image": "1.jpg", "question": "Where to?", "options": ["north", "south"], "answer": "B"}
    write(tmp_path / "signs.jsonl", row)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos/1.jpg")
    (question,) = benchmark.reader_of(benchmark.split()).questions(tmp_path)
    assert (question.references, question.choices) == (("B",), ("north", "south"))


BAD = {
    "an unknown key": (lambda c: c | {"metrik": "anls"}, r"unknown key 'metrik'. Did you mean 'metric'|unknown key"),
    "an unknown key of the reader": (lambda c: c | {"reader": c["reader"] | {"imge": ""}}, "Did you mean 'image'"),
    "an unknown key of a split": (lambda c: c | {"splits": {"val": {"reader": {"fil": ""}}}}, "Did you mean 'file'"),
    "an unknown metric": (lambda c: _with(c, metric="anl"), "unknown metric 'anl'"),
    "an unknown placeholder": (lambda c: _with(c, prompt="{quest}"), "unknown placeholder {quest}"),
    "an unknown decoding": (lambda c: _with(c, decoding={"beam": 2}), "decoding"),
    "candidates of generation": (lambda c: _with(c, candidates={}), "`answering: candidates` needs `candidates`"),
    "log-odds of an unknown candidate": (
        lambda c: _with(c, answering="candidates", candidates={"texts": {"a": ["a"], "b": ["b"]}, "odds_of": "c"}),
        "`odds_of` is one of",
    ),
    "log-odds of letters": (
        lambda c: _with(c, answering="candidates", candidates={"odds_of": "A"}),
        "at least two candidates",
    ),
    "a prompt without a mark": (lambda c: _with(c, prompt_mark=""), "`prompt_mark`"),
    "a prompt without a source": (lambda c: _with(c, source=""), "a prompt needs `prompt_mark`"),
    "our prompt under another mark": (lambda c: _with(c, prompt_mark="v"), "the mark 'ours' is for the prompt"),
    "an unknown mark": (lambda c: c | {"published": [c["published"][0] | {"mark": "x"}]}, r"mark is one of"),
    "a text in place of a number": (lambda c: c | {"scale": "1"}, "scale is of the type float"),
    "no procedure of ours": (lambda c: c | {"procedures": c["procedures"][:-1]}, "the last procedure is 'ours'"),
}


def _with(content: dict, **changes: object) -> dict:
    return content | {"procedures": [*content["procedures"][:-1], content["procedures"][-1] | changes]}


@pytest.mark.parametrize("name", BAD)
def test_a_faulty_benchmark_is_refused(name: str) -> None:
    change, message = BAD[name]
    content = yaml.safe_load((FOLDER / "docvqa.yaml").read_text())
    parse_benchmark("docvqa", content)
    with pytest.raises(UserError, match=message.replace("{", r"\{")):
        parse_benchmark("docvqa", change(content))


def test_every_published_figure_has_its_mark_and_source() -> None:
    entries = [entry for name in benchmark_names() for entry in load_benchmark(name).published]
    assert len(entries) > 100
    assert all(entry.source and entry.split and entry.metric for entry in entries)


def test_every_prompt_has_its_mark_and_source() -> None:
    procedures = [(name, procedure) for name in benchmark_names() for procedure in load_benchmark(name).procedures]
    asking = [(name, procedure) for name, procedure in procedures if procedure.answering != "retrieval"]
    assert len(asking) > 100 and len(procedures) - len(asking) == 2
    assert all(procedure.prompt and procedure.prompt_mark and procedure.source for _, procedure in asking)
    for name, procedure in asking:
        assert (procedure.prompt_mark == "ours") == (not procedure.families) == (procedure.name == "ours")
        if "recalled" in procedure.source and procedure.families:
            assert procedure.prompt_mark == "r", name
        if "not released" in procedure.source:
            assert procedure.prompt_mark == "stand-in", name
    recalled = {name for name, procedure in asking if procedure.prompt_mark == "r"}
    assert {"hateful_memes", "iconqa", "scienceqa", "vsr"} <= recalled  # InstructBLIP's appendix E


def test_an_unknown_benchmark_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'textvqa'"):
        load_benchmark("text_vqa")


def test_vqav2_is_submitted_for_every_question_of_test2015(tmp_path: Path) -> None:
    coco_vqa("vqav2", "v2_OpenEnded_mscoco_test-dev2015_questions.json", "unused.json")(tmp_path)
    for n in FIVE:
        source = tmp_path / f"coco/val2014/COCO_val2014_{n + 7:012d}.jpg"
        target = tmp_path / f"coco/test2015/COCO_test2015_{n + 7:012d}.jpg"
        target.parent.mkdir(exist_ok=True)
        source.rename(target)
    more = [{"question_id": n, "image_id": 1, "question": "?"} for n in (70, 71, 72, 73, 74, 5)]
    write(tmp_path / "vqav2/v2_OpenEnded_mscoco_test2015_questions.json", {"questions": more})
    benchmark = load_benchmark("vqav2")
    questions = benchmark.reader_of("test_dev").questions(tmp_path)
    given = {question.id: "The Red, dont" for question in questions}
    submission = benchmark.splits["test_dev"].submission
    path = write_submission(submission, questions, given, tmp_path, tmp_path / "out/vqav2")
    entries = json.loads(path.read_text())
    assert entries[0] == {"question_id": 70, "answer": "red don't"}
    assert entries[-1] == {"question_id": 5, "answer": ""}
    del given["72"]
    with pytest.raises(UserError, match="1 of 5 questions have no answer, the first is '72'"):
        write_submission(submission, questions, given, tmp_path, tmp_path / "out/again")
    assert not (tmp_path / "out/again.json").exists()


def test_vizwiz_is_submitted_by_image(tmp_path: Path) -> None:
    vizwiz(tmp_path)
    (tmp_path / "vizwiz/val").rename(tmp_path / "vizwiz/test")
    (tmp_path / "vizwiz/val.json").rename(tmp_path / "vizwiz/test.json")
    benchmark = load_benchmark("vizwiz")
    questions = benchmark.reader_of("test").questions(tmp_path)
    submission = benchmark.splits["test"].submission
    path = write_submission(
        submission, questions, {q.id: "A cup." for q in questions}, tmp_path, tmp_path / "vizwiz_out"
    )
    assert json.loads(path.read_text())[1] == {"image": "VizWiz_val_00000001.jpg", "answer": "cup"}


def test_mmbench_is_submitted_as_the_table_with_a_prediction_column(tmp_path: Path) -> None:
    mmbench("mmbench_test_20230712.tsv")(tmp_path)
    benchmark = load_benchmark("mmbench")
    questions = benchmark.reader_of("test").questions(tmp_path)
    submission = benchmark.splits["test"].submission
    path = write_submission(submission, questions, {q.id: "A <b>" for q in questions}, tmp_path, tmp_path / "mm")
    with zipfile.ZipFile(path) as file:
        sheet = file.read("xl/worksheets/sheet1.xml").decode()
    assert sheet.count("<row>") == 6
    assert "prediction" in sheet and "A &lt;b&gt;" in sheet and "<c><v>1000002</v></c>" in sheet


def test_a_table_is_a_workbook_of_valid_xml(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    write_table(tmp_path / "t.xlsx", [["a", "b"], [1, "x & \x07y"]])
    with zipfile.ZipFile(tmp_path / "t.xlsx") as file:
        roots = {name: ElementTree.fromstring(file.read(name)) for name in file.namelist()}
    assert roots["xl/worksheets/sheet1.xml"].tag.endswith("}worksheet")


def test_only_read_figures_of_the_same_split_and_metric_get_a_difference() -> None:
    benchmark = load_benchmark("docvqa")
    procedure = Procedure("p", "anls")
    questions = [Question(str(n), None, "?", (word,), group=str(n)) for n, word in enumerate(WORDS)]
    measurement = measure(
        benchmark, procedure, rows_of(questions, {q.id: q.references[0] for q in questions}, procedure)
    )
    published = Published("M", 65.0, "v", "val", "anls", "s")
    assert difference_to(measurement, published, "val", 100) == pytest.approx(35.0)
    for change in ({"mark": "r"}, {"split": "test"}, {"metric": "anls_monkey"}):
        assert difference_to(measurement, dataclasses.replace(published, **change), "val", 100) is None
    detail = dataclasses.replace(measurement, details={"part": 0.5})
    assert difference_to(detail, dataclasses.replace(published, metric="anls/part"), "val", 100) == pytest.approx(-15.0)


def test_two_models_are_compared_by_the_test_that_fits_the_metric() -> None:
    benchmark = load_benchmark("gqa")
    questions = [Question(str(n), None, "?", ("red",), group=str(n // 2)) for n in range(20)]

    def measured(metric: str, right: int):
        procedure = Procedure("p", metric)
        rows = rows_of(questions, {q.id: "red" if n < right else "blue" for n, q in enumerate(questions)}, procedure)
        return procedure, measure(benchmark, procedure, rows)

    procedure, a = measured("equality", 5)
    _, b = measured("equality", 15)
    graded, c = measured("anls", 5)
    _, d = measured("anls", 6)
    first, second = contrast({"x": (procedure, a, b), "y": (graded, c, d)})
    assert (first.test, second.test) == ("McNemar", "paired bootstrap")
    assert first.comparison.p_value == pytest.approx(2 / 2**10)  # ten questions, all in favour of b
    assert first.comparison.difference == pytest.approx(0.5)
    assert first.adjusted == pytest.approx(2 * first.comparison.p_value)  # Holm over two contrasts
    assert first.needed is not None and second.needed is not None
    tenth, hundredth = (
        contrast({"x": (procedure, a, b), "y": (graded, c, d)}, difference=points) for points in (0.1, 0.01)
    )
    assert all(small.needed > 20 * large.needed for large, small in zip(tenth, hundredth, strict=True))
    (equal,) = contrast({"x": (procedure, a, a)})
    assert equal.needed is None
    with pytest.raises(UserError, match="Ask both the same questions"):
        contrast({"x": (procedure, a, dataclasses.replace(b, scores={"0": 1.0}))})


def test_every_split_has_a_typed_reader() -> None:
    for name in benchmark_names():
        benchmark: Benchmark = load_benchmark(name)
        for split in benchmark.splits:
            assert benchmark.reader_of(split).layout()
            assert benchmark.reader_of(split).references or benchmark.splits[split].submission or name == "mme"
