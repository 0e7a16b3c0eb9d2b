"""Figures of features and of what retrieval makes of them: maps, similarities, probes, confusions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bitgen.drawing import BLUE, COLOURS, GREY, INK, MARKERS, ORANGE, cells, level, sheet, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def embedding_map(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], owner: Sequence[int], axes_name: str = "PCA",
                  groups: Sequence[str] | None = None) -> Figure:
    """Images and captions in the plane, each caption joined to its image; one panel for each title of `panels`.

    panels: title -> points of the images (N, 2) and of the captions (M, 2), all panels of the same items; owner (M,):
    image of each caption. `groups` (N,): what each image is coloured by, else by modality. `axes_name`: what the
    axes are. Raises `ValueError` where the numbers of points and captions differ.
    """
    owner = np.asarray(owner)
    for images, texts in panels.values():
        if len(texts) != len(owner) or not len(images) or owner.max(initial=0) >= len(images):
            raise ValueError(f"embedding_map: {len(texts)} captions with {len(owner)} owners among {len(images)} "
                             "images")
    with styled():
        columns = min(3, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = sheet(max(3.3 * columns, 5.2), 3.3 * rows + 0.5 + (len(panels) == 1), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for place, (axes, (title, (images, texts))) in enumerate(zip(grid.flat, panels.items())):
            _joined(axes, np.asarray(images), np.asarray(texts), owner, groups)
            axes.set(title=title, xlabel=f"{axes_name} 1", ylabel=f"{axes_name} 2" if place % columns == 0 else "")
            axes.set_aspect("equal", adjustable="datalim")
        for axes in list(grid.flat)[len(panels):]:
            axes.remove()
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), markerscale=1.2)
    return figure


def _joined(axes: Axes, images: np.ndarray, texts: np.ndarray, owner: np.ndarray, groups) -> None:
    """Images as rings, so that captions which lie on their image are seen within it."""
    from matplotlib.collections import LineCollection

    segments = np.stack([images[owner], texts], 1)
    axes.add_collection(LineCollection(segments, colors=GREY, linewidths=0.4, alpha=0.35, label="belong together"))
    size = 14 if len(texts) <= 600 else 6
    if groups is None:
        parts = [(slice(None), slice(None), BLUE, ORANGE, "image", "caption")]
    else:
        names = list(dict.fromkeys(groups))
        member = np.asarray(groups)
        parts = [(member == name, member[owner] == name, colour, colour, name, None) for name, colour in
                 zip(names, [*COLOURS, INK, GREY])]
        axes.plot([], [], "o", color=GREY, label="image", markersize=4, fillstyle="none")
        axes.plot([], [], "^", color=GREY, label="caption", markersize=3)
    for which, said, colour, second, name, second_name in parts:
        axes.scatter(*images[which].T, s=2.4 * size, facecolors="none", edgecolors=colour, linewidths=0.9, label=name)
        axes.scatter(*texts[said].T, s=0.7 * size, color=second, marker="^", linewidths=0, alpha=0.75,
                     label=second_name)


def similarity(matrix: np.ndarray) -> Figure:
    """Cosines (n, n) of captions (rows) and images: the matrix, and how pairs lie apart from all others.

    Raises `ValueError` for fewer than two rows or another shape.
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"similarity: expected cosines (n, n) with n >= 2, got shape {matrix.shape}")
    pairs, others = matrix.diagonal(), matrix[~np.eye(len(matrix), dtype=bool)]
    with styled():
        figure = sheet(8.2, 3.7, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.05, 1))
        bound = np.abs(matrix).max()
        image = left.imshow(matrix, cmap="PuOr_r", vmin=-bound, vmax=bound, interpolation="nearest")
        left.set(title="The diagonal belongs together", xlabel="image", ylabel="its caption")
        left.grid(visible=False)
        figure.colorbar(image, ax=left, label="cosine", shrink=0.85)
        edges = np.linspace(matrix.min(), matrix.max(), 41)
        for values, colour, label in ((others, GREY, "all others"), (pairs, BLUE, "belong together")):
            right.hist(values, edges, weights=np.full(len(values), 100 / len(values)), color=colour, alpha=0.75,
                       label=f"{label}, mean {round(values.mean(), 2) + 0:.2f}")
        right.set(title="Pairs and others apart", xlabel="cosine", ylabel="share of the pairs, %")
        right.legend(loc="best")
    return figure


