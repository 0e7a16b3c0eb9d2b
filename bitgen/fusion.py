"""FIBER-style fusion: gated cross-attention between words and patches, both ways (arXiv 2206.07643, section 3.1).

M pairs, L caption tokens, P patches, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitgen.config import ModelConfig
from bitgen.transformer import Attention, Block


class GatedCrossAttention(nn.Module):
    """h <- h + g * CrossAttention(h, other), g learned from 0 (or fixed at 1 without gates)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.cross = Attention(config.hidden_size, config.num_heads, config.ternary)
        self.gate = nn.Parameter(torch.zeros(())) if config.fusion_gates else None

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None, weights: list | None = None) -> Tensor:
        """x (M, L, D) looks at context (M, S, D) where mask (M, 1, 1, S) is true."""
        crossed = self.cross(self.norm(x), self.cross.keys(context), mask, weights)
        return x + (crossed if self.gate is None else self.gate * crossed)


class Fusion(nn.Module):
    """Layers in which words look at patches and patches at words, each at the other's state before the layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.image_layers = nn.ModuleList(GatedCrossAttention(config) for _ in range(config.fusion_layers))
        self.text_layers = nn.ModuleList(
            Block(config.hidden_size, config.num_heads, config.intermediate_size, cross=True,
                  gated=config.fusion_gates, dropout=config.dropout, ternary=config.ternary)
            for _ in range(config.fusion_layers))
        self.norm_image, self.norm_text = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)

    def forward(self, image: Tensor, text: Tensor, attention_mask: Tensor,
                attentions: dict[str, list] | None = None) -> tuple[Tensor, Tensor]:
        """image (M, 1+P, D), text (M, L, D), attention_mask (M, L) bool -> fused image and text, same shapes.

        `attentions`: {"word_to_patch": [], "patch_to_word": []} receives the attention of each layer.
        """
        mask = attention_mask[:, None, None, :]
        words, patches = (attentions["word_to_patch"], attentions["patch_to_word"]) if attentions else (None, None)
        for image_layer, text_layer in zip(self.image_layers, self.text_layers, strict=True):
            seen = text_layer.cross.keys(image)
            image, text = (image_layer(image, text, mask, patches),
                           text_layer(text, mask, context=seen, weights=words))
        return self.norm_image(image), self.norm_text(text)
