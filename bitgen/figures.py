"""Figures: plain arrays in, `matplotlib.figure.Figure` out; nothing is shown or written here.

    figures.curves(history).savefig("curves.png")

All in the one style of `drawing`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bitgen.drawing import BLUE, COLOURS, GREEN, GREY, INK, ORANGE, PALE, RED, fitted, level, picture, sheet, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT = 2.7  # inches of the text column of a retrieval picture
TILE = 1.15  # inches of an image in a grid, with its margin


class Query(NamedTuple):
    """One row of `retrievals`: what was asked, and the first few answers, best first."""

    query: str | np.ndarray
    """A caption, or an image (3, S, S) uint8."""
    answers: Sequence[np.ndarray] | Sequence[str]
    """Images (3, S, S) uint8 for a caption, captions for an image."""
    right: Sequence[bool]
    """Which answers belong to the query."""
    rank: float
    """Place of the first right answer in the whole gallery, from 1."""
    group: str = ""
    """Heading that rows share: `best`, `typical`, `worst`."""


# Retrieval ------------------------------------------------------------------------------------------------


def retrievals(rows: Sequence[Query], gallery: tuple[int, int] | None = None) -> Figure:
    """One row a query: caption to images, or image to captions; right answers are framed or set in green.

    Rows that share a `group` and follow each other stand under one heading.

    `gallery`: how many images and captions there were to choose from, for the title. Raises `ValueError` for no rows.
    """
    if not rows:
        raise ValueError("retrievals: no rows to draw")
    with styled():
        first = [bool(row.group) and (i == 0 or rows[i - 1].group != row.group) for i, row in enumerate(rows)]
        width = LEFT + TILE * max([5, *(len(row.answers) for row in rows if isinstance(row.query, str))])
        height = 0.45 + TILE * len(rows) + 0.3 * sum(first)
        figure = sheet(width, height)
        among = " among {:,} images and {:,} captions".format(*gallery) if gallery else ""
        figure.text(0.1 / width, 1 - 0.2 / height, f"First answers{among}; green is right", weight="bold", va="center")
        top = height - 0.45
        for heading, row in zip(first, rows):
            if heading:
                top -= 0.3
                figure.text(0.1 / width, (top + 0.12) / height, row.group, color=GREY, va="center", weight="bold")
            (_caption_row if isinstance(row.query, str) else _image_row)(figure, row, top, width, height)
            top -= TILE
    return figure


def _caption_row(figure: Figure, row: Query, top: float, width: float, height: float) -> None:
    """The caption on the left, its first images beside it."""
    lines = fitted(row.query, LEFT - 0.3, 9, lines=4)
    figure.text(0.1 / width, (top - 0.05) / height, lines, va="top", linespacing=1.25)
    figure.text(0.1 / width, (top - TILE + 0.12) / height, _place(row.rank), size=8,
                color=GREEN if row.rank < 1.5 else RED)
    for column, (image, right) in enumerate(zip(row.answers, row.right)):
        _tile(figure, image, LEFT + TILE * column, top, width, height, right)


def _image_row(figure: Figure, row: Query, top: float, width: float, height: float) -> None:
    """The image on the left, its first captions as lines beside it."""
    _tile(figure, row.query, 0.1, top, width, height, None)
    figure.text((0.1 + TILE) / width, (top - 0.05) / height, _place(row.rank).replace(" place", "\nplace"), size=8,
                va="top", color=GREEN if row.rank < 1.5 else RED, linespacing=1.25)
    step = (TILE - 0.1) / max(len(row.answers), 1)
    left = LEFT - 0.6
    for line, (text, right) in enumerate(zip(row.answers, row.right)):
        weight = "bold" if right else "normal"
        words = f"{line + 1}  {fitted(text, width - left - 0.35, 8.5, weight=weight)}"
        figure.text(left / width, (top - 0.05 - step * line) / height, words, va="top", size=8.5, weight=weight,
                    color=GREEN if right else INK)


def _place(rank: float) -> str:
    return f"right one at place {rank:,.0f}"


def _tile(figure: Figure, image: np.ndarray, left: float, top: float, width: float, height: float,
          right: bool | None) -> None:
    """An image (3, S, S) at a place in inches; framed green where right, thin grey where wrong."""
    side = TILE - 0.12
    axes = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
    picture(axes, image, GREEN if right else PALE, 3.5 if right else 0.8)


# Training -------------------------------------------------------------------------------------------------

# Panel -> (label of the y axis, limits, series: key of the history -> (name, key of its chance level, or the level)).
PANELS = {
    "Contrast (ITC)": ("loss, nats", (0, None), {"itc": ("loss", "itc_chance")}),
    "Matching (ITM)": ("accuracy", (0, 1), {"itm_acc": ("accuracy", "itm_acc_chance")}),
    "Text": ("nats a token", (0, None), {"text": ("loss, smoothed", "text_floor"),
                                         "text_nll": ("un-smoothed", "text_chance")}),
    "Retrieval in the batch": ("accuracy", (0, 1), {"t2i": ("text to image", "t2i_chance"),
                                                    "i2t": ("image to text", "i2t_chance")}),
    "Memory": ("cosine; share of the slots", (0, 1), {"memory_quality": ("quality (cosine)", 0.0),
                                                      "memory_utilization": ("utilisation (share)", None)}),
    "Gradient norm": ("norm, before clipping", (0, None), {"grad_norm": ("all weights", None)}),
}


def curves(history: Sequence[dict[str, float]]) -> Figure:
    """Training curves of a run's history (one dict a step, as in `metrics.jsonl`), chance levels dashed.

    Panels of which nothing was recorded are left out. Raises `ValueError` where nothing at all was.
    """
    known = {key for record in history for key in record}
    panels = {name: panel for name, panel in PANELS.items() if known & set(panel[2])}
    if not panels:
        raise ValueError(f"curves: none of {sorted(k for p in PANELS.values() for k in p[2])} in the history")
    with styled():
        columns = min(3, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = sheet(3.4 * columns, 2.5 * rows, layout="constrained")
        for i, (name, (unit, limits, series)) in enumerate(panels.items()):
            axes = figure.add_subplot(rows, columns, i + 1)
            for colour, (key, (label, _)) in zip(COLOURS, series.items()):
                _curve(axes, history, key, label, colour)
            for _, chance in series.values():
                _level(axes, history, chance)
            axes.set(title=name, ylabel=unit, xlabel="step", ylim=limits)
            _down_to(axes, min([0.0, *(value for key in series for value in _points(history, key)[1])]))
            axes.set_xlim(left=0)
            axes.legend(loc="best")
    return figure


# Key -> (title, label of the y axis, key of its chance level, or the level), for `compared`.
COMPARED = {
    "val_total": ("Validation loss", "loss, nats", None),
    "val_t2i_r1": ("Validation, text to image", "recall at 1", "val_chance_t2i_r1"),
    "val_i2t_r1": ("Validation, image to text", "recall at 1", "val_chance_i2t_r1"),
    "itc": ("Contrast (ITC)", "loss, nats", "itc_chance"),
    "itm_acc": ("Matching (ITM)", "accuracy", "itm_acc_chance"),
    "memory_quality": ("Memory", "quality, cosine", 0.0),
}


def compared(runs: Mapping[str, Sequence[dict[str, float]]]) -> Figure:
    """The histories of several runs, a colour each, by name; a panel for each key of `COMPARED` that any has.

    Raises `ValueError` where none has one.
    """
    known = {key for history in runs.values() for line in history for key in line}
    panels = {key: panel for key, panel in COMPARED.items() if key in known}
    if not panels:
        raise ValueError(f"compared: none of {', '.join(COMPARED)} in the histories of {', '.join(runs) or 'no run'}")
    with styled():
        columns = min(3, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = sheet(max(3.2 * columns, 4.6), 2.4 * rows + 0.4, layout="constrained")
        for place, (key, (title, unit, chance)) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(rows, columns, place)
            for i, (name, history) in enumerate(runs.items()):  # the first is broad: seen under one that lies on it
                _curve(axes, history, key, name, [*COLOURS, INK, GREY][i % 8], 1.5 if i else 3.5)
            for history in runs.values():
                _level(axes, history, chance)
            axes.set(title=title, ylabel=unit, xlabel="step", ylim=(0, 1.05 * axes.get_ylim()[1]))  # a level curve too
            _down_to(axes, min([0.0, *(value for history in runs.values() for value in _points(history, key)[1])]))
            axes.set_xlim(left=0)
        found = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(4, len(found)))
    return figure


def _points(history: Sequence[dict[str, float]], key: str | None) -> tuple[list[float], list[float]]:
    """Steps and finite values of one key."""
    pairs = [(r.get("step", i), r[key]) for i, r in enumerate(history) if key in r and math.isfinite(r[key])]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def _down_to(axes, lowest: float) -> None:
    """Room below zero, where values lie there: a cosine can, and would be cut off."""
    if lowest < 0:
        axes.set_ylim(bottom=1.1 * lowest)


def _curve(axes, history: Sequence[dict[str, float]], key: str, label: str, colour: str, width: float = 1.5) -> None:
    """A series: pale as it is, bold as a running mean once there are many points."""
    steps, values = _points(history, key)
    if not steps and any(key in record for record in history):
        axes.plot([], [], color=colour, label=f"{label}: never finite")
    if not steps:
        return
    window = max(1, len(values) // 25)
    if window > 1:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    smooth = [float(np.mean(values[max(0, i - window + 1): i + 1])) for i in range(len(values))]
    axes.plot(steps, smooth, color=colour, label=label, linewidth=width, marker="o" if len(values) == 1 else None)


def _level(axes, history: Sequence[dict[str, float]], key: str | float | None) -> None:
    """The chance level as a grey dashed line, or the text loss's floor as a dotted one, once a panel."""
    label = "floor of the smoothed" if key == "text_floor" else "chance"
    steps, values = ([0], [key]) if isinstance(key, float) else _points(history, key)
    if label in axes.get_legend_handles_labels()[1]:
        return
    if len(steps) == 1:  # a line of one point would not be seen
        level(axes, values[0], label)
    elif steps:
        axes.plot(steps, values, color=GREY, linestyle=":" if key == "text_floor" else "--", linewidth=1, label=label)


