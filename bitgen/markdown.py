"""Markdown that holds whatever is put into it: names, tables and numbers for the model card."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

LONGEST = 200  # characters of a name
NUMERIC = re.compile(r"[\d.,e+-]*|unknown|not finite")
TIMES = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))


def line(value: object) -> str:
    """Any text as one line: white space is one blank, control and direction characters go, the length is bounded;
    `unnamed` where nothing is left."""
    words = " ".join(str(value).split())
    plain = "".join(c for c in words if unicodedata.category(c)[0] != "C").strip() or "unnamed"
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}…"


def code(value: object) -> str:
    """A name as inline code, where nothing is markup: fenced by more backticks than it holds in a row."""
    plain = line(value)
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    gap = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{gap}{plain}{gap}{fence}"


def text(value: object) -> str:
    """Words as they are: what would be markup, a tag, a mention or the end of a table's cell is escaped."""
    return re.sub(r"([\\`*_\[\]<>|&$~@#])", r"\\\1", line(value))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are markdown already; columns of numbers are set to the right."""
    right = [all(NUMERIC.fullmatch(row[column]) for row in rows) for column in range(len(head))]
    lines = [head, ["---:" if numbers else "---" for numbers in right], *rows]
    return "\n".join("| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |" for cells in lines)


def number(value: float | None) -> str:
    """Three digits that count, `unknown` for None; whole numbers whole, others never: 12,000, 0.732, 3.00, 0.0002."""
    if value is None:
        return "unknown"
    if not math.isfinite(value):
        return "not finite"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if set(text) & {".", "e"} else f"{value:#.3g}".rstrip(".")


def share(value: float | None) -> str:
    """A share or cosine with three decimals, more where it is smaller than they tell; `unknown` for None."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.2g}"


def amount(value: float | None, unit: str) -> str:
    """Three digits, a prefix and the unit, `unknown` for None: 1.23 GFLOP, 412 kJ."""
    if value is None:
        return "unknown"
    prefix, size = next(((p, s) for p, s in zip("PTGMk", (1e15, 1e12, 1e9, 1e6, 1e3)) if abs(value) >= s), ("", 1))
    return f"{value / size:.3g} {prefix}{unit}"


def duration(seconds: float | None) -> str:
    """In the largest unit of which there is one: 8.9 min, 1.52 h; `unknown` for None."""
    if seconds is None:
        return "unknown"
    unit, size = next(((unit, size) for unit, size in TIMES if seconds >= size), TIMES[-1])
    return f"{seconds / size:.3g} {unit}"
