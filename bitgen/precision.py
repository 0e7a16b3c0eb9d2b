"""Which precision a device computes well in."""

from __future__ import annotations

import torch


def precision(wanted: str) -> str:
    """accelerate's name (`no`, `bf16`, `fp16`) for the precision `wanted` in the configuration.

    `auto` is bf16 where the processor multiplies it natively, and float32 (`no`) elsewhere.
    """
    if wanted != "auto":
        return {"float32": "no"}.get(wanted, wanted)
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"
