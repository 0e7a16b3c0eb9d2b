"""FIBER-style fusion: gated cross-attention between words and patches, both ways (arXiv 2206.07643, section 3.1).

B images, N captions, M pairs of them, L caption tokens, P patches, D width. Each layer does

    words   h <- h + SelfAttention(h);  h <- h + g * CrossAttention(h, patches);  h <- h + FeedForward(h)
    patches h <- h + g * CrossAttention(h, words)

each looking at the other's state before the layer. Two things keep pairs cheap without changing a number: what the
first layer does before the modalities meet is done once an image and once a caption, however many pairs they are in;
and the last layer computes only the two rows that are read, unless its attention is asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitgen.config import ModelConfig
from bitgen.transformer import Attention, FeedForward, rows_of

Attentions = dict[str, list[Tensor]]


class FusionLayer(nn.Module):
    """One layer. The gates are learned from `gate_start` (fixed at 1 without gates)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        self.norm_self, self.self_attention = nn.LayerNorm(width), Attention(width, heads, config.ternary)
        self.norm_words, self.words_to_patches = nn.LayerNorm(width), Attention(width, heads, config.ternary)
        self.norm_patches, self.patches_to_words = nn.LayerNorm(width), Attention(width, heads, config.ternary)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = FeedForward(width, config.intermediate_size, config.ternary)
        self.dropout = nn.Dropout(config.dropout)
        start = config.gate_start if config.fusion_gates else 1.0
        self.word_gate = nn.Parameter(torch.tensor(start), requires_grad=config.fusion_gates)
        self.patch_gate = nn.Parameter(torch.tensor(start), requires_grad=config.fusion_gates)

    def alone(self, text: Tensor, mask: Tensor, rows: slice = slice(None)) -> Tensor:
        """Self-attention of the words, before they see patches: text (N, L, D) -> its `rows`."""
        normed = self.norm_self(text)
        attended = self.self_attention(normed[:, rows], self.self_attention.keys(normed), mask)
        return text[:, rows] + self.dropout(attended)

    def together(self, image: Tensor, text: Tensor, patch_keys, word_keys, mask: Tensor,
                 attentions: Attentions | None) -> tuple[Tensor, Tensor]:
        """Rows of image (M, R, D) and text (M, R', D) look at each other's keys (M, H, S, d)."""
        words, patches = (attentions["word_to_patch"], attentions["patch_to_word"]) if attentions else (None, None)
        seen = self.words_to_patches(self.norm_words(text), patch_keys, weights=words)
        read = self.patches_to_words(self.norm_patches(image), word_keys, mask, patches)
        text = text + self.dropout(self.word_gate * seen)
        return image + self.dropout(self.patch_gate * read), text + self.dropout(self.ffn(self.norm_ffn(text)))


class Fusion(nn.Module):
    """The layers; returns the fused code of each pair, from its image token and the caption's first token."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(config) for _ in range(config.fusion_layers))
        self.norm_image, self.norm_text = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)

    def forward(self, image: Tensor, text: Tensor, attention_mask: Tensor, pairs: tuple[Tensor, Tensor] | None = None,
                attentions: Attentions | None = None) -> Tensor:
        """image (B, 1+P, D), text (N, L, D), attention_mask (N, L) bool -> codes (M, 2D): [caption, image].

        pairs: index of image and of caption (M,) of each pair; by default image i with caption i.
        `attentions`: {"word_to_patch": [], "patch_to_word": []} receives each layer's attention (M, H, rows, keys).
        """
        mask = attention_mask[:, None, None, :]
        for depth, layer in enumerate(self.layers):
            last = depth == len(self.layers) - 1
            rows = slice(0, 1) if last and attentions is None else slice(None)
            patch_keys, word_keys = layer.words_to_patches.keys(image), layer.patches_to_words.keys(text)
            image, text = image[:, rows], layer.alone(text, mask, rows)
            if depth == 0 and pairs is not None:
                images, captions = pairs
                image, text, mask = rows_of(image, images), rows_of(text, captions), mask[captions]
                patch_keys = [rows_of(x, images) for x in patch_keys]
                word_keys = [rows_of(x, captions) for x in word_keys]
            image, text = layer.together(image, text, patch_keys, word_keys, mask, attentions)
        return torch.cat([self.norm_text(text[:, 0]), self.norm_image(image[:, 0])], -1)
