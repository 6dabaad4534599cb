"""Checkpoints are complete or absent, found by their content, and loaded only into a model that fits."""

import errno
import itertools
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lit_mm.checkpoints import writing
from lit_mm.checkpoints.digests import digest
from lit_mm.checkpoints.manifest import Damaged, checkpoint_name, damage, find, newest, published, sealed
from lit_mm.checkpoints.manifest import read as read_manifest
from lit_mm.checkpoints.origins import Origins
from lit_mm.checkpoints.reading import load_weights, newest_whole, read, way_out
from lit_mm.checkpoints.writing import Piece, optimizer_groups, publish, publish_pieces, remove
from lit_mm.errors import UserError
from lit_mm.stages.parts import Parts

W = torch.arange(3.0)
SAID = {"family": "f", "config": "a: 1\n", "stage": "a", "step": 2, "stored": ["w"], "frozen": {}}


def made(**changes):
    """A checkpoint as Lightning collects it, with one weight and its optimizer moments."""
    moments = {"w": {"step": torch.tensor(2.0), "exp_avg": W + 1, "exp_avg_sq": W + 2}}
    groups = {"groups": [{"lr": 0.1, "names": ["w"]}]}
    return {"state_dict": {"w": W}, "optimizer_states": [moments], "optimizer": groups, "loops": {"n": 3}} | {
        "lit_mm": SAID | changes
    }


class Crash(Exception):
    """This exception replaces the end of the process."""


def crash(*_):
    raise Crash


@pytest.mark.parametrize("dies_in", ["save_file", "torch.save", "os.fsync", "os.rename"])
def test_a_write_that_dies_leaves_the_last_checkpoint_and_no_new_one(tmp_path, monkeypatch, dies_in):
    path = tmp_path / checkpoint_name(1, "a", 2)
    publish(made(), path)
    with monkeypatch.context() as patched:
        patched.setattr(f"lit_mm.checkpoints.writing.{dies_in}", crash)
        with pytest.raises(Crash):
            publish(made(), tmp_path / checkpoint_name(1, "a", 4))
    assert [saved.path for saved in published(tmp_path)] == [path]
    assert torch.equal(read(path).weight("w"), W)
    publish(made(), tmp_path / checkpoint_name(1, "a", 4))  # what was left aside is no obstacle
    assert [saved.step for saved in published(tmp_path)] == [2, 4]


def test_everything_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    seen, sync = [], os.fsync
    path = tmp_path / checkpoint_name(1, "a", 2)

    def fsync(descriptor):
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        sync(descriptor)

    monkeypatch.setattr(writing.os, "fsync", fsync)
    publish(made(), path)
    assert seen == [(False, False)] * 5 + [(True, False), (True, True)]
    assert len(list(path.iterdir())) == 5


def test_a_full_disk_is_told_and_the_checkpoint_before_stays(tmp_path, monkeypatch):
    publish(made(), tmp_path / checkpoint_name(1, "a", 2))
    full = tmp_path / checkpoint_name(1, "a", 4)

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lit_mm.checkpoints.writing.save_file", no_space)
    with pytest.raises(
        UserError, match=r"step=000004.* could not be written: .*No space left.*step=000002.ckpt is intact: make room"
    ):
        publish(made(), full)
    assert newest(tmp_path).step == 2
    assert not full.with_name(full.name + ".part").exists()  # what it took is given back
    read(newest(tmp_path).path).verify()


