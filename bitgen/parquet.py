"""Images in the rows of parquet files, or beside them."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bitgen.folders import image_folder, inside, usual_folders
from bitgen.images import BadImage
from bitgen.listing import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SPLIT_COLUMN,
    Listing,
    Names,
    Splits,
    by_split,
    column,
    digest,
    files_digest,
    grouped,
    images_digest,
    listed,
    split_named,
)

STRINGS = ("string", "large_string", "string_view")

PROBED = 50
"""Paths shared by several rows whose bytes are read: where each is one image, so are all, as rows of a caption each."""
Place = tuple[int, int] | str
"""Where parquet has an image: a row group and the row in it, or the path of a file."""


def parquet_splits(root: Path, image_root: str | None = None) -> Splits:
    """`<split>*.parquet` in a folder (or its `data/`), or one file; names that tell no split are training data. Files
    of one split are what their column `split` says row by row, where they have it."""
    files = [root] if root.is_file() else list(root.glob("*.parquet")) or list((root / "data").glob("*.parquet"))
    named = by_split(files)
    if len(named) == 1 and (held := set().union(*map(_row_splits, files))):
        return {split: partial(read_parquet, sorted(files), split, image_root) for split in held}
    return {split: partial(read_parquet, group, None, image_root) for split, group in named.items()}


def read_parquet(files: Sequence[Path], split: str | None = None, image_root: str | None = None) -> Listing:
    """Parquet with `image` and `captions`. Image bytes stay on disk until they are read.

    An image is bytes, {bytes, path}, or a path alone, of a file below `image_root` or beside the parquet. Rows of the
    same `path` are one image where their bytes are the same: of some that share a path they are read to see it.
    `split`: only rows whose column `split` names it. Raises `ValueError` naming the file for no parquet, a missing
    column and image files that are not there, and the row for a `split` that is none and a path that leads elsewhere.
    """
    groups: list[tuple[Path, int, str]] = []
    rows = [row for file in files for row in _parquet_rows(file, groups, split, image_root)]
    image_ids, captions, places = grouped(_told_apart(rows, groups))
    beside = images_digest([place for place in places if isinstance(place, str)])
    return Listing(image_ids, captions, _RowGroups(groups, places), digest(files_digest(files), split, beside))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A parquet file to read from. Raises `ValueError` naming it where that fails, then or later."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(f"{file}: parquet needs the package pyarrow: pip install 'bitgen[data]'") from None
    try:
        with parquet.ParquetFile(file) as opened:
            yield opened
    except (pyarrow.ArrowException, OSError) as error:
        reason = re.sub(r"[^ -~]+", " ", str(error))[:200].strip()  # it quotes bytes of the file
        raise ValueError(f"{file}: not a readable parquet file: {reason}") from None


def _row_splits(file: Path) -> set[str]:
    """The splits that a file's column `split` names; none without such a column."""
    with _opened(file) as opened:
        if SPLIT_COLUMN not in opened.schema_arrow.names:
            return set()
        values = opened.read(columns=[SPLIT_COLUMN]).column(SPLIT_COLUMN).to_pylist()
    return {split_named(value, f"{file}: row {row}") for row, value in enumerate(values)}


def _parquet_rows(file: Path, groups: list[tuple[Path, int, str]], split: str | None,
                  image_root: str | None) -> Iterator[tuple[str, list[str], Place]]:
    """Image id, captions and place of each row (of a split); the file's row groups are added to `groups`."""
    with _opened(file) as opened:
        names = opened.schema_arrow.names
        image, caption = column(names, IMAGE_COLUMNS, str(file)), column(names, CAPTION_COLUMNS, str(file))
        path_of, path_column = _paths(opened, image)
        beside, folder = _bytes_beside(opened, image), None
        wanted = [caption, *([path_column] if path_column else []), *([SPLIT_COLUMN] if split else [])]
        for number in range(opened.num_row_groups):
            for row, values in enumerate(opened.read_row_group(number, columns=wanted).to_pylist()):
                where = f"row group {number}, row {row}"
                if split and split_named(values.get(SPLIT_COLUMN), f"{file}: {where}") != split:
                    continue
                path, place = path_of(values), (len(groups), row)
                if beside and path:
                    folder = folder or _image_folder(image_root, file, path)
                    place = inside(folder, path, f"{file}: {where}")
                captions = listed(values[caption], f"{file}: {where}: {caption}")
                # Not the whole path: the same images are held out however the folder is spelled.
                yield path or f"{file.name}: {where}", captions, place
            groups.append((file, number, image))


