"""Checkpoints: whole or not there, found by what they are of, and loaded only where they fit."""

import os
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_mm import checkpoints
from lit_mm.checkpoints import AtomicCheckpointIO, checkpoint_name, find, load_weights, newest, published, read
from lit_mm.errors import UserError

MADE = {"lit_mm": {"family": "f"}, "state_dict": {"w": torch.arange(3.0)}}


class Crash(Exception):
    """Stands for the end of the process."""


def crash(*_):
    raise Crash


@pytest.mark.parametrize("dies_in", ["torch.save", "os.fsync", "os.replace"])
def test_a_write_that_dies_leaves_the_last_checkpoint_and_no_new_one(tmp_path, monkeypatch, dies_in):
    writer, path = AtomicCheckpointIO(), tmp_path / checkpoint_name(1, "a", 2)
    writer.save_checkpoint(MADE, path)
    monkeypatch.setattr(f"lit_mm.checkpoints.{dies_in}", crash)
    with pytest.raises(Crash):
        writer.save_checkpoint(MADE, tmp_path / checkpoint_name(1, "a", 4))
    with pytest.raises(Crash):
        writer.save_checkpoint({"half": 1}, path)
    assert [saved.path for saved in published(tmp_path)] == [path]
    assert torch.equal(read(path)["state_dict"]["w"], MADE["state_dict"]["w"])


def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    seen, sync = [], os.fsync

    def fsync(descriptor):
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        sync(descriptor)

    path = tmp_path / checkpoint_name(1, "a", 2)
    monkeypatch.setattr(checkpoints.os, "fsync", fsync)
    AtomicCheckpointIO().save_checkpoint(MADE, path)
    assert seen == [(False, False), (True, True)]


def test_the_furthest_is_the_newest_whatever_the_names_and_times(tmp_path):
    names = [(1, "align", 900), (2, "b-step=7", 3), (2, "b-step=7", 20), (10, "z", 1), (9, "a", 10**7)]
    for number, stage, step in names:
        (tmp_path / checkpoint_name(number, stage, step)).touch()
    for other in ("01-a-step=000999.ckpt.part", "notes.ckpt", "last.ckpt", "11-a-step=1.txt"):
        (tmp_path / other).touch()
    found = [(saved.number, saved.stage, saved.step) for saved in published(tmp_path)]
    assert found == [(1, "align", 900), (2, "b-step=7", 3), (2, "b-step=7", 20), (9, "a", 10**7), (10, "z", 1)]
    assert newest(tmp_path).stage == "z"
    assert newest(tmp_path / "absent") is None


def test_a_run_folder_a_checkpoint_folder_and_a_file_are_all_found(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    path = folder / checkpoint_name(1, "a", 2)
    path.touch()
    assert find(tmp_path) == find(folder) == find(str(path)) == path
    path.unlink()
    with pytest.raises(UserError, match="holds no checkpoint"):
        find(tmp_path)


def test_what_is_no_checkpoint_of_ours_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint"):
        read(tmp_path / "absent.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="is not a checkpoint of lit_mm"):
        read(tmp_path / "other.ckpt")
    torch.save(MADE, tmp_path / "cut.ckpt")
    data = (tmp_path / "cut.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read(tmp_path / "cut.ckpt")


def test_weights_go_into_a_model_of_the_same_family_and_shape():
    model = nn.Linear(3, 2)
    made = {"lit_mm": {"family": "f"}, "state_dict": {n: t + 1 for n, t in model.state_dict().items()}}
    load_weights(model, made, "f", Path("x.ckpt"))
    assert torch.equal(model.weight, made["state_dict"]["weight"])
    with pytest.raises(UserError, match=r"'x\.ckpt' is a checkpoint of f, the model is g"):
        load_weights(model, made, "g", Path("x.ckpt"))
    expected = r"2 of 2 tensors differ.* 'bias' \(\(2,\) in the checkpoint, \(4,\) in the model\)"
    with pytest.raises(UserError, match=expected):
        load_weights(nn.Linear(3, 4), made, "f", Path("x.ckpt"))
    with pytest.raises(
        UserError, match=r"1 of 1 tensors differ.*'bias' \(\(2,\) in the checkpoint, absent in the model\)"
    ):
        load_weights(nn.Linear(3, 2, bias=False), made, "f", Path("x.ckpt"))
