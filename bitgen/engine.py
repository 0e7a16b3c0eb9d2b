"""Nearest rows of a feature file, by FAISS: exact for galleries as people have them, a short list beyond.

    exact        every row is looked at, in float16: half the time and half the room of float32
    two-stage    4-bit codes of the rows' main directions (product quantisation, Jégou et al. 2011; fast scan, André et
                 al. 2017, arXiv 1704.07355) give a short list, which the rows themselves, on disk, put in order
    lists        the same codes, sorted into lists by the nearest of many centres (an inverted file): those of the
                 centres nearest to a query are looked at, a sixteenth of the rows or so

Shapes: N rows, D width, Q queries, S length of the short list. Features are unit length: inner product is cosine.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

FEW = 20_000  # rows left by a filter that are looked at one by one; more go through the short list
LEAST = 1000  # rows without which there is nothing to learn from
SAMPLE = 65_536  # rows that codes are learned from
BLOCK = 65_536  # rows converted at a time
FEWEST = 39  # rows that a list's centre is learned from: with fewer, FAISS warns
PART = 1 / 16  # of the lists that a short list is taken from


@dataclass(frozen=True)
class Recipe:
    """How FAISS learns codes of the rows, and how many candidates are then put in order by the rows themselves."""

    factory: str
    """For `faiss.index_factory`; `{d}` stands for the number of main directions, `{lists}` for that of lists."""
    directions: int
    """How many main directions are kept, at most."""
    shortlist: int
    """S."""
    lists: int = 0
    """Lists that the codes are sorted into, at most; `{lists}` of `factory`."""


RECIPES = {"two-stage": Recipe("PCA{d},PQ{d}x4fs", 48, 200),
           "lists": Recipe("PCA{d},IVF{lists},PQ{d}x4fs", 48, 200, 1024)}
ENGINES = ("auto", "exact", *RECIPES)


def make_engine(kind: str, rows: np.ndarray, path: Path) -> Exact | Shortlist:
    """The engine of this kind (one of `ENGINES`) for `rows (N, D)`; `path` keeps what it learns, if anything.

    `auto` is exact as long as a query then takes a millisecond or two, and sorts codes into lists where all of them
    take more than ten.
    """
    if kind not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {kind!r}")
    if kind == "auto":
        kind = "exact" if len(rows) < 100_000 else "two-stage" if len(rows) < 5_000_000 else "lists"
    return Exact(rows) if kind == "exact" or len(rows) < LEAST else Shortlist(rows, kind, path)


def import_faiss() -> ModuleType:
    """FAISS, or a `ValueError` that says how to get it."""
    try:
        import faiss
    except ImportError:
        raise ValueError("searching an index needs faiss: pip install 'bitgen[index]'") from None
    return faiss


class Exact:
    """Looks at every row; holds them in memory as they are on disk."""

    def __init__(self, rows: np.ndarray):
        """`rows (N, D)`, float16 or float32."""
        faiss = import_faiss()
        count, width = rows.shape
        self._index = (faiss.IndexFlatIP(width) if rows.dtype == np.float32 else
                       faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT))
        if count:  # the codes of either are the rows themselves: nothing is converted, nothing is held twice
            self._index.add_sa_codes(np.ascontiguousarray(rows).view(np.uint8).reshape(count, -1))

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cosines float32 and rows int64, each (Q, k), best first, of the rows that `allowed` (bool (N,)) lets through;
        where those are fewer than k, the last rows are -1."""
        if allowed is None:
            return self._index.search(queries, k)
        faiss = import_faiss()
        chosen = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        return self._index.search(queries, k, params=faiss.SearchParameters(sel=chosen))


class Shortlist:
    """Finds candidates by codes that it learned from the rows, and puts them in order by the rows themselves."""

    def __init__(self, rows: np.ndarray, kind: str, path: Path):
        """`rows (N, D)` stay where they are (on disk, if memory-mapped). `path`: what was learned, used if it is there,
        whole and of this kind; rows that came since are added."""
        self._rows, self._recipe = rows, RECIPES[kind]
        path = path.with_name(f"{path.name}.{kind}.faiss")
        faiss = import_faiss()
        known = _learned(faiss, path)
        if known is None or known.d != rows.shape[1] or not len(rows) / 2 <= known.ntotal <= len(rows):
            known = self._learn(faiss)
        self._index, before = known, known.ntotal
        for start in range(before, len(rows), BLOCK):
            self._index.add(rows[start:start + BLOCK].astype(np.float32))
        if len(rows) > before:
            with suppress(OSError, RuntimeError):  # what a disk that takes nothing raises, itself or by FAISS
                self._keep(faiss, path)

    def _keep(self, faiss: ModuleType, path: Path) -> None:
        partial = path.with_suffix(f".{os.getpid()}.part")
        try:
            faiss.write_index(self._index, str(partial))
            with open(partial, "rb") as written:
                os.fsync(written.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _learn(self, faiss: ModuleType):
        sample = self._rows[::max(1, len(self._rows) // SAMPLE)].astype(np.float32)
        width = self._rows.shape[1]
        # Distances, not products: on unit rows they give the same order, and taking off the mean does not change them.
        factory = self._recipe.factory.format(d=min(self._recipe.directions, width),
                                              lists=min(self._recipe.lists, len(sample) // FEWEST))
        index = faiss.index_factory(width, factory, faiss.METRIC_L2)
        index.train(sample)
        return index

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As `Exact.search`, but for rows that the codes put far down."""
        if allowed is not None and allowed.sum() <= FEW:
            few = np.flatnonzero(allowed)
            return self._ordered(queries, np.broadcast_to(few, (len(queries), len(few))), k)
        length = max(self._recipe.shortlist, 2 * k)
        while True:
            length = min(length, len(self._rows))
            found = self._candidates(queries, length)
            if allowed is not None:
                found = np.where(allowed[found], found, -1)  # -1 stays -1, whatever stands in the last row
            if length == len(self._rows) or ((found >= 0).sum(1) >= k).all():
                return self._ordered(queries, found, k)
            length *= 4

    def _candidates(self, queries: np.ndarray, length: int) -> np.ndarray:
        """The first `length` rows by their codes, (Q, length); -1 where the lists looked at hold fewer. From more lists
        the longer: all of them where all rows are asked for."""
        if not self._recipe.lists:
            return self._index.search(queries, length)[1]
        faiss = import_faiss()
        lists = faiss.extract_index_ivf(self._index).nlist
        part = 1 if length == len(self._rows) else PART * length / self._recipe.shortlist
        chosen = faiss.SearchParametersIVF(nprobe=min(lists, math.ceil(part * lists)))
        how = faiss.SearchParametersPreTransform(index_params=chosen)
        return self._index.search(queries, length, params=how)[1]

    def _ordered(self, queries: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k of the candidates `found (Q, S)`, -1 where there are fewer, by the rows themselves."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for i, (query, candidates) in enumerate(zip(queries, found)):
            candidates = np.sort(candidates[candidates >= 0])  # in the order of the disk
            cosines = self._rows[candidates].astype(np.float32) @ query
            best = np.argsort(-cosines, kind="stable")[:k]
            scores[i, :len(best)], rows[i, :len(best)] = cosines[best], candidates[best]
        return scores, rows


def _learned(faiss: ModuleType, path: Path):
    """The FAISS index in a file; None where there is none, or one that was cut off: it can be learned again."""
    try:
        return faiss.read_index(str(path)) if path.exists() else None
    except RuntimeError:
        return None
