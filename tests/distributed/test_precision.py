"""`trainer.precision: auto` selects a precision by machine."""

import lightning as L
import pytest
import torch

from lit_mm.distributed.precision import Trainer, best_precision
from lit_mm.layers.hardware import fast_bf16


@pytest.mark.parametrize("unit", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_that_multiplies_in_bf16_trains_in_it(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, unit: True})
    assert fast_bf16("cpu") and best_precision("cpu") == "bf16-mixed"


def test_a_cpu_that_does_not_trains_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert not fast_bf16("cpu") and best_precision("cpu") == "32-true"


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert best_precision("auto") == best_precision("gpu") == ("bf16-mixed" if supported else "32-true")


def test_the_trainer_takes_auto_and_whatever_lightning_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    assert Trainer(precision="auto", **quiet).precision == "32-true"
    assert Trainer(precision="bf16-mixed", **quiet).precision == "bf16-mixed"
    assert Trainer(**quiet).precision == L.Trainer(**quiet).precision
