"""The README's commands for own data, copied: a file is checked, trained on, examined and asked about."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from lit_mm.cli import main
from lit_mm.nano.world import question_document

ROOT = Path(__file__).parents[2]
SHORT = ("--stages.*.max_steps", "1", "--data.row_tokens", "300", "--track", "false", "--examine_every", "0")


def commands() -> list[list[str]]:
    """The words of the commands of the README's section, without the interpreter."""
    section = (ROOT / "README.md").read_text().partition("## Your own data")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith(".venv/bin/python -m lit_mm ")]
    return [shlex.split(line)[3:] for line in lines]


def write_conversations(count: int) -> None:
    """A json of LLaVA's format, with its images beside it."""
    entries = []
    for number in range(count):
        document = question_document(number, split="train", seed=3, skill="read_large", questions=1)
        image = f"{number}.png"
        document.pictures[0].read().save(image)
        turns = [
            {"from": "human", "value": f"<image>\n{document.question}"},
            {"from": "gpt", "value": document.answer},
        ]
        entries.append({"id": str(number), "image": image, "conversations": turns})
    Path("my_data.json").write_text(json.dumps(entries))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_MM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lit_mm"])
    Path("experiments").symlink_to(ROOT / "experiments")
    write_conversations(12)
    return tmp_path


def test_three_commands_of_the_readme_check_train_and_ask(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check, fit, generate = commands()
    assert [check[0], fit[0], generate[0]] == ["data", "fit", "generate"]
    main(check)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "next: " + shlex.join(["python", "-m", "lit_mm", *fit])
    main([*fit, *SHORT])
    printed = capsys.readouterr().out
    assert "overall" in printed and "ask it: python -m lit_mm generate" in printed
    main([word if word != "FILE" else "3.png" for word in generate])
    assert capsys.readouterr().out.strip()
    next_command = shlex.split(printed.partition("ask it: ")[2])[3:]
    main(next_command)
    assert capsys.readouterr().out.strip()
