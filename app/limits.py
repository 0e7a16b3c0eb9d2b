"""What a visitor may ask of the server. The limits of a single image are those of `bitgen.images`."""

from collections.abc import Sequence

TEXT = 2000
"""Characters of a query, a caption or a label; what is longer is refused."""
RESULTS = 60
"""Results of one search."""
ALIKE = 0.99
"""Cosine from which on two results are near-duplicates."""
CANDIDATES = 32
"""First results that re-ranking puts into a new order."""
LABELS = 50
"""Labels of one zero-shot classification."""
FILE_SIZE = 20_000_000
"""One uploaded file."""
FILES = 200
"""Files that a session may upload, in one go or several."""
UPLOAD_BYTES = 500_000_000
"""All of them together, and one request that brings some."""
BODY_BYTES = 60_000_000
"""Any other request; a picture of 20 MB takes 27 MB as base64."""
TEMPORARY_BYTES = 2_000_000_000
"""All files that visitors sent or were shown, as long as they are kept; the next upload is refused."""
UPLOADS = 32
"""Uploaded galleries on the server; the oldest goes first."""
UPLOAD_SECONDS = 3600
"""How long an uploaded gallery is kept after it was last used."""
QUEUE = 64
"""Requests that wait; the next is refused."""
ANSWERS = 2
"""Answers that are computed at a time, over all visitors."""
ANSWER_SECONDS = 60
"""How long an answer may take from when it has its turn, a load that it waits for included."""
WAITING = 6
"""Answers beside them that may wait for a model or a gallery to be loaded; the next is refused."""
SESSIONS = 1000
"""Sessions whose state is kept."""
CLOSED_SECONDS = 600
"""How long the state of a session is kept after its page was closed or lost its connection; of one that asks again,
`UPLOAD_SECONDS` from then on."""
CLOSED = 64
"""Such sessions; the one that was used longest ago goes first."""
IDLE_SECONDS = 60
"""How long a letter-box of the queue is kept that is empty and from which nothing is awaited."""


def text(value: str | None, name: str) -> str:
    """`value` without outer spaces. Raises `ValueError` where it is no text, or too long."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name}: expected text, got {type(value).__name__}")
    value = (value or "").strip()
    if len(value) > TEXT:
        raise ValueError(f"{name}: {len(value)} characters; at most {TEXT}")
    return value


def several(values: Sequence[str] | None, name: str) -> Sequence[str]:
    """`values` as they are. Raises `ValueError` where they are no list."""
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{name}: expected a list of texts, got {type(values).__name__}")
    return values


def whole(value: float | None, name: str, low: int, high: int) -> int:
    """`value` as a whole number. Raises `ValueError` outside low..high, and for fractions."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value % 1:
        raise ValueError(f"{name}: expected a whole number from {low} to {high}, got {value!r}")
    return int(value)


def number(value: float | None, name: str, low: float, high: float) -> float:
    """`value` as a float. Raises `ValueError` outside low..high, and for NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}: expected a number from {low} to {high}, got {value!r}")
    return float(value)
