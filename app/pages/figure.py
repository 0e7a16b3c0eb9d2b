"""Figures of the library on a page: inline SVG in the colours of the theme."""

from __future__ import annotations

import html
import re

from bitgen.drawing import svg

COLOURS = "--ink: var(--body-text-color); --rule: var(--body-text-color-subdued); --faint: var(--border-color-primary)"


def figure(drawn, label: str) -> str:
    """A matplotlib figure as HTML. Where the page is narrow it scrolls in its own frame, and the page does not."""
    width, image = round(96 * drawn.get_figwidth()), svg(drawn)
    head, rest = image.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    size = f"width: 100%; min-width: min(600px, {width}px); max-width: {width}px; height: auto"
    return (f'<div role="img" aria-label="{html.escape(label)}" tabindex="0" '
            f'style="overflow-x: auto; {COLOURS}">{head} style="{size}">{rest}</div>')
