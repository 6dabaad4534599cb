"""The last lines of `fit` can be pasted into a shell."""

from __future__ import annotations

import argparse
import shlex
from types import SimpleNamespace

import pytest

from lit_mm.commands.fit import next_steps
from lit_mm.documents.document import Document, Turn
from tests.tiny import Noise


@pytest.mark.parametrize("question", ['what\'s "this" ?', "costs $HOME `ls` !", "a\nb", "-x"])
def test_the_question_is_quoted(tmp_path, question):
    document = Document("a", (Turn("user", (Noise(0), question)), Turn("assistant", ("red",))))
    folder = tmp_path / "a run"
    folder.mkdir()
    text = next_steps(SimpleNamespace(path=folder), [document], None)
    words = shlex.split(text.partition("ask it: ")[2])
    assert words[:4] == ["python", "-m", "lit_mm", "generate"]
    assert words[4:7] == [str(folder), "--image", str(folder / "page.png")]
    parser = argparse.ArgumentParser()
    parser.add_argument("--question")
    assert parser.parse_args(words[7:]).question == question
