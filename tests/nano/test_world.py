"""The nano world: splits, answers, pixels, and accuracy without pictures."""

import pickle
import re
import subprocess
import sys
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest

from lit_mm.errors import UserError
from lit_mm.nano.elements import Rule, Shape, Text
from lit_mm.nano.page import LONGEST, SHORTEST
from lit_mm.nano.render import render
from lit_mm.nano.words import AVOIDED, COLOURS, LABELS, SHAPES, draw_word
from lit_mm.nano.world import SKILLS, SPLITS, caption_document, page, question_document, text_document

PX = 1 / 112  # of a page stretched to 112 x 112
SINGLE = tuple(skill for skill in SKILLS if skill != "story")  # skills of one page


def pages(skill, count, split="train", seed=0):
    return [page(index, split=split, seed=seed, kind=skill) for index in range(count)]


def cell_of(box):
    """(column, row) of a shape on the 4 x 4 lattice of count, which leaves 5 px free on every side."""
    return tuple(int(((box[side] + box[side + 2]) / 2 - 5 * PX) / (102 * PX / 4)) for side in (0, 1))


def template(question):
    """Remove letters, numbers and names from a question."""
    question = re.sub(r"\d", "N", re.sub(r"\b[A-Z]\b", "L", question))
    for name, words in (("colour", COLOURS), ("kind", SHAPES), ("kinds", SHAPES.values()), ("label", LABELS)):
        question = re.sub(rf"\b(?:{'|'.join(words)})\b", f"<{name}>", question)
    return question


def answer_from(transcript, question):
    """Answer a question from the transcript, by rules independent of those that generated both."""
    fields = [field.split() for field in transcript.split(" ; ")]
    if found := re.fullmatch(r"what is on line (\d)\?", question):
        return dict(fields)[found[1]]
    if found := re.fullmatch(r"what is on the (first|second) line\?", question):
        return fields[found[1] == "second"][0]
    if question == "what does the sign say?":
        return " ".join(word for field in fields for word in field)
    if found := re.fullmatch(r"what is in row (.) column (.)\?", question):
        row = next(field for field in fields[1:] if field[0] == found[1])
        return row[1 + fields[0].index(found[2])]
    if found := re.fullmatch(r"what is the (\w+)\?", question):
        return dict(fields)[found[1]]
    if found := re.fullmatch(r"which bar is the (highest|lowest)\?", question):
        heights = sorted(int(height) for _, height in fields)
        wanted = heights[-1 if found[1] == "highest" else 0]
        assert heights.count(wanted) == 1
        return next(letter for letter, height in fields if int(height) == wanted)
    if found := re.fullmatch(r"how high is bar (.)\?", question):
        return dict(fields)[found[1]]
    if found := re.fullmatch(r"how many (\w+) are there\?", question):
        singular = {plural: name for name, plural in SHAPES.items()}.get(found[1])
        return str(sum(name in (singular, name if singular is None else singular) for name in transcript.split()))
    if found := re.fullmatch(r"what colour is the (\w+)\?", question):
        return next(field[0] for field in fields if field[1:] == [found[1]])
    if found := re.fullmatch(r"what shape is (\w+)\?", question):
        return next(field[1] for field in fields if field[0] == found[1])
    if found := re.fullmatch(r"where is the (\w+) (\w+)\?", question):
        return next(field[2] for field in fields if field[:2] == [found[1], found[2]])
    raise AssertionError(f"no rule for {question!r}")


@pytest.mark.parametrize("skill", SINGLE)
def test_every_question_can_be_answered_from_the_transcript(skill):
    for shown in pages(skill, 200):
        assert shown.questions
        assert len({question for question, _ in shown.questions}) == len(shown.questions)
        for question, answer in shown.questions:
            assert answer_from(shown.transcript, question) == answer, (shown.transcript, question)


def test_every_question_about_a_story_can_be_answered_from_its_pages():
    for index in range(200):
        document = question_document(index, split="train", seed=0, skill="story", questions=20)
        scenes = [[field.split() for field in shown.transcript.split(" ; ")] for shown in document.pictures]
        assert len(scenes) in (2, 3)
        assert len(document.turns) == 2 * 3 * len(scenes)
        for asked, said in zip(document.turns[::2], document.turns[1::2], strict=True):
            if found := re.fullmatch(r"on which page is the (\w+)\?", asked.text):
                where = [n for n, scene in enumerate(scenes, 1) if any(field[-1] == found[1] for field in scene)]
                expected = [str(n) for n in where]
            elif found := re.fullmatch(r"what colour is the (\w+) on page (\d)\?", asked.text):
                expected = [f[0] for f in scenes[int(found[2]) - 1] if f[-1] == found[1]]
            else:
                found = re.fullmatch(r"what does page (\d) say\?", asked.text)
                expected = [f[0] for f in scenes[int(found[1]) - 1] if len(f) == 1]
            assert expected == [said.text], (asked.text, scenes)


