"""Devices by name, and the time of a stage on them."""

from __future__ import annotations

from dataclasses import dataclass

from lit_mm.errors import UserError

TERA, GIB, HOUR = 10**12, 1 << 30, 3600.0


@dataclass(frozen=True)
class Device:
    """A device that trains.

    Attributes:
        name: name by which a command finds it.
        peak: bf16 operations per second of dense products with fp32 sums (fp16 for devices without bf16).
        memory: bytes of its memory; 0 if unknown.
    """

    name: str
    peak: float
    memory: int = 0


# Data sheets of the vendors: dense bf16 figures, without sparsity
DEVICES = tuple(
    Device(name, peak * TERA, memory * GIB)
    for name, peak, memory in (
        ("T4", 65, 15),
        ("V100", 125, 32),
        ("A10", 125, 22),
        ("A40", 149.7, 45),
        ("A100", 312, 80),
        ("L4", 121, 22),
        ("L40S", 362, 45),
        ("H100-PCIe", 756, 80),
        ("H100-NVL", 835, 94),
        ("H100", 989.4, 80),
        ("H200", 989.4, 140),
        ("B200", 2250, 178),
        ("MI250X", 383, 128),
        ("MI300X", 1307.4, 192),
    )
)


def find_device(text: str) -> Device:
    """Return the device of a name such as "H100", or a nameless one of a peak such as "312" in TFLOP/s.

    Raises:
        UserError: the text is neither.
    """
    for device in DEVICES:
        if device.name.casefold() == text.casefold():
            return device
    try:
        peak = float(text)
    except ValueError:
        peak = 0.0
    if not 0 < peak < float("inf"):
        raise UserError(
            f"--device takes one of {', '.join(device.name for device in DEVICES)}, or a peak in TFLOP/s such as 312; "
            f"got {text!r}"
        )
    return Device(f"{peak:g} TFLOP/s", peak * TERA)


def device_of(product: str) -> Device | None:
    """Return the device of a product name that its driver reports, such as "NVIDIA H100 80GB HBM3"; None if unknown.

    The longest matching name wins: "NVIDIA H100 PCIe" is H100-PCIe, not H100.
    """
    words = product.replace("-", " ").split()
    matches = [device for device in DEVICES if all(word in words for word in device.name.split("-"))]
    return max(matches, key=lambda device: len(device.name), default=None)


def seconds_of(operations: float, device: Device, ranks: int, utilisation: float) -> float:
    """Compute the time of operations that are shared out over ranks.

    Example: 312e15 operations on 10 devices of 312 TFLOP/s at a utilisation of 0.5 take 200 seconds.

    Args:
        operations: operations without recomputation.
        device: device of every rank.
        ranks: number of devices.
        utilisation: MFU, the share of the peak that is used, above 0 and at most 1.
    """
    return operations / (device.peak * ranks * utilisation)
