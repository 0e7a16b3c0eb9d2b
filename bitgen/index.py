"""An index: a gallery of pictures, and their captions, encoded once and searched by features.

    DIR/
      catalogue.sqlite     ids, sizes, captions, tags, paths, thumbnails (JPEG); model and number of rows that count
      images.features      (N, D) float16, memory-mapped; row i belongs to item i of the catalogue
      captions.features    (M, D) float16
      images.faiss …       what two-stage and graph search have learned; made anew where it is missing

    encoder = Encoder(*bitgen.load("runs/scenes"))
    index = Index.build("photos.index", "photos/", encoder)            # again: goes on where it was stopped
    index = Index.open("photos.index", encoder)                        # refused where the model is another
    hits = index.search(encoder.text(["a red ring"]), k=5)             # hits.ids[0], hits.scores[0]
    index.search(encoder.images(["ring.png"]), captions=True)          # hits.texts[0] too

Features are written before the transaction that counts them, so that after a kill every row that counts is whole.
Shapes: N pictures, M captions, Q queries, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitgen.catalogue import Catalogue, Item
from bitgen.engine import DTYPES, Exact, Vectors
from bitgen.gallery import Pictures, loaded, pictures
from bitgen.query import Encoder

CATALOGUE = "catalogue.sqlite"
SIDES = ("images", "captions")


@dataclass
class Hits:
    """What Q queries found, best first; a query may have found fewer than were asked for."""

    ids: list[list[str]]
    """Ids of pictures; for captions, of the pictures they belong to."""
    scores: list[list[float]]
    """Cosines."""
    texts: list[list[str]] | None = None
    """The captions that were found, where captions were searched."""


class Index:
    """A folder of features, catalogue and thumbnails. Searching is safe from several threads."""

    def __init__(self, folder: Path, catalogue: Catalogue):
        """Use `Index.open` or `Index.build`."""
        self.folder, self.catalogue = folder, catalogue
        width, dtype = catalogue.fact("width"), catalogue.fact("dtype")
        self.width, self.fingerprint = width, catalogue.fact("fingerprint")
        self._vectors = {side: Vectors(folder / f"{side}.features", width, dtype) for side in SIDES}
        self._lock = threading.RLock()
        self._forget()

    # Opening and building ---------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | Path, encoder: Encoder | None = None) -> Index:
        """The index in `folder`. Raises `ValueError` where there is none, or where `encoder` is another model."""
        folder = Path(folder)
        index = cls(folder, Catalogue(folder / CATALOGUE))
        if encoder is not None:
            index.require(encoder)
        return index

    @classmethod
    def build(cls, folder: str | Path, gallery: Any, encoder: Encoder, *, captions: bool = True,
              dtype: str = "float16", batch_size: int = 64,
              progress: Callable[[int, int], None] | None = None) -> Index:
        """Index what is in `gallery` and not yet in the index; stopped at any point, the next call goes on.

        gallery: a folder of images, a data set of `open_data`, a list of files, or `Pictures`. captions: encode their
        captions too. progress: called with (pictures done, pictures in all); by default a bar on a terminal.
        Unreadable files are counted and named in `skipped`. Raises `ValueError` for an index of another model.
        """
        source = pictures(gallery)
        index = cls._create(Path(folder), encoder, dtype, captions, source.name)
        missing = source.select(i for i, name in enumerate(source.ids) if not index.catalogue.has(name))
        index._fill(missing, encoder, batch_size, progress, already=len(source) - len(missing))
        return index

    @classmethod
    def _create(cls, folder: Path, encoder: Encoder, dtype: str, captions: bool, name: str) -> Index:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        folder.mkdir(parents=True, exist_ok=True)
        catalogue = Catalogue(folder / CATALOGUE, create=True)
        with catalogue.transaction():
            if catalogue.fact("fingerprint") is None:
                facts = {"fingerprint": encoder.fingerprint, "width": encoder.width, "dtype": dtype, "gallery": name,
                         "captions_encoded": captions, "images": 0, "captions": 0}
                for key, value in facts.items():
                    catalogue.set_fact(key, value)
        index = cls(folder, catalogue)
        index.require(encoder)
        return index

    def require(self, encoder: Encoder) -> None:
        """Raises `ValueError` where the features here were made by another model than `encoder`."""
        if encoder.fingerprint != self.fingerprint:
            raise ValueError(f"{self.folder}: its features were made by another model ({self.fingerprint[:12]}) than "
                             f"the one that asks ({encoder.fingerprint[:12]}): load that one, or build the index anew")

    def _fill(self, source: Pictures, encoder: Encoder, batch_size: int, progress, already: int = 0) -> None:
        for batch in loaded(source, encoder.processor.vision.image_size, batch_size, progress, already):
            if batch.items:
                self._append(batch.items, batch.thumbnails, encoder.pixels(batch.pixels), encoder)
            if batch.bad:
                with self._lock, self.catalogue.transaction():
                    self.catalogue.skip(batch.bad)
        self._forget()

    def _append(self, items: list[Item], thumbnails: list[bytes], features: np.ndarray, encoder: Encoder) -> None:
        """Rows of features, then the transaction that makes them count."""
        texts = [text for item in items for text in item.captions]
        encode = self.catalogue.fact("captions_encoded") and texts
        spoken = encoder.text(texts) if encode else np.empty((0, self.width), np.float32)
        with self._lock, self.catalogue.transaction():
            row, caption_row = self.catalogue.fact("images"), self.catalogue.fact("captions")
            self._vectors["images"].append(row, features)
            self._vectors["captions"].append(caption_row, spoken)
            self.catalogue.add(row, caption_row, items, thumbnails)
            self.catalogue.set_fact("images", row + len(items))
            self.catalogue.set_fact("captions", caption_row + len(texts))

    # Changing ---------------------------------------------------------------------------------------------

    def add(self, gallery: Any, encoder: Encoder) -> list[str]:
        """Add pictures (as `build` takes them); returns their ids, unreadable ones left out.

        Raises `ValueError` for an id that is there already, and for another model.
        """
        source = pictures(gallery)
        self.require(encoder)
        taken = [name for name in source.ids if self.catalogue.has(name)]
        if taken:
            raise ValueError(f"{self.folder}: {taken[0]!r} is in the index already; remove it first")
        self._fill(source, encoder, 64, lambda done, total: None)
        return [name for name in source.ids if self.catalogue.has(name)]

    def remove(self, ids: Iterable[str]) -> None:
        """Take pictures out, with captions and thumbnails. Raises `ValueError` for an id that is not there."""
        ids = [ids] if isinstance(ids, str) else list(ids)
        with self._lock, self.catalogue.transaction():
            self.catalogue.remove(ids)
        self._forget()

    def _forget(self) -> None:
        """What was derived from the rows is derived anew when it is next needed."""
        with self._lock:
            self._engines: dict[str, Exact] = {}
            self._masks: dict[tuple, np.ndarray | None] = {}

    # Looking ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.catalogue.count()

    def __contains__(self, name: str) -> bool:
        return self.catalogue.has(name)

    def ids(self) -> list[str]:
        """Every id, in the order in which pictures came."""
        return self.catalogue.ids()

    def item(self, name: str) -> Item:
        """What is known of a picture. Raises `ValueError` for an id that is not there."""
        return self.catalogue.item(name)

    def thumbnail(self, name: str) -> bytes:
        """A picture as JPEG, at most 256 pixels a side."""
        return self.catalogue.thumbnail(name)

    @property
    def skipped(self) -> dict[str, str]:
        """Files that could not be read, with the reason."""
        return self.catalogue.skipped()

    def features(self, ids: Sequence[str]) -> np.ndarray:
        """float32 (n, D) of pictures."""
        return np.asarray(self._rows("images")[[self.catalogue.row(name) for name in ids]], np.float32)

    def _rows(self, side: str) -> np.ndarray:
        return self._vectors[side].rows(self.catalogue.fact(side))

    # Searching --------------------------------------------------------------------------------------------

    def search(self, features: np.ndarray, k: int = 10, *, captions: bool = False,
               where: Mapping[str, Any] | None = None, threshold: float | None = None,
               distinct: float | None = None) -> Hits:
        """The k nearest pictures (or `captions`) of each query `features (Q, D)`.

        where: filters by name, see `catalogue.FILTERS`. threshold: lowest cosine. distinct: of results that are closer
        to each other than this cosine only the best stays. Raises `ValueError` for queries of another width.
        """
        side = SIDES[captions]
        queries = self._checked(features, k, side)
        engine, allowed = self._engine(side), self._allowed(side, where)
        most = engine.count if allowed is None else int(allowed.sum())
        wanted = k if distinct is None else 4 * k
        while True:
            found = min(wanted, most)
            scores, rows = engine.search(queries, found, allowed) if found else (np.empty((len(queries), 0)),) * 2
            kept = [self._kept(side, s, r, k, threshold, distinct) for s, r in zip(scores, rows)]
            if found == most or distinct is None or all(len(each) == k for each in kept):
                return self._named(side, kept)
            wanted *= 4

    def _checked(self, features: np.ndarray, k: int, side: str) -> np.ndarray:
        queries = np.ascontiguousarray(np.atleast_2d(features), np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width or not np.isfinite(queries).all():
            raise ValueError(f"features: expected finite (queries, {self.width}), got shape {queries.shape}")
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        if side == "captions" and not self.catalogue.fact("captions_encoded"):
            raise ValueError(f"{self.folder}: its captions were not encoded: build it with captions")
        return queries

    def _engine(self, side: str) -> Exact:
        with self._lock:
            if side not in self._engines:
                self._engines[side] = Exact(self._rows(side))
            return self._engines[side]

    def _allowed(self, side: str, where: Mapping[str, Any] | None) -> np.ndarray | None:
        """Rows that exist and pass the filters, None where all do."""
        key = (side, repr(sorted((where or {}).items())))
        with self._lock:
            if key not in self._masks:
                if len(self._masks) >= 16:
                    self._masks.clear()
                mask = self.catalogue.mask(self._engine(side).count, where, captions=side == "captions")
                self._masks[key] = None if mask.all() else mask
            return self._masks[key]

    def _kept(self, side: str, scores: np.ndarray, rows: np.ndarray, k: int, threshold: float | None,
              distinct: float | None) -> list[tuple[float, int]]:
        """(score, row) of one query's results, after threshold and collapse of near-duplicates."""
        good = rows >= 0 if threshold is None else (rows >= 0) & (scores >= threshold)
        pairs = list(zip(scores[good].tolist(), rows[good].tolist()))
        if distinct is None:
            return pairs[:k]
        features = np.asarray(self._rows(side)[[row for _, row in pairs]], np.float32)
        chosen: list[int] = []
        for i in range(len(pairs)):
            if len(chosen) < k and (features[chosen] @ features[i] < distinct).all():
                chosen.append(i)
        return [pairs[i] for i in chosen]

    def _named(self, side: str, kept: list[list[tuple[float, int]]]) -> Hits:
        """Rows as ids."""
        names = self.catalogue.named({row for pairs in kept for _, row in pairs}, captions=side == "captions")
        kept = [[(score, *names[row]) for score, row in pairs if row in names] for pairs in kept]
        texts = [[text for _, _, text in pairs] for pairs in kept] if side == "captions" else None
        return Hits([[name for _, name, _ in pairs] for pairs in kept],
                    [[score for score, _, _ in pairs] for pairs in kept], texts)