def recalls(report: dict[str, float]) -> Figure:
    """Recall@1/5/10 of an evaluation report, both directions: by contrast, re-ranked, and chance, in percent.

    Whiskers are the 95 % intervals that the report has.
    """
    kinds = {"": ("by contrast (ITC)", BLUE), "rerank_": ("re-ranked", ORANGE),
             "chance_": ("chance", GREY)}
    present = {prefix: kind for prefix, kind in kinds.items() if f"{prefix}t2i_r1" in report}
    if "" not in present:
        raise ValueError("recalls: the report has no t2i_r1; expected what evaluate returns")
    with styled():
        figure = sheet(7.4, 3.0, layout="constrained")
        for column, (way, title) in enumerate({"t2i": "Text to image", "i2t": "Image to text"}.items(), 1):
            axes = figure.add_subplot(1, 2, column)
            for i, (prefix, (label, colour)) in enumerate(present.items()):
                values = [100 * report[f"{prefix}{way}_r{k}"] for k in (1, 5, 10)]
                places = np.arange(3) + (i - (len(present) - 1) / 2) * 0.27
                bars = axes.bar(places, values, 0.25, color=colour, label=label, yerr=_errors(report, f"{prefix}{way}"),
                                error_kw={"ecolor": GREY, "elinewidth": 1, "capsize": 2})
                axes.bar_label(bars, [f"{v:.1f}" for v in values], size=7, padding=3)
            axes.set(title=title, ylim=(0, 112), yticks=range(0, 101, 20), ylabel="recall, %")
            axes.set_xticks(range(3), ["R@1", "R@5", "R@10"])
            axes.grid(visible=False, axis="x")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _errors(report: dict[str, float], name: str) -> np.ndarray:
    """(2, 3) lengths of the whiskers below and above recall@1/5/10 in percent, zero where there is no interval."""
    lengths = []
    for k in (1, 5, 10):
        value = report[f"{name}_r{k}"]
        low, high = (report.get(f"{name}_r{k}_{end}", value) for end in ("low", "high"))
        lengths.append([max(value - low, 0.0), max(high - value, 0.0)])
    return 100 * np.array(lengths).T
