"""This module tests whether the installed torch and torchvision fit together.

timm, torchmetrics, transformers and lightning import torchvision if it is installed. With a pair that does not fit,
they all fail with an error that does not name the cause, so the command line tests the pair first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from lit_mm.errors import UserError, first_line, missing_package


def check_torch_pair(*, load: bool = True) -> None:
    """Refuse to start on a torchvision that does not fit torch. Having no torchvision is fine.

    Args:
        load: if True, also import both, which is the proof. If False, only read versions and build labels from the
            installed files, which takes milliseconds; commands that need no torch do this.

    Raises:
        UserError: torch is not installed, or the pair does not fit; the message names the packages to install.
    """
    torch = _installed("torch")
    if torch is None:
        raise missing_package("torch")
    torchvision = _installed("torchvision")
    if torchvision is None:
        return
    problem = pair_problem(torch, torchvision, metadata.requires("torchvision") or ())
    if problem is None and load:
        problem = _import_problem()
    if problem is not None:
        raise UserError(
            f"torch {torch} and torchvision {torchvision} do not work together: {problem}.\n"
            f"Install a pair from one index: pip install --force-reinstall torch=={Version(torch).public} "
            f"'torchvision=={_partner(torch)}' (or both as pinned in requirements.lock)"
        )


def pair_problem(torch: str, torchvision: str, requires: Sequence[str]) -> str | None:
    """Describe the problem of a pair from its versions; None if there is none.

    Args:
        torch: version of torch with its build label, such as "2.15.0+cpu".
        torchvision: version of torchvision with its build label, such as "0.29.2+cu132".
        requires: requirements in the metadata of torchvision. If none is on torch, torch 2.N needs torchvision
            0.(N + 14), as released.
    """
    requirements = [Requirement(line) for line in requires]
    declared = [str(requirement.specifier) for requirement in requirements if requirement.name == "torch"]
    needed = Requirement(f"torch{declared[0] if declared else '==' + _torch_of(torchvision)}")
    if not needed.specifier.contains(Version(torch), prereleases=True):
        return f"this torchvision needs {needed}"
    # On Linux x86-64 PyPI has torchvision only as a CUDA build; its operators cannot load beside a CPU-only torch.
    if Version(torch).local == "cpu" and (Version(torchvision).local or "").startswith("cu"):
        return "torch is a CPU build and torchvision a CUDA build"
    return None


def _import_problem() -> str | None:
    """Import torch and torchvision. Returns the error of torchvision, or None."""
    import torch  # noqa: F401  first and alone: if torch itself fails, the pair is not the cause

    try:
        import torchvision  # noqa: F401
    except (RuntimeError, ImportError, OSError) as error:  # most often "operator torchvision::nms does not exist"
        return first_line(error)
    return None


def _installed(package: str) -> str | None:
    """Read the version and build label of a package without importing it; None if it is not installed.

    The label is only in `version.py`, because PyPI accepts no labels in the metadata of wheels.
    """
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).with_name("version.py")
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    match = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return match.group(1) if match else metadata.version(package)


def _torch_of(torchvision: str) -> str:
    """Return the version of torch released with a torchvision: 0.29.2 -> 2.15.*"""
    return f"2.{Version(torchvision).minor - 14}.*"


def _partner(torch: str) -> str:
    """Return the version of torchvision released with a torch: 2.15.0 -> 0.29.*"""
    return f"0.{Version(torch).minor + 14}.*"