def test_the_transcript_lists_what_is_printed_in_raster_order():
    for skill in ("read_large", "read_small", "form", "table"):
        for shown in pages(skill, 100):
            texts = [element for element in shown.elements if isinstance(element, Text)]
            assert shown.transcript.replace(" ; ", " ").split() == [text.text for text in texts]
            lines = [round((text.top + text.cap / 2) / PX, 3) for text in texts]
            assert sorted(zip(lines, (text.left for text in texts), strict=True)) == [
                (line, text.left) for line, text in zip(lines, texts, strict=True)
            ]
    for shown in pages("locate", 100):
        names = [f"{name} [{','.join(str(round(10 * side)) for side in box)}]" for name, box in shown.boxes]
        assert " ; ".join(names) == shown.transcript
        assert [box for _, box in shown.boxes] == sorted((box for _, box in shown.boxes), key=lambda b: (b[1], b[0]))
    for shown in pages("count", 100):
        assert shown.transcript.split() == [element.kind for element in shown.elements]


def test_a_document_is_a_function_of_seed_split_skill_and_index():
    arguments = {"split": "heldout", "seed": 7}
    assert question_document(12, **arguments) == question_document(12, **arguments)
    others = [
        question_document(12 + len(SKILLS), **arguments),
        question_document(12, split="train", seed=7),
        question_document(12, split="heldout", seed=8),
    ]
    assert all(other.pictures != question_document(12, **arguments).pictures for other in others)
    assert question_document(12, **arguments).skill == SKILLS[12 % len(SKILLS)]


def test_another_process_with_another_hash_salt_makes_the_same_documents():
    code = (
        "import zlib; from lit_mm.nano.world import question_document as q; "
        "ds = [q(i, split='train', seed=3, questions=3) for i in range(27)]; "
        "print(zlib.crc32(repr(ds).encode() + b''.join(p.read().tobytes() for d in ds for p in d.pictures)))"
    )
    sums = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    ]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("skill", SKILLS)
def test_splits_share_no_page(skill):
    seen = defaultdict(set)
    for split in SPLITS:
        for seed in (0, 1):
            for shown in pages(skill, 400, split, seed):
                # the words alone tell pages apart, except in count, where the cells of the shapes belong to them
                cells = tuple(cell_of(box) for _, box in shown.boxes) if skill == "count" else ()
                seen[split].add((shown.transcript, cells))
    for split in SPLITS:
        for other in SPLITS:
            assert split == other or not seen[split] & seen[other], (split, other)


def test_splits_share_no_page_of_a_story_beyond_its_first():
    seen = {
        split: {
            shown.transcript
            for index in range(500)
            for shown in question_document(index, split=split, seed=0, skill="story").pictures
        }
        for split in ("train", "heldout")
    }
    assert not seen["train"] & seen["heldout"]


@pytest.mark.parametrize("skill", SKILLS)
def test_a_page_survives_pickling_and_stays_small(skill):
    shown = page(5, split="pixels", seed=0, kind=skill)
    packed = pickle.dumps(shown)
    assert len(packed) < 2500
    assert pickle.loads(packed) == shown
    assert pickle.loads(packed).read().tobytes() == shown.read().tobytes()


@pytest.mark.parametrize("skill", SKILLS)
def test_pages_read_as_rgb_of_their_own_size(skill):
    for shown in pages(skill, 12):
        image = shown.read()
        assert (image.mode, image.size) == ("RGB", (shown.width, shown.height))
        assert min(image.size) >= SHORTEST and max(image.size) <= LONGEST


def test_sizes_vary_between_112_and_448_and_most_are_near_square():
    sizes = [(shown.height, shown.width) for skill in SINGLE for shown in pages(skill, 150)]
    aspects = np.array([width / height for height, width in sizes])
    assert len(set(sizes)) > 1000
    assert 1 / 1.85 < aspects.min() < 0.65 and 1.55 < aspects.max() < 1.85
    assert np.mean((aspects > 0.74) & (aspects < 1.35)) > 0.8