def _paths(opened: Any, image: str) -> tuple[Callable[[dict], str | None], str | None]:
    """What gives the path of a row's image, and the column that it reads; None where images have no path."""
    kinds = _kinds(opened, image)
    if kinds.get(image) in STRINGS:
        return lambda values: values[image], image
    if f"{image}.path" in kinds:
        return lambda values: (values[image] or {}).get("path"), f"{image}.path"
    return lambda values: None, None


def _bytes_beside(opened: Any, image: str) -> bool:
    """Whether a file holds no image but the paths of them, by its types and statistics."""
    kinds = _kinds(opened, image)
    if kinds.get(image) in STRINGS or kinds.get(f"{image}.bytes") == "null":
        return True
    groups = map(opened.metadata.row_group, range(opened.num_row_groups))
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    held = [chunk.statistics for chunk in chunks if chunk.path_in_schema == f"{image}.bytes"]
    return bool(held) and all(s is not None and s.has_null_count and not s.num_values for s in held)


def _kinds(opened: Any, image: str) -> dict[str, str]:
    """The types of an image column's parts, as {image.bytes, image.path}; its own, as {image}, where it has none."""
    from pyarrow.types import is_dictionary

    return {part.name: str(part.type.value_type if is_dictionary(part.type) else part.type)
            for part in opened.schema_arrow.field(image).flatten()}


def _image_folder(image_root: str | None, file: Path, first: str) -> Path:
    """Where the images lie that a parquet file names. Raises `ValueError` where the first is not there."""
    folder = image_folder(image_root, usual_folders(file.parent), first)
    if not os.path.isfile(inside(folder, first, str(file))):
        raise ValueError(f"{file}: it holds paths and no images, and {first[:80]!r} is not in {folder}: images must be "
                         "embedded, or their folder given with data.image_root")
    return folder


def _told_apart(rows: list[tuple[str, list[str], Place]],
                groups: list[tuple[Path, int, str]]) -> Iterator[tuple[str, list[str], Place]]:
    """Rows (path, captions, place) with another id where a path comes again with other bytes."""
    read, names = _RowGroups(groups, [place for _, _, place in rows]), Names()
    times = Counter(path for path, _, place in rows if not isinstance(place, str))
    shared = [path for path, count in times.items() if count > 1]
    probed = set(shared[:PROBED])
    if all(names(path, _content(read, i)) == path for i, (path, _, _) in enumerate(rows) if path in probed):
        yield from rows
        return
    for i, (path, texts, place) in enumerate(rows):
        yield names(path, _content(read, i)) if times[path] > 1 else path, texts, place


def _content(read: _RowGroups, i: int) -> bytes:
    """The bytes of row i; none where it has none, which shows when the image is read."""
    try:
        return read(i)
    except BadImage:
        return b""


def _image_column(file: Path, number: int, name: str) -> Any:
    """The images of a row group. Raises `BadImage` where it cannot be read: the other groups may well be."""
    try:
        with _opened(file) as opened:
            return opened.read_row_group(number, columns=[name]).column(name)
    except ValueError as error:
        raise BadImage(f"{error} (row group {number})") from None


class _RowGroups:
    """Image bytes (or the path) of row i, read a row group at a time; the last group is kept, as reading mostly goes
    in order."""

    def __init__(self, groups: list[tuple[Path, int, str]], places: list[Place]):
        self._groups, self._places = groups, places
        self._kept: tuple[int, Any] = (-1, None)
        self._lock = threading.Lock()

    def __call__(self, i: int) -> bytes | str:
        if isinstance(self._places[i], str):
            return self._places[i]
        group, row = self._places[i]
        file, number, name = self._groups[group]
        with self._lock:
            if self._kept[0] != group:
                self._kept = group, _image_column(file, number, name)
            value = self._kept[1][row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadImage(f"{file}: row group {number}, row {row}: no image bytes")
        return data

    def __reduce__(self) -> tuple:
        return _RowGroups, (self._groups, self._places)
