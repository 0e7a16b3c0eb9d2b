"""A vision transformer in fewer passes over memory, for a GPU that is to be near what its products alone take.

transformers' blocks make queries, keys and values by three products, scale what each layer adds in a pass of its own,
and under autocast add up tokens in float32. Here it is one product, scales that multiply weights instead of tokens, and
tokens of the type that they come in. Patches are a product too, where a convolution takes a twentieth of a step. The
function is the same but for rounding.

B images of S pixels a side, L tokens, D' the tower's own width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitgen.transformer import attend

NORMS = ("norm1", "norm2"), ("layernorm_before", "layernorm_after")
"""What the two norms are called: in DINOv2's blocks, in those of ViT and DeiT."""
PARTS = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("fc1", "activation_fn", "fc2")}
SCALES = "layer_scale1", "layer_scale2"
"""What DINOv2 multiplies an answer with before it is added."""


def is_lean(block: nn.Module) -> bool:
    """Whether `lean` computes this block: pre-norm, attention, a feed-forward layer of two products, no dropout."""
    known = any(all(hasattr(block, name) for name in pair) for pair in NORMS) and all(
        hasattr(getattr(block, part, None), name) for part, names in PARTS.items() for name in names)
    drops = [getattr(block, name) for name in ("dropout", "drop_path") if hasattr(block, name)]
    return known and not block.attention.attention_dropout and all(
        isinstance(drop, nn.Identity) or getattr(drop, "p", None) == 0 for drop in drops)


def lean(block: nn.Module, tokens: Tensor) -> Tensor:
    """tokens (B, L, D') -> (B, L, D'), of the same type, as `block(tokens)` would be; for one that `is_lean`."""
    norms = next(pair for pair in NORMS if hasattr(block, pair[0]))
    before, after = (getattr(block, name) for name in norms)
    attention, mlp = block.attention, block.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    bias = None if attention.q_proj.bias is None else torch.cat([each.bias for each in projections])
    mixed = F.linear(before(tokens), torch.cat([each.weight for each in projections]), bias)         # (B, L, 3D')
    query, key, value = mixed.unflatten(-1, (3, attention.num_attention_heads, -1)).permute(2, 0, 3, 1, 4)
    seen = attend(query, key, value, None).transpose(1, 2).flatten(2)                                # (B, H, L, d)
    first, second = (getattr(block, name).lambda1 if hasattr(block, name) else None for name in SCALES)
    tokens = tokens + _scaled(attention.o_proj, seen, first)
    return tokens + _scaled(mlp.fc2, mlp.activation_fn(mlp.fc1(after(tokens))), second)


def _scaled(layer: nn.Linear, x: Tensor, scale: Tensor | None) -> Tensor:
    """`layer(x) * scale`, by scaled weights."""
    if scale is None:
        return layer(x)
    return F.linear(x, layer.weight * scale[:, None], layer.bias * scale)


class PatchProduct(nn.Conv2d):
    """A convolution over patches that lie side by side, as the product that it is."""

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, S, S) -> (B, D', S / p, S / p) for patches of p pixels a side."""
        height, width = self.kernel_size
        patches = pixels.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def are_apart(convolution: nn.Module) -> bool:
    """Whether `PatchProduct` computes this convolution: its patches neither overlap nor leave pixels between them."""
    return (type(convolution) is nn.Conv2d and convolution.stride == convolution.kernel_size
            and convolution.padding == (0, 0) and convolution.dilation == (1, 1) and convolution.groups == 1)