@pytest.mark.parametrize("skill", SKILLS)
def test_everything_lies_on_the_page(skill):
    for shown in pages(skill, 200):
        for element in shown.elements:
            assert min(element.box) > -1e-9 and max(element.box) < 1 + 1e-9, (element, shown)


@pytest.mark.parametrize("skill", ("read_large", "read_small", "form", "table"))
def test_words_and_numbers_never_touch(skill):
    for shown in pages(skill, 300):
        texts = [element for element in shown.elements if isinstance(element, Text)]
        for number, one in enumerate(texts):
            for other in texts[:number]:
                across = max(one.left, other.left) - min(one.box[2], other.box[2])
                down = max(one.top, other.top) - min(one.box[3], other.box[3])
                assert across > 0.35 * one.cap or down > 0.3 * one.cap, (one, other, shown.width, shown.height)


def test_capitals_are_as_high_as_each_skill_promises_at_112_pixels():
    floor = {"read_large": 14, "story": 14, "form": 8.5, "table": 9, "chart": 9.5}
    for skill, least in floor.items():
        caps = [e.cap / PX for shown in pages(skill, 200) for e in shown.elements if isinstance(e, Text)]
        assert min(caps) > least - 1e-6, skill
    lists = pages("read_small", 600)
    fine = [shown for shown in lists if shown.fine_print]
    assert 0.27 < len(fine) / len(lists) < 0.4
    assert all(min(shown.height, shown.width) >= 224 for shown in fine)
    for shown in lists:
        least, most = (5, 7) if shown.fine_print else (8.5, 10.5)
        assert all(least <= e.cap / PX <= most for e in shown.elements)


@pytest.mark.parametrize("text", ["KALO", "47", "total"])
def test_text_fills_its_box_with_ink(text):
    shown = page(0, split="train", seed=0, kind="read_large")
    element = Text(text, 0.2, 0.4, 0.5, 0.2)
    style = shown.style._replace(ground=(255, 255, 255), ink=(0, 0, 0), weight=0.0, noise=0, frame=False)
    ink = 255 - np.asarray(render(200, 300, style, [element]))[..., 0].astype(int)  # [200, 300]
    rows, columns = np.nonzero(ink.max(1) > 100)[0], np.nonzero(ink.max(0) > 100)[0]
    assert abs(rows.min() - 80) <= 4 and abs(rows.max() + 1 - 120) <= 3
    assert abs(columns.min() - 60) <= 8 and abs(columns.max() + 1 - 210) <= 8


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_touches_the_four_sides_of_its_box(kind):
    style = page(0, split="train", seed=0, kind="count").style
    style = style._replace(ground=(0, 0, 0), noise=0, tint=(0, 0, 0), frame=False)
    image = np.asarray(render(200, 100, style, [Shape(kind, "yellow", (0.2, 0.3, 0.6, 0.7))])).max(2)  # [200, 100]
    rows, columns = np.nonzero(image.max(1) > 60)[0], np.nonzero(image.max(0) > 60)[0]
    expected = (60, 139, 20, 59)
    got = (rows.min(), rows.max(), columns.min(), columns.max())
    assert np.abs(np.subtract(got, expected)).max() <= 2, got


def test_ink_and_shapes_stand_out_from_the_ground():
    for skill in SKILLS:
        for shown in pages(skill, 60):
            ground, ink = np.array(shown.style.ground), np.array(shown.style.ink)
            assert np.abs(ground - ink).max() > 100, shown.style
            for element in shown.elements:
                if isinstance(element, Shape):
                    assert np.abs(ground - np.array(COLOURS[element.colour])).max() > 80


@pytest.mark.parametrize("skill", SKILLS)
def test_without_the_picture_the_best_guess_is_right_at_most_once_in_five(skill):
    """The guess is the most frequent answer in train to the same form of question. Count comes closest, with 0.18."""
    frequent = defaultdict(Counter)
    for index in range(1500):
        document = question_document(index, split="train", seed=0, skill=skill)
        frequent[template(document.question)][document.answer] += 1
    heldout = [question_document(index, split="heldout", seed=0, skill=skill) for index in range(600)]
    hits = [d.answer == frequent[template(d.question)].most_common(1)[0][0] for d in heldout]
    assert np.mean(hits) <= 0.2


