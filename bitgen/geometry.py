"""How the features of images and captions lie on the sphere: the gap between them, how alike pairs are, how spread all.

N images, M captions, D width. All features are unit length. Each number stands beside what it would be for features
that tell nothing, so that it can look bad.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitgen.retrieval import check_captions, check_features, firsts

ROWS = 2000  # features of which all pairs are looked at


def geometry(image_features: Tensor, text_features: Tensor, owner: Tensor, seed: int = 0) -> dict[str, float]:
    """All numbers of this module for features (N, D), (M, D) and the image (M,) of each caption.

    `gap`: distance of the two means (Liang et al. 2022, arXiv 2203.02053), and `gap_noise`, what it is between two
    random halves of the images. `alignment`, `uniformity_images`, `uniformity_texts`: see there. `positive_cosine`,
    `negative_cosine`: mean of pairs that belong together and of all others. `rank_images`, `rank_texts`: effective
    rank. Raises `ValueError` as `recall_at_k` does.
    """
    images, texts = check_features(image_features, "image_features"), check_features(text_features, "text_features")
    owner = check_captions(owner, len(images), len(texts))
    halves = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).chunk(2)
    cosines = (images[owner] * texts).sum(1)
    others = (images.sum(0) @ texts.sum(0) - cosines.sum()) / max(len(images) * len(texts) - len(texts), 1)
    return {
        "gap": modality_gap(images, texts),
        "gap_noise": modality_gap(images[halves[0]], images[halves[-1]]),
        "alignment": alignment(images[owner], texts),
        "uniformity_images": uniformity(images), "uniformity_texts": uniformity(texts),
        "positive_cosine": cosines.mean().item(), "negative_cosine": others.item(),
        "rank_images": effective_rank(images), "rank_texts": effective_rank(texts), "width": float(images.shape[1]),
    }


def modality_gap(first: Tensor, second: Tensor) -> float:
    """Distance between the means of unit rows (N, D) and (M, D); between 0 and 2."""
    return (first.mean(0) - second.mean(0)).norm().item()


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of pairs of unit rows (N, D), (N, D): 0 where they coincide, 2 where they are unrelated.

    Wang & Isola 2020 (arXiv 2005.10242), eq. 1 with alpha = 2.
    """
    return (first - second).square().sum(1).mean().item()


def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 |x - y|^2) over pairs of different rows (N, D): 0 where all coincide, down to about
    -4 where unit rows are spread evenly over the sphere. Wang & Isola 2020, eq. 2 with t = 2; 0 for a single row.
    Of more than 2,000 rows it takes at most that many, evenly spaced: pairs grow with the square.
    """
    if len(features) < 2:
        return 0.0
    features = features[::-(-len(features) // ROWS)]
    return torch.pdist(features.float()).square().mul(-2).exp().mean().log().item()


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the shares of the singular values of centred rows (N, D): in how many directions they vary.

    Roy & Vetterli 2007; between 1 and min(N, D), and 0 where they do not vary at all.
    """
    features = features.double()
    sizes = torch.linalg.svdvals(features - features.mean(0))
    if sizes.sum() <= 1e-6 * features.norm():
        return 0.0
    return torch.special.entr(sizes / sizes.sum()).sum().exp().item()


def similarity(image_features: Tensor, text_features: Tensor, owner: Tensor, count: int) -> Tensor:
    """Cosines (n, n) of the first n = min(N, count) images (columns) and the first caption of each (rows)."""
    count = min(count, len(image_features))
    return text_features[firsts(owner, count)].float() @ image_features[:count].float().T
