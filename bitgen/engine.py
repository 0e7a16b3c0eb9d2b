"""Nearest rows of a feature file, by FAISS: exact for galleries as people have them, approximate beyond.

Shapes: N rows, D width, Q queries. Features are unit length, so that the inner product is the cosine.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import numpy as np

DTYPES = ("float16", "float32")


class Vectors:
    """A flat file of rows (N, D), appended to and memory-mapped; how many rows count is the caller's knowledge."""

    def __init__(self, path: Path, width: int, dtype: str = "float16"):
        self.path, self.width, self.dtype = path, width, np.dtype(dtype)

    def append(self, start: int, features: np.ndarray) -> None:
        """Write `features (n, D)` as the rows from `start` on; what stands there was never finished."""
        if not len(features):
            return
        with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
            file.truncate(start * self.width * self.dtype.itemsize)
            file.seek(0, os.SEEK_END)
            file.write(np.ascontiguousarray(features, self.dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())

    def rows(self, count: int) -> np.ndarray:
        """The first `count` rows, memory-mapped read-only. Raises `ValueError` where the file is shorter."""
        if not count:
            return np.empty((0, self.width), self.dtype)
        needed = count * self.width * self.dtype.itemsize
        held = self.path.stat().st_size if self.path.exists() else 0
        if held < needed:
            raise ValueError(f"{self.path}: {held:,} bytes, but {count:,} rows need {needed:,}: the file was cut off")
        return np.memmap(self.path, self.dtype, "r", shape=(count, self.width))


class Exact:
    """Every row is looked at; float16 rows in memory, half the time and half the room of float32."""

    def __init__(self, rows: np.ndarray):
        faiss = import_faiss()
        kinds = {2: faiss.ScalarQuantizer.QT_fp16}
        if rows.dtype.itemsize == 4:
            self._index = faiss.IndexFlatIP(rows.shape[1])
        else:
            self._index = faiss.IndexScalarQuantizer(rows.shape[1], kinds[2], faiss.METRIC_INNER_PRODUCT)
        self._faiss, self.count = faiss, 0
        self.extend(rows)

    def extend(self, rows: np.ndarray) -> None:
        """Take in the rows that came behind those it has; `rows (N, D)` are all."""
        if len(rows) > self.count:
            raw = np.ascontiguousarray(rows[self.count:]).view(np.uint8)
            self._index.add_sa_codes(raw)
        self.count = len(rows)

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and rows, each (Q, k), best first; -1 where `allowed` (bool (N,)) leaves fewer."""
        if allowed is None:
            return self._index.search(queries, k)
        bits = np.packbits(allowed, bitorder="little")
        chosen = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBitmap(bits))
        return self._index.search(queries, k, params=chosen)


def import_faiss() -> ModuleType:
    """FAISS, or a `ValueError` that says how to get it."""
    try:
        import faiss
    except ImportError:
        raise ValueError("searching an index needs faiss: pip install faiss-cpu (BitGen's extra `index`)") from None
    return faiss