def test_the_first_save_on_a_full_disk_promises_no_checkpoint_before_it(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lit_mm.checkpoints.writing.save_file", no_space)
    with pytest.raises(UserError, match=r"No space left.*would have been the first of this run") as refusal:
        publish(made(), tmp_path / checkpoint_name(1, "a", 2))
    assert "intact" not in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / checkpoint_name(1, "a", 2)
    publish(made(), path)
    saved = read(path)
    saved.verify()
    assert saved.config == "a: 1\n"
    assert saved.state["loops"] == {"n": 3}
    assert saved.moments_of("w") == ["exp_avg", "exp_avg_sq"]
    assert torch.equal(saved.moment("exp_avg", "w", 1, 2), (W + 1)[1:])
    assert saved.optimizer_step("w") == 2 and saved.optimizer_step("other") is None
    assert load_file(path / "weights-00000-00.safetensors").keys() == {"w"}
    given = writing.FolderCheckpointIO().load_checkpoint(path)["optimizer_states"][0]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(W.clone())])
    optimizer.load_state_dict(given)
    assert optimizer.param_groups[0]["lr"] == 0.1
    (state,) = optimizer.state.values()
    assert (float(state["step"]), state["exp_avg_sq"].tolist()) == (2.0, (W + 2).tolist())


def test_pieces_of_a_tensor_are_put_together_wherever_they_were_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "LARGEST_FILE", 16)
    whole = torch.randn(3, 5)
    cuts = [0, 4, 5, 11, 15]
    pieces = [Piece("w", (3, 5), start, whole.flatten()[start:end]) for start, end in itertools.pairwise(cuts)]
    path = tmp_path / checkpoint_name(1, "a", 2)
    publish_pieces({"lit_mm": SAID}, path, reversed(pieces), [("exp_avg", piece) for piece in pieces], {"w": 1})
    saved = read(path)
    assert len(list(path.glob("weights-*"))) > 1
    assert torch.equal(saved.weight("w"), whole)
    assert all(
        torch.equal(saved.moment("exp_avg", "w", start, count), whole.flatten()[start : start + count])
        for start in range(15)
        for count in range(1, 16 - start)
    )


def test_a_published_checkpoint_is_not_written_a_second_time(tmp_path):
    path = tmp_path / checkpoint_name(1, "a", 2)
    publish(made(), path)
    publish(made(stage="b"), path)
    assert read(path).manifest["stage"] == "a"


def test_the_furthest_is_the_newest_whatever_the_names_and_times(tmp_path):
    names = [(1, "align", 900), (2, "b-step=7", 3), (2, "b-step=7", 20), (10, "z", 1), (9, "a", 10**7)]
    for number, stage, step in names:
        (tmp_path / checkpoint_name(number, stage, step)).mkdir()
    for other in ("01-a-step=000999.ckpt.part", "notes.ckpt", "last.ckpt", "11-a-step=1.txt"):
        (tmp_path / other).mkdir()
    found = [(saved.number, saved.stage, saved.step) for saved in published(tmp_path)]
    assert found == [(1, "align", 900), (2, "b-step=7", 3), (2, "b-step=7", 20), (9, "a", 10**7), (10, "z", 1)]
    assert newest(tmp_path).stage == "z"
    assert newest(tmp_path / "absent") is None


def test_a_run_of_an_earlier_version_is_not_begun_anew_in_silence(tmp_path):
    (tmp_path / checkpoint_name(1, "a", 2)).touch()
    with pytest.raises(UserError, match=r"written by an earlier version"):
        newest(tmp_path)


