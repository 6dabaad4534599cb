from __future__ import annotations

import pytest

from lit_mm.documents.document import Document, Picture, Turn
from lit_mm.errors import UserError
from lit_mm.prompts.prompt import PictureRun, Run, TextRun
from lit_mm.prompts.tokenizer import Tokenizer
from lit_mm.prompts.xcomposer import XComposerPrompt, label_mask_v1

HUMAN, BOT = 8, 9  # the markers that end a question and an answer
PROMPT = XComposerPrompt(end_of_human="<turn>", end_of_assistant="</turn>")


def document(*turns: tuple) -> Document:
    return Document("d1", tuple(Turn(role, said if isinstance(said, tuple) else (said,)) for role, said in turns))


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
        ([1, 20, 8, 5, 5, 5, 5, 5, 30, 9, 4, 2], [30, 9, 4, 2]),  # a whole turn
        ([1, 20, 8, 5, 5, 5, 5, 5, 30, 9, 21, 8, 5, 5, 5, 5, 5, 31, 9, 4, 2], [30, 9, 31, 9, 4, 2]),  # two
        ([1, 20, 8, 5, 5, 5, 5, 5, 30, 9, 4, 2, 2, 2], [30, 9, 4, 2]),  # padding has the id of eos
        ([1, 20, 8, 5, 5, 5, 5, 5, 30, 31], [30, 31]),  # cut inside the answer
        ([1, 20, 8, 5, 5, 5, 5, 5, 30, 9, 21, 22], [30, 9]),  # cut inside the second question
        ([1, -100, -100, 20, 8, 5, 5, 5, 5, 5, 30, -100, 9, 4, 2], [30, 9, 4, 2]),  # pictures
    ],
)
def test_answers_and_their_ends_are_learnt(ids: list[int], learnt: list[int]) -> None:
    mask = label_mask_v1(ids, end_of_human_id=HUMAN, end_of_assistant_id=BOT, eos_id=2)
    assert [token for token, learn in zip(ids, mask, strict=True) if learn] == learnt


def test_a_conversation_reads_as_released_and_its_answers_are_learnt(tokenizer: Tokenizer, picture: Picture) -> None:
    whole = document(
        ("user", (picture, "What is it?")), ("assistant", "A dog."), ("user", "How many?"), ("assistant", "Three.")
    )
    assert PROMPT.text(whole, tokenizer) == (
        " <|User|>:<ImageHere>What is it?\n<turn> <|Bot|>:A dog.</turn>"
        " <|User|>:How many?\n<turn> <|Bot|>:Three.</turn> </s>"
    )
    runs = PROMPT.runs(whole, tokenizer)
    rest = "What is it?\n<turn> <|Bot|>:A dog.</turn> <|User|>:How many?\n<turn> <|Bot|>:Three.</turn> </s>"
    assert ids_of(runs) == [
        tokenizer.bos_id,
        *tokenizer.encode(" <|User|>:"),
        "picture 0",
        *tokenizer.encode(rest),
    ]
    assert learnt_text(runs, tokenizer) == "A dog.</turn>Three.</turn> </s>"


def test_generation_starts_behind_the_bots_marker(tokenizer: Tokenizer, picture: Picture) -> None:
    whole = document(("user", (picture, "How many?")), ("assistant", "Three."))
    asked = PROMPT.runs(whole.without_answer(), tokenizer)
    assert ids_of(PROMPT.runs(whole, tokenizer))[: len(ids_of(asked))] == ids_of(asked)
    opened = tokenizer.encode("<turn> <|Bot|>:")
    assert ids_of(asked)[-len(opened) :] == opened
    assert learnt_text(asked, tokenizer) == ""
    assert PROMPT.stop_ids(tokenizer) == {
        tokenizer.id_of("<turn>"),
        tokenizer.id_of("</turn>"),
        tokenizer.eos_id,
    }


def test_the_system_speaks_before_the_first_marker(tokenizer: Tokenizer) -> None:
    said = document(("system", "Be kind.\n"), ("user", "Hi"), ("assistant", "Yo"))
    assert PROMPT.text(said, tokenizer) == "Be kind.\n <|User|>:Hi\n<turn> <|Bot|>:Yo</turn> </s>"
    assert learnt_text(PROMPT.runs(said, tokenizer), tokenizer) == "Yo</turn> </s>"


def test_a_picture_in_front_of_a_conversation_goes_behind_the_first_marker(
    tokenizer: Tokenizer, picture: Picture
) -> None:
    said = document(("page", picture), ("user", ("How many?", picture)), ("assistant", "Two."))
    runs = PROMPT.runs(said, tokenizer)
    assert PROMPT.text(said, tokenizer).startswith(" <|User|>:<ImageHere>How many?<ImageHere>\n")
    assert [run.number for run in runs if isinstance(run, PictureRun)] == [0, 1]
    assert learnt_text(runs, tokenizer) == "Two.</turn> </s>"


def test_a_page_is_learnt_from_start_to_end(tokenizer: Tokenizer, picture: Picture) -> None:
    runs = PROMPT.runs(document(("page", (picture, "A dog.", picture, "Two."))), tokenizer)
    expected = [tokenizer.bos_id, "picture 0", *tokenizer.encode("A dog."), "picture 1", *tokenizer.encode("Two.")]
    assert ids_of(runs) == [*expected, tokenizer.eos_id]
    assert learnt_text(runs, tokenizer) == "A dog.Two.</s>"
    asked = ids_of(PROMPT.runs(document(("page", picture)), tokenizer))
    assert asked == ids_of(runs)[:2]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "has no turns"),
        ([("assistant", "a")], "starting with the user"),
        ([("user", "a"), ("user", "b")], r"got \['user', 'user'\]"),
        ([("system", "a")], "starting with the user"),
        ([("user", "a"), ("system", "b")], "at most one system turn"),
        ([("page", "a"), ("user", "b")], "two documents"),
        ([("user", "a</turn>")], r"turn 0 \(user\): its text contains the marker '</turn>'"),
        ([("page", "a</s>")], "marker '</s>'"),
    ],
)
def test_what_the_template_cannot_say_is_refused(turns: list, message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=f"document 'd1'.*{message}"):
        PROMPT.runs(document(*turns), tokenizer)


def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"no token '<TOKENS_UNUSED_0>'"):
        XComposerPrompt().runs(document(("user", "Hi")), tokenizer)
    piece = "\u0120the"  # of the vocabulary, but no added token: it encodes as other bytes
    with pytest.raises(UserError, match="into pieces"):
        XComposerPrompt(piece, "</turn>").runs(document(("user", "Hi")), tokenizer)
    with pytest.raises(UserError, match="beginning-of-sequence"):
        PROMPT.runs(document(("user", "Hi")), Tokenizer(tokenizer.vocabulary, bos=None, eos="</s>"))
