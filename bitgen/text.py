"""The text encoder (bidirectional) and the text decoder (causal, looks at the image and the memory's reading).

N captions, L tokens, S context tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitgen.config import ModelConfig
from bitgen.transformer import Block


class TextEncoder(nn.Module):
    """Pre-norm bidirectional transformer over token embeddings, padding masked."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_tokens, config.hidden_size)
        self.blocks = nn.ModuleList(
            Block(config.hidden_size, config.num_heads, config.intermediate_size, dropout=config.dropout,
                  ternary=config.ternary) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids (N, L) int64, attention_mask (N, L) bool -> tokens (N, L, D)."""
        most = self.position.num_embeddings
        if input_ids.shape[1] > most:
            raise ValueError(f"captions of {input_ids.shape[1]} tokens; model.max_tokens is {most}")
        x = self.embedding(input_ids) + self.position.weight[: input_ids.shape[1]]
        mask = attention_mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class TextDecoder(nn.Module):
    """Causal decoder; input and output embedding are the text encoder's, handed in so that there is one copy."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.position = nn.Embedding(config.max_tokens, config.hidden_size)
        self.blocks = nn.ModuleList(
            Block(config.hidden_size, config.num_heads, config.intermediate_size, cross=True, dropout=config.dropout,
                  ternary=config.ternary) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def contexts(self, context: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of what is looked at (N, S, D), one pair a layer; made once for a whole caption."""
        return [block.cross.keys(context) for block in self.blocks]

    def forward(self, embedded: Tensor, contexts: list[tuple[Tensor, Tensor]], caches: list[list] | None = None,
                weights: list | None = None) -> Tensor:
        """embedded tokens (N, L, D) -> states (N, L, D); state i has seen tokens <= i and the context.

        With `caches` (one list a layer) the tokens follow those already cached.
        """
        past = caches[0][0].shape[2] if caches and caches[0] else 0
        length = embedded.shape[1]
        mask = torch.ones(length, past + length, dtype=torch.bool, device=embedded.device).tril(past)
        x = embedded + self.position.weight[past: past + length]
        for layer, (block, context) in enumerate(zip(self.blocks, contexts, strict=True)):
            x = block(x, mask, context, caches[layer] if caches else None, weights)
        return self.norm(x)
