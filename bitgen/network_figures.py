"""Figures of the inside of the network: gradients, updates, activations, attention, gates, loss around the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bitgen.drawing import BLUE, COLOURS, GREEN, GREY, ORANGE, cells, fitted, level, pixels, plain_log, sheet, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEALTHY = (1, 40)  # the norm of the whole gradient in healthy runs of `scenes`; it scales with losses and width
GATES = {"word_gate": "words see patches", "patch_gate": "patches see words"}
USUAL = 1e-3  # length of an update over that of the weights


def gradient_norms(history: Sequence[dict[str, float]]) -> Figure:
    """Norm of the gradient before clipping, over steps: of the whole, and of each part as a row of colours.

    history: lines of `metrics.jsonl`, with `grad_norm` and `grad_norm/<part>`. Raises `ValueError` where none has one.
    """
    lines = [line for line in history if any(key.startswith("grad_norm/") for key in line)]
    parts = list(dict.fromkeys(key for line in lines for key in line if key.startswith("grad_norm/")))
    if not parts:
        raise ValueError("gradient_norms: no grad_norm/<part> in the history")
    steps = [line["step"] for line in lines]
    table = np.array([[line.get(part, math.nan) for line in lines] for part in parts], dtype=float)
    table = np.where(np.isfinite(table) & (table > 0), table, 0)
    order, largest = np.argsort(-np.median(table, 1), kind="stable"), table.max() or 1.0
    with styled():
        figure = sheet(7.4, 2.6 + 0.2 * len(parts), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=(1.8, 0.5 + 0.2 * len(parts)), sharex=True)
        above.axhspan(*HEALTHY, color=GREEN, alpha=0.15, linewidth=0, label="healthy runs of scenes")
        above.plot(steps, [line.get("grad_norm", math.nan) for line in lines], color=BLUE, label="all weights")
        above.set(title="Gradient norm before clipping", ylabel="norm")
        plain_log(above, "y")
        above.legend(loc="best")
        from matplotlib.colors import LogNorm
        smallest = max(table[table > 0].min(initial=largest), largest / 1e5)
        image = below.pcolormesh(steps, range(len(parts)), np.ma.masked_equal(table[order], 0), shading="nearest",
                                 norm=LogNorm(min(smallest, largest / 10), largest), rasterized=True)
        below.set_yticks(range(len(parts)), [parts[i].removeprefix("grad_norm/") for i in order], size=8)
        below.invert_yaxis()
        below.grid(visible=False)
        below.set(title="By part", xlabel="step")
        plain_log(figure.colorbar(image, ax=below, label="norm", pad=0.01).ax, "y")
    return figure


def gradient_table(table: Mapping[str, Mapping[str, float]]) -> Figure:
    """Which loss reaches which part: norms of the gradients, part -> loss -> norm; a dot where it is exactly zero."""
    parts, losses = list(table), list(dict.fromkeys(loss for row in table.values() for loss in row))
    norms = np.array([[table[part].get(loss, math.nan) for loss in losses] for part in parts], dtype=float)
    shown = np.where(norms > 0, norms, np.nan)
    with styled():
        figure = sheet(0.85 * len(losses) + 2.6, 0.24 * len(parts) + 1.2, layout="constrained")
        axes = figure.subplots()
        image = cells(axes, np.log10(shown), parts, losses, -4, max(0.0, float(np.log10(np.nanmax(shown)))),
                      lambda value: f"{10**value:.2g}")
        for row, column in np.argwhere(norms == 0):
            axes.text(column, row, "·", ha="center", va="center", color=GREY)
        axes.xaxis.tick_top()
        axes.set_title("Gradient norm of each loss in each part (·: not reached)", pad=22)
        figure.colorbar(image, ax=axes, label="log10 of the norm", shrink=0.8)
    return figure


def update_ratios(ratios: Mapping[int, Mapping[str, float]]) -> Figure:
    """Length of the last update over that of the weights, by part, at each step of `ratios`: step -> part -> ratio."""
    parts = list(dict.fromkeys(part for row in ratios.values() for part in row))
    if not parts:
        raise ValueError("update_ratios: no ratios; they need checkpoints with their optimizer")
    with styled():
        shades, sizes = np.linspace(0.3, 1, len(ratios)), np.linspace(4, 6, len(ratios))
        figure = sheet(6.0, 1.1 + 0.22 * len(parts), layout="constrained")
        axes = figure.subplots()
        for (step, row), shade, size in zip(sorted(ratios.items()), shades, sizes):
            axes.plot([row.get(part, math.nan) for part in parts], range(len(parts)), "o", color=BLUE, alpha=shade,
                      markersize=size, markeredgewidth=0, linestyle="none", label=f"{step}")
        level(axes, USUAL, f"usual, {USUAL:g}", vertical=True)
        axes.set_yticks(range(len(parts)), parts, size=8)
        axes.invert_yaxis()
        plain_log(axes, "x")
        axes.set(xlabel="length of an update / length of the weights", title="How fast weights move")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, title="step",
                      title_fontsize=8)
    return figure


def activations(names: Sequence[str], deviation: Sequence[float], dead: Sequence[float],
                largest: Sequence[float]) -> Figure:
    """Layers from first to last (top to bottom): size, dead units and outliers of their outputs."""
    panels = (("Size", deviation, "root mean square"), ("Dead units", [100 * share for share in dead], "share, %"),
              ("Largest output", largest, "in root mean squares"))
    with styled():
        figure = sheet(7.8, 1.0 + 0.2 * len(names), layout="constrained")
        grid = figure.subplots(1, 3, sharey=True)
        for axes, (title, values, unit), colour in zip(grid, panels, COLOURS):
            axes.barh(range(len(names)), values, 0.65, color=colour)
            axes.set(title=title, xlabel=unit)
            axes.grid(visible=False, axis="y")
        grid[1].set_xlim(0, max(5.0, 100 * max(dead) * 1.1))
        if not max(dead):
            grid[1].text(0.5, 0.5, "none", transform=grid[1].transAxes, ha="center", color=GREY)
        grid[0].set_yticks(range(len(names)), names, size=7.5)
        grid[0].set_ylabel("layer, first on top")
        grid[0].invert_yaxis()
    return figure


def attention_entropy(entropies: Mapping[str, Sequence[float]]) -> Figure:
    """Entropy of each head's attention, layer -> heads: 1 looks everywhere alike, 0 at one token."""
    heads = max(len(values) for values in entropies.values())
    table = np.full((len(entropies), heads), np.nan)
    for row, values in zip(table, entropies.values()):
        row[:len(values)] = values
    with styled():
        figure = sheet(0.55 * heads + 3.4, 0.215 * len(table) + 1.0, layout="constrained")
        axes = figure.subplots()
        image = cells(axes, table, list(entropies), [str(i) for i in range(heads)], 0, 1)
        axes.tick_params(axis="y", labelsize=7.5)
        axes.set(title="How spread attention is", xlabel="head", ylabel="layer and kind, first on top")
        figure.colorbar(image, ax=axes, label="entropy / that of all alike", shrink=0.8)
    return figure


