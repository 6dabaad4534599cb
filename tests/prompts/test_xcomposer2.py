from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.documents.turns import conversation_to_document
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.xcomposer2 import XComposer2Prompt, label_mask

PROMPT = XComposer2Prompt(turn_start="<turn>", turn_end="</turn>")


def document(*turns: tuple[str, str | Picture | Sequence[str | Picture]]) -> Document:
    return Document(
        "d1", tuple(Turn(role, tuple(parts) if isinstance(parts, tuple) else (parts,)) for role, parts in turns)
    )


def ids_of(runs: list[Run]) -> list[int | str]:
    """All ids in order, with `picture n` for pictures."""
    flat: list[int | str] = []
    for run in runs:
        flat += [f"picture {run.number}"] if isinstance(run, PictureRun) else run.ids
    return flat


def learnt_text(runs: list[Run], tokenizer: Tokenizer) -> str:
    ids = [i for run in runs if isinstance(run, TextRun) for i, learn in zip(run.ids, run.learn, strict=True) if learn]
    return tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize(
    ("ids", "learnt"),
    [
        ([], []),
        ([1, 8, 8, 9, 5, 6, 6, 6, 6, 30, 31, 9, 5, 2], [30, 31, 9, 5, 2]),  # a whole turn
        ([1, 8, 9, 5, 6, 6, 6, 6, 30, 9, 5, 8, 9, 5, 6, 6, 6, 6, 40, 9, 5, 2], [30, 9, 40, 9, 5, 2]),  # two
        ([1, 8, 9, 5, 6, 6, 6, 6, 30, 9, 5, 2, 2, 2], [30, 9, 5, 2]),  # padding has the id of eos
        ([1, 8, 9, 5, 6, 6, 6, 6, 30, 31], [30, 31]),  # cut inside the answer
        ([1, 8, 9, 5, 6, 6, 6, 6, 30, 9, 5, 8, 8], [30, 9, 5]),  # cut inside the second question
        ([1, 8, 9, 5, 6], []),  # cut inside the bridge
        ([-100, -100, 1, 8, 9, 5, 6, 6, 6, 6, 30, -100, 31, 9, 5, 2], [30, 31, 9, 5, 2]),  # pictures before and within
    ],
)
def test_answers_and_their_ends_are_learnt(ids: list[int], learnt: list[int]) -> None:
    mask = label_mask(ids, turn_end_id=9, eos_id=2, bridge=6)
    assert [token for token, learn in zip(ids, mask, strict=True) if learn] == learnt


def test_a_conversation_is_learnt_at_its_answers(tokenizer: Tokenizer, picture: Picture) -> None:
    runs = PROMPT.runs(
        document(
            ("user", (picture, "What is in the picture?")),
            ("assistant", "A red dog."),
            ("user", "How many?"),
            ("assistant", "Three."),
        ),
        tokenizer,
    )
    assert learnt_text(runs, tokenizer) == "A red dog.</turn>Three.</turn>\n</s>"


def test_pieces_between_pictures_are_tokenised_alone_and_one_bos_leads(tokenizer: Tokenizer, picture: Picture) -> None:
    runs = PROMPT.runs(document(("user", (picture, " ", picture, "Which?")), ("assistant", "Two.")), tokenizer)
    expected = [
        tokenizer.bos_id,
        *tokenizer.encode("<turn>user\n"),
        "picture 0",
        *tokenizer.encode(" "),
        "picture 1",
        *tokenizer.encode("Which?</turn>\n<turn>assistant\nTwo.</turn>\n</s>"),
    ]
    assert ids_of(runs) == expected


