"""What a device multiplies fast."""

from __future__ import annotations

import torch


def fast_bf16(device: str) -> bool:
    """True where bf16 products run in hardware. Where they do not, torch imitates them, 50 times slower than fp32.

    Args:
        device: "cpu", "cuda", "mps".
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return device == "cpu" and any(able.get(unit, False) for unit in ("avx512_bf16", "amx_bf16", "bf16"))
