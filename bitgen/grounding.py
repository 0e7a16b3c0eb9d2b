"""Which words speak of which places: what words and places cost together when they are taken away.

The contrastive similarity is a product of two features, so what is lost of it by covering a place p of the image and
leaving out a word w of the caption, beyond what each costs alone, is a product too:

    shared(w, p) = (t - t without w) . (x - x without p)

the interaction of the two (Grabisch & Roubens 1999, for a coalition of two), without gradients and for any towers.
`attended` tells where the fusion's attention goes instead; `benchmarks/pointing.py` holds both against objects whose
places are known. W words, L caption tokens, P patches, G cells along a side, S pixels, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bitgen.model import BitGen
from bitgen.tokenizer import Tokenizer

CELLS = 8  # cells along a side at most: what is covered is 2 x 2 of them, so that an image costs 49 encodings
BATCH = 64


class Grounding(NamedTuple):
    """The words of a caption and, for each, how much every place of the image speaks for it."""

    words: list[str]
    maps: Tensor
    """(W, G, G) float32: similarity that is lost with word and place, negative where they speak against each other."""


@torch.no_grad()
def ground(model: BitGen, tokenizer: Tokenizer, pixel_values: Tensor, input_ids: Tensor,
           attention_mask: Tensor) -> Grounding:
    """Ground one caption (1, L) in one image (1, 3, S, S), prepared by the model's `Processor`.

    The maps of several words may be added: a phrase looks where its words do. Raises `ValueError` for other than one
    image and one caption, and for a caption without a word.
    """
    if len(pixel_values) != 1 or len(input_ids) != 1:
        raise ValueError(f"ground: one image and one caption, got {len(pixel_values)} and {len(input_ids)}")
    spans = words_of(tokenizer, input_ids[0][attention_mask[0].bool()].tolist())
    if not spans:
        raise ValueError("ground: the caption has no word")
    without = attention_mask.bool().repeat(len(spans), 1)
    for row, (_, places) in zip(without, spans):
        row[places] = False
    text = model.encode_text(input_ids, attention_mask)
    lost_text = text - model.encode_text(input_ids.expand(len(spans), -1), without)                # (W, D)
    covered = cover(pixel_values)                                                                  # (n * n, 3, S, S)
    image = torch.cat([model.encode_image(part) for part in covered.split(BATCH)])
    lost_image = model.encode_image(pixel_values) - image                                          # (n * n, D)
    return Grounding([word for word, _ in spans], _spread((lost_text @ lost_image.T).float().cpu()))


def attended(model: BitGen, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The fusion's attention from words to patches (L, P), and from patches to words (P, L), in one image and caption.

    Weighted by the gradient of the log-odds of matching where that is positive, summed over layers, mean over heads
    (Grad-CAM, arXiv 1610.02391, as ALBEF has it on cross-attention, arXiv 2107.07651). Needs no step of `model`, and
    leaves none of its gradients. Arguments as in `ground`.
    """
    seen: dict[str, list[Tensor]] = {"word_to_patch": [], "patch_to_word": []}
    with torch.enable_grad():
        image, text = model.image_tokens(pixel_values), model.text_tokens(input_ids, attention_mask)
        tokens = image.tokens.detach().requires_grad_()  # or there is no gradient in a model whose weights are frozen
        logits = model.match_head(model.fusion(tokens, text.tokens, attention_mask.bool(), attentions=seen))
        weights = seen["word_to_patch"] + seen["patch_to_word"]
        grads = torch.autograd.grad(logits[0, 1] - logits[0, 0], weights)
    spoken = [(weight * grad).clamp(min=0).mean((0, 1)).detach().float() for weight, grad in zip(weights, grads)]
    layers = len(seen["word_to_patch"])
    return sum(spoken[:layers])[:, 1:], sum(spoken[layers:])[1:]                       # less the image's own token


def words_of(tokenizer: Tokenizer, ids: list[int]) -> list[tuple[str, list[int]]]:
    """The words of one row of ids, each with the places of its tokens; marks between words are left out."""
    groups: list[list[int]] = []
    goes_on = False
    for place, piece in enumerate(tokenizer.tokens(ids)):
        mark = not any(character.isalnum() or character == "\ufffd" for character in piece)  # \ufffd: part of a letter
        if ids[place] == tokenizer.eos or mark:
            goes_on = False
        elif goes_on and not piece[:1].isspace():
            groups[-1].append(place)
        else:
            groups.append([place])
            goes_on = True
    return [(tokenizer.decode([ids[place] for place in group]).strip(), group) for group in groups]


def cover(pixel_values: Tensor) -> Tensor:
    """One image (1, 3, S, S) with each 2 x 2 of its cells painted over in its median colour: (n * n, 3, S, S)."""
    cells = min(CELLS, pixel_values.shape[-1])
    edges = torch.linspace(0, pixel_values.shape[-1], cells + 1).round().int().tolist()
    median = pixel_values[0].flatten(1).median(1).values[:, None, None]
    covered = pixel_values.repeat((cells - 1) ** 2, 1, 1, 1)
    for i, image in enumerate(covered):
        row, column = divmod(i, cells - 1)
        image[:, edges[row]:edges[row + 2], edges[column]:edges[column + 2]] = median
    return covered


def _spread(shared: Tensor) -> Tensor:
    """What windows of 2 x 2 cells cost (W, n * n) as the mean over the windows that cover a cell (W, n + 1, n + 1)."""
    windows = shared.unflatten(1, (int(shared.shape[1] ** 0.5), -1))[:, None]
    ones = torch.ones(1, 1, 2, 2)
    return (F.conv_transpose2d(windows, ones) / F.conv_transpose2d(torch.ones_like(windows[:1]), ones))[:, 0]
