"""JSON from strangers: small, shallow, and without what Python accepts beyond the standard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

DEPTH = 8
CONTAINERS = 500_000


def read_json(path: Path, most: int) -> Any:
    """The value of a file of at most `most` bytes. Raises `ValueError` naming the file and what is wrong with it."""
    try:
        size = path.stat().st_size
        if size > most:
            raise ValueError(f"{size:,} bytes; at most {most:,} are read")
        return parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {brief(error)}") from None


def parse(data: bytes, depth: int = DEPTH) -> Any:
    """The value of UTF-8 JSON. Raises `ValueError` also for a key given twice, NaN, infinity and deep nesting."""
    if data.count(b"[") + data.count(b"{") > CONTAINERS:
        raise ValueError(f"more than {CONTAINERS:,} lists and mappings")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_number, parse_float=_number)
    except RecursionError:
        raise ValueError(f"nested more than {depth} deep") from None
    level = [value]
    for _ in range(depth + 1):
        level = [inner for inner in level if isinstance(inner, (dict, list))]
        if not level:
            return value
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    raise ValueError(f"nested more than {depth} deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r:.80} is given twice")
    return values


def _number(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def brief(value: Any) -> str:
    """An error's text, or a stranger's value with control characters escaped; no longer than a few lines."""
    text = str(value) if isinstance(value, BaseException) else repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
