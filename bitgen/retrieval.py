"""Recall between images and captions, with its chance levels, ties, folds and confidence intervals.

Shapes: N images, M captions (any number of them an image), Q queries, C candidates of a query, D width.

An image finds a caption when *any* of its captions is among the first k; each caption is a query of its own for
images (Karpathy & Fei-Fei 2015, arXiv 1412.2306). Ties are broken at random *in expectation*: a model whose features
are all equal scores chance, exactly, and not 100 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TIE = 1e-6  # scores closer than this (times the score, where it is above 1) are equal: matmul tiles round differently
LEVEL = 0.95  # of confidence intervals
CHUNK = 256  # queries whose scores are held at a time: 256 x 25,000 captions of COCO are 26 MB


class Ranking(NamedTuple):
    """Where the first right candidate of each query stands; float64 tensors `(Q,)`."""

    better: Tensor
    """Wrong candidates that score strictly more than the best right one."""
    tied: Tensor
    """Wrong candidates that score the same."""
    own: Tensor
    """Right candidates that share this best score, at least 1."""

    @property
    def ranks(self) -> Tensor:
        """Expected rank `(Q,)` from 1: strictly better, plus half of the ties (the 1/(own+1)-th part of them)."""
        return 1 + self.better + self.tied / (self.own + 1)

    def hits(self, k: int) -> Tensor:
        """Probability `(Q,)` that a right candidate is among the first k: 1 - C(tied, m) / C(tied + own, m).

        m = k - better is the number of places left for the candidates that share the best right score.
        """
        places, miss = k - self.better, torch.ones_like(self.tied)
        for j in range(k):
            factor = (self.tied - j).clamp(min=0) / (self.tied + self.own - j).clamp(min=1)
            miss = torch.where(places > j, miss * factor, miss)
        return 1 - miss

    def report(self, name: str, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """Flat keys `{name}_r1 … {name}_median_rank`; recalls in [0, 1]."""
        recalls = {f"{name}_r{k}": self.hits(k).mean().item() for k in ks}
        return {**recalls, f"{name}_median_rank": self.ranks.quantile(0.5).item()}


def compare(scores: Tensor, own: Tensor) -> Ranking:
    """The `Ranking` of `scores (Q, C)`, where `own (Q, C)` is true for right candidates (at least one a row)."""
    best = scores.masked_fill(~own, float("-inf")).amax(1, keepdim=True)
    near = TIE * best.abs().clamp(min=1)
    better, tied = scores > best + near, (scores - best).abs() <= near
    return Ranking((better & ~own).sum(1).double(), (tied & ~own).sum(1).double(), (tied & own).sum(1).double())


def ranks(scores: Tensor, caption_to_image: Sequence[int] | Tensor) -> tuple[Ranking, Ranking]:
    """Rankings (image to text `(N,)`, text to image `(M,)`) of a whole matrix of `scores (N, M)`.

    Raises `ValueError` for scores that are not a finite matrix, and as `check_captions` does.
    """
    if scores.ndim != 2 or not torch.isfinite(scores).all():
        raise ValueError(f"scores: expected a finite matrix (images, captions), got shape {tuple(scores.shape)}"
                         + ("" if scores.ndim != 2 else f" with {int((~torch.isfinite(scores)).sum())} non-finite"))
    owner = check_captions(caption_to_image, *scores.shape).to(scores.device)
    own = owner == torch.arange(len(scores), device=scores.device)[:, None]  # (N, M)
    return compare(scores, own), compare(scores.T, own.T)


def rank_features(image_features: Tensor, text_features: Tensor, caption_to_image: Sequence[int] | Tensor,
                  chunk: int = CHUNK) -> tuple[Ranking, Ranking]:
    """Rankings (image to text `(N,)`, text to image `(M,)`) by cosine, `chunk` queries at a time.

    `image_features (N, D)`, `text_features (M, D)`, `caption_to_image (M,)` = the image index of each caption.
    Raises `ValueError` for shapes that do not fit, non-finite features, and as `check_captions` does.
    """
    images, texts = check_features(image_features, "image_features"), check_features(text_features, "text_features")
    if images.shape[1] != texts.shape[1]:
        raise ValueError(f"image_features are {images.shape[1]} wide and text_features {texts.shape[1]}: widths differ")
    owner = check_captions(caption_to_image, len(images), len(texts)).to(images.device)
    index = torch.arange(len(images), device=images.device)
    i2t = [compare(_cosines(images[i], texts), index[i, None] == owner) for i in _spans(len(images), chunk)]
    t2i = [compare(_cosines(texts[i], images), owner[i, None] == index) for i in _spans(len(texts), chunk)]
    return Ranking(*map(torch.cat, zip(*i2t, strict=True))), Ranking(*map(torch.cat, zip(*t2i, strict=True)))


def nearest(queries: Tensor, keys: Tensor, k: int, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Cosines and indices, each `(Q, min(k, C))`, of the best of `keys (C, D)` for each of `queries (Q, D)`."""
    queries, keys = check_features(queries, "queries"), check_features(keys, "keys")
    found = [_cosines(queries[i], keys).topk(min(k, len(keys))) for i in _spans(len(queries), chunk)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def rerank(ranking: Ranking, scores: Tensor, own: Tensor) -> Ranking:
    """`ranking (Q,)` after its first K candidates were put in the order of new `scores (Q, K)`.

    `own (Q, K)` marks the right ones among them. A query without one keeps its place, behind those K.
    """
    found = own.any(1)
    inside = compare(scores, own | ~found[:, None])
    better = ranking.better.clamp(min=scores.shape[1])
    outside = Ranking(better, (ranking.better + ranking.tied - better).clamp(min=0), ranking.own)
    return Ranking(*(torch.where(found, new, old) for new, old in zip(inside, outside, strict=True)))


def recall_at_k(image_features: Tensor, text_features: Tensor, caption_to_image: Sequence[int] | Tensor,
                ks: Sequence[int] = (1, 5, 10), intervals: Sequence[int] = ()) -> dict[str, float]:
    """Recall in both directions beside its chance level.

    `image_features (N, D)`, `text_features (M, D)`, `caption_to_image (M,)` = the image index of each caption.
    Returns flat keys `i2t_r1 … t2i_r10`, `i2t_median_rank`, `t2i_median_rank`, for each k of `intervals` those of
    `recalls`, and the first ones with `chance_` in front.
    Raises `ValueError` as `rank_features` does, and for `ks` that are no whole numbers from 1.
    """
    ks = _places(ks)
    rankings = rank_features(image_features, text_features, caption_to_image)
    return (recalls(*rankings, caption_to_image, ks, intervals)
            | chance(caption_to_image, len(image_features), ks))


def recalls(i2t: Ranking, t2i: Ranking, caption_to_image: Sequence[int] | Tensor, ks: Sequence[int] = (1, 5, 10),
            intervals: Sequence[int] = ()) -> dict[str, float]:
    """Flat keys `i2t_r1 … t2i_median_rank` of rankings `(N,)`, `(M,)`; for each k of `intervals` also the 95 % interval
    over images, as `i2t_r1_low`, `i2t_r1_high` …"""
    report = i2t.report("i2t", ks) | t2i.report("t2i", ks)
    for name, ranking, image in (("i2t", i2t, torch.arange(len(i2t.better))), ("t2i", t2i, caption_to_image)):
        for k in intervals:
            report[f"{name}_r{k}_low"], report[f"{name}_r{k}_high"] = interval(ranking.hits(k), image)
    return report


def chance(caption_to_image: Sequence[int] | Tensor, images: int, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """What a random order scores, exactly, as `chance_i2t_r1 … chance_t2i_median_rank`.

    Text to image: k / N. Image to text, with c captions of M: 1 - C(M - c, k) / C(M, k). The median rank is the
    median of the first right one's place over random orders and all queries.
    """
    owner = check_captions(caption_to_image, images, len(caption_to_image))
    counts = torch.bincount(owner, minlength=images).double()
    i2t = Ranking(torch.zeros_like(counts), len(owner) - counts, counts)
    one = torch.ones(1, dtype=torch.float64)
    t2i = Ranking(one * 0, one * (images - 1), one)
    report = {}
    for name, ranking in {"i2t": i2t, "t2i": t2i}.items():
        report |= {f"chance_{name}_r{k}": ranking.hits(k).mean().item() for k in ks}
        report[f"chance_{name}_median_rank"] = _median_place(ranking)
    return report


def folds(image_features: Tensor, text_features: Tensor, caption_to_image: Sequence[int] | Tensor,
          size: int = 1000, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """`recall_at_k` averaged over folds of `size` consecutive images with their captions (COCO's 5 x 1k protocol).

    Images beyond the last whole fold are left out. Raises `ValueError` where there are fewer images than `size`.
    """
    owner = check_captions(caption_to_image, len(image_features), len(text_features))
    results = []
    for fold, captions in split(owner, len(image_features), size):
        results.append(recall_at_k(image_features[fold], text_features[captions], owner[captions] - fold.start, ks))
    return mean_report(results)


def split(owner: Tensor, images: int, size: int) -> list[tuple[slice, Tensor]]:
    """Folds of `size` consecutive images: (slice of the images, indices of their captions)."""
    if not 1 <= size <= images:
        raise ValueError(f"size: a fold of {size} images does not fit a gallery of {images}")
    starts = range(0, images - size + 1, size)
    return [(slice(s, s + size), ((owner >= s) & (owner < s + size)).nonzero().flatten()) for s in starts]


def mean_report(reports: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each key over reports that share their keys."""
    return {key: sum(r[key] for r in reports) / len(reports) for key in reports[0]}


def interval(hits: Tensor, image_of_query: Sequence[int] | Tensor, level: float = LEVEL, resamples: int = 1000,
             seed: int = 0) -> tuple[float, float]:
    """Bootstrap confidence interval (low, high) of the mean of `hits (Q,)`, drawing *images* with replacement.

    The captions of an image succeed and fail together, so they are drawn together (cluster bootstrap; Davison &
    Hinkley 1997, section 3.8); `image_of_query (Q,)` says which belong together. Deterministic given `seed`.
    """
    owner = torch.as_tensor(image_of_query, device="cpu")
    hits = hits.detach().cpu().double()
    if hits.ndim != 1 or hits.shape != owner.shape or not len(hits):
        raise ValueError(f"hits {tuple(hits.shape)} and image_of_query {tuple(owner.shape)}: expected the same (Q,)")
    _, cluster, count = owner.unique(return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), dtype=torch.float64).index_add_(0, cluster, hits)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(count), (resamples, len(count)), generator=generator)
    means = total[drawn].sum(1) / count[drawn].sum(1)
    return means.quantile((1 - level) / 2).item(), means.quantile((1 + level) / 2).item()


def firsts(owner: Tensor, images: int) -> Tensor:
    """First caption (N,) of each of the first N = `images`; `owner (M,)`, the image of each caption, is ascending."""
    return torch.searchsorted(owner, torch.arange(images, device=owner.device))


def check_features(features: Tensor, name: str) -> Tensor:
    """`features (N, D)` as unit float32 rows. Raises `ValueError` for another shape, no rows, or NaN and infinity."""
    features = torch.as_tensor(features)  # NumPy's arrays pass too
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{name}: expected shape (items, width), both above 0, got {tuple(features.shape)}")
    features = features.detach().float()  # similarities in float32 whatever the model computes in
    bad = (~torch.isfinite(features).all(1)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{name}: {len(bad)} of {len(features)} rows hold NaN or infinity, the first is row {bad[0]}")
    # By a power of two, which rounds nothing: squares of what is very long or short leave the range of float32.
    exponent = features.abs().amax(1, keepdim=True).frexp().exponent.clamp(-126, 126)
    return F.normalize(features.ldexp(-exponent), dim=1)


def check_captions(caption_to_image: Sequence[int] | Tensor, images: int, captions: int) -> Tensor:
    """`caption_to_image (M,)` as an int64 tensor on the CPU.

    Raises `ValueError` for a wrong length, indices that are no whole numbers in [0, images), or images without caption.
    """
    owner = torch.as_tensor(caption_to_image).cpu()
    if owner.shape != (captions,) or not captions:
        raise ValueError(f"caption_to_image: expected one image index for each of {captions} captions, "
                         f"got shape {tuple(owner.shape)}")
    if owner.is_floating_point() or owner.dtype == torch.bool:
        raise ValueError(f"caption_to_image: expected whole numbers, got {owner.dtype}")
    owner = owner.long()  # 256 images do not fit the range of uint8
    wrong = owner[(owner < 0) | (owner >= images)]
    if len(wrong):
        raise ValueError(f"caption_to_image: {wrong[0]} is outside [0, {images}), the indices of the images")
    bare = (torch.bincount(owner, minlength=images) == 0).nonzero().flatten()
    if len(bare):
        raise ValueError(f"caption_to_image: {len(bare)} of {images} images have no caption, the first is {bare[0]}")
    return owner


def _places(ks: Sequence[int]) -> list[int]:
    """`ks` as ints, whatever holds them."""
    try:
        given = list(ks)
        whole = [int(k) for k in given]
    except (TypeError, ValueError, OverflowError):  # no list; no number or NaN; infinity
        whole = []
    if not whole or any(k < 1 or k != value for k, value in zip(whole, given)):
        raise ValueError(f"ks: expected whole numbers from 1, got {ks}")
    return whole


def _cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """(Q, C) of unit rows (Q, D), (C, D); in float32 inside autocast too, where bf16 would make ties of neighbours."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ keys.T


def _spans(length: int, chunk: int) -> list[slice]:
    """Slices of at most `chunk` items that cover `length`."""
    return [slice(start, start + chunk) for start in range(0, length, chunk)]


def _median_place(ranking: Ranking) -> float:
    """Median place of the first right candidate where all candidates are tied (the middle of lower and upper)."""
    pairs, weights = torch.stack([ranking.tied, ranking.own]).unique(dim=1, return_counts=True)
    j = torch.arange(int(pairs[0].max()) + 1, dtype=torch.float64)
    miss = ((pairs[0, :, None] - j).clamp(min=0) / (pairs.sum(0)[:, None] - j).clamp(min=1)).cumprod(1)
    found = 1 - (weights[:, None] * miss).sum(0) / weights.sum()  # (places,) share found among the first j + 1
    lower, upper = (found > 0.5 - 1e-9).nonzero()[0], (found > 0.5 + 1e-9).nonzero()[0]
    return 1 + (lower + upper).item() / 2
