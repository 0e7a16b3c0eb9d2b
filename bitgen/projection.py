"""Features in the plane: principal components, which are exact and the same everywhere, and UMAP, which shows clusters.

N points, D width. PCA places new points and repeats to the bit on one machine. UMAP (arXiv 1802.03426) repeats for a
seed, but a change in the eighth digit moves its points far: what it shows is who is near whom, never how far apart
clusters are. Its results are therefore kept in a cache, by a hash of what went in.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitgen.config import cache_folder

FEWEST = 16  # points below which UMAP's neighbourhoods mean nothing
NEIGHBOURS, SPREAD = 15, 0.1  # UMAP's n_neighbors and min_dist
VERSION = 1  # of what the cache holds


class Projection(NamedTuple):
    """Where the points lie."""

    points: np.ndarray
    """(N, 2) float32."""
    method: str
    """`pca` or `umap`, whichever was used in the end."""
    note: str
    """What a reader should know, as a caption: shares of variance, or why it is not what was asked for."""


class Pca(NamedTuple):
    """A plane through the mean of what it was fitted on."""

    mean: Tensor
    """(D,) float64."""
    axes: Tensor
    """(2, D) float64, unit length; each one's largest entry is positive. Zeros where the points span no plane."""
    shares: Tensor
    """(2,) share of the variance along each axis."""

    def project(self, features: Tensor | np.ndarray) -> np.ndarray:
        """(N, D) -> (N, 2) float32; also for points that it was not fitted on."""
        return ((_checked(features) - self.mean) @ self.axes.T).float().numpy()


def pca(features: Tensor | np.ndarray) -> Pca:
    """The two directions in which features (N, D) vary most. Raises `ValueError` unless they are finite rows."""
    features = _checked(features)
    mean = features.mean(0)
    _, sizes, directions = torch.linalg.svd(features - mean, full_matrices=False)
    variance = sizes.square()
    axes, shares = torch.zeros(2, features.shape[1], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for i in range(int((variance[:2] > 1e-24 * features.square().sum()).sum())):
        largest = directions[i, directions[i].abs().argmax()]
        axes[i], shares[i] = directions[i] * largest.sign(), variance[i] / variance.sum()
    return Pca(mean, axes, shares)


def project(features: Tensor | np.ndarray, method: str = "pca", seed: int = 0, cache: str | Path | None = None,
            say: Callable[[str], None] = lambda message: print(message, file=sys.stderr)) -> Projection:
    """Features (N, D) in the plane by `method`, `pca` or `umap` (cosine distances).

    UMAP gives way to PCA below 16 points and where it is not installed; `say` is told so, and before waiting.
    `cache` is that of all data unless given. Raises `ValueError` for another method, and as `pca` does.
    """
    if method not in ("pca", "umap"):
        raise ValueError(f"method: expected 'pca' or 'umap', got {method!r}")
    features = _checked(features)
    if method == "umap" and len(features) < FEWEST:
        reason = f"UMAP needs at least {FEWEST} points and has {len(features)}: PCA instead"
    elif method == "umap":
        points = _umap(features.float().numpy(), seed, cache_folder(cache), say)
        if points is not None:
            return Projection(points, "umap", f"UMAP of {len(points):,} points, seed {seed}: near means alike; "
                                              "distances between clusters and the axes mean nothing")
        reason = "umap-learn is not installed (pip install 'bitgen[viz]'): PCA instead"
    else:
        reason = ""
    if reason:
        say(reason)
    plane = pca(features)
    note = f"PCA: the axes hold {plane.shares[0]:.0%} and {plane.shares[1]:.0%} of the variance"
    return Projection(plane.project(features), "pca", f"{note}; {reason}" if reason else note)


def aligned(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`points` (N, 2) turned and mirrored about their mean so that they lie nearest to `reference` (N, 2).

    Orthogonal Procrustes (Schönemann 1966): successive checkpoints' pictures stay comparable, shapes are kept.
    """
    if points.shape != reference.shape:
        raise ValueError(f"points {points.shape} and reference {reference.shape}: expected the same (N, 2)")
    centred = points - points.mean(0)
    left, _, right = np.linalg.svd(centred.T @ (reference - reference.mean(0)))
    return (centred @ (left @ right) + reference.mean(0)).astype(points.dtype)


def _umap(features: np.ndarray, seed: int, cache: Path, say: Callable[[str], None]) -> np.ndarray | None:
    """(N, 2) from the cache or UMAP; None where umap-learn is missing."""
    settings = (VERSION, features.shape, seed, NEIGHBOURS, SPREAD)
    name = hashlib.sha256(repr(settings).encode() + np.ascontiguousarray(features).tobytes()).hexdigest()[:32]
    path = cache / "projections" / f"umap-{name}.npy"
    if path.is_file():
        return np.load(path)
    say(f"UMAP of {len(features):,} points; the first one in a session takes up to a minute …")
    try:
        from umap import UMAP
    except ImportError:
        return None
    model = UMAP(n_neighbors=min(NEIGHBOURS, len(features) - 1), min_dist=SPREAD, metric="cosine", random_state=seed,
                 n_jobs=1)
    threads = torch.get_num_threads()
    points = np.asarray(model.fit_transform(features), dtype=np.float32)
    torch.set_num_threads(threads)  # UMAP gives itself all cores, and torch with it: later training would differ
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.npy")
    np.save(unfinished, points)
    unfinished.replace(path)
    return points


def _checked(features: Tensor | np.ndarray) -> Tensor:
    """(N, D) float64 on the CPU."""
    features = torch.as_tensor(features).detach().cpu().double()
    if features.ndim != 2 or 0 in features.shape or not torch.isfinite(features).all():
        raise ValueError(f"features: expected finite rows (points, width), both above 0, got shape "
                         f"{tuple(features.shape)}"
                         + ("" if torch.isfinite(features).all() else " with NaN or infinity"))
    return features
