"""Attention and the pre-norm block that text encoder, fusion and decoder are made of.

B sequences, L tokens, S context tokens, D width, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgen.bitlinear import linear


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, weights: list | None = None) -> Tensor:
    """softmax(QK^T / sqrt(d)) V over the keys where `mask` is true (Vaswani et al. 2017, eq. 1).

    On CPUs the backward pass of the fused kernel is several times slower in bf16 than three plain operations.

    Shape: query (B, H, L, d), key and value (B, H, S, d), mask broadcastable to (B, H, L, S) bool.
    `weights`: a list that receives the attention (B, H, L, S), with its gradient.
    """
    if weights is None and not (query.dtype == torch.bfloat16 and query.device.type == "cpu"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    scores = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    if weights is not None:
        weights.append(scores)
    return scores @ value


class _Rows(torch.autograd.Function):
    """`x[index]`; backward adds up rows, where torch's deterministic mode on a CPU would add up numbers one by one.

    So it does with rows that do not lie in one piece, as those of attention's heads, in ten times as long.
    """

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        index, = ctx.saved_tensors
        rows = grad.flatten(1)
        return rows.new_zeros(ctx.shape[0], rows.shape[1]).index_add_(0, index, rows).view(ctx.shape), None


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Rows index (M,) of x (N, D, …), each as often as it is named: (M, D, …)."""
    return _Rows.apply(x, index)


class Attention(nn.Module):
    """Multi-head attention of x (B, L, D) over a context (B, S, D), itself where none is given."""

    def __init__(self, hidden_size: int, num_heads: int, ternary: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.query = linear(hidden_size, hidden_size, ternary=ternary)
        self.key_value = linear(hidden_size, 2 * hidden_size, ternary=ternary)
        self.out = linear(hidden_size, hidden_size, ternary=ternary)

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, d) of a context (B, S, D)."""
        key, value = self.key_value(context).chunk(2, -1)
        return self._split(key), self._split(value)

    def forward(self, x: Tensor, keys: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None,
                weights: list | None = None) -> Tensor:
        """x (B, L, D) attends to `keys` (from `self.keys`), by default its own; returns (B, L, D)."""
        key, value = self.keys(x) if keys is None else keys
        mixed = attend(self._split(self.query(x)), key, value, mask, weights)
        return self.out(mixed.transpose(1, 2).flatten(2))                         # (B, H, L, d) -> (B, L, D)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)              # (B, L, D) -> (B, H, L, d)


class FeedForward(nn.Sequential):
    """Linear, GELU, linear: (…, D) -> (…, D)."""

    def __init__(self, hidden_size: int, intermediate_size: int, ternary: bool = False):
        super().__init__(linear(hidden_size, intermediate_size, ternary=ternary), nn.GELU(),
                         linear(intermediate_size, hidden_size, ternary=ternary))


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, cross-attention where `cross`, feed-forward."""

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, cross: bool = False,
                 dropout: float = 0.0, ternary: bool = False):
        super().__init__()
        self.norm_self, self.self_attention = nn.LayerNorm(hidden_size), Attention(hidden_size, num_heads, ternary)
        if cross:
            self.norm_cross, self.cross = nn.LayerNorm(hidden_size), Attention(hidden_size, num_heads, ternary)
        self.norm_ffn = nn.LayerNorm(hidden_size)
        self.ffn = FeedForward(hidden_size, intermediate_size, ternary)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, context: tuple[Tensor, Tensor] | None = None,
                cache: list | None = None, weights: list | None = None) -> Tensor:
        """x (B, L, D) -> (B, L, D).

        mask: broadcastable to (B, H, L, S) bool, true where a token may look. context: `self.cross.keys(...)` of what
        is looked at. cache: [key, value] of the tokens before x, extended in place (an empty list to begin with).
        weights: a list that receives the cross-attention (B, H, L, S).
        """
        normed = self.norm_self(x)
        keys = self.self_attention.keys(normed)
        if cache is not None:
            keys = tuple(torch.cat([past, new], 2) for past, new in zip(cache, keys, strict=True)) if cache else keys
            cache[:] = keys
        x = x + self.dropout(self.self_attention(normed, keys, mask))
        if context is not None:
            x = x + self.dropout(self.cross(self.norm_cross(x), context, weights=weights))
        return x + self.dropout(self.ffn(self.norm_ffn(x)))
