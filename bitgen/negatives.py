"""Negatives for the contrast: the queue of features, the momentum copy, hard negatives for matching.

B images, N captions, Q queued pairs, D width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bitgen.tokenizer import BUCKET


class FeatureQueue(nn.Module):
    """The newest pairs of features (MoCo, arXiv 1911.05722): starts empty and grows to `capacity`.

    Buffers (saved with the training state): image, text (Q, D); image_ids, caption_ids (Q,); input_ids (Q, max_tokens)
    and lengths (Q,), the captions' words; size, head ().
    """

    def __init__(self, capacity: int, hidden_size: int, max_tokens: int):
        super().__init__()
        self.capacity = capacity
        self.register_buffer("input_ids", torch.zeros(capacity, max_tokens, dtype=torch.int32))
        self.register_buffer("lengths", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("image", torch.zeros(capacity, hidden_size))
        self.register_buffer("text", torch.zeros(capacity, hidden_size))
        self.register_buffer("image_ids", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("caption_ids", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("size", torch.zeros((), dtype=torch.int64))
        self.register_buffer("head", torch.zeros((), dtype=torch.int64))

    def held(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """image (n, D), text (n, D), image_ids (n,), caption_ids (n,) of the n pairs held so far."""
        size = int(self.size)
        return self.image[:size], self.text[:size], self.image_ids[:size], self.caption_ids[:size]

    def captions(self, places: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
        """input_ids int64 (n, L), attention_mask bool (n, L) of the captions at `places` (n,), counted as `held` does.

        L: the longest of them in whole buckets, at least `least`.
        """
        lengths = self.lengths[places]
        longest = max([least, *lengths.tolist()])
        width = min(-(-longest // BUCKET) * BUCKET, self.input_ids.shape[1])
        return self.input_ids[places, :width].long(), torch.arange(width, device=places.device) < lengths[:, None]

    @torch.no_grad()
    def enqueue(self, image: Tensor, text: Tensor, image_ids: Tensor, caption_ids: Tensor, input_ids: Tensor,
                lengths: Tensor) -> None:
        """Append n pairs over the oldest; of more than fit, the last `capacity` stay. Ends wrap around.

        input_ids (n, max_tokens) and lengths (n,): the words of the captions, for matching to be asked about.
        """
        pairs = [x[-self.capacity:] for x in (image, text, image_ids, caption_ids, input_ids, lengths)]
        places = (self.head + torch.arange(len(pairs[0]), device=self.head.device)) % max(self.capacity, 1)
        held = self.image, self.text, self.image_ids, self.caption_ids, self.input_ids, self.lengths
        for kept, new in zip(held, pairs, strict=True):
            kept[places] = new.to(kept.dtype)
        self.head.copy_((self.head + len(pairs[0])) % max(self.capacity, 1))
        self.size.copy_((self.size + len(pairs[0])).clamp(max=self.capacity))


class MomentumCopy(nn.Module):
    """An exponential moving average of a model's weights (ALBEF, arXiv 2107.07651, section 3.2).

    The decay warms up as min(decay, (1 + t) / (10 + t)), so that the copy leaves its random start behind.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> MomentumCopy:
        """Always in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards `model`'s parameters; buffers (the memory's sums) are copied."""
        done = int(self.updates)
        rate = 1 - min(self.decay, (1 + done) / (10 + done))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), rate)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates.add_(1)


@torch.no_grad()
def hard_negatives(similarity: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """One column for each row, drawn with probability proportional to softmax(similarity) over the allowed ones.

    Shape: similarity (R, C) logits, allowed (R, C) bool; returns (rows (r,), columns (r,)) of the r rows that have
    a candidate (ALBEF, arXiv 2107.07651, section 3.3).
    """
    rows = allowed.any(1).nonzero()[:, 0]
    chances = similarity[rows].float().masked_fill(~allowed[rows], -torch.inf).softmax(1)
    # What `multinomial` does for one draw, less its check: a step whose numbers are not finite is skipped, not fatal.
    return rows, (chances / torch.empty_like(chances).exponential_()).argmax(1)
