"""Checkpoints are read and loaded strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_mm.errors import UserError
from lit_mm.language.llama import Llama
from lit_mm.weights.convert import load_strict, read_checkpoint
from tests.rows import logits

STATE = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


def same(got: dict[str, Tensor]) -> bool:
    return got.keys() == STATE.keys() and all(torch.equal(got[name], STATE[name]) for name in STATE)


def sharded(folder: Path) -> Path:
    save_file({"a": STATE["a"]}, folder / "one.safetensors")
    save_file({"b": STATE["b"]}, folder / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_every_layout_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    torch.save(STATE, tmp_path / "x.bin")
    torch.save({"state_dict": STATE}, tmp_path / "x.pt")
    torch.save({"model": STATE, "epoch": 9}, tmp_path / "x.pth")
    assert all(same(read_checkpoint(tmp_path / name)) for name in ("x.safetensors", "x.bin", "x.pt", "x.pth"))
    assert same(read_checkpoint(tmp_path))  # the only .safetensors of a folder
    (tmp_path / "shards").mkdir()
    assert same(read_checkpoint(sharded(tmp_path / "shards")))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "absent.bin")
    with pytest.raises(UserError, match="expected one of"):
        read_checkpoint(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"1")
    with pytest.raises(UserError, match=r"got '\.gguf'"):
        read_checkpoint(tmp_path / "x.gguf")
    save_file(STATE, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-5])
    with pytest.raises(UserError, match="complete"):
        read_checkpoint(tmp_path / "cut.safetensors")
    torch.save(STATE, tmp_path / "cut.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "cut.bin").read_bytes()[:300])
    with pytest.raises(UserError, match="complete"):
        read_checkpoint(tmp_path / "cut.bin")
    torch.save({"a": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="more than tensors"):
        read_checkpoint(tmp_path / "code.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    with pytest.raises(UserError, match="names to tensors"):
        read_checkpoint(tmp_path / "numbers.pt")


def test_missing_shards_and_lost_tensors_are_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"c": STATE["b"]}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="no shard holds: b"):
        read_checkpoint(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UserError, match=r"two\.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"weight_map": null}', '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}', b"\xff\xfe"],
)
def test_a_broken_index_is_named_in_one_line(tmp_path: Path, text: str | bytes) -> None:
    file = sharded(tmp_path) / "model.safetensors.index.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"model.safetensors.index.json.*download complete") as refusal:
        read_checkpoint(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "..", "a/b.safetensors"])
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    file = sharded(tmp_path) / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="names files elsewhere"):
        read_checkpoint(tmp_path)


def test_left_over_names_and_shapes_are_all_named_and_nothing_is_loaded() -> None:
    linear = nn.Linear(3, 2)
    before = linear.weight.clone()
    with pytest.raises(UserError, match=r"(?s)not in the checkpoint: bias.*not in the model: extra") as caught:
        load_strict(linear, {"weight": torch.zeros(2, 3), "extra": torch.zeros(1)})
    assert "Linear" in str(caught.value)
    with pytest.raises(UserError, match=r"weight: expected \(2, 3\), got \(3, 3\)"):
        load_strict(linear, {"weight": torch.zeros(3, 3), "bias": torch.zeros(2)})
    assert torch.equal(linear.weight, before)


def test_allowed_names_may_be_left_over() -> None:
    linear = nn.Linear(3, 2)
    state = {"weight": torch.ones(2, 3), "extra": torch.zeros(1)}
    load_strict(linear, state, allow_missing=("bias",), allow_unexpected=("extra",))
    assert torch.equal(linear.weight, torch.ones(2, 3))


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_built_on_the_meta_device_comes_to_life(tied: bool) -> None:
    sizes = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 24, "vocab_size": 20}
    source = Llama(**sizes, tie_embeddings=tied)
    with torch.device("meta"):
        empty = Llama(**sizes, tie_embeddings=tied)
    empty.lm.model.norm.requires_grad_(False)
    state = source.state_dict()
    if tied:
        del state["lm.lm_head.weight"]  # as published: the copy is left out
    load_strict(empty, state)
    ids = torch.arange(8)
    assert torch.equal(logits(empty, [ids]), logits(source, [ids]))
    assert [p.requires_grad for p in empty.parameters()].count(False) == 1
    assert (empty.lm.lm_head.weight is empty.lm.model.embed_tokens.weight) == tied


def test_an_allowed_absence_is_refused_where_there_is_no_value_to_keep() -> None:
    with torch.device("meta"):
        linear = nn.Linear(3, 2)
    with pytest.raises(UserError, match="no value yet"):
        load_strict(linear, {"weight": torch.ones(2, 3)}, allow_missing=("bias",))
