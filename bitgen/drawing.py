"""The one style of all figures: colours, sheets of paper, text that fits, and the page's own colours in SVG.

White ground, thin lines, colours of Okabe and Ito (told apart by the colour-blind), grey dashes for chance. matplotlib
is imported when a figure is drawn, and never `pyplot`: no window, no global state, safe in a thread.
"""

from __future__ import annotations

import functools
import io
import re
import textwrap
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, SKY, PINK = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
GREY, PALE, INK = "#8a8a8a", "#e4e4e4", "#222222"
ON_DARK, ON_LIGHT = "#fdfdfd", "#161616"  # text inside a coloured cell, which looks alike on every page
SHADES = "cividis"  # from little (dark blue) to much (yellow), even in grey and to the colour-blind
DIVERGING = "PuOr_r"  # below and above a neutral value
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.titlesize": 10,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.edgecolor": GREY, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": PALE,
    "grid.linewidth": 0.6, "axes.axisbelow": True, "xtick.color": GREY, "ytick.color": GREY,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "legend.frameon": False, "legend.fontsize": 8,
    "lines.linewidth": 1.5, "text.parse_math": False, "savefig.dpi": 110, "image.cmap": SHADES,
    "svg.hashsalt": "bitgen",
}


@contextmanager
def styled():
    """matplotlib with this module's style; the caller's settings are untouched."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def sheet(width: float, height: float, **layout) -> Figure:
    """An empty white figure, `width` x `height` inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", **layout)
    if layout.get("layout") == "constrained":
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def picture(axes: Axes, image: np.ndarray, colour: str = PALE, width: float = 0.8) -> None:
    """An image (3, S, S) uint8 in `axes`, without ticks, in a thin frame."""
    axes.imshow(pixels(image), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=colour, linewidth=width)


def cells(axes: Axes, values: np.ndarray, rows: list[str], columns: list[str], low: float, high: float,
          form: Callable[[float], str] = "{:.2f}".format, cmap: str = SHADES):
    """A table (R, C) as coloured cells with their numbers, not-a-number left empty; returns the image for a colour bar.
    """
    image = axes.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="auto")
    axes.grid(visible=False)
    axes.spines[:].set(visible=False)
    axes.tick_params(length=0)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            axes.text(column, row, form(value), ha="center", va="center", size=7,
                      color=ON_DARK if dark else ON_LIGHT)
    return image


def check_suffix(path: str | Path) -> None:
    """Raise `ValueError` for a name that does not end as that of a picture that figures can be saved as."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix.lower().removeprefix(".") not in known:
        raise ValueError(f"expected the name of a picture, which ends in .{', .'.join(sorted(known))}")


def plain_log(axes: Axes, which: str) -> None:
    """A logarithmic `x` or `y` axis with ticks such as 0.001: powers in math script would need math parsing."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def level(axes: Axes, value: float, label: str, vertical: bool = False) -> None:
    """A grey dashed line, for what chance gives or what is uniform."""
    (axes.axvline if vertical else axes.axhline)(value, color=GREY, linestyle="--", linewidth=1, label=label)


def pixels(image: np.ndarray) -> np.ndarray:
    """(3, S, S) or (S, S, 3) uint8, array or tensor -> (S, S, 3)."""
    image = np.asarray(image)
    if image.ndim != 3 or image.dtype != np.uint8 or 3 not in (image.shape[0], image.shape[2]):
        raise ValueError(f"image: expected uint8 of shape (3, S, S), got {image.dtype} {image.shape}")
    return image.transpose(1, 2, 0) if image.shape[0] == 3 else image


def fitted(text: str, inches: float, size: float, lines: int = 1, weight: str = "normal") -> str:
    """`text` in at most `lines` lines that are no wider than `inches` at a font `size`, cut with an ellipsis."""
    text, letters = " ".join(text.split())[:2000], int(inches * 72 / (0.4 * size))
    while True:  # letters differ in width threefold: measure, and take fewer until it fits
        wrapped = textwrap.wrap(text, letters) or [""]
        if len(wrapped) > lines:
            wrapped[lines - 1:] = [wrapped[lines - 1][: letters - 2].rstrip() + " …"]
        widest = max(sum(_advance(letter, weight) for letter in line) for line in wrapped) * size / 72
        if widest <= inches or letters <= 6:
            return "\n".join(wrapped)
        letters = max(6, min(letters - 1, int(letters * inches / widest) + 2))


@functools.cache
def _advance(letter: str, weight: str) -> float:
    """Width of a letter in DejaVu Sans of size 1. Drawing whole lines to measure them takes seconds a picture."""
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.ft2font import LoadFlags

    font = get_font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))
    font.set_size(100, 72)
    # By its glyph, which is a box for a letter that the font lacks: `load_char` fails at the first of these.
    return font.load_glyph(font.get_char_index(ord(letter)), LoadFlags.NO_HINTING).linearHoriAdvance / 65536 / 100


def svg(figure: Figure) -> str:
    """The figure as inline SVG without a ground, in which text and lines take the page's colours.

    The page sets `--ink`, `--rule` (frames) and `--faint` (grids); the data keep their own.
    """
    with styled():
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r' id="[a-zA-Z]+_\d+"', "", text)  # names of groups, the same in every figure of the page
    for colour, name in ((INK, "--ink"), (GREY, "--rule"), (PALE, "--faint")):
        text = text.replace(colour, f"var({name}, {colour})")
    return text
