"""Every published layout is imported, asked, trained for a step, exported and imported again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_mm.commands.trained import open_model
from lit_mm.weights.convert import read_checkpoint
from tests import hub
from tests.commands.test_import import QUESTION, command, conversation  # noqa: F401  # `command` is a fixture

LAYOUTS = {
    "llava/authors": hub.llava,
    "llava_1_5/hf": hub.hf_llava,
    "llava_next/authors": hub.llava_next,
    "llava_next/hf": hub.hf_next,
    "llava_uhd/authors": hub.llava_uhd,
    "vila/authors": hub.vila,
    "qwen_vl/authors": hub.qwen_vl,
    "monkey/authors": hub.monkey,
    "xcomposer/authors": hub.xcomposer,
    "xcomposer2/authors": hub.xcomposer2,
    "xcomposer2_4khd/authors": hub.xcomposer2_4khd,
}
NAMED = ("vila/authors",)  # layouts whose files look like those of another one


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_goes_in_is_trained_and_comes_out(command: Callable, tmp_path: Path, layout: str) -> None:  # noqa: F811
    folder, data = LAYOUTS[layout](tmp_path / "hub"), conversation(tmp_path)
    words = ("--layout", layout) if layout in NAMED else ()
    code, output, error = command("import", folder, "--to", "run", *words)
    assert code == 0 and f"{layout}, " in output, error
    code, _, error = command("generate", "run", "--image", "red.png", *QUESTION, "--accelerator", "cpu")
    assert code == 0, error
    form = layout.partition("/")[2]
    code, _, error = command("export", "run", "--to", "same", "--format", form)
    assert code == 0, error
    published, exported = read_checkpoint(folder), read_checkpoint("same")
    assert published.keys() == exported.keys()
    assert all(tensor.dtype == exported[name].dtype for name, tensor in published.items())
    assert all(torch.equal(tensor, exported[name]) for name, tensor in published.items())
    training = ("--data.path", data, "--data.global_batch", "4", "--trainer.accelerator", "cpu", "--track", "false")
    code, _, error = command(
        "fit", "--config", "run/recipe.yaml", "--init_from", "run", "--run_dir", "tuned", *training
    )
    assert code == 0, error
    code, _, error = command("export", "tuned", "--to", "out", "--format", form)
    assert code == 0, error
    code, _, error = command("import", "out", "--to", "again", *words)
    assert code == 0, error
    tuned, again = (open_model(run, accelerator="cpu").state_dict() for run in ("tuned", "again"))
    kinds = {name: published[name].dtype for name in published if published[name].is_floating_point()}
    dtype = next(iter(set(kinds.values())))
    assert all(torch.equal(again[name], tuned[name].to(dtype).to(again[name].dtype)) for name in tuned)
