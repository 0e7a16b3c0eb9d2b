"""The processes of a run, and tensors of all: rows joined with gradients, sums. One process joins and sums nothing.

Processes may have different numbers of rows; they are joined in the order of ranks.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def launched() -> tuple[int, int]:
    """(this process's number, how many there are), as `torchrun` and `accelerate launch` tell them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def gathered(x: Tensor) -> Tensor:
    """x (n, …) of all processes, joined along the rows; gradients reach the process that a row came from."""
    if _count() == 1:
        return x
    lengths = _lengths(len(x), x.device)
    padded = torch.cat([x, x.new_zeros(max(lengths) - len(x), *x.shape[1:])])
    return torch.cat([part[:length] for part, length in zip(_Joined.apply(padded), lengths, strict=True)])


def offset(length: int) -> int:
    """How many rows the processes before this one have, where each says how many it has."""
    if _count() == 1:
        return 0
    return sum(_lengths(length, "cuda" if dist.get_backend() == "nccl" else "cpu")[: dist.get_rank()])


def summed(x: Tensor) -> Tensor:
    """The sum over all processes, in place, without gradient."""
    if _count() > 1:
        dist.all_reduce(x)
    return x


class _Joined(torch.autograd.Function):
    """(n, …) of each of W processes, the same n -> (W, n, …) on all of them.

    A row takes part in the loss of every process, so its gradient is the sum of theirs.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(_count())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return summed(gradient.clone(memory_format=torch.contiguous_format))[dist.get_rank()]


def _count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _lengths(length: int, device: torch.device | str) -> list[int]:
    """The `length` of every process: images have different numbers of captions."""
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(_count())]
    dist.all_gather(lengths, torch.tensor([length], device=device))
    return [int(x) for x in lengths]
