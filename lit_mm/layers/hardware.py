"""Number formats that a device multiplies in hardware."""

from __future__ import annotations

import torch


def fast_bf16(device: str) -> bool:
    """Return True if the device multiplies bf16 in hardware. Otherwise torch emulates it, 50 times slower than fp32.

    Args:
        device: type of the device: "cpu", "cuda" or "mps".
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return device == "cpu" and any(able.get(unit, False) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
