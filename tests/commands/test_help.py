"""Every --help is text that a user can read."""

from __future__ import annotations

import pytest

from lit_mm.cli import COMMANDS, main

ACTIONS = (
    ("data", "check"),
    ("data", "show"),
    ("data", "index"),
    ("checkpoint", "inspect"),
    ("checkpoint", "consolidate"),
)
JARGON = ("ARG:", "ENV:", "subclass", "known subclasses", "NestedArg", "Namespace", "==SUPPRESS==")


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [(), *((command,) for command in COMMANDS), *ACTIONS], ids=" ".join)
def test_a_help_fits_the_terminal_and_explains_each_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = help_of(capsys, *words, "--help")
    lines = text.rstrip().splitlines()
    assert max(map(len, lines)) <= 120
    assert not [word for word in JARGON if word in text]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  --"):
            assert "  " in line.strip() or following.startswith("     "), f"{line!r} has no explanation"


@pytest.mark.parametrize(
    ("key", "classes"),
    [
        ("model", ("lit_mm.families.XComposer2", "lit_mm.families.Llava", "lit_mm.families.Decoder")),
        ("data", ("datamodules.Conversations", "datamodules.NanoDocuments", "datamodules.Corpora")),
    ],
)
def test_help_without_a_class_lists_the_classes_with_a_sentence_each(
    capsys: pytest.CaptureFixture[str], key: str, classes: tuple[str, ...]
) -> None:
    for arguments in ((f"--{key}.help",), (f"--{key}.help", "--config", "x.yaml")):
        lines = help_of(capsys, "fit", *arguments).splitlines()
        for path in classes:
            assert lines[lines.index(f"  {path}") + 1].startswith("      ")
        assert max(map(len, lines)) <= 80
