"""Images packed into larger files: parquet and WebDataset tar shards."""

from __future__ import annotations

import json
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from bitgen.images import MAX_BYTES, BadImage
from bitgen.listing import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SPLIT_COLUMN,
    Listing,
    Names,
    Splits,
    as_captions,
    by_split,
    column,
    digest,
    files_digest,
    grouped,
    split_named,
)

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
MAX_TEXT_BYTES = 1_000_000


def parquet_splits(root: Path, image_root: str | None = None) -> Splits:
    """`<split>*.parquet` in a folder (or its `data/`), or one file; names that tell no split are training data. Files
    of one split are what their column `split` says row by row, where they have it."""
    files = [root] if root.is_file() else list(root.glob("*.parquet")) or list((root / "data").glob("*.parquet"))
    named = by_split(files)
    if len(named) == 1 and (held := set().union(*map(_row_splits, files))):
        return {split: partial(read_parquet, sorted(files), split) for split in held}
    return {split: partial(read_parquet, group) for split, group in named.items()}


def read_parquet(files: Sequence[Path], split: str | None = None) -> Listing:
    """Parquet with `image` (bytes, or {bytes, path}) and `captions`. Image bytes stay on disk until they are read.

    Rows of the same `path` are one image where their bytes are the same: those that share a path are read to see it.
    `split`: only rows whose column `split` names it. Raises `ValueError` naming the file for no parquet or a missing
    column, and the row for a `split` that is none.
    """
    groups: list[tuple[Path, int, str]] = []
    rows = [row for file in files for row in _parquet_rows(file, groups, split)]
    image_ids, captions, places = grouped(_told_apart(rows, groups))
    return Listing(image_ids, captions, _RowGroups(groups, places), digest(files_digest(files), split))


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


def _parquet_rows(file: Path, groups: list[tuple[Path, int, str]],
                  split: str | None) -> Iterator[tuple[str, list[str], tuple[int, int]]]:
    """Image id, captions and place (row group, row in it) of each row (of a split); the file's row groups are added to
    `groups`."""
    with _opened(file) as opened:
        names = opened.schema_arrow.names
        image, caption = column(names, IMAGE_COLUMNS, str(file)), column(names, CAPTION_COLUMNS, str(file))
        with_path = f"{image}.path" in [field.name for field in opened.schema_arrow.field(image).flatten()]
        wanted = [caption, *([f"{image}.path"] if with_path else []), *([SPLIT_COLUMN] if split else [])]
        for number in range(opened.num_row_groups):
            for row, values in enumerate(opened.read_row_group(number, columns=wanted).to_pylist()):
                where = f"row group {number}, row {row}"
                if split and split_named(values.get(SPLIT_COLUMN), f"{file}: {where}") != split:
                    continue
                path = (values[image] or {}).get("path") if with_path else None
                captions = as_captions(values[caption], f"{file}: {where}: {caption}", nulls=True)
                # Not the whole path: the same images are held out however the folder is spelled.
                yield path or f"{file.name}: {where}", captions, (len(groups), row)
            groups.append((file, number, image))


def _told_apart(rows: list[tuple[str, list[str], tuple[int, int]]],
                groups: list[tuple[Path, int, str]]) -> Iterator[tuple[str, list[str], tuple[int, int]]]:
    """Rows (path, captions, place) with another id where a path comes again with other bytes."""
    read, names = _RowGroups(groups, [place for _, _, place in rows]), Names()
    times = Counter(path for path, _, _ in rows)
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
    """Image bytes of row i, read a row group at a time; the last group is kept, as reading mostly goes in order."""

    def __init__(self, groups: list[tuple[Path, int, str]], places: list[tuple[int, int]]):
        self._groups, self._places = groups, places
        self._kept: tuple[int, Any] = (-1, None)
        self._lock = threading.Lock()

    def __call__(self, i: int) -> bytes:
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


def webdataset_splits(root: Path, image_root: str | None = None) -> Splits:
    """`<split>*.tar` in a folder, or one shard; names that tell no split are training data."""
    files = [root] if root.is_file() else root.glob("*.tar")
    return {split: lambda group=group: read_webdataset(group) for split, group in by_split(files).items()}


def read_webdataset(files: Sequence[Path]) -> Listing:
    """WebDataset shards: members of one name up to its first dot are a sample, an image with .txt (a caption a line)
    or .json (`caption` or `captions`). Where each image lies is noted once, so that any can be read at any time."""
    rows = [row for file in files for row in _tar_rows(file)]
    image_ids, captions, places = grouped(rows)
    return Listing(image_ids, captions, _Spans(places), files_digest(files))


def _tar_rows(file: Path) -> Iterator[tuple[str, list[str], tuple[Path, int, int]]]:
    """Image id, captions and place (file, offset, bytes) of each sample of a shard."""
    samples: dict[str, tuple[list, list]] = {}
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                if not member.isreg():
                    continue
                path = PurePosixPath(member.name)
                key, _, kind = path.name.partition(".")
                places, captions = samples.setdefault(str(path.parent / key), ([], []))
                if kind.lower() in IMAGE_MEMBERS:
                    places.append((file, member.offset_data, member.size))
                elif kind.lower() in ("txt", "json"):
                    captions += _member_captions(shard.extractfile(member).read(MAX_TEXT_BYTES), kind.lower(),
                                                 f"{file}: {member.name}")
            # tarfile takes a header it cannot read for the end; the true end is a block of zeros.
            if _read_span(file, shard.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"{file}: truncated or damaged at byte {shard.offset}")
    except tarfile.TarError as error:
        raise ValueError(f"{file}: not a readable tar file (compressed ones are not): {error}") from None
    for key, (places, captions) in samples.items():
        yield f"{file.stem}/{key}", captions, places[0] if places else (file, 0, 0)


def _member_captions(data: bytes, kind: str, where: str) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
        if kind == "txt":
            return text.splitlines()
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid {kind} in UTF-8: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected an object, got {str(content)[:80]!r}")
    said = [content[name] for name in CAPTION_COLUMNS if content.get(name) is not None]  # the rest is about the image
    return as_captions(said[0], where, nulls=True) if said else []


class _Spans:
    """Image bytes of sample i from where they lie in its shard."""

    def __init__(self, places: list[tuple[Path, int, int]]):
        self._places = places

    def __call__(self, i: int) -> bytes:
        path, offset, size = self._places[i]
        if not size:
            raise BadImage(f"{path}: sample {i} has no image ({', '.join(IMAGE_MEMBERS)})")
        try:
            return _read_span(path, offset, min(size, MAX_BYTES + 1))
        except OSError as error:
            raise BadImage(f"{path}: sample {i}: {error.strerror}") from None


def _read_span(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
