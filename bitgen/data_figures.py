"""Figures of a data set, before any model: which things stand in which split, and how long captions are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bitgen.drawing import COLOURS, INK, cells, sheet, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
