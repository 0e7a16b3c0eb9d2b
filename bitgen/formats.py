"""The layouts a data set may have on disk, each read into `Listing`s: ids, captions and a way to the image bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from bitgen.config import DataConfig
from bitgen.images import BadImage

SPLITS = {"train": ("train",), "val": ("val", "dev"), "test": ("test",)}
"""Beginnings of file names that say which split a file belongs to."""
IMAGE_COLUMNS = ("image", "img", "filename", "file_name", "jpg", "png")
CAPTION_COLUMNS = ("captions", "caption", "sentences", "text")

Read = Callable[[int], "bytes | str | Path | Image.Image"]


@dataclass
class Listing:
    """What one split holds. `read(i)` gives what `safe_open_image` takes, or raises `BadImage`."""

    image_ids: list[str]
    captions: list[list[str]]
    read: Read
    fingerprint: str
    """Changes when the images may have changed: names the prepared pixels."""

    def select(self, indices: Sequence[int]) -> Listing:
        """The listing of these images alone, in this order."""
        indices = list(indices)
        if indices == list(range(len(self.image_ids))):
            return self
        return Listing([self.image_ids[i] for i in indices], [self.captions[i] for i in indices],
                       partial(_nth, self.read, indices), digest(self.fingerprint, *indices))


def _nth(read: Read, indices: Sequence[int], i: int) -> bytes | str | Path | Image.Image:
    """A function at module level, as worker processes take no others."""
    return read(indices[i])


Splits = dict[str, Callable[[], Listing]]
"""From the name of a split to what reads it; `any` is a single file that stands for whatever split is asked for."""


def digest(*parts: Any) -> str:
    """A short stable hash of parts (by their text)."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(f"{part}\0".encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def by_split(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files sorted into splits by how their names begin; names that tell nothing are training data."""
    found: dict[str, list[Path]] = {}
    for file in sorted(files):
        names = (split for split, starts in SPLITS.items() if file.name.lower().startswith(starts))
        found.setdefault(next(names, "train"), []).append(file)
    return found


def files_digest(files: Iterable[Path]) -> str:
    """Fingerprint of files by name, size and time of change."""
    stats = [(file.name, file.stat()) for file in files]
    return digest(*((name, s.st_size, s.st_mtime_ns) for name, s in stats))


def as_captions(value: Any, where: str) -> list[str]:
    """Captions as data sets write them (a string, strings, or {raw: string} each) as a list of strings."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        texts = [v.get("raw", v.get("caption")) if isinstance(v, dict) else v for v in value]
        if all(isinstance(text, str) for text in texts):
            return texts
    raise ValueError(f"{where}: expected a caption or a list of captions, got {str(value)[:80]!r}")


def column(names: Iterable[str], wanted: Sequence[str], where: str) -> str:
    """The first of `wanted` among column names, or a `ValueError` that names what is there."""
    names = list(names)
    for name in wanted:
        if name in names:
            return name
    raise ValueError(f"{where}: expected a column {' or '.join(wanted)}, got {', '.join(map(str, names)) or 'none'}")


def grouped(rows: Iterable[tuple[str, list[str], Any]]) -> tuple[list[str], list[list[str]], list[Any]]:
    """Rows (image id, captions, where it lies) with the rows of one image made one: ids, captions, places."""
    captions: dict[str, list[str]] = {}
    places: dict[str, Any] = {}
    for image_id, texts, place in rows:
        captions.setdefault(image_id, []).extend(texts)
        places.setdefault(image_id, place)
    return list(captions), list(captions.values()), list(places.values())


def find_splits(config: DataConfig) -> Splits:
    """The splits that `config.root` holds, not read yet. Raises `ValueError` for a root of no known layout."""
    root = Path(config.root).expanduser()
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder; expected `scenes`, a data set on disk or hub://ORG/NAME")
    return parquet_splits(root)


def parquet_splits(root: Path) -> Splits:
    """`<split>*.parquet` in a folder (or its `data/`); one file given by name stands for any split."""
    if root.is_file():
        return {"any": lambda: read_parquet([root])}
    files = list(root.glob("*.parquet")) or list((root / "data").glob("*.parquet"))
    return {split: lambda group=group: read_parquet(group) for split, group in by_split(files).items()}


def read_parquet(files: Sequence[Path]) -> Listing:
    """Parquet with `image` (bytes, or {bytes, path}) and `captions`. Image bytes stay on disk until they are read.

    Rows of the same `path` are one image. Raises `ValueError` naming the file for no parquet or a missing column.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(f"{files[0]}: parquet needs the package pyarrow: pip install 'bitgen[data]'") from None
    rows, groups = [], []
    for file in files:
        try:
            opened = parquet.ParquetFile(file)
            names = opened.schema_arrow.names
            image, caption = column(names, IMAGE_COLUMNS, str(file)), column(names, CAPTION_COLUMNS, str(file))
            has_path = f"{image}.path" in [field.name for field in opened.schema_arrow.field(image).flatten()]
            table = opened.read(columns=[caption, *([f"{image}.path"] if has_path else [])])
        except pyarrow.ArrowException as error:
            raise ValueError(f"{file}: not a readable parquet file: {error}") from None
        texts = table.column(caption).to_pylist()
        paths = [row["path"] for row in table.column(image).to_pylist()] if has_path else [None] * len(texts)
        places = [(len(groups) + g, r) for g in range(opened.num_row_groups)
                  for r in range(opened.metadata.row_group(g).num_rows)]
        rows += [(path or f"{file.name}:{i}", as_captions(text, f"{file}: row {i}: {caption}"), place)
                 for i, (path, text, place) in enumerate(zip(paths, texts, places, strict=True))]
        groups += [(file, g, image) for g in range(opened.num_row_groups)]
    image_ids, captions, places = grouped(rows)
    return Listing(image_ids, captions, _RowGroups(groups, places), files_digest(files))


class _RowGroups:
    """Image bytes of row i, read a row group at a time; the last group is kept, as reading mostly goes in order."""

    def __init__(self, groups: list[tuple[Path, int, str]], places: list[tuple[int, int]]):
        self._groups, self._places = groups, places
        self._kept: tuple[int, list] = (-1, [])
        self._lock = threading.Lock()

    def __call__(self, i: int) -> bytes:
        group, row = self._places[i]
        with self._lock:
            if self._kept[0] != group:
                import pyarrow.parquet as parquet
                file, number, name = self._groups[group]
                table = parquet.ParquetFile(file).read_row_group(number, columns=[name])
                self._kept = group, table.column(name).combine_chunks()
            value = self._kept[1][row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadImage(f"{self._groups[group][0]}: row {row} of group {group}: no image bytes")
        return data

    def __getstate__(self) -> dict:
        return {"groups": self._groups, "places": self._places}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["groups"], state["places"])
