from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_mm.environment import check_torch_pair, pair_problem
from lit_mm.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("torch", "torchvision", "requires", "problem"),
    [
        ("2.15.0+cu132", "0.29.2+cu132", ["numpy", "torch (>=2.14.0)"], None),
        ("2.14.1", "0.29.2", ["torch>=2.14.0"], None),  # its own word counts, where it has one
        ("2.13.0", "0.29.2", ["torch>=2.14.0"], "this torchvision needs torch>=2.14.0"),
        ("2.9.1", "0.24.0", ["torch==2.9.0"], "this torchvision needs torch==2.9.0"),
        ("2.9.0+cu128", "0.24.0+cu128", ["torch==2.9.0"], None),
        ("2.15.0", "0.29.2", [], None),  # without one, the released pairs
        ("2.15.0", "0.28.0", ["numpy"], "this torchvision needs torch==2.14.*"),
        ("2.16.0.dev20261101+cu132", "0.30.0.dev20261101", [], None),
        ("2.15.0+cpu", "0.29.2+cu132", ["torch>=2.14.0"], "torch is a CPU build and torchvision a CUDA build"),
        ("2.15.0+cpu", "0.29.2+cpu", ["torch>=2.14.0"], None),
        ("2.15.0+cu132", "0.29.2+cpu", ["torch>=2.14.0"], None),
    ],
)
def test_versions_tell_a_pair_that_cannot_work(
    torch: str, torchvision: str, requires: list[str], problem: str | None
) -> None:
    found = pair_problem(torch, torchvision, requires)
    assert found == problem


def install(folder: Path, package: str, version: str, requires: str = "", init: str = "") -> None:
    """Write a stand-in for an installed package into `folder`."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(init)
    (folder / package / "version.py").write_text(f"__version__ = '{version}'\n")
    public = version.partition("+")[0]
    info = folder / f"{package}-{public}.dist-info"
    info.mkdir()
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {public}\n{needs}")


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with the stand-ins."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


CHECK = ("-c", "from lit_mm.environment import check_torch_pair; check_torch_pair(); print('fine')")
CHECK_FILES = ("-c", "from lit_mm.environment import check_torch_pair; check_torch_pair(load=False); print('fine')")


def test_the_installed_pair_works() -> None:
    assert check_torch_pair() is None


def test_a_torchvision_that_fails_at_import_ends_the_command_line_with_what_to_install(tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.15.0+cu132")
    install(
        tmp_path,
        "torchvision",
        "0.29.2+cu132",
        requires="torch>=2.14.0",
        init="raise RuntimeError('operator torchvision::nms does not exist')",
    )
    done = start(tmp_path, "-m", "lit_mm", "fit", "--config", "llava")
    assert done.returncode == 2
    assert "operator torchvision::nms does not exist" in done.stderr
    assert "torch==2.15.0 'torchvision==0.29.*'" in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_a_cpu_torch_beside_a_cuda_torchvision_is_seen_without_importing_either(tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.15.0+cpu", init="raise AssertionError('imported')")
    install(tmp_path, "torchvision", "0.29.2+cu132", init="raise AssertionError('imported')")
    done = start(tmp_path, *CHECK)
    assert "UserError: torch 2.15.0+cpu and torchvision 0.29.2+cu132 do not work together" in done.stderr


def test_a_command_without_torch_imports_none(tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.15.0", init="raise AssertionError('imported')")
    install(tmp_path, "torchvision", "0.29.2", init="raise AssertionError('imported')")
    assert start(tmp_path, *CHECK_FILES).stdout == "fine\n"


def test_torchvision_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert check_torch_pair() is None


@pytest.mark.parametrize(
    ("environment", "remedy"),
    [
        ("venv", "run `make setup` and `source .venv/bin/activate`"),
        (".venv", "is not active: source .venv/bin/activate"),
    ],
)
def test_a_missing_torch_is_named_and_so_is_an_environment_that_is_there_but_not_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str, remedy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / environment / "bin").mkdir(parents=True)
    (tmp_path / environment / "bin/python").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=rf"torch is not installed for .*{remedy}"):
        check_torch_pair()