def probes(names: Sequence[str], kinds: Sequence[str], scores: Mapping[str, Sequence[float]],
           title: str = "What a linear map reads off the features") -> Figure:
    """Scores (C,) of each label under each title of `scores`, as dots, labels of one kind side by side; chance 0.5.

    Raises `ValueError` where a series has another length than the labels.
    """
    if not names or any(len(values) != len(names) for values in scores.values()) or len(kinds) != len(names):
        raise ValueError(f"probes: expected scores of {len(names)} labels each, got "
                         f"{ {name: len(values) for name, values in scores.items()} }")
    order = sorted(range(len(names)), key=lambda i: list(dict.fromkeys(kinds)).index(kinds[i]))
    gaps = np.cumsum([i > 0 and kinds[order[i]] != kinds[order[i - 1]] for i in range(len(order))])
    places = np.arange(len(order)) + 0.8 * gaps
    with styled():
        figure = sheet(5.6, 0.9 + 0.165 * (places[-1] + 2), layout="constrained")
        axes = figure.subplots()
        for i, ((label, values), colour, marker) in enumerate(zip(scores.items(), COLOURS, MARKERS)):
            axes.plot(np.asarray(values, dtype=float)[order], places, marker, color=colour, label=label, markersize=4.5,
                      linestyle="none", zorder=9 - i)
        level(axes, 0.5, "chance", vertical=True)
        axes.set_yticks(places, [names[i] for i in order], size=7.5)
        axes.set(title=title, xlabel="area under the ROC curve", xlim=(min(0.4, axes.get_xlim()[0]), 1.02))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(scores) + 1))
        for kind in dict.fromkeys(kinds):
            first = next(place for place, i in zip(places, order) if kinds[i] == kind)
            axes.annotate(kind, (1, first), xycoords=("axes fraction", "data"), xytext=(4, 0), size=7.5, color=INK,
                          textcoords="offset points", va="center", weight="bold")
    return figure


def confusion(names: Sequence[str], shares: np.ndarray, field: str, chance: float | None = None) -> Figure:
    """Shares (C, C) of what the right image has (rows) and the wrong ones nearest to a caption (columns), in percent.

    `chance`: what the diagonal would be on average for wrong images drawn at random.
    """
    with styled():
        figure = sheet(0.56 * len(names) + 1.6, 0.42 * len(names) + 1.3, layout="constrained")
        axes = figure.subplots()
        percent = 100 * np.asarray(shares, dtype=float)
        image = cells(axes, percent, list(names), list(names), 0, max(float(percent.max()), 1.0),
                      lambda value: f"{value:.0f}" if value >= 0.5 else "")
        axes.set(xlabel=f"{field} in the nearest wrong images", ylabel=f"{field} in the right image",
                 title=f"Which {field} lies near which")
        if chance is not None:
            axes.set_xlabel(f"{axes.get_xlabel()}\nchance on the diagonal {100 * chance:.0f} %")
        axes.set_xticks(axes.get_xticks(), names, rotation=45, ha="right", rotation_mode="anchor")
        figure.colorbar(image, ax=axes, label="share of the row, %", shrink=0.85)
    return figure


def differences(found: Mapping[str, float], chance: Mapping[str, float]) -> Figure:
    """How often the nearest wrong image differs from the right one in each attribute, beside a wrong one at random."""
    if not found:
        raise ValueError("differences: no wrong images to hold against the right ones")
    with styled():
        names = sorted(found, key=found.get)
        figure = sheet(5.6, 0.9 + 0.34 * len(names), layout="constrained")
        axes = figure.subplots()
        axes.barh(names, [100 * found[name] for name in names], 0.6, color=BLUE, label="the nearest wrong image")
        axes.plot([100 * chance[name] for name in names], range(len(names)), "|", color=GREY, markersize=15,
                  markeredgewidth=2, label="chance: any wrong image")
        axes.set(xlim=(0, 100), xlabel="share that differs from the right image, %",
                 title="In what the nearest wrong image differs")
        axes.grid(visible=False, axis="y")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
