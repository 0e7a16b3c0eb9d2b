"""What AdamW is given: groups, the schedule of its rate; and the norms of the gradients it gets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor on the peak rate: linear from 0 over `warmup` steps (at most a tenth of the run), cosine to a tenth."""
    warmup = min(warmup, max(steps // 10, 1))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def parameter_groups(model: nn.Module, lr: float, vision_lr: float | None, weight_decay: float) -> list[dict]:
    """AdamW's groups: tower and rest with their rates; no decay on norms, biases, gates, embeddings, the scale."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or id(parameter) in embeddings or "embeddings." in name or "prior_" in name
            rate = (vision_lr or lr) if name.startswith("vision.") else lr
            groups.setdefault((rate, 0.0 if plain else weight_decay), []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in sorted(groups.items())]


@torch.no_grad()
def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """`grad_norm/<part>`: norm of the gradient of each part, before clipping."""
    norms = {}
    for name, child in model.named_children():
        grads = [p.grad for p in child.parameters() if p.grad is not None]
        if grads:
            norms[f"grad_norm/{name}"] = torch.stack(torch._foreach_norm(grads)).norm()
    return norms
