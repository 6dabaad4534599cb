"""Layouts choose the template by the tokenizer, and refuse a Vicuna of another version where its files tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_mm.commands.published import described
from lit_mm.errors import UserError
from lit_mm.weights.layouts.layout import Described, layout_of
from lit_mm.weights.layouts.sizes import require_vicuna
from tests import hub


def language_of(folder: Path, name: str, rows: int, added: dict[str, int]) -> Described:
    folder.mkdir()
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return Described(folder, {"_name_or_path": name, "vocab_size": rows}, {})


@pytest.mark.parametrize(
    ("name", "rows", "added", "refused"),
    [
        ("lmsys/vicuna-7b-v1.5", 32000, {}, "0"),
        ("/data/vicuna-13b-delta-v0", 32001, {"[PAD]": 32000}, "1"),
        ("", 32001, {"[PAD]": 32000}, "1"),  # rows alone tell version 0
        ("", 32001, {}, "1"),
        ("", 32000, {}, ""),  # LLaMA and every Vicuna from 1.1 have as many
        ("", 32001, {"<image>": 32000}, ""),  # a token of another training
        ("mistralai/Mistral-7B-v0.1", 32000, {}, ""),
    ],
)
def test_a_vicuna_of_another_version_is_refused(
    name: str, rows: int, added: dict[str, int], refused: str, tmp_path: Path
) -> None:
    language = language_of(tmp_path / "language", name, rows, added)
    for version in "01":
        if version == refused:
            with pytest.raises(UserError, match=f"is Vicuna version .* trained with version {version}"):
                require_vicuna(language, version)
        else:
            require_vicuna(language, version)


def test_minigpt_4_refuses_a_later_vicuna(tmp_path: Path) -> None:
    writers = {"vision": hub.eva_vit_g, "connector": hub.blip2_t5, "language": hub.vicuna}
    parts = {part: described(write(tmp_path / part))[0] for part, write in writers.items()}
    parts["language"].config["_name_or_path"] = "lmsys/vicuna-7b-v1.5"
    main = described(hub.minigpt4(tmp_path), parts)[0]
    with pytest.raises(UserError, match="trained with version 0, whose turns end with ###"):
        layout_of(main).model(main)


@pytest.mark.parametrize("write", [hub.llava_next, hub.hf_next])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"eos_token": "<|im_end|>", "add_bos_token": False}, {"template": "chatml_direct", "bos": False}),
        ({"chat_template": "{{ '<|im_start|>' + role }}"}, {"template": "chatml_direct"}),
        ({}, {"template": "vicuna_v1"}),  # a vocabulary that has the markers does not tell
    ],
)
def test_a_tokenizer_of_chatml_gives_the_template_of_the_34b(
    write: Callable, settings: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    folder = write(tmp_path / "hub")
    names = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    main = described(folder)[0]
    prompt = layout_of(main).model(main)["init_args"]["inputs"]["prompt"]["init_args"]
    assert prompt == expected | {"keep_leading": True}