def test_a_run_folder_a_checkpoint_folder_and_a_checkpoint_are_all_found(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    path = folder / checkpoint_name(1, "a", 2)
    publish(made(), path)
    assert find(tmp_path) == find(folder) == find(str(path)) == path
    shutil.copytree(folder, tmp_path / "experiments/run/checkpoints")
    with pytest.raises(UserError, match=r"holds run folders: name one, such as '.*experiments/run'"):
        find(tmp_path / "experiments")
    remove(path)
    assert not list(folder.iterdir())
    with pytest.raises(UserError, match="holds no checkpoint"):
        find(tmp_path)


def test_what_is_no_checkpoint_of_ours_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint"):
        read(tmp_path / "absent.ckpt")
    (tmp_path / "latest").mkdir()
    with pytest.raises(UserError, match="Did you mean 'latest'"):
        read(tmp_path / "lates")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match="is a file, but a checkpoint is a folder"):
        read(tmp_path / "text.ckpt")
    path = tmp_path / checkpoint_name(1, "a", 2)
    publish(made(), path)
    text = (path / "manifest.json").read_text()
    for spoilt in (text[: len(text) // 2], "[]", "{}"):
        (path / "manifest.json").write_text(spoilt)
        with pytest.raises(Damaged, match=r"manifest\.json is missing or spoilt"):
            read(path)
    (path / "manifest.json").write_text(sealed(json.loads(text) | {"format": 3}))
    with pytest.raises(UserError, match="has format 3, this version of lit_mm reads the formats 1 and 2"):
        read(path)


@pytest.mark.parametrize("name", ["state.pt", "weights-00000-00.safetensors", "optimizer-00000-00.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / checkpoint_name(1, "a", 2)
    publish(made(), path)
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{name}' does not have the bytes that were written"):
        read(path).verify()
    (path / name).write_bytes(data[:-7])
    with pytest.raises(UserError, match=rf"{name}' has {len(data) - 7} bytes, {len(data)} were written"):
        read(path)
    (path / name).unlink()
    with pytest.raises(UserError, match=rf"{name}' is missing"):
        read(path)


def write_byte(file, place, byte):
    """Write a byte of a file in place: to truncate a file takes milliseconds."""
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(bytes([byte]))


def test_any_byte_that_changes_in_any_file_is_found(tmp_path):
    path = tmp_path / checkpoint_name(1, "a", 2)
    publish(made(), path)
    assert len(list(path.iterdir())) == 5
    for file in path.iterdir():
        for place, byte in enumerate(file.read_bytes()):
            write_byte(file, place, byte ^ (1 << place % 7))
            with pytest.raises(UserError):
                read(path).verify()
            write_byte(file, place, byte)
    read(path).verify()


@pytest.mark.parametrize("files", [{}, {"state.pt": {"bytes": 5, "blake2b": ""}}])
def test_a_manifest_that_does_not_list_its_files_is_damaged_with_a_digest_and_without(tmp_path, files):
    path = tmp_path / checkpoint_name(1, "a", 2)
    publish(made(), path)
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(content | {"files": files}, indent=1) + "\n")
    with pytest.raises(Damaged, match="does not have the bytes"):
        read(path)
    del content["blake2b"]
    (path / "manifest.json").write_text(json.dumps(content | {"files": files}, indent=1) + "\n")
    with pytest.raises(Damaged, match="its digest is missing"):
        read(path)
    (path / "manifest.json").write_text(json.dumps(content | {"files": files, "format": 1}, indent=1) + "\n")
    with pytest.raises(Damaged, match=r"does not list config\.yaml, .*weights-00000-00"):
        read(path)


def test_a_checkpoint_of_before_is_read_though_its_manifest_cannot_be_checked(tmp_path):
    path = tmp_path / checkpoint_name(1, "a", 2)
    publish(made(), path)
    assert read_manifest(path).sealed
    content = json.loads((path / "manifest.json").read_text()) | {"format": 1}
    del content["blake2b"]
    (path / "manifest.json").write_text(json.dumps(content, indent=1) + "\n")
    read(path).verify()
    opened = read_manifest(path)
    assert not opened.sealed and damage(opened, verify=True) == []


def test_beside_a_damaged_checkpoint_the_newest_whole_one_is_named(tmp_path):
    paths = [tmp_path / checkpoint_name(1, "a", step) for step in (2, 4, 6, 8)]
    for path in paths:
        publish(made(), path)
    (paths[3] / "manifest.json").unlink()
    (paths[2] / "state.pt").write_bytes(b"x" * (paths[2] / "state.pt").stat().st_size)
    assert newest_whole(tmp_path).path == paths[1]
    assert (
        way_out(paths[3]) == f"The newest whole one is {str(paths[1])!r}; to go on from it: rm -r {paths[2]} {paths[3]}"
    )
    for path in paths[:2]:
        (path / "config.yaml").unlink()
    assert way_out(paths[3]).startswith("No other checkpoint of this run is whole")


def saved_of(model: nn.Module, folder: Path, frozen=None):
    left_out = {name for part in (frozen or {}).values() for name in part["digests"]}
    tensors = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    stored = [name for name in tensors if name not in left_out]
    path = folder / checkpoint_name(1, "a", 2)
    publish(made(stored=stored, frozen=frozen or {}) | {"state_dict": tensors}, path)
    return read(path)


class Linear(nn.Linear):
    """A model that a checkpoint can be loaded into."""

    @property
    def origins(self):
        return Origins(Parts(nn.Module()))

    def set_adapters(self, adapters):
        assert not adapters


def test_weights_go_into_a_model_of_the_same_family_and_shape(tmp_path):
    model = Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved = saved_of(model, tmp_path)
    load_weights(model, saved, "f")
    assert all(torch.equal(tensor, before[name] + 1) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match=r"is a checkpoint of f, the model is g"):
        load_weights(model, saved, "g")
    expected = r"2 of 2 tensors differ.* 'bias': \(2,\) in the checkpoint, \(4,\) in the model"
    with pytest.raises(UserError, match=expected):
        load_weights(Linear(3, 4), saved, "f")
    with pytest.raises(
        UserError, match=r"1 of 1 tensors differ.*'bias': \(2,\) in the checkpoint, absent in the model"
    ):
        load_weights(Linear(3, 2, bias=False), saved, "f")


class OnABase(nn.Module):
    """A module with a body from an origin and a head that belongs to it."""

    def __init__(self):
        super().__init__()
        self.network = nn.ModuleDict({"body": nn.Linear(3, 2, bias=False), "head": nn.Linear(2, 1, bias=False)})
        self.network["body"].weights = "llama:somewhere"
        self.origins = Origins(Parts(self.network))

    def set_adapters(self, adapters):
        assert not adapters


def test_a_frozen_part_is_loaded_from_its_origin_and_must_be_the_same(tmp_path, monkeypatch):
    def load(value):
        monkeypatch.setattr(
            "lit_mm.checkpoints.origins.load_part", lambda part, *_: nn.init.constant_(part.weight, value)
        )

    load(5.0)
    trained = OnABase()
    trained.origins.load()
    body = trained.network["body"].weight
    frozen = {"body": {"origin": "llama:somewhere", "digests": {"network.body.weight": digest(body)}}}
    saved = saved_of(trained, tmp_path, frozen)
    assert saved.weights().keys() == {"network.head.weight"}
    again = OnABase()
    load_weights(again, saved, "f")
    assert torch.equal(again.network["body"].weight, body)
    assert torch.equal(again.network["head"].weight, trained.network["head"].weight + 1)
    assert again.origins.by_part == {"body": "llama:somewhere"}
    load(4.0)
    with pytest.raises(
        UserError, match=r"trained on the frozen part 'body' of 'llama:somewhere', .*first is 'network.body.weight'"
    ):
        load_weights(OnABase(), saved, "f")


def test_the_groups_of_an_optimizer_are_told_by_name():
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([{"params": [two], "lr": 0.5, "part": "b"}, {"params": [one], "part": "a"}])
    told = optimizer_groups(optimizer, {id(one): "one", id(two): "two"})["groups"]
    assert [(group["names"], group["part"]) for group in told] == [(["two"], "b"), (["one"], "a")]
    assert told[0]["lr"] == 0.5 and "params" not in told[0]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        weights = [writing.Piece("w", (2,), 0, torch.zeros(2))]
        writing.publish_pieces({"lit_mm": {"config": "", "stored": []}}, tmp_path / "a.ckpt", weights, (), {})
    finally:
        os.umask(before)
    files = list((tmp_path / "a.ckpt").iterdir())
    assert len(files) == 4 and {file.stat().st_mode & 0o777 for file in files} == {mode}
