"""`chat` talks with a trained model in the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from lit_mm.cli import main
from lit_mm.commands.chat import talk
from lit_mm.inference.chat import Chat
from lit_mm.inference.decoding import Decoding
from tests.tiny import xcomposer2

LINES = ["/data", "what is this ?", "/image page.png", "/image", "/image no.png", "", "the colour ?", "/data", "/huh"]


@pytest.fixture(scope="module")
def module():
    return xcomposer2(trained=True)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "red").save("page.png")


def transcript(conversation: Chat, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Output of a chat in which a user types these lines, then Ctrl+D."""
    left = iter(lines)

    def typed(*_: str) -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", typed)
    console = Console(file=io.StringIO(), width=200, soft_wrap=True)
    talk(conversation, console)
    return console.file.getvalue()


def test_a_chat_answers_shows_its_prompt_and_starts_over(module, page, monkeypatch) -> None:
    conversation = Chat(module, Decoding(4))
    out = transcript(conversation, LINES, monkeypatch)
    first, second = (turn.text for turn in conversation.turns if turn.role == "assistant")
    assert f"> {first}\n" in out and f"> {second}\n" in out
    assert "no question has been answered yet" in out
    assert "the next question shows " in out and "page.png (30 x 20)" in out
    assert "/image needs a file" in out and "no.png" in out and "there is no command '/huh'" in out
    prompt = next(line for line in out.splitlines() if "[picture 1: 30 x 20, 4 tokens]" in line)
    assert "<|im_start|>" in out and prompt.endswith("the colour ?<|im_end|>")
    assert " 4 of 1 pictures in 1 views; the model takes 4096" in out
    out = transcript(conversation, ["^C", "/new", "/help", "/quit", "never asked"], monkeypatch)
    assert "/quit or Ctrl+D leaves" in out
    assert "a new chat" in out and "/image FILE  put an image" in out and not conversation.turns


def test_ctrl_c_ends_an_answer_and_the_chat_goes_on(module, monkeypatch) -> None:
    conversation = Chat(module, Decoding(9))
    prints = Console.print

    def interrupted(self, *objects, **options):
        prints(self, *objects, **options)
        if options.get("end") == "" and not options.get("style") and objects != ("> ",):
            raise KeyboardInterrupt

    monkeypatch.setattr(Console, "print", interrupted)
    out = transcript(conversation, ["what ?", "why ?"], monkeypatch)
    assert out.count(" [ended]") == 2
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"] * 2


def test_a_model_of_one_turn_says_so(module, monkeypatch) -> None:
    conversation = Chat(module, Decoding(2))
    conversation.several = False
    out = transcript(conversation, ["what ?"], monkeypatch)
    assert "the prompt of this model takes one turn" in out


def test_a_question_that_is_too_long_is_not_remembered(monkeypatch) -> None:
    conversation = Chat(xcomposer2(max_length=12), Decoding(2))
    out = transcript(conversation, ["what is the colour of this large red circle near this page ?"], monkeypatch)
    assert "tokens (0 of them visual), but the limit of the model is 12" in out
    assert conversation.turns == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_new_tokens", "0"], "--max_new_tokens is at least 1, got 0"),
        (["--temperature", "-1"], "--temperature is a number from 0, got -1.0"),
        (["--temperature", "nan"], "--temperature is a number from 0, got nan"),
        (["--image", "none.png"], "there is no image"),
        (["nowhere"], "there is no checkpoint 'nowhere'"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(arguments, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["chat", *arguments])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
