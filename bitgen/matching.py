"""What says that an image and a caption belong together once both are read together, and how re-ranking weighs it.

Two witnesses beside the contrast: the matching head, and the decoder, by how likely it finds the caption under the
image. The decoder learned from every word of every caption, so it knows details that one yes or no per pair taught the
head late or never. How likely a caption is under any image says nothing of this one, and part of it is taken away:
log P(caption | image) - alpha log P(caption), with alpha between 0 and 1 (Lin et al. 2024, arXiv 2306.01879, eq. 5).

M pairs of B images and N captions, L tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bitgen.model import BitGen, Encoded


class Weights(NamedTuple):
    """What a nat of each witness counts beside the ITC logit.

    Chosen on the validation images of `scenes` and of photos (`python benchmarks/rerank.py runs/scenes --split val`);
    what is best for other captions, longer ones above all, the same command says of a run on them.
    """

    match: float = 0.25
    """Of the matching head's log-odds."""
    words: float = 0.5
    """Of the caption's log-likelihood under the image, less `prior` times that under a blank one."""
    prior: float = 0.5
    """alpha: how much of the caption's likelihood under no image in particular is taken away."""


TO_IMAGES = Weights()
"""Where words look for images: what the words are worth without one is the same for all, so `prior` has no say."""
TO_CAPTIONS = Weights(words=0.2, prior=1.0)
"""Where an image looks for words: usual captions would win everywhere, so all that they are worth is taken away."""
TAUGHT = 0.9
"""A decoder whose loss is above this share of chance has learned no words."""


class Evidence(NamedTuple):
    """What both witnesses say of M pairs, float32 (M,), in nats."""

    odds: Tensor
    """Log-odds of the matching head."""
    seen: Tensor
    """Log-likelihood of the caption, its end included, under the image, with an empty memory."""
    blind: Tensor
    """The same under a blank image."""

    @property
    def match(self) -> Tensor:
        """The matching head's probability that they belong together."""
        return self.odds.sigmoid()

    @property
    def gain(self) -> Tensor:
        """How much likelier the image makes the caption: log P(caption | image) - log P(caption | blank).

        To be shown to people; `weigh` takes away a part of the second term only.
        """
        return self.seen - self.blind

    def weigh(self, logit: Tensor, weights: Weights) -> Tensor:
        """ITC logits (M,) with the evidence added."""
        return logit + weights.match * self.odds + weights.words * (self.seen - weights.prior * self.blind)


@torch.no_grad()
def blind_likelihood(model: BitGen, input_ids: Tensor, attention_mask: Tensor, batch_size: int = 256) -> Tensor | None:
    """Log-likelihood (N,) of captions (N, L) under a blank image: what their words alone are worth. On their device.

    None where the decoder finds them no likelier than tokens drawn by lot, as it does if it was trained without text
    loss: it is then not to be asked. Captions of equal length go together.
    """
    size, device = model.vision_config.image_size, next(model.parameters()).device
    image = model.image_tokens(torch.zeros(1, 3, size, size, device=device))
    lengths, found = attention_mask.sum(1), torch.empty(len(input_ids), device=input_ids.device)
    for rows in lengths.argsort().split(batch_size):
        ids, mask = (x[rows, :lengths[rows].max()].to(device) for x in (input_ids, attention_mask))
        each = torch.arange(len(rows), device=device)
        found[rows] = model.likelihood(image, ids, mask, (torch.zeros_like(each), each)).to(found.device)
    chance = math.log(model.config.vocab_size) * attention_mask[:, 1:].sum()
    return found if found.sum() > -TAUGHT * chance else None


@torch.no_grad()
def evidence(model: BitGen, image: Encoded, text: Encoded, input_ids: Tensor, attention_mask: Tensor,
             pairs: tuple[Tensor, Tensor], blind: Tensor | None) -> Evidence:
    """The evidence of pairs, index of image and of caption (M,) each; on the CPU.

    image: of B images; text, input_ids (N, L), attention_mask (N, L) and `blind` (N,), of `blind_likelihood`: of N
    captions. None in its place: the decoder is not asked, and says 0. Raises `ValueError` for non-finite numbers.
    """
    logits = model.match_tokens(image.tokens, text.tokens, attention_mask, pairs)
    odds = logits[:, 1] - logits[:, 0]
    said = torch.zeros_like(odds), torch.zeros_like(odds)
    if blind is not None:
        said = model.likelihood(image, input_ids, attention_mask, pairs), blind[pairs[1]]
    found = Evidence(odds, *said)
    found = Evidence(*(x.float().cpu() for x in found))
    if bad := sum(int((~torch.isfinite(x)).sum()) for x in found):
        raise ValueError(f"matching: {bad} of {3 * len(found.odds)} numbers are NaN or infinite")
    return found