def test_generation_starts_from_the_opened_assistant_turn(tokenizer: Tokenizer, picture: Picture) -> None:
    whole = document(("user", (picture, "How many?")), ("assistant", "Three."))
    asked = ids_of(PROMPT.runs(whole.without_answer(), tokenizer))
    opened = tokenizer.encode("</turn>\n<turn>assistant\n")
    assert asked[-len(opened) :] == opened
    assert ids_of(PROMPT.runs(whole, tokenizer))[: len(asked)] == asked
    assert learnt_text(PROMPT.runs(whole.without_answer(), tokenizer), tokenizer) == ""


def test_a_system_turn_is_not_learnt_and_does_not_shift_the_answers(tokenizer: Tokenizer) -> None:
    runs = PROMPT.runs(
        document(("system", "Two cats."), ("user", "How many?"), ("assistant", "Three.")),
        tokenizer,
    )
    assert learnt_text(runs, tokenizer) == "Three.</turn>\n</s>"
    text = "<turn>system\nTwo cats.</turn>\n<turn>user\nHow many?</turn>\n<turn>assistant\nThree.</turn>\n</s>"
    assert ids_of(runs) == [tokenizer.bos_id, *tokenizer.encode(text)]


def test_a_page_is_bare_text_learnt_from_start_to_end(tokenizer: Tokenizer, picture: Picture) -> None:
    runs = PROMPT.runs(document(("page", (picture, "A red dog.", picture, "Two cats."))), tokenizer)
    expected = ["picture 0", tokenizer.bos_id, *tokenizer.encode("A red dog."), "picture 1"]
    assert ids_of(runs) == [*expected, *tokenizer.encode("Two cats.</s>")]
    assert learnt_text(runs, tokenizer) == "A red dog.Two cats.</s>"


def test_a_page_that_ends_with_a_picture_is_still_closed(tokenizer: Tokenizer, picture: Picture) -> None:
    runs = PROMPT.runs(document(("page", ("A red dog.", picture))), tokenizer)
    assert ids_of(runs) == [tokenizer.bos_id, *tokenizer.encode("A red dog."), "picture 0", tokenizer.eos_id]


def test_a_page_without_text_asks_for_its_caption(tokenizer: Tokenizer, picture: Picture) -> None:
    asked = ids_of(PROMPT.runs(document(("page", picture)), tokenizer))
    assert asked == ["picture 0", tokenizer.bos_id]
    captioned = ids_of(PROMPT.runs(document(("page", (picture, "A red dog."))), tokenizer))
    assert captioned[: len(asked)] == asked


def test_a_page_before_a_conversation_is_learnt_beside_its_answers(tokenizer: Tokenizer, picture: Picture) -> None:
    runs = PROMPT.runs(
        document(("page", (picture, "A red dog.")), ("user", "How many?"), ("assistant", "Three.")), tokenizer
    )
    assert learnt_text(runs, tokenizer) == "A red dog.Three.</turn>\n</s>"
    flat = [i for run in runs if isinstance(run, TextRun) for i in run.ids]
    assert (flat.count(tokenizer.bos_id), flat.count(tokenizer.eos_id)) == (1, 1)


def test_the_text_shows_placeholders(tokenizer: Tokenizer, picture: Picture) -> None:
    text = PROMPT.text(document(("user", (picture, "How many?"))), tokenizer)
    assert text == "<turn>user\n<ImageHere>How many?</turn>\n<turn>assistant\n"


def test_generation_stops_at_the_turn_end_and_at_eos(tokenizer: Tokenizer) -> None:
    assert PROMPT.stop_ids(tokenizer) == {tokenizer.id_of("</turn>"), tokenizer.eos_id}


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "has no turns"),
        ([("assistant", "Three.")], "turn 0: the assistant answers a user turn, but follows None"),
        ([("user", "a"), ("user", "b")], "is followed by its answer, got 'user'. Join turns of one speaker"),
        ([("system", "a")], "ends with a system turn"),
        ([("user", "a</turn>b")], r"turn 0 \(user\): its text contains the marker '</turn>'"),
        ([("page", "a</s>b")], r"turn 0 \(page\): its text contains the marker '</s>'"),
    ],
)
def test_what_would_shift_the_labels_is_refused(
    turns: list[tuple[str, str]], message: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match=f"document 'd1'.*{message}"):
        PROMPT.runs(document(*turns), tokenizer)


