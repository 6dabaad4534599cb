"""Of a published name, the files that are read are downloaded, and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import DryRunError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from lit_mm.commands.export_peft import base_keys
from lit_mm.errors import UserError
from lit_mm.weights.config_file import is_published_name, split_revision
from lit_mm.weights.convert import read_checkpoint
from lit_mm.weights.files import tensor_files
from lit_mm.weights.hub import download_weights
from lit_mm.weights.source import local_place

SAFE, TORCH = "model.safetensors", "pytorch_model.bin"
SAFE_SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
TORCH_SHARDS = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
LLM = [f"llm/{name}" for name in SAFE_SHARDS]


class Served:
    """A repository of the hub in a folder, and the cache into which files are fetched."""

    def __init__(self, folder: Path) -> None:
        self.repository, self.cache = folder / "repository", folder / "cache"
        self.online = True
        self.revisions: list[str | None] = []

    def put(self, *names: str) -> None:
        """Add files; an index lists the two shards of its kind beside it."""
        for name in names:
            path = self.repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shards = {"model.safetensors.index.json": SAFE_SHARDS, "pytorch_model.bin.index.json": TORCH_SHARDS}
            table = dict(zip("ab", shards.get(path.name, ()), strict=False))
            path.write_text(json.dumps({"weight_map": table}) if table else "{}")

    def snapshot_download(self, name: str, *, revision: str | None = None, dry_run: bool = False, **patterns: Any):
        assert name == "owner/name"
        self.revisions.append(revision)
        folder = self.repository if self.online else self.cache
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        chosen = list(filter_repo_objects(names, **patterns))
        if dry_run:
            if not self.online:
                raise DryRunError("no network")
            return [type("Entry", (), {"filename": name})() for name in chosen]
        for file in chosen if self.online else ():
            (self.cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.repository / file, self.cache / file)
        return str(self.cache)

    @property
    def fetched(self) -> set[str]:
        """Paths of the files of weights in the cache."""
        files = (path for path in self.cache.rglob("*") if path.is_file() and path.suffix != ".json")
        return {path.relative_to(self.cache).as_posix() for path in files}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    repository = Served(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", repository.snapshot_download)
    return repository


CASES = [  # files of the repository, and those that are fetched
    ([SAFE, TORCH], [SAFE]),
    ([f"{SAFE}.index.json", *SAFE_SHARDS, f"{TORCH}.index.json", *TORCH_SHARDS], SAFE_SHARDS),
    ([SAFE, f"{TORCH}.index.json", *TORCH_SHARDS], [SAFE]),
    ([f"{SAFE}.index.json", SAFE_SHARDS[0], f"{TORCH}.index.json", *TORCH_SHARDS], TORCH_SHARDS),
    ([f"{SAFE}.index.json", *SAFE_SHARDS, "consolidated.safetensors", "original/a.pth"], SAFE_SHARDS),
    ([SAFE, "checkpoint-10/model.safetensors", "mm_projector.bin"], [SAFE]),
    ([TORCH, "training_args.bin"], [TORCH]),
    (["training_args.bin", f"llm/{SAFE}"], [f"llm/{SAFE}"]),
    (["adapter_model.bin", "non_lora_trainables.bin"], ["adapter_model.bin", "non_lora_trainables.bin"]),
    (["mm_projector.bin", "checkpoint-10/model.safetensors"], ["mm_projector.bin"]),
    (["model_base.pth", "model_large.pth"], ["model_base.pth", "model_large.pth"]),
    ([f"llm/{SAFE}.index.json", *LLM, "llm/pytorch_model.bin", "tower/model.safetensors"], [*LLM, "tower/" + SAFE]),
]


@pytest.mark.parametrize(("files", "expected"), CASES)
def test_weights_in_two_formats_are_fetched_in_one(served: Served, files: list[str], expected: list[str]) -> None:
    served.put("config.json", *files)
    assert download_weights("owner/name") == served.cache
    assert served.fetched == set(expected)
    if not any("/" in name for name in expected):
        assert {path.name for path in tensor_files(served.cache)} == set(expected)
    served.online = False
    assert download_weights("owner/name") == served.cache  # from the cache, without a network


def test_a_quantised_repository_is_refused_before_its_weights_are_fetched(served: Served) -> None:
    served.put("config.json", SAFE)
    config = {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}
    (served.repository / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"^'owner/name' is quantised by fp8, and only weights in float16"):
        download_weights("owner/name")
    assert not served.fetched


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_with_both_formats_gives_safetensors_unless_a_shard_is_missing(safe: bool, tmp_path: Path) -> None:
    for name, value in zip(SAFE_SHARDS, "ab", strict=True):
        save_file({value: torch.ones(1)}, tmp_path / name)
    torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / TORCH)
    table = dict(zip("ab", SAFE_SHARDS, strict=True))
    (tmp_path / f"{SAFE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table, "more": 1}))
    if not safe:
        (tmp_path / SAFE_SHARDS[1]).unlink()
    assert read_checkpoint(tmp_path)["b"].item() == safe
    assert [path.name for path in tensor_files(tmp_path)] == (SAFE_SHARDS if safe else [TORCH])


@pytest.mark.parametrize(
    ("place", "name", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("owner/name@main", "owner/name", "main"),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
    ],
)
def test_a_revision_follows_the_name(served: Served, place: str, name: str, revision: str | None) -> None:
    served.put(SAFE)
    assert is_published_name(place) and split_revision(place) == (name, revision)
    assert local_place(place) == served.cache and set(served.revisions) == {revision}


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clip").mkdir()
    assert not is_published_name("~/clip") and local_place("~/clip") == tmp_path / "clip"


def test_an_error_of_the_hub_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("no such repository.\nMore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(UserError, match=r"'owner/name@v2' cannot be downloaded \(no such repository\)\. Correct"):
        local_place("owner/name@v2")


@pytest.mark.parametrize(
    ("base", "name", "revision"),
    [("owner/name", "owner/name", None), ("owner/name@v2", "owner/name", "v2"), ("/a/b@c", "/a/b@c", None)],
)
def test_an_adapter_names_its_base_and_the_revision_apart(base: str, name: str, revision: str | None) -> None:
    assert base_keys(base) == {"base_model_name_or_path": name, "revision": revision}
