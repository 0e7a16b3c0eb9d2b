"""Which precision a device computes well in."""

from __future__ import annotations

import torch


def inference_autocast(device: torch.device | str) -> torch.autocast:
    """Autocast to bf16 for inference, where the processor of `device` multiplies it natively; else nothing."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=native_dtype(device) is torch.bfloat16)


def native_dtype(device: torch.device | str) -> torch.dtype:
    """bf16 where the processor of `device` multiplies it natively; else float32, where bf16 takes ten times as long."""
    kind = torch.device(device).type
    return torch.bfloat16 if kind in ("cpu", "cuda") and _native(kind) else torch.float32


def precision(wanted: str) -> str:
    """`float32`, `bf16` or `fp16`: what `config.precision` asks for, `auto` being the `native_dtype` here."""
    if wanted != "auto":
        return wanted
    return "bf16" if native_dtype("cuda" if torch.cuda.is_available() else "cpu") is torch.bfloat16 else "float32"


def _native(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
