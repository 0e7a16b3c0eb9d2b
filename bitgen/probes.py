"""Probes: what can be read off features by a linear map, measured on features that it was not fitted on.

N images, D width, C labels. A probe is ridge regression in closed form, and its score the area under the ROC curve
(the chance that a right one scores higher than a wrong one), so that chance is 0.5 whatever a label's share.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bitgen.scene_words import FIELDS

FOLDS = 5
RIDGE = 1e-2  # times the mean variance of a feature
FEWEST = 5  # images with and without a label, or it is left out


class Labels(NamedTuple):
    """What is true of each image."""

    names: list[str]
    """C of them, such as `red`."""
    kinds: list[str]
    """C of them, what each is one of, such as `colour`."""
    values: Tensor
    """(N, C) bool."""


class Probe(NamedTuple):
    """How well each label can be read; `shuffled` is the same for shuffled labels, a measured chance."""

    auc: Tensor
    """(C,) between 0 and 1."""
    shuffled: Tensor
    """(C,), about 0.5."""


def scene_labels(truth: Sequence[dict]) -> Labels:
    """Whether each scene has a thing of each colour, shape, size and texture, each background, relation, and count."""
    columns: dict[tuple[str, str], list[bool]] = {}
    for field, words in FIELDS.items():
        for name in words:
            columns[field, name] = [scene["background"] == name if field == "background" else
                                    any(thing[field] == name for thing in scene["objects"]) for scene in truth]
    columns["relation", "left of"] = [scene["relation"] == "left of" for scene in truth]
    columns["count", "three things"] = [len(scene["objects"]) == 3 for scene in truth]
    return _labels(columns)


def known_labels(data, places: Sequence[int]) -> Labels:
    """What is known of the images at `places` of a data set: its scenes, else the words of its captions."""
    if truth := getattr(data, "truth", None):
        return scene_labels([truth[i] for i in places])
    return word_labels([data.captions[i] for i in places])


def pair_labels(truth: Sequence[dict]) -> Labels:
    """Whether each scene has a thing of a colour and shape, such as `red ring`: what takes composition to tell."""
    having = [{(thing["colour"], thing["shape"]) for thing in scene["objects"]} for scene in truth]
    pairs = [(colour, shape) for colour in FIELDS["colour"] for shape in FIELDS["shape"]]
    return _labels({("pair", f"{colour} {shape}"): [(colour, shape) in pairs for pairs in having]
                    for colour, shape in pairs})


def word_labels(captions: Sequence[Sequence[str]], count: int = 16) -> Labels:
    """Whether any caption of an image says a word, for the `count` words whose share of the images is nearest to 0.3.

    For data of which nothing else is known; words of fewer than four letters are left out.
    """
    said = [set(re.findall(r"\w{4,}", " ".join(texts).lower())) for texts in captions]
    shares = Counter(word for words in said for word in words)
    chosen = sorted(shares, key=lambda word: (abs(shares[word] / len(said) - 0.3), word))[:count]
    return _labels({("word", word): [word in words for words in said] for word in sorted(chosen)})


def _labels(columns: dict[tuple[str, str], list[bool]]) -> Labels:
    """Without the labels that too few images have, or lack."""
    kept = {key: values for key, values in columns.items() if FEWEST <= sum(values) <= len(values) - FEWEST}
    values = torch.tensor(list(kept.values()), dtype=torch.bool).T if kept else torch.zeros(0, 0, dtype=torch.bool)
    return Labels([name for _, name in kept], [kind for kind, _ in kept], values)


def probe(features: Tensor, labels: Tensor, seed: int = 0) -> Probe:
    """Score of features (N, D) on labels (N, C) bool, each image scored by the map fitted without its fold.

    Raises `ValueError` for another number of rows, fewer than 10 of them, and non-finite features.
    """
    if len(features) != len(labels) or len(features) < 2 * FOLDS:
        raise ValueError(f"probe: expected at least {2 * FOLDS} rows of features and as many of labels, got "
                         f"{len(features)} and {len(labels)}")
    if not torch.isfinite(features).all():
        raise ValueError("probe: features hold NaN or infinity")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    permuted = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed + 1))]
    both = torch.cat([labels, permuted], 1).double()
    scores = torch.empty_like(both)
    for fold in order.chunk(FOLDS):
        kept = torch.ones(len(features), dtype=torch.bool)
        kept[fold] = False
        scores[fold] = _ridge(features[kept].double(), both[kept], features[fold].double())
    right, shuffled = (auc(s, t) for s, t in zip(scores.chunk(2, 1), (labels, permuted)))
    return Probe(right, shuffled)


def _ridge(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Predictions (n, C) for rows `new` (n, D) of the ridge regression of y (N, C) on x (N, D), intercept free."""
    mean, x = x.mean(0), x - x.mean(0)
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
    return (new - mean) @ torch.linalg.solve(gram, x.T @ (y - y.mean(0)))


def auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve (C,) of scores (N, C) for labels (N, C) bool, ties counted half (Mann & Whitney 1947).

    0.5 for a label that all or none have.
    """
    areas = []
    for score, label in zip(scores.T, labels.bool().T):
        _, place, count = score.unique(return_inverse=True, return_counts=True)
        rank = (count.cumsum(0) - (count - 1) / 2)[place]                          # mean rank of the tied, from 1
        yes, no = int(label.sum()), int((~label).sum())
        areas.append((rank[label].sum().item() - yes * (yes + 1) / 2) / (yes * no) if yes and no else 0.5)
    return torch.tensor(areas, dtype=torch.float64)
