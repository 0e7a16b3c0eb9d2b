"""The first candidates of each query, read together with it, and put in a new order by what was read.

N images, M captions, T pairs of them, Q queries, K candidates of each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitgen import retrieval
from bitgen.encoded import Gallery
from bitgen.matching import TO_CAPTIONS, TO_IMAGES, Evidence, Weights, blind_likelihood, evidence
from bitgen.model import Encoded
from bitgen.precision import inference_autocast


class Candidates(NamedTuple):
    """The first K candidates of each of Q queries, and what the model says of them once both are read together."""

    cosines: Tensor
    """(Q, K), best first."""
    right: Tensor
    """(Q, K) bool: candidates that belong to the query."""
    evidence: Evidence
    """Of all Q x K pairs, as (Q, K)."""
    weights: Weights
    """What the evidence counts in this direction, unless told otherwise."""

    def reranked(self, ranking: retrieval.Ranking, scale: float, weights: Weights | None = None) -> retrieval.Ranking:
        """`ranking` of the same queries after the candidates were put in the order of ITC logit and evidence."""
        scores = self.evidence.weigh(scale * self.cosines, weights or self.weights)
        return retrieval.rerank(ranking, scores, self.right)


def candidates(model, gallery: Gallery, first: int = 32, batch_size: int = 256,
               device: str | torch.device | None = None) -> tuple[Candidates, Candidates]:
    """The captions that images find first, and the images that captions find first; on the model's `device`.

    A pair that is a candidate in both directions is read once.
    """
    images, texts, owner, captions = gallery.image_features, gallery.text_features, gallery.owner, len(gallery.owner)
    i2t, found_texts = retrieval.nearest(images, texts, first)                              # (N, K)
    t2i, found_images = retrieval.nearest(texts, images, first)                             # (M, K)
    pairs = torch.cat([(torch.arange(len(images))[:, None] * captions + found_texts).flatten(),
                       (found_images * captions + torch.arange(captions)[:, None]).flatten()])
    unique, place = pairs.unique(return_inverse=True)
    known = pair_evidence(model, gallery, unique // captions, unique % captions, batch_size, device)
    sides = zip(*(x[place].split([found_texts.numel(), found_images.numel()]) for x in known))
    own = owner[found_texts] == torch.arange(len(images))[:, None], found_images == owner[:, None]
    return tuple(Candidates(cosines, right, Evidence(*(x.view_as(cosines) for x in side)), weights)
                 for cosines, right, side, weights in zip((i2t, t2i), own, sides, (TO_CAPTIONS, TO_IMAGES)))


@torch.no_grad()
def pair_evidence(model, gallery: Gallery, images: Tensor, captions: Tensor, batch_size: int = 256,
                  device: str | torch.device | None = None) -> Evidence:
    """`Evidence` that `images (T,)` and `captions (T,)` of the gallery belong together; from encoded tokens.

    Captions of equal length go together, so that no padding is read, and among them the pairs of an image, so that
    what fusion and decoder do with the image alone is done few times. Raises `ValueError` for non-finite numbers.
    """
    ids, mask, device = gallery.input_ids, gallery.attention_mask, device or next(model.parameters()).device
    lengths = mask.sum(1)
    with inference_autocast(device):
        blind = blind_likelihood(model, ids, mask, batch_size)
    order = (lengths[captions] * len(gallery.indices) + images).argsort()
    found = torch.empty(len(Evidence._fields), len(order))
    for rows in order.split(batch_size):
        length = int(lengths[captions[rows]].max())
        (used, image), (said, caption) = (x[rows].unique(return_inverse=True) for x in (images, captions))
        shown = Encoded(gallery.image_tokens[used].to(device), gallery.image_features[used].to(device))
        words = Encoded(gallery.text_tokens[said, :length].to(device), gallery.text_features[said].to(device))
        with inference_autocast(device):
            found[:, rows] = torch.stack(evidence(
                model, shown, words, ids[said, :length].to(device), mask[said, :length].to(device),
                (image.to(device), caption.to(device)), None if blind is None else blind[said].to(device)))
    return Evidence(*found)
