"""What AdamW is given: groups, the schedule of its rate; and the norms of the gradients it gets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bitgen.config import OptimConfig


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor on the peak rate: linear from 0 over `warmup` steps (at most a tenth of the run), cosine to a tenth."""
    warmup = min(warmup, max(steps // 10, 1))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """AdamW's groups: tower, decoder and rest with their rates.

    No decay on norms, biases, gates, embeddings, positions, the scale and the memory's prior.
    """
    rates = {"vision": config.vision_lr or config.lr, "decoder": config.decoder_lr or config.lr}
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or id(parameter) in embeddings or "embeddings." in name or "prior_" in name
            rate = rates.get(name.split(".")[0], config.lr)
            groups.setdefault((rate, 0.0 if plain else config.weight_decay), []).append(parameter)
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
