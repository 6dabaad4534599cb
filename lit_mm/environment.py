"""Whether the installed torch and torchvision fit together.

timm, torchmetrics, transformers and lightning import torchvision when it is there. A pair that does not fit takes them
all down with an error that names none of this, so the command line asks here first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from lit_mm.errors import UserError


def check_torch_pair(*, load: bool = True) -> None:
    """Refuse to start on a torchvision that does not fit torch. Having no torchvision is fine.

    Args:
        load: also import the two, which is the proof. A command that needs no torch passes False: versions and build
            labels are then read from the installed files, in milliseconds.

    Raises:
        UserError: torch is not installed, or the pair is broken; says what to install.
    """
    torch = _installed("torch")
    if torch is None:
        raise UserError("torch is not installed; run `make setup`, or `pip install -r requirements.lock`")
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
    """What is wrong with a pair as far as its versions tell, None if nothing.

    Args:
        torch, torchvision: versions with their build labels, such as "2.15.0+cpu" and "0.29.2+cu132".
        requires: torchvision's own requirements, as in its metadata. Without one on torch, the pairs are the released
            ones: torch 2.N with torchvision 0.(N + 14).
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
    """Import both; what torchvision said if it could not."""
    import torch  # noqa: F401  alone first: its own failure must not be blamed on the pair

    try:
        import torchvision  # noqa: F401
    except (RuntimeError, ImportError, OSError) as error:  # most often "operator torchvision::nms does not exist"
        return str(error).strip().partition("\n")[0].rstrip(".")
    return None


def _installed(package: str) -> str | None:
    """Version with its build label, without importing the package; None if it is not installed.

    The label is in `version.py` only: PyPI accepts none in a wheel's metadata.
    """
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).with_name("version.py")
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    match = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return match.group(1) if match else metadata.version(package)


def _torch_of(torchvision: str) -> str:
    """The torch that a torchvision was released with: 0.29.2 -> 2.15.*"""
    return f"2.{Version(torchvision).minor - 14}.*"


def _partner(torch: str) -> str:
    """The torchvision that a torch was released with: 2.15.0 -> 0.29.*"""
    return f"0.{Version(torch).minor + 14}.*"
