"""The folder of an index: feature files and catalogue, changed so that a kill at any moment leaves whole rows only.

Features are written before the transaction that counts them; what was written and never counted is overwritten by
the next writer. Writers take turns (SQLite's write lock); readers keep what they have mapped, as rows never move.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bitgen.catalogue import Catalogue, Item

CATALOGUE = "catalogue.sqlite"
SIDES = ("images", "captions")
DTYPES = ("float16", "float32")
CHUNK = 1000  # pictures copied at a time


class Store:
    """N pictures and M captions in `folder`: `rows("images")` (N, D) and `rows("captions")` (M, D), and `catalogue`."""

    def __init__(self, folder: Path):
        """Raises `ValueError` where `folder` holds no index."""
        self.folder = folder
        self.catalogue = Catalogue(folder / CATALOGUE)
        self.width: int = self.catalogue.fact("width")
        self.dtype = np.dtype(self.catalogue.fact("dtype"))
        self.fingerprint: str = self.catalogue.fact("fingerprint")
        self.with_captions: bool = self.catalogue.fact("with_captions")

    @classmethod
    def create(cls, folder: Path, fingerprint: str, width: int, dtype: str, with_captions: bool, gallery: str) -> Store:
        """The store in `folder`, made where there is none yet; what is there already keeps its dtype and captions."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        folder.mkdir(parents=True, exist_ok=True)
        catalogue = Catalogue(folder / CATALOGUE, create=True)
        with catalogue.transaction():
            if catalogue.fact("fingerprint") is None:
                for leftover in folder.glob("*.faiss"):
                    leftover.unlink()
                facts = {"fingerprint": fingerprint, "width": width, "dtype": dtype, "with_captions": with_captions,
                         "gallery": gallery, "images": 0, "captions": 0}
                for key, value in facts.items():
                    catalogue.set_fact(key, value)
        catalogue.close()
        return cls(folder)

    def rows(self, side: str) -> np.ndarray:
        """Features of `images` (N, D) or `captions` (M, D), memory-mapped; rows of removed pictures are still there.

        Raises `ValueError` where the file is shorter than it must be.
        """
        count = self.catalogue.fact(side) if side == "images" or self.with_captions else 0
        path, needed = self._file(side), count * self.width * self.dtype.itemsize
        if not count:
            return np.empty((0, self.width), self.dtype)
        held = path.stat().st_size if path.exists() else 0
        if held < needed:
            raise ValueError(f"{path}: {held:,} bytes, but {count:,} rows need {needed:,}: the file was cut off")
        return np.memmap(path, self.dtype, "r", shape=(count, self.width))

    def append(self, items: Sequence[Item], thumbnails: Sequence[bytes], features: np.ndarray,
               spoken: np.ndarray | None = None) -> None:
        """Add pictures: `features (n, D)`, and `spoken (m, D)` of all their captions in order, where they are kept."""
        with self.catalogue.transaction():
            row, caption_row = self.catalogue.fact("images"), self.catalogue.fact("captions")
            self._write("images", row, features)
            if self.with_captions and spoken is not None:
                self._write("captions", caption_row, spoken)
            texts = self.catalogue.add(row, caption_row, items, thumbnails)
            self.catalogue.set_fact("images", row + len(items))
            self.catalogue.set_fact("captions", caption_row + texts)

    def copy(self, other: Store, newer: bool = False) -> None:
        """Append the pictures of another store that are not here yet; removed ones do not come along.

        newer: what the other store found anew takes the place of what is here; else a file that could not be read here
        stays out too.
        """
        here = set(self.catalogue.ids()).union(() if newer else self.catalogue.skipped())
        for entries in other.chunks():
            entries = [entry for entry in entries
                       if entry[1].id not in here or newer and entry[1] != self.catalogue.item(entry[1].id)]
            if not entries:
                continue
            rows, items, caption_rows = zip(*entries)
            said = [row for some in caption_rows for row in some]
            self.append(items, [other.catalogue.thumbnail(item.id) for item in items],
                        other.rows("images")[list(rows)], other.rows("captions")[said] if self.with_captions else None)
        with self.catalogue.transaction():
            self.catalogue.skip({name: reason for name, reason in other.catalogue.skipped().items()
                                 if newer or name not in here})

    def chunks(self) -> Iterator[list[tuple[int, Item, list[int]]]]:
        """All pictures in order, some at a time: (row, item, rows of its captions)."""
        after = -1
        while entries := self.catalogue.entries(after, CHUNK):
            yield entries
            after = entries[-1][0]

    def remove(self, ids: Iterable[str], for_good: bool = False) -> None:
        """Take pictures out, `for_good` where filling the store again is not to bring them back.

        Raises `ValueError` for an id that is not there; then none is taken out.
        """
        ids = list(ids)
        with self.catalogue.transaction():
            self.catalogue.remove(ids)
            if for_good:
                self.catalogue.keep_out(ids)

    def _file(self, side: str) -> Path:
        return self.folder / f"{side}.features"

    def _write(self, side: str, start: int, features: np.ndarray) -> None:
        """Rows from `start` on; whatever stands there was never counted."""
        if not len(features):
            return
        path = self._file(side)
        with open(path, "r+b" if path.exists() else "w+b") as file:
            file.truncate(start * self.width * self.dtype.itemsize)
            file.seek(0, os.SEEK_END)
            file.write(np.ascontiguousarray(features, self.dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())