def test_markers_unknown_to_the_tokenizer_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"no token '\[UNUSED_TOKEN_145\]'"):
        XComposer2Prompt().runs(document(("user", "Hi")), tokenizer)


def test_markers_that_the_tokenizer_breaks_are_refused(tokenizer: Tokenizer) -> None:
    # A piece of the vocabulary that is no added token: "Ġthe" stands for " the", but encodes as other bytes.
    piece = "Ġthe"
    assert tokenizer.id_of(piece) != tokenizer.encode(piece)[0]
    with pytest.raises(UserError, match="into pieces"):
        XComposer2Prompt(turn_start="<turn>", turn_end=piece).runs(document(("user", "Hi")), tokenizer)


def test_a_tokenizer_without_bos_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="beginning-of-sequence"):
        PROMPT.runs(document(("user", "Hi")), Tokenizer(tokenizer.vocabulary, bos=None, eos="</s>"))


words = st.text(alphabet="abc xyz.?\n", max_size=12).map(str.strip)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(words, st.booleans(), words.filter(bool)), min_size=1, max_size=3))
def test_any_conversation_is_learnt_at_its_answers_and_generation_is_its_prefix(
    turns: list[tuple[str, bool, str]], tokenizer: Tokenizer, picture: Picture
) -> None:
    said = [
        turn
        for question, pictured, answer in turns
        for turn in (("user", (picture, question) if pictured else (question,)), ("assistant", (answer,)))
    ]
    whole = document(*said)
    runs = PROMPT.runs(whole, tokenizer)
    assert learnt_text(runs, tokenizer) == "".join(f"{answer}</turn>" for *_, answer in turns) + "\n</s>"
    assert sum(isinstance(run, PictureRun) for run in runs) == len(whole.pictures)
    asked = ids_of(PROMPT.runs(whole.without_answer(), tokenizer))
    assert ids_of(runs)[: len(asked)] == asked


def say(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


def test_placeholders_become_pictures_in_order() -> None:
    first, second = object(), object()
    made = conversation_to_document(
        [say("human", " <ImageHere> and <ImageHere>? "), say("gpt", "Yes.")], [first, second], id="d1", source="chats"
    )
    assert made.turns == (Turn("user", (first, " and ", second, "?")), Turn("assistant", ("Yes.",)))
    assert (made.id, made.source) == ("d1", "chats")


def test_one_unplaced_picture_stands_before_bos(tokenizer: Tokenizer, picture: Picture) -> None:
    made = conversation_to_document([say("user", "How many?"), say("assistant", "Three.")], [picture], id="d1")
    assert ids_of(PROMPT.runs(made, tokenizer))[:3] == ["picture 0", tokenizer.bos_id, tokenizer.id_of("<turn>")]


@pytest.mark.parametrize(
    ("conversation", "pictures", "message"),
    [
        ([say("user", "Which?")], 2, "2 pictures and 0 <ImageHere>"),
        ([say("user", "<ImageHere><ImageHere>")], 1, "1 pictures and 2 <ImageHere>"),
        ([say("user", "<ImageHere>")], 0, "0 pictures and 1 <ImageHere>"),
        ([say("narrator", "Once")], 0, "turn 0: 'from' is one of .* got 'narrator'"),
        ([{"from": "user"}], 0, "turn 0: needs the keys 'from' and 'value'"),
    ],
)
def test_a_conversation_that_does_not_fit_its_pictures_is_refused(
    conversation: list[dict[str, str]], pictures: int, message: str, picture: Picture
) -> None:
    with pytest.raises(UserError, match=f"document 'd1'.*{message}"):
        conversation_to_document(conversation, [picture] * pictures, id="d1")
