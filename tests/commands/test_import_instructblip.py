"""An InstructBLIP of transformers with an encoder-decoder is imported, proved by its logits, and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_mm.commands.trained import open_model
from lit_mm.weights.convert import read_checkpoint
from tests import hub
from tests.commands.test_import import command  # noqa: F401  # a fixture


@pytest.mark.slow
def test_an_encoder_decoder_gives_the_logits_of_transformers_and_is_exported(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    folder = hub.instructblip(tmp_path / "hub", hub.T5)
    code, output, error = command("import", folder, "--to", "run")
    assert code == 0 and "instructblip/hf, " in output, error
    proof = json.loads(Path("run/proof.json").read_text())
    assert proof["against"] == "transformers' InstructBlipForConditionalGeneration"
    assert all(image["logits"] < 1e-5 and image["pixels"] < 1 / 255 for image in proof["images"])
    for path in sorted(folder.rglob("*"), reverse=True):  # the run stands by itself
        path.unlink() if path.is_file() else path.rmdir()
    module = open_model("run", accelerator="cpu")
    assert module.processor.reading.tokenizer.endswith("run/tokenizer/qformer_tokenizer")
    assert module.processor.prompt.writes_target
    code, _, error = command("export", "run", "--to", "out", "--format", "hf")
    assert code == 0, error
    hub.instructblip(folder, hub.T5)
    published, exported = read_checkpoint(folder), read_checkpoint("out")
    assert published.keys() == exported.keys()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in published.items())
    assert Path("out/qformer_tokenizer/tokenizer.json").is_file()


def test_a_checkpoint_without_the_tokenizer_of_the_q_former_is_refused(command: Callable, tmp_path: Path) -> None:  # noqa: F811
    folder = hub.instructblip(tmp_path / "hub")
    (folder / "qformer_tokenizer").rename(tmp_path / "elsewhere")
    code, _, error = command("import", folder, "--to", "run")
    assert code == 2 and "qformer_tokenizer' has no file tokenizer.json" in error and not Path("run").exists()
