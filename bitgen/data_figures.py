"""Figures of a data set, before any model: what it shows, which things stand in which split, how long captions are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bitgen.drawing import COLOURS, INK, cells, fitted, picture, sheet, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[Sequence[str]], columns: int = 6,
                  title: str = "") -> Figure:
    """Images (3, S, S) uint8, each over its first caption; what a data set looks like at a glance.

    `title`: a line above them all. Raises `ValueError` for no images, or another number of captions than images.
    """
    if not len(images) or len(images) != len(captions):
        raise ValueError(f"contact_sheet: expected a list of captions for each image, got {len(images)} images "
                         f"and {len(captions)}")
    with styled():
        columns = min(columns, len(images))
        rows, side, text = math.ceil(len(images) / columns), 1.7, 0.75
        head = 0.3 if title else 0.0
        width, height = columns * side + 0.1, rows * (side + text) + head
        figure = sheet(width, height)
        if title:
            figure.text(0.1 / width, 1 - 0.2 / height, fitted(title, width - 0.2, 10, weight="bold"), size=10,
                        weight="bold", va="center")
        for i, (image, texts) in enumerate(zip(images, captions)):
            left, top = 0.1 + i % columns * side, height - head - 0.1 - i // columns * (side + text)
            box = (left / width, (top - side + 0.1) / height, (side - 0.1) / width, (side - 0.1) / height)
            axes = figure.add_axes(box)
            picture(axes, image)
            caption = fitted(texts[0] if texts else "(no caption)", side - 0.12, 7, lines=4)
            figure.text(left / width, (top - side + 0.05) / height, caption, va="top", size=7, linespacing=1.2)
    return figure


def compositions(counts: Mapping[str, np.ndarray], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """How often each pair of a row's and a column's attribute occurs: a panel for each table (R, C) of `counts`.

    Empty cells are pairs that never occur. Raises `ValueError` for no table, or one of another shape.
    """
    shape = (len(rows), len(columns))
    wrong = {title: np.shape(table) for title, table in counts.items() if np.shape(table) != shape}
    if wrong or not counts:
        raise ValueError(f"compositions: expected tables of {shape}, got {wrong or 'none'}")
    with styled():
        wide, high = 0.47 * len(columns) + 0.9, 0.3 * len(rows) + 1.5
        figure = sheet(wide * len(counts), high, layout="constrained")
        panels = figure.subplots(1, len(counts), squeeze=False)[0]
        for axes, (title, table) in zip(panels, counts.items()):
            shown = np.where(np.asarray(table) > 0, table, np.nan).astype(float)
            cells(axes, shown, list(rows), list(columns), 0, float(np.nanmax(shown, initial=1)), "{:.0f}".format)
            axes.set_title(title)
            axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
        figure.supxlabel("number of objects; empty: never", size=8)
    return figure


def lengths(counts: Mapping[str, Sequence[int]], unit: str = "captions") -> Figure:
    """How many captions have each length: a panel for each title of `counts`, its mean as a line.

    Raises `ValueError` where there is none, or an empty one.
    """
    if not counts or not all(len(values) for values in counts.values()):
        raise ValueError("lengths: nothing to count")
    with styled():
        figure = sheet(3.7 * len(counts), 2.5, layout="constrained")
        panels = figure.subplots(1, len(counts), squeeze=False)[0]
        for axes, colour, (title, values) in zip(panels, COLOURS, counts.items()):
            places, heights = np.unique(np.asarray(values), return_counts=True)
            axes.bar(places, heights, 0.85, color=colour)
            mean = float(np.mean(values))
            axes.axvline(mean, color=INK, linewidth=1, label=f"mean {mean:.1f}")
            axes.set(title=title, xlabel=f"{title.split()[0].lower()} in a caption", ylabel=unit, xlim=(0, None))
            axes.legend(loc="best")
    return figure
