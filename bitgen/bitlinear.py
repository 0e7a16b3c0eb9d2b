"""Linear layers are made here, so that one setting turns them ternary.

`BitLinear` follows BitNet b1.58 (Ma et al. 2024, arXiv 2402.17764): weights in {-1, 0, 1} times one scale, 8-bit
activations with one scale a token, straight-through gradients. Training and evaluation compute the same function,
and what comes out for a token depends on that token alone, never on its neighbours in the batch.

The paper's layer normalises its input first; here the transformer's pre-norms do that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPS = 1e-5  # smallest scale, so that zero weights and zero tokens stay zero
LEVELS = 127  # largest 8-bit activation
UNIT = 2.0**-7  # ternary weights are multiplied by this: exact in any precision, and sums stay inside fp16's range


def linear(in_features: int, out_features: int, bias: bool = True, ternary: bool = False) -> nn.Linear:
    """A linear layer `(..., in_features) -> (..., out_features)`: `nn.Linear`, or `BitLinear` where `ternary`."""
    return (BitLinear if ternary else nn.Linear)(in_features, out_features, bias)


class BitLinear(nn.Linear):
    """`nn.Linear` that multiplies by ternary weights; the parameters it learns are full precision."""

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in_features) -> (..., out_features)`, in autocast's precision where that is on."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return _BitProduct.apply(x, self.weight, self.bias, dtype)

    @torch.no_grad()
    def ternary_weights(self) -> tuple[Tensor, Tensor]:
        """What a device needs to store: `(out_features, in_features)` int8 in {-1, 0, 1}, and the scale."""
        values, scale = _ternary(self.weight)
        return values.to(torch.int8), scale


def _ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Absmean quantisation (eq. 1-3): `round(W / mean|W|)` clipped to [-1, 1], and the scale `mean|W|`."""
    scale = weight.abs().mean().clamp_(min=EPS)
    return (weight / scale).round_().clamp_(-1, 1), scale


def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Absmax quantisation of each token of `(T, in)`: whole numbers in [-127, 127], and `(T, 1)` scales; float32."""
    peak = x.abs().amax(-1, keepdim=True).float().clamp_(min=EPS)
    return (x * (LEVELS / peak)).round_(), peak / LEVELS


class _BitProduct(torch.autograd.Function):
    """`quantised(x) @ ternary(weight).T + bias`; the gradient takes both quantisations for the identity."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        tokens, token_scale = _quantise(x.reshape(-1, x.shape[-1]))
        values, weight_scale = _ternary(weight)
        tokens, values, weight_scale = tokens.to(dtype), (values * UNIT).to(dtype), weight_scale / UNIT
        ctx.save_for_backward(tokens, token_scale, values, weight_scale)
        ctx.shape, ctx.dtypes = x.shape, (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        # Whole numbers up to 127 are exact in bf16, and their sums in float32: the order of summation cannot matter.
        product, scale = tokens @ values.T, token_scale * weight_scale
        out = product * scale if bias is None else torch.addcmul(bias, product, scale)
        return out.to(dtype).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        tokens, token_scale, values, weight_scale = ctx.saved_tensors
        x_dtype, weight_dtype, bias_dtype = ctx.dtypes
        grad = grad.reshape(-1, grad.shape[-1])  # (T, out)
        grad_x = (grad @ (values * weight_scale)).to(x_dtype).view(ctx.shape)
        grad_weight = ((grad * token_scale.to(grad.dtype)).T @ tokens).to(weight_dtype)
        return grad_x, grad_weight, None if bias_dtype is None else grad.sum(0).to(bias_dtype), None
