"""`data check` with a recipe is the truth about `fit`: every stage's template and limits, over every sample."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from lit_mm.cli import main
from lit_mm.commands.data_check import fit_command
from lit_mm.commands.recipe import RecipeCLI
from lit_mm.errors import UserError
from lit_mm.stream import check
from tests.commands.test_data import EMPTY, MISSING, SOUND, WIDE, chat, here, leaves, lines, recipe  # noqa: F401

LLAVA = {
    "class_path": "lit_mm.prompts.llava.ChatPrompt",
    "init_args": {"template": "vicuna_v1"},
}


def refused(capsys: pytest.CaptureFixture[str], path: str, *options: str) -> list[dict[str, Any]]:
    """The findings of a check with a recipe."""
    code, out, _ = leaves(capsys, "check", "--config", path, "--format", "json", *options)
    report = json.loads(out)
    assert (code == 2) == bool(report["findings"])
    return report["findings"]


def with_prompt(path: str, prompt: dict[str, Any]) -> str:
    described = yaml.safe_load(Path(path).read_text())
    described["stages"][0]["inputs"] = {"prompt": prompt}
    Path(path).write_text(yaml.safe_dump(described))
    return path


def turns(*values: tuple[str, str]) -> dict[str, Any]:
    return {"id": "t", "image": "red.png", "conversations": [{"from": f, "value": v} for f, v in values]}


def fit_refuses(path: str) -> str:
    """The message with which planning the first step of a recipe ends; "" if it goes through."""
    cli = RecipeCLI(["--config", path], "fit")
    for stage in cli.stages:
        data = cli.data_of(stage)
        data.begin(cli.model.processor_of(stage), stage, seed=0)
        for number in range(len(data.source())):
            try:
                data.screen(number)
            except UserError as error:
                return str(error)
    return ""


SPOKEN = {
    "two questions in a row": turns(("human", "<image>"), ("human", "q"), ("gpt", "a")),
    "two answers in a row": turns(("human", "<image>q"), ("gpt", "a"), ("gpt", "b")),
    "a system turn in the middle": turns(
        ("human", "<image>q"), ("gpt", "a"), ("system", "be nice"), ("human", "b"), ("gpt", "a")
    ),
    "an image in an answer": turns(("human", "q"), ("gpt", "see <image>")),
    "a special token in a text": turns(("human", "<image>\nwhat does </s> mean ?"), ("gpt", "red")),
    "a caption template that gets a chat": turns(("human", "<image>q"), ("gpt", "a"), ("human", "r"), ("gpt", "b")),
}


@pytest.mark.parametrize("case", SPOKEN)
def test_a_check_refuses_what_the_stage_refuses_with_file_and_line(capsys, case):
    lines(SOUND, SPOKEN[case])
    plain = {"class_path": "lit_mm.prompts.plain.Plain"}
    path = with_prompt(recipe(), plain if case.startswith("a caption") else LLAVA)
    message = fit_refuses(path)
    findings = refused(capsys, path)
    if not message:
        assert not findings
        pytest.skip("the template can express it")
    (finding,) = findings
    assert message.startswith("chat.jsonl:2: ")
    assert (finding["where"], finding["id"], finding["stages"]) == ("chat.jsonl:2", "t", ["only"])
    assert message.removeprefix("chat.jsonl:2: ").startswith(finding["reason"])


def test_a_sample_that_does_not_fit_the_second_stage_is_named_before_the_first_begins(capsys):
    lines(SOUND, {"id": "long", "conversations": chat("what ?", "red " * 60)})
    path = recipe(first={}, second={"row_tokens": 64, "too_long": "refuse"})
    (finding,) = refused(capsys, path)
    assert (finding["where"], finding["id"], finding["kind"]) == ("chat.jsonl:2", "long", "too_long")
    assert finding["stages"] == ["second"]
    code, out, _ = leaves(capsys, "check", "--config", path)
    assert code == 2
    assert out.startswith("chat.jsonl:2: too_long in stage second: sample 'long' has ")
    path = recipe(first={}, second={"row_tokens": 64, "too_long": "truncate"})
    assert refused(capsys, path) == []
    assert (
        "chat: 1 samples are longer than a row or the model and lose their end"
        in leaves(capsys, "check", "--config", path)[1]
    )
    assert refused(capsys, recipe(first={}, second={}), "--model.init_args.inputs.max_length", "64")[0]["stages"] == [
        "first",
        "second",
    ]


def test_a_held_out_question_that_the_model_cannot_take_is_named(capsys):
    lines(SOUND)
    lines({**SOUND, "conversations": chat("<image>" + "what " * 60, "red")}, name="heldout.jsonl")
    (finding,) = refused(capsys, recipe("heldout.jsonl"), "--model.init_args.inputs.max_length", "64")
    assert (finding["source"], finding["where"]) == ("held-out", "heldout.jsonl:1")
    assert finding["stages"] == ["the finished model"]


def test_a_prompt_that_an_encoder_decoder_cannot_learn_is_refused_before_any_sample(capsys):
    sizes = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 32, "vocab_size": 512}
    language = {"class_path": "lit_mm.language.t5.T5", "init_args": sizes}
    settings = {
        "language": language,
        "tokenizer": "nano",
        "prompt": {"class_path": "tests.samples.test_target.LineEnd"},
    }
    lines(SOUND)
    path = recipe()
    described = yaml.safe_load(Path(path).read_text())
    described["model"] = {"class_path": "lit_mm.families.EncoderDecoder", "init_args": settings}
    described["stages"][0]["train"] = {"language": {"lr": 1e-3}}
    Path(path).write_text(yaml.safe_dump(described))
    code, out, error = leaves(capsys, "check", "--config", path)
    assert (code, out) == (2, "") and "stages.only: the prompt LineEnd does not fit an encoder-decoder" in error


def test_workers_find_what_one_process_finds(capsys, monkeypatch):
    monkeypatch.setattr(check, "CHUNK", 2)
    entries = [{**SOUND, "id": str(number)} for number in range(5)]
    entries[3]["conversations"] = SPOKEN["two answers in a row"]["conversations"]
    lines(*entries)
    path = with_prompt(recipe(), LLAVA)
    alone = refused(capsys, path, "--workers", "0")
    assert [finding["where"] for finding in alone] == ["chat.jsonl:4"]
    assert refused(capsys, path, "--workers", "2") == alone


def test_damaged_pixels_are_found_where_they_are_decoded(capsys):
    Image.effect_noise((200, 200), 90).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:9000])
    entries = [{**SOUND, "id": str(number)} for number in range(4)]
    entries[2]["image"] = "cut.png"
    declared = lines(*entries)
    path = recipe()
    assert refused(capsys, path) == []
    (finding,) = refused(capsys, path, "--pixels")
    assert (finding["where"], finding["kind"]) == ("chat.jsonl:3", "unreadable_image")
    assert refused(capsys, path, "--pixels", "0.25") == []  # the fourth
    code, out, _ = leaves(capsys, "check", "--source", declared, "--pixels")
    assert code == 2
    assert "the pixels of 3 pictures were decoded" in out


@pytest.mark.parametrize(("share", "numbers"), [(0, []), (1, [0, 1, 2, 3, 4, 5]), (0.5, [1, 3, 5]), (0.34, [2, 5])])
def test_a_share_of_samples_is_spread_evenly(share, numbers):
    assert [number for number in range(6) if check.is_decoded(number, share)] == numbers


def test_answers_that_are_tokenised_apart_are_counted(capsys, monkeypatch):
    monkeypatch.setattr("lit_mm.samples.processor.answers_apart", lambda runs: 2)  # the nano vocabulary has none
    lines(SOUND, WIDE)
    code, out, _ = leaves(capsys, "check", "--config", recipe(first={}, again={}))
    assert code == 0
    assert "chat: 4 answers begin with characters that merge with the prompt before them (stages first, again)" in out
    report = json.loads(leaves(capsys, "check", "--config", "recipe.yaml", "--format", "json")[1])
    assert report["sources"][0]["answers_apart"] == {"first, again": 4}


def test_a_check_ends_with_the_command_that_comes_next(capsys):
    declared = lines(SOUND, WIDE)
    assert leaves(capsys, "check", "--config", recipe())[1].splitlines()[-1] == (
        "next: python -m lit_mm fit --config recipe.yaml"
    )
    assert leaves(capsys, "check", "--source", declared)[1].splitlines()[-1] == (
        "next: python -m lit_mm fit --config own_data --data.init_args.path chat.jsonl --data.init_args.format llava"
    )


def test_the_next_command_of_another_format_names_a_corpus():
    command = shlex.split(fit_command({"format": "captions", "path": "a b.tar"}))
    assert command[-4:-1] == ["--data", "Corpora", "--data.corpora"]
    assert json.loads(command[-1]) == [{"name": "own", "format": "captions", "path": "a b.tar"}]


def test_an_index_explains_what_cannot_be_trained_on(capsys):
    lines(SOUND, {"id": "long", "conversations": chat("what ?", "red " * 60)})
    path = recipe(only={"row_tokens": 64})
    for _ in range(2):  # also from the index that is there
        out = leaves(capsys, "index", "--config", path)[1]
        assert "1 of them cannot be trained on\n  'long': chat.jsonl:2: sample 'long' has " in out


def test_fit_refuses_what_the_index_of_a_later_stage_has_as_untrainable(capsys):
    lines(SOUND, {"id": "long", "conversations": chat("what ?", "red " * 60)})
    path = recipe(first={}, second={"row_tokens": 64})
    RecipeCLI(["--config", path], "fit").check_stages()  # nothing is known without an index
    leaves(capsys, "index", "--config", path)
    with pytest.raises(UserError, match=r"stage 'second' would stop at a sample .* chat.jsonl:2: sample 'long' has "):
        RecipeCLI(["--config", path], "fit").check_stages()
    path = recipe(first={}, second={"row_tokens": 64, "on_bad_sample": "skip"})
    RecipeCLI(["--config", path], "fit").check_stages()


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--pixels", "2"), "--pixels is a share"), (("--workers", "-1"), "--workers is at least 0")],
)
def test_a_mistaken_option_ends_in_one_line(capsys, option, message):
    lines(SOUND)
    with pytest.raises(SystemExit):
        main(["data", "check", "--config", recipe(), *option])
    assert message in capsys.readouterr().err


def split(path: str) -> str:
    described = yaml.safe_load(Path(path).read_text())
    described["data"]["init_args"]["heldout_share"] = 0.2
    Path(path).write_text(yaml.safe_dump(described))
    return path


def test_a_file_with_a_held_out_share_is_checked_as_a_whole_and_its_errors_are_listed_once(capsys):
    entries = [{**SOUND, "id": str(number)} for number in range(20)]
    lines(*entries, {**EMPTY, "id": "e"}, {**MISSING, "id": "m"})
    path = split(recipe())
    report = json.loads(leaves(capsys, "check", "--config", path, "--format", "json")[1])
    whole, held_out = report["sources"]
    assert (whole["name"], whole["samples"]) == ("chat", 22)
    assert 1 <= held_out["samples"] < 12
    assert sorted(finding["where"] for finding in report["findings"]) == ["chat.jsonl:21", "chat.jsonl:22"]
    assert "held-out: counted above, too, and not trained on" in leaves(capsys, "check", "--config", path)[1]


def test_lengths_are_indexed_without_the_held_out_rows(capsys):
    lines(*({**SOUND, "id": str(number)} for number in range(20)))
    out = leaves(capsys, "index", "--config", split(recipe()))[1]
    assert "chat: 20 samples, 20 pictures" in out
    trained = RecipeCLI(["--config", "recipe.yaml"], "fit", build=False).data_of(None).source()
    assert f"chat: lengths of {len(trained)} samples" in out
    assert len(trained) < 20


def test_notes_are_printed_under_the_table(capsys):
    text = {"conversations": chat("what ?", "red")}
    code, out, _ = leaves(capsys, "check", "--source", lines({**text, "id": "t"}, {**text, "id": "t"}))
    assert code == 0
    assert "chat: 1 of 2 samples have an id that an earlier one has, the first at chat.jsonl:2" in out
    assert "chat: 0 of 2 samples have a picture" in out