def attention(image: np.ndarray, words: Sequence[str], weights: np.ndarray, columns: int = 6,
              title: str = "Where each word looks") -> Figure:
    """An image (3, S, S) uint8, and again under each word with its attention over patches (L, P), P a square.

    Colour says how many times the mean over all words and patches, on one scale; what is below 0 counts as 0. Raises
    `ValueError` where words and weights differ in number or P is no square.
    """
    weights = np.asarray(weights, dtype=float)
    side = math.isqrt(weights.shape[-1]) if weights.ndim == 2 else 0
    if not side or side * side != weights.shape[1] or len(words) != len(weights):
        raise ValueError(f"attention: expected weights (L, P) of {len(words)} words over a square of patches, "
                         f"got shape {weights.shape}")
    weights = np.maximum(weights, 0)
    ratio = weights / max(weights.mean(), 1e-12)
    with styled():
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        columns = min(columns, len(words) + 1)
        rows = math.ceil((len(words) + 1) / columns)
        figure = sheet(1.25 * columns + 1.0, 1.45 * rows + 0.5, layout="constrained")
        axes = figure.subplots()
        shade = ScalarMappable(Normalize(0, max(2.0, 0.6 * float(ratio.max()))), colormaps["YlOrRd"])
        tiles = [pixels(image), *(_heated(pixels(image), heat.reshape(side, side), shade) for heat in ratio)]
        for place, (tile, word) in enumerate(zip(tiles, ["the image", *words])):
            left, top = 1.08 * (place % columns), 1.22 * (place // columns)
            axes.imshow(tile, extent=(left, left + 1, top + 1, top), interpolation="nearest")
            axes.text(left, top - 0.04, fitted(word, 1.1, 8), size=8, va="bottom")
        axes.set(xlim=(-0.01, 1.08 * columns - 0.07), ylim=(1.22 * rows - 0.21, -0.16), title=title)
        axes.set_aspect("equal")
        axes.set_axis_off()
        figure.colorbar(shade, ax=axes, label="times the mean", shrink=0.8, extend="max")
    return figure


def _heated(image: np.ndarray, heat: np.ndarray, shade) -> np.ndarray:
    """An image (S, S, 3) uint8, pale and grey, under a smooth layer of colour: heat (p, p) in the units of `shade`."""
    from PIL import Image

    size = image.shape[1::-1]
    smooth = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    pale = (160 + 0.37 * image.mean(2))[..., None] / 255
    cover = 0.85 * np.clip(shade.norm(smooth), 0, 1)[..., None]
    return cover * shade.cmap(shade.norm(smooth))[..., :3] + (1 - cover) * pale


def temperature_and_gates(history: Sequence[dict[str, float]]) -> Figure:
    """Temperature of the contrast and gates of the fusion over steps, from lines of `metrics.jsonl`."""
    scale = [(line["step"], 1 / line["logit_scale"]) for line in history if line.get("logit_scale", 0) > 0]
    gates = list(dict.fromkeys(key for line in history for key in line if key.startswith("gate/")))
    if not scale:
        raise ValueError("temperature_and_gates: no logit_scale in the history")
    with styled():
        figure = sheet(7.4, 3.1, layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(*zip(*scale), color=BLUE, label="learned")
        level(left, 0.01, "lowest allowed")
        left.set(title="Temperature of the contrast", xlabel="step", ylabel="temperature", ylim=(0, None))
        left.legend(loc="best")
        for i, gate in enumerate(gates):
            layer, _, kind = gate.removeprefix("gate/").partition(".")
            points = [(line["step"], line[gate]) for line in history if gate in line]
            colour, dashes = (BLUE, ORANGE)[kind.startswith("patch")], ("-", "--", ":")[i // 2 % 3]
            right.plot(*zip(*points), color=colour, linestyle=dashes,
                       label=f"layer {layer}: {GATES[kind]}")
        level(right, 0.0, "closed")
        right.set(title="Gates of the fusion", xlabel="step", ylabel="gate")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def landscape(distances: Sequence[float], curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Each loss along random straight lines through the weights, relative to where training ended (0)."""
    with styled():
        figure = sheet(2.6 * min(3, len(curves)), 2.5 * math.ceil(len(curves) / 3), layout="constrained")
        grid = figure.subplots(math.ceil(len(curves) / 3), min(3, len(curves)), squeeze=False)
        for axes, (name, lines) in zip(grid.flat, curves.items()):
            for line, colour in zip(lines, COLOURS):
                axes.plot(distances, line, color=colour, marker=".", markersize=4)
            axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
            axes.set(title=name, ylabel="loss, nats", ylim=(0, None))
        figure.supxlabel("distance along a random line, in lengths of the weights; dotted: the model as it is", size=9)
        for axes in list(grid.flat)[len(curves):]:
            axes.remove()
    return figure
