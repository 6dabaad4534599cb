"""Devices are found by name, and time and money follow from their peak."""

from __future__ import annotations

import pytest

from lit_mm.errors import UserError
from lit_mm.planning.devices import GIB, TERA, device_of, find_device, seconds_of


@pytest.mark.parametrize(
    ("text", "peak", "memory"), [("H100", 989.4, 80), ("h100-pcie", 756, 80), ("A100", 312, 80), ("250.5", 250.5, 0)]
)
def test_a_device_is_a_name_or_a_peak(text: str, peak: float, memory: int) -> None:
    device = find_device(text)
    assert (device.peak, device.memory) == (peak * TERA, memory * GIB)


@pytest.mark.parametrize("text", ["H1000", "0", "-3", "nan", "inf", ""])
def test_what_is_no_device_is_refused_with_the_names(text: str) -> None:
    with pytest.raises(UserError, match=r"--device takes one of T4, .*H100"):
        find_device(text)


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H200", "H200"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_device_is_known_by_the_name_of_its_driver(product: str, name: str | None) -> None:
    device = device_of(product)
    assert (device.name if device is not None else None) == name


def test_time_is_operations_by_the_used_share_of_the_peak() -> None:
    assert seconds_of(312e15, find_device("312"), ranks=10, utilisation=0.5) == pytest.approx(200)
