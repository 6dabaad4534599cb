"""Fixtures of all tests, among them the golden vectors."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir", type=Path, default=HERE / "golden", help="folder of golden vectors (default: tests/golden)"
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ["LIT_MM_ALLOW"] = "tests"  # recipes of tests name classes of tests
    config.addinivalue_line("markers", "golden_cases(name): run once per entry of `cases` in name.json, as `case`")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden_cases")
    if marker:
        cases = Golden(metafunc.config.getoption("--golden-dir")).json(marker.args[0])["cases"]
        if isinstance(cases, dict):
            cases = [{"name": name} | case for name, case in cases.items()]
        metafunc.parametrize("case", cases, ids=[str(case.get("name", at)) for at, case in enumerate(cases)])


class Golden:
    """A reader of the golden folder. A test that reads a missing file fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def json(self, name: str) -> Any:
        """Parse `name`.json."""
        return json.loads((self.folder / f"{name}.json").read_text())

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """Load the tensors of `name`.safetensors whose names start with `prefix`, and remove the prefix."""
        tensors = load_file(self.folder / f"{name}.safetensors")
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    @staticmethod
    def runs(encoded: list[list[int]]) -> list[int]:
        """Expand run lengths [[value, repeat], ...] to values."""
        return [value for value, repeat in encoded for _ in range(repeat)]

    @staticmethod
    def tolerance(text: str) -> float:
        """Parse the tolerance of a file: "fp32, 1e-5 abs" -> 1e-5."""
        return next(float(word) for word in text.replace(",", " ").split() if word[0].isdigit())

    def assert_close(self, ours: Tensor, theirs: Tensor, stated: str) -> None:
        """Compare within the tolerance of a file, such as "fp32, 1e-5 abs", which is absolute."""
        torch.testing.assert_close(ours, theirs, rtol=0, atol=self.tolerance(stated))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.config.getoption("--golden-dir"))


@pytest.fixture
def published_plan(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], dict[str, Any]]:
    """Plan of a recipe of experiments/paper with images of 336 x 336 and 1008 x 672 pixels, as `describe` prints it.

    No tokenizer may be read. A plan takes seconds, so the processes of a test run share what one has printed.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def missing(*_: object, **__: object) -> None:
        raise AssertionError("a tokenizer was asked for")

    def plan(path: Path) -> dict[str, Any]:
        file = folder / f"plan-{path.stem}.json"
        if not file.exists():
            from lit_mm.cli import main

            monkeypatch.setattr(sys, "argv", ["lit_mm"])
            with monkeypatch.context() as patch:
                patch.setattr("lit_mm.prompts.tokenizer.Tokenizer.from_pretrained", missing)
                capsys.readouterr()
                main(["describe", "--config", str(path), "--format", "json", "--images", "336x336,1008x672"])
            part = file.with_suffix(f".{os.getpid()}")
            part.write_text(capsys.readouterr().out)
            part.replace(file)
        return json.loads(file.read_text())

    return plan


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep indexes of test data out of the user's cache."""
    monkeypatch.setenv("LIT_MM_CACHE", str(tmp_path_factory.getbasetemp() / "lit_mm_cache"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed random inputs, so that they do not depend on the selection of tests."""
    torch.manual_seed(0)