def test_counts_are_balanced():
    answers = Counter(question_document(i, split="heldout", seed=0, skill="count").answer for i in range(1200))
    assert sorted(answers) == list("123456")
    assert min(answers.values()) > 140


@pytest.mark.parametrize("skill", SKILLS)
def test_what_is_read_is_capitals_and_digits_and_the_rest_a_few_small_words(skill):
    words = set()
    for index in range(150):
        for document in (
            question_document(index, split="train", seed=0, skill=skill, questions=3),
            caption_document(index, split="train", seed=0, skill=skill),
            text_document(index, split="train", seed=0, skill=skill),
        ):
            for turn in document.turns:
                pieces = re.findall(r"[A-Z]+|[a-z]+|\d+|[ ;,\[\]?]", turn.text)
                assert "".join(pieces) == turn.text
                words |= {piece for piece in pieces if piece.islower()}
    assert len(words) < 40


@pytest.mark.parametrize("skill", SKILLS)
def test_transcripts_are_short(skill):
    lengths = []
    for index in range(300):
        text = caption_document(index, split="train", seed=0, skill=skill).answer
        lengths.append(len(re.findall(r"[A-Z]|[a-z]+|\d|[;,\[\]]", text)))
    assert max(lengths) <= 45


def test_a_caption_and_a_text_show_the_page_that_the_question_asks_about():
    for index in range(3 * len(SKILLS)):
        asked = question_document(index, split="train", seed=0, questions=3)
        caption = caption_document(index, split="train", seed=0)
        text = text_document(index, split="train", seed=0, questions=3)
        assert asked.pictures == caption.pictures and not text.pictures
        assert text.turns[0].text == f"{caption.answer} ; {asked.turns[0].text}"
        assert text.turns[1:] == asked.turns[1:]
        assert all(shown.transcript in caption.answer for shown in asked.pictures)
        if asked.skill != "story":
            assert asked.pictures == (page(index, split="train", seed=0, kind=asked.skill),)
        else:
            assert asked.pictures[0] == page(index, split="train", seed=0, kind="story")


def test_documents_are_named_and_pictures_come_first():
    document = question_document(123, split="train", seed=0, skill="form")
    assert (document.id, document.skill, document.source) == ("train/form/000123", "form", "nano")
    makers = (question_document, caption_document, text_document)
    names = {make(i, split=split, seed=0).id for make in makers for i in range(90) for split in SPLITS}
    assert len(names) == len(makers) * 90 * len(SPLITS)
    story = question_document(3, split="train", seed=0, skill="story", questions=2)
    assert [turn.role for turn in story.turns] == ["user", "assistant"] * 2
    assert [isinstance(part, str) for part in story.turns[0].parts] == [False] * len(story.pictures) + [True]
    assert all(isinstance(part, str) for turn in story.turns[1:] for part in turn.parts)


def test_more_questions_than_a_page_offers_are_not_invented():
    document = question_document(0, split="train", seed=0, skill="count", questions=50)
    assert len(document.turns) == 2 * len(document.pictures[0].questions)


def test_chart_bars_end_on_the_grid_line_of_their_height():
    for shown in pages("chart", 100):
        base = max(e.box[1] for e in shown.elements if isinstance(e, Rule))
        lines = sorted((e.box[1] for e in shown.elements if isinstance(e, Rule)), reverse=True)
        assert len(lines) == 9
        heights = [
            lines.index(min(lines, key=lambda y, e=e: abs(y - e.box[1])))
            for e in shown.elements
            if hasattr(e, "colour")
        ]
        assert [f.split()[1] for f in shown.transcript.split(" ; ")] == [str(height) for height in heights]
        assert all(abs(e.box[3] - base) < 1e-9 for e in shown.elements if hasattr(e, "colour"))


def test_no_word_to_be_avoided_is_drawn():
    rng = Random(0)
    words = {draw_word(rng) for _ in range(60_000)}
    assert len(words) > 8000
    assert not words & AVOIDED
    assert {len(word) for word in words} == {3, 4, 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "splits train, heldout, text, pixels, got split='test'"),
        ({"skill": "ocr"}, "skills read_large, .* got 'ocr'"),
        ({"index": -1}, "numbered from 0, got index=-1"),
        ({"questions": 0}, "at least one question, got questions=0"),
    ],
)
def test_a_mistake_is_named(change, message):
    arguments = {"index": 0, "split": "train", "seed": 0, "skill": "story"} | change
    with pytest.raises(UserError, match=message):
        question_document(arguments.pop("index"), **arguments)
