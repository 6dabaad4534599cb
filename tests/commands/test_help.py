"""Every --help is readable text."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import lit_mm.families
from lit_mm import datamodules
from lit_mm.cli import COMMANDS, ELSEWHERE, main
from lit_mm.commands.class_help import path_of
from lit_mm.commands.signatures import resolve, signature_of
from lit_mm.stages.stage import Stage, Train

ACTIONS = (
    ("data", "check"),
    ("data", "show"),
    ("data", "index"),
    ("checkpoint", "inspect"),
    ("checkpoint", "consolidate"),
)
JARGON = (
    *("ARG:", "ENV:", "subclass", "NestedArg", "Namespace", "==SUPPRESS==", "CLASS_PATH_OR_NAME", "Show the help for"),
    *("<class", "typing.", "Callable", "Literal", "Optional[", "Union[", "NoneType", ":class:", "dict[", "factory"),
)
CONFIGS = Path(__file__).parents[2] / "experiments"
CLASSES = {
    "model": sorted(path_of(value) for value in vars(lit_mm.families).values() if inspect.isclass(value)),
    "data": sorted(path_of(value) for value in vars(datamodules).values() if inspect.isclass(value)),
    "stages.schedule": ["lit_mm.stages.Cosine", "EpochDecay"],
    "stages.inputs.tiling": ["lit_mm.tiling.AnyRes"],
    "trainer.callbacks": ["EarlyStopping", "lightning.pytorch.callbacks.ModelCheckpoint"],
    "model.init_args.vision": ["lit_mm.vision.vit.ViT"],
}
PAGES = [(key, path) for key, paths in CLASSES.items() for path in paths]
PAGES += [(key, "") for key in ("stages", "stages.train", "stages.pretrain.train", "stages.inputs", "trainer")]


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
        (
            "data",
            ("lit_mm.datamodules.Conversations", "lit_mm.datamodules.NanoDocuments", "lit_mm.datamodules.Corpora"),
        ),
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


@pytest.mark.parametrize(("key", "path"), PAGES)
def test_a_page_describes_every_key_in_whole_sentences(capsys: pytest.CaptureFixture[str], key: str, path: str) -> None:
    text = help_of(capsys, "fit", f"--{key}.help", *filter(None, [path]))
    assert not [word for word in JARGON if word in text]
    assert max(map(len, text.splitlines())) <= 80
    lines = text.rstrip().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"  --[\w.]+$", line)]
    for start, end in zip(keys, [*keys[1:], len(lines)], strict=True):
        entry = " ".join(" ".join(lines[start + 1 : end]).split("More help")[0].split())
        description = re.sub(r" \([^()]*(\([^()]*\))?[^()]*; (required|default: .*)\)$", "", entry)
        assert re.fullmatch(r"[^a-z].*\.|[a-z]+, .*\.", description), f"{lines[start]}: {entry}"


@pytest.mark.parametrize(
    ("key", "path", "address"),
    [
        ("model", "lit_mm.families.XComposer2", "model.init_args"),
        ("data", "lit_mm.datamodules.NanoPrints", "data.init_args"),
        ("stages", "", "stages.NAME"),
        ("stages.train", "", "stages.NAME.train.PART"),
    ],
)
def test_a_page_lists_every_argument_by_its_address(
    capsys: pytest.CaptureFixture[str], key: str, path: str, address: str
) -> None:
    loaded = resolve(path) if path else {"stages": Stage, "stages.train": Train}[key]
    text = help_of(capsys, "fit", f"--{key}.help={path}")
    keys = [line.strip() for line in text.splitlines() if line.startswith(f"  --{address}.")]
    assert keys == [f"--{address}.{name}" for name in signature_of(loaded).arguments]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.help", "lit_mm.families.XCompser2"), "there is no 'lit_mm.families.XCompser2'"),
        (("--model.help", "Nothing"), "there is no class 'Nothing'. Give its import path"),
        (("--data.help", "lit_mm.families.Llava"), "expected a subclass of"),
        (("--stages.train.connector.lr.more.help",), "there is no help for 'stages.train.connector.lr.more'"),
    ],
)
def test_help_about_what_does_not_exist_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", *words])
    assert end.value.code == 2
    text = capsys.readouterr().err
    assert message in text and len(text.splitlines()) == 1


@pytest.mark.parametrize("command", sorted(ELSEWHERE))
def test_a_command_of_other_programs_is_answered_with_ours(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([command])
    assert end.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith(f"lit_mm: there is no command {command!r}: ")
    assert any(f"`{name}`" in text for name in COMMANDS)


@pytest.mark.parametrize(
    ("option", "cure"),
    [
        ("--ckpt_path=x", "--run_dir; --init_from starts a new run"),
        ("--resume", "a run resumes when its command is given again with its --run_dir"),
        ("--version", "python -m lit_mm --version"),
        ("--lr=1", "--stages.NAME.train.PART.lr"),
        ("--max-steps=1", "--stages.*.max_steps for all stages"),
        ("--trainer.gpus=2", "the number of GPUs is --trainer.devices"),
        ("--path=x.json", "the file of your data is --data.path"),
    ],
)
def test_an_option_of_other_programs_is_answered_with_ours(
    capsys: pytest.CaptureFixture[str], option: str, cure: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(CONFIGS / "llava.yaml"), option])
    assert end.value.code == 2
    assert cure in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(capsys, "--version").startswith("lit_mm ")
