"""A listing: which images a data set has, what is said about them and where their bytes are. Nothing is decoded yet."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

SPLITS = {
    "train": {"train", "training", "trainset", "restval"},
    "val": {"val", "valid", "validate", "validation", "valset", "dev", "devel", "development", "devset"},
    "test": {"test", "testing", "tests", "testset"},
}
"""Our splits, and the words in the names of files and of other people's splits that mean them."""
PYTHON_LIST = 20_000  # characters: the longest list of captions that is read as Python writes it
IMAGE_COLUMNS = ("image", "img", "filename", "file_name", "jpg", "jpeg", "png", "webp")
CAPTION_COLUMNS = ("captions", "caption", "sentences", "text", "txt")
SPLIT_COLUMN = "split"

Read = Callable[[int], "bytes | str | Path | Image.Image"]


@dataclass
class Listing:
    """What one split holds. `read(i)` gives what `safe_open_image` takes, or raises `BadImage`."""

    image_ids: list[str]
    captions: list[list[str]]
    read: Read
    fingerprint: str
    """Changes when the images may have changed: names the prepared pixels. Empty where `read` decodes nothing."""

    def select(self, indices: Sequence[int]) -> Listing:
        """The listing of these images alone, in this order."""
        indices = list(indices)
        if indices == list(range(len(self.image_ids))):
            return self
        return Listing([self.image_ids[i] for i in indices], [self.captions[i] for i in indices],
                       partial(_nth, self.read, indices), self.fingerprint and digest(self.fingerprint, *indices))


Splits = dict[str, Callable[[], Listing]]
"""From the name of a split to what reads it."""


def _nth(read: Read, indices: Sequence[int], i: int) -> bytes | str | Path | Image.Image:
    """A function at module level, as worker processes take no others."""
    return read(indices[i])


def digest(*parts: Any) -> str:
    """A short stable hash of parts (by their text)."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(f"{part}\0".encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def split_of(name: str) -> str | None:
    """The split that a name like `cc3m-validation-00000.tar`, `val2017` or `dev` belongs to, None where it tells
    nothing: that of its first word that means one. Whole words: testimonials are no test."""
    words = re.split("[^a-z]+", name.lower())
    return next((split for word in words for split, known in SPLITS.items() if word in known), None)


def split_named(value: Any, where: str) -> str:
    """The split that a row's column `split` names. Raises `ValueError` where it names none: that row would be trained
    on, or left out, unseen."""
    split = split_of(value) if isinstance(value, str) else None
    if split is None:
        raise ValueError(f"{where}.{SPLIT_COLUMN}: expected train, restval, val or test, got {value!r}")
    return split


def by_split(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files sorted into splits by the words of their names; names that tell nothing are training data."""
    found: dict[str, list[Path]] = {}
    for file in sorted(files):
        found.setdefault(split_of(file.name) or "train", []).append(file)
    return found


def files_digest(files: Iterable[Path]) -> str:
    """Fingerprint of files by place, size and time of change: a copy elsewhere may keep all but its place."""
    return digest(*((file.resolve(), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


def images_digest(paths: Sequence[str]) -> str:
    """Fingerprint of image files, of which some may be missing, by path, size and time of change."""
    stats = (os.stat(path) if os.path.isfile(path) else None for path in paths)
    return digest(*((path, s and s.st_size, s and s.st_mtime_ns) for path, s in zip(paths, stats, strict=True)))


def as_captions(value: Any, where: str, nulls: bool = False) -> list[str]:
    """Captions as data sets write them (a string, strings, or {raw: string} each) as a list of strings.

    `nulls`: those that are missing, None or as pandas writes it NaN, are left out. Raises `ValueError` for anything
    else.
    """
    if isinstance(value, str):
        return [value]
    if nulls and _missing(value):
        return []
    if isinstance(value, (list, tuple)):
        said = [v for v in value if not (nulls and _missing(v))]
        texts = [v.get("raw", v.get("caption")) if isinstance(v, dict) else v for v in said]
        if all(isinstance(text, str) for text in texts):
            return texts
    raise ValueError(f"{where}: expected a caption or a list of captions, got {str(value)[:80]!r}")


def listed(value: Any, where: str) -> list[str]:
    """The captions of a cell: `as_captions`, without those that are missing; a string may be a list as JSON or Python
    writes it, or itself a caption that begins with a bracket, and is even valid JSON."""
    if not isinstance(value, str):
        return as_captions(value, where, nulls=True)
    if not value.startswith("["):
        return [value]
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        return _python_list(value) or [value]
    captions = isinstance(content, list) and all(isinstance(each, (str, dict)) for each in content)
    return as_captions(content, where) if captions else [value]


def _python_list(text: str) -> list[str] | None:
    """The strings of a list as Python, and so `DataFrame.to_csv`, writes it; None for whatever is written otherwise:
    between ['a' 'b'] of an array Python itself would see no border."""
    try:
        content = ast.literal_eval(text) if len(text) <= PYTHON_LIST else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    strings = isinstance(content, list) and all(isinstance(each, str) for each in content)
    return content if strings and repr(content) == text.rstrip() else None



def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def column(names: Iterable[str], wanted: Sequence[str], where: str) -> str:
    """The first of `wanted` among column names, or a `ValueError` that names what is there."""
    names = list(names)
    for name in wanted:
        if name in names:
            return name
    raise ValueError(f"{where}: expected a column {' or '.join(wanted)}, got {', '.join(map(str, names)) or 'none'}")


class Names:
    """Ids of pictures that come one by one: a path, with a digest behind it where the path comes again with other
    bytes. Folders of a class each, or rows that all say image.png, are not one image."""

    def __init__(self) -> None:
        self._first: dict[str, bytes] = {}

    def __call__(self, path: str, data: bytes) -> str:
        """The id of the picture of these bytes under this path."""
        content = hashlib.blake2b(data, digest_size=16).digest()
        return path if self._first.setdefault(path, content) == content else f"{path}#{content.hex()[:12]}"


def grouped(rows: Iterable[tuple[str, list[str], Any]]) -> tuple[list[str], list[list[str]], list[Any]]:
    """Rows (image id, captions, where it lies) with the rows of one image made one: ids, captions, places."""
    captions: dict[str, list[str]] = {}
    places: dict[str, Any] = {}
    for image_id, texts, place in rows:
        captions.setdefault(image_id, []).extend(texts)
        places.setdefault(image_id, place)
    return list(captions), list(captions.values()), list(places.values())
