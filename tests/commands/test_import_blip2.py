"""BLIP-2 of transformers with an encoder-decoder, and newer retrieval models, are imported and proved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_mm.errors import UserError
from lit_mm.weights.convert import read_checkpoint
from lit_mm.weights.layouts.layout import layout_of
from tests import hub
from tests.commands.test_import import command  # noqa: F401  # a fixture
from tests.weights.test_minigpt4 import opened

COPY = "language_model.encoder.embed_tokens.weight"


@pytest.mark.slow
def test_an_encoder_decoder_gives_the_logits_and_keeps_its_copies(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    folder = hub.hf_blip2(tmp_path / "hub", hub.T5)
    code, output, error = command("import", folder, "--to", "run")
    assert code == 0 and "blip2/hf, " in output, error
    proof = json.loads(Path("run/proof.json").read_text())
    assert proof["against"] == "transformers' Blip2ForConditionalGeneration"
    assert all(image["logits"] < 1e-5 and image["pixels"] < 1 / 255 for image in proof["images"])
    code, _, error = command("export", "run", "--to", "out", "--format", "hf")
    assert code == 0, error
    published, exported = read_checkpoint(folder), read_checkpoint("out")
    assert published.keys() == exported.keys() and COPY in published
    assert all(torch.equal(tensor, exported[name]) for name, tensor in published.items())


@pytest.mark.slow
def test_a_retrieval_model_with_an_image_token_gives_the_scores(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    folder, language = hub.hf_blip2_retrieval(tmp_path / "hub", hub.VOCABULARY - 1), hub.opt(tmp_path / "opt")
    code, output, error = command("import", folder, "--to", "run", "--with", f"language={language}")
    assert code == 0 and "against transformers' Blip2ForImageTextRetrieval" in output, error


def test_a_copy_with_other_values_is_refused(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    folder = hub.hf_blip2(tmp_path / "hub")
    state = read_checkpoint(folder)
    state["language_model.lm_head.weight"] += 1
    config = json.loads((folder / "config.json").read_text())
    code, _, error = command("import", hub.write(tmp_path / "other", state, config), "--to", "run")
    assert code == 2 and "'language_model.lm_head.weight' should be a copy" in error and not Path("run").exists()


@pytest.mark.parametrize(
    ("write", "names", "error"),
    [
        (hub.lavis_blip2, (), "has no part 'language'; expected the language model that it was trained with"),
        (hub.lavis_blip2, ("language",), "has no part 'vision'; expected eva_vit_g.pth of LAVIS"),
        (hub.lavis_blip2_retrieval, (), "has no part 'language'; expected facebook/opt-2.7b or google/flan-t5-xl for"),
        (hub.lavis_blip2_retrieval, ("language", "vision"), "add --with reading=google-bert/bert-base-uncased"),
        (hub.hf_blip2_retrieval, (), "has no part 'language'; .* any small one for retrieval alone"),
    ],
)
def test_a_missing_part_is_named_with_what_belongs_there(
    write: Callable, names: tuple[str, ...], error: str, tmp_path: Path
) -> None:
    writers = {"language": hub.opt, "vision": hub.eva_vit_g}
    main = opened(write(tmp_path / "hub"), **{name: writers[name](tmp_path / name) for name in names})
    with pytest.raises(UserError, match=error):
        layout_of(main).model(main)


def test_the_width_of_the_projection_names_the_language_model(tmp_path: Path) -> None:
    main = opened(hub.lavis(tmp_path, "blip2_pretrained_flant5xl.pth", hub.linear("t5_proj", 2048, 64)))
    with pytest.raises(UserError, match="has no part 'language'; expected google/flan-t5-xl"):
        layout_of(main).model(main)
