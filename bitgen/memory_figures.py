"""Figures of the episodic memory: which slots are used and for what, how much they hold, how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bitgen.drawing import BLUE, DIVERGING, GREEN, GREY, ORANGE, RED, level, plain_log, sheet, styled
from bitgen.memory import used

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def slot_usage(mean: Sequence[float], over_time: tuple[Sequence[int], np.ndarray] | None = None,
               by_label: tuple[Sequence[str], np.ndarray] | None = None) -> Figure:
    """Mean mass of each slot (K,); where given, its course (steps, (T, K)), and (labels, (C, K)) what slots stand for.

    `by_label` holds log2 of how much more mass facts with the label put on a slot than those without.
    """
    mean = np.asarray(mean, dtype=float)
    heights = [1.7]
    if over_time is not None:
        heights.append(0.7 + 0.14 * max(len(over_time[0]), 5))
    if by_label is not None:
        heights.append(0.7 + 0.135 * len(by_label[0]))
    with styled():
        figure = sheet(7.4, sum(heights) + 0.4, layout="constrained")
        panels = iter(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0])
        _bars(axes := next(panels), mean)
        if over_time is not None:
            steps, shares = over_time
            axes = next(panels)
            image = axes.imshow(100 * np.asarray(shares, dtype=float), aspect="auto", vmin=0, interpolation="nearest")
            axes.set(title="Over training", ylabel="step", yticks=range(len(steps)), yticklabels=steps)
            axes.grid(visible=False)
            figure.colorbar(image, ax=axes, label="mass, %", pad=0.01)
        if by_label is not None:
            names, lift = by_label
            axes = next(panels)
            bound = max(0.5, float(np.abs(lift).max()))
            image = axes.imshow(lift, aspect="auto", cmap=DIVERGING, vmin=-bound, vmax=bound, interpolation="nearest")
            axes.set_yticks(range(len(names)), names, size=7)
            axes.set_title("What a slot stands for")
            axes.grid(visible=False)
            figure.colorbar(image, ax=axes, label="log2 (mass with / without)", pad=0.01)
        axes.set(xlabel="slot", xlim=(-0.6, len(mean) - 0.4))
        figure.align_ylabels()
    return figure


def _bars(axes: Axes, mean: np.ndarray) -> None:
    uniform, dead = 1 / len(mean), ~used(mean)
    places = np.arange(len(mean))
    axes.bar(places[~dead], 100 * mean[~dead], 0.8, color=BLUE, label=f"used: {int((~dead).sum())} of {len(mean)}")
    if dead.any():  # an empty line that is not clipped has no extent, and the layout gives up
        axes.bar(places[dead], 100 * mean[dead], 0.8, color=RED, label=f"not used: {int(dead.sum())}")
        axes.plot(places[dead], np.zeros(int(dead.sum())), "x", color=RED, markersize=5, clip_on=False)
    level(axes, 100 * uniform, "all alike")
    axes.set(title="Mass on each slot", ylabel="mass, %", ylim=(0, max(100 * mean.max() * 1.35, 100 * uniform * 1.6)))
    axes.legend(loc="upper right", ncols=3)


def slot_similarity(together: np.ndarray, held: np.ndarray) -> Figure:
    """How alike slots are, (K, K) each: correlation of what they are used for, cosine of what they hold."""
    with styled():
        figure = sheet(7.4, 3.5, layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        titles = ("Used together (correlation)", "Hold alike (cosine)")
        for axes, matrix, title in zip(panels, (together, held), titles):
            image = axes.imshow(matrix, cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
            off = np.asarray(matrix)[~np.eye(len(matrix), dtype=bool)]
            axes.set(title=title, xlabel=f"slot; largest off the diagonal {off.max():.2f}")
            axes.grid(visible=False)
        panels[0].set_ylabel("slot")
        figure.colorbar(image, ax=panels, label="1: does the same work, 0: unrelated", shrink=0.85)
    return figure


def certainty(slots: np.ndarray, readings: np.ndarray, noise: float) -> Figure:
    """The variance of slots (n + 1, K) and of readings (n + 1, N) while n facts come in, one a row.

    The first n columns of `readings` are the facts that are written, in order; the others never are.
    """
    slots, readings = np.asarray(slots, dtype=float), np.asarray(readings, dtype=float)
    written = len(readings) - 1
    with styled():
        figure = sheet(8.2, 3.6, layout="constrained")
        left, right = figure.subplots(1, 2)
        image = left.imshow(slots.T, aspect="auto", interpolation="nearest", vmin=0)
        left.set(title="Variance of each slot", xlabel="facts written", ylabel="slot")
        left.grid(visible=False)
        figure.colorbar(image, ax=left, label="variance (diagonal of U)")
        known = np.arange(written + 1)[:, None] > np.arange(written)[None]                  # (n + 1, n)
        mine = np.where(known, readings[:, :written], np.nan)
        right.plot(readings[:, :written], color=BLUE, alpha=0.12, linewidth=0.7)
        right.plot(np.arange(1, written + 1), [np.nanmean(row) for row in mine[1:]], color=BLUE, label="facts written")
        right.plot([row[~k].mean() if (~k).any() else np.nan for row, k in zip(readings[:, :written], known)],
                   color=ORANGE, label="facts still to come")
        if readings.shape[1] > written:
            right.plot(readings[:, written:].mean(1), color=GREEN, linestyle="-.", label="facts never written")
        level(right, noise**2, "noise alone")
        right.set(title="Variance of a reading", xlabel="facts written", ylabel="variance")
        plain_log(right, "y")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=4)
    return figure


def capacity(counts: Sequence[int], curves: Mapping[str, Sequence[float]], slots: int) -> Figure:
    """Share of facts that come back first, against how many were written; `curves` as `slots.capacity` gives them."""
    names = {"pair": ("read with image and words", BLUE, "o"), "image": ("read with the image alone", ORANGE, "s"),
             "never": ("memory never written", RED, "v")}
    with styled():
        figure = sheet(5.6, 3.3, layout="constrained")
        axes = figure.subplots()
        for key, (label, colour, marker) in names.items():
            if key in curves:
                axes.plot(counts, curves[key], color=colour, marker=marker, markersize=4, label=label)
        axes.plot(counts, curves["chance"], color=GREY, linestyle="--", linewidth=1, label="chance")
        axes.axvline(slots, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(f"{slots} slots", (slots, 1.04), xytext=(3, 0), textcoords="offset points", size=8, color=GREY)
        axes.set(title="How much the memory holds", xlabel="facts written together", ylabel="right fact first, share",
                 ylim=(0, 1.1))
        plain_log(axes, "x")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
