"""An index: a gallery of pictures, and their captions, encoded once and searched by features.

    DIR/
      catalogue.sqlite     ids, sizes, captions, tags, paths, thumbnails (JPEG); which model; how many rows count
      images.features      (N, D) float16, memory-mapped; row i belongs to item i of the catalogue
      captions.features    (M, D) float16
      images.two-stage.faiss …      what approximate search has learned; made anew where it is missing

    encoder = Encoder(*bitgen.load("runs/scenes"))
    index = Index.build("photos.index", "photos/", encoder)            # again: goes on, or follows what changed
    index = Index.open("photos.index", encoder)                        # refused where the model is another
    hits = index.search(encoder.text(["a red ring"]), k=5)             # hits.ids[0], hits.scores[0]
    index.search(encoder.images(["ring.png"]), captions=True)          # hits.texts[0] too

Shapes: N pictures, M captions, Q queries, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bitgen.catalogue import Item
from bitgen.engine import ENGINES, Exact, Shortlist, make_engine
from bitgen.gallery import pictures
from bitgen.images import BadImage, safe_open_image
from bitgen.indexing import Progress, fill, fill_in_parts, leave_out
from bitgen.processes import launched
from bitgen.query import Encoder, Hits
from bitgen.store import SIDES, Store

NEIGHBOURS = 16  # of each picture, among which its duplicates are looked for


class Index:
    """A gallery with its features. Searching is safe from several threads; one at a time may change it."""

    def __init__(self, store: Store, engine: str = "auto"):
        """Use `Index.open` or `Index.build`."""
        if engine not in ENGINES:
            raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
        self.store, self.catalogue, self.folder = store, store.catalogue, store.folder
        self.engine, self.width, self.fingerprint = engine, store.width, store.fingerprint
        self._lock = threading.RLock()
        self._refresh()

    # Opening, building, changing --------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | Path, encoder: Encoder | None = None, engine: str = "auto") -> Index:
        """The index in `folder`. Raises `ValueError` where there is none, or where `encoder` is another model.

        engine: `exact`, `two-stage`, `lists` (see `engine`), or `auto`: by the number of pictures.
        """
        index = cls(Store(Path(folder)), engine)
        if encoder is not None:
            index.require(encoder)
        return index

    @classmethod
    def build(cls, folder: str | Path, gallery: Any, encoder: Encoder, *, captions: bool = True, dtype: str = "float16",
              engine: str = "auto", batch_size: int = 64, progress: Progress | None = None) -> Index:
        """Index what is in `gallery` and not yet in the index; stopped at any point, the next call goes on.

        Files that changed since they were read are encoded anew; those that are gone from a folder are left out, and
        the log names them; what was removed stays out until `restore` or `add`.

        gallery: a folder of images, a data set of `open_data`, a list of files, or `Pictures`. captions: encode their
        captions too. progress: called with (pictures done, pictures in all); by default a bar on a terminal.
        Unreadable files are left out and named in `skipped`. Under `torchrun` every process does its share. Raises
        `ValueError` for an index of another model.
        """
        source, folder = pictures(gallery), Path(folder)

        def create(place: Path) -> Store:
            store = Store.create(place, encoder.fingerprint, encoder.width, dtype, captions, source.name)
            cls(store, engine).require(encoder)
            return store

        rank, world = launched()
        how = {"encoder": encoder, "batch_size": batch_size, "progress": progress}
        if world > 1:
            store = fill_in_parts(folder, source, create, rank, world, **how)
        else:
            store = create(folder)
            fill(store, source, **how)
        if not rank:
            leave_out(store, source)
        return cls(store, engine)

    def require(self, encoder: Encoder) -> None:
        """Raises `ValueError` where the features here were made by another model than `encoder`."""
        if encoder.fingerprint != self.fingerprint:
            raise ValueError(f"{self.folder}: its features were made by another model ({self.fingerprint[:12]}) than "
                             f"the one that asks ({encoder.fingerprint[:12]}): load that one, or build the index anew")

    def add(self, gallery: Any, encoder: Encoder, progress: Progress | None = None) -> list[str]:
        """Add pictures (as `build` takes them); returns their ids, without those that are `skipped`.

        Raises `ValueError` for an id that is there already, and for another model.
        """
        source = pictures(gallery)
        self.require(encoder)
        taken = [name for name in source.ids if name in self]
        if taken:
            raise ValueError(f"{self.folder}: {taken[0]!r} is in the index already; remove it first")
        with self._lock:
            with self.catalogue.transaction():
                self.catalogue.let_in(source.ids)
            fill(self.store, source, encoder, progress=progress)
            self._refresh()
        return [name for name in source.ids if name in self]

    def remove(self, ids: Iterable[str]) -> None:
        """Take pictures out, with captions and thumbnails, and keep them out when the gallery is built again.

        Raises `ValueError` for an id that is not there.
        """
        with self._lock:
            self.store.remove([ids] if isinstance(ids, str) else ids, for_good=True)
            self._refresh()

    def restore(self, ids: Iterable[str]) -> None:
        """Let pictures that were removed come in again when the gallery is next built.

        Raises `ValueError` for an id that was not removed.
        """
        ids = [ids] if isinstance(ids, str) else list(ids)
        with self._lock, self.catalogue.transaction():
            if strange := set(ids) - self.removed:
                raise ValueError(f"{self.folder}: {min(strange)!r} was not removed from this index")
            self.catalogue.let_in(ids)

    def _refresh(self) -> None:
        """What was derived from the rows is derived anew when it is next needed."""
        with self._lock:
            self._engines: dict[str, tuple[np.ndarray, Exact | Shortlist]] = {}
            self._masks: dict[tuple, np.ndarray | None] = {}

    # Looking up -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.catalogue.count()

    def __contains__(self, name: str) -> bool:
        return self.catalogue.has(name)

    def ids(self) -> list[str]:
        """Every id, in the order in which pictures came."""
        return self.catalogue.ids()

    def item(self, name: str) -> Item:
        """What is known of a picture. Raises `ValueError` for an id that is not there, as the next three do."""
        return self.catalogue.item(name)

    def thumbnail(self, name: str) -> bytes:
        """A picture as JPEG, at most 256 pixels a side."""
        return self.catalogue.thumbnail(name)

    def image(self, name: str) -> Image.Image:
        """A picture in RGB: its file, where that is still there and readable, else its thumbnail."""
        path = self.item(name).path
        try:
            return safe_open_image(path or self.thumbnail(name))
        except BadImage:
            return safe_open_image(self.thumbnail(name))

    def features(self, ids: Sequence[str]) -> np.ndarray:
        """float32 (n, D) of pictures."""
        return self.store.rows("images")[[self.catalogue.row(name) for name in ids]].astype(np.float32)

    @property
    def checkpoint(self) -> str | None:
        """Run folder, checkpoint folder or Hub id of the model, where whoever built the index said so."""
        return self.catalogue.fact("checkpoint")

    def made_by(self, checkpoint: str) -> None:
        """Note where the model of this index is to be found."""
        with self.catalogue.transaction():
            self.catalogue.set_fact("checkpoint", checkpoint)

    @property
    def skipped(self) -> dict[str, str]:
        """Files that could not be read, with the reason."""
        return self.catalogue.skipped()

    @property
    def removed(self) -> set[str]:
        """Ids that `remove` took out and that stay out."""
        return self.catalogue.kept_out()

    # Searching --------------------------------------------------------------------------------------------

    def search(self, features: np.ndarray, k: int = 10, *, captions: bool = False,
               where: Mapping[str, Any] | None = None, threshold: float | None = None,
               distinct: float | None = None) -> Hits:
        """The k nearest pictures (or `captions`) of each query `features (Q, D)`, best first; fewer where there are
        no more.

        where: filters by name, see `catalogue.FILTERS`. threshold: lowest cosine. distinct: of results that are closer
        to each other than this cosine only the best stays. Raises `ValueError` for queries of another width, where one
        of the two is no number, and for filters that cannot be meant.
        """
        for name, cosine in (("threshold", threshold), ("distinct", distinct)):
            if cosine is not None and np.isnan(cosine):
                raise ValueError(f"{name}: expected a cosine, got {cosine}")
        side = SIDES[captions]
        queries = self._checked(features, k, side)
        rows, engine = self._engine(side)
        allowed = self._allowed(side, where)
        most = len(rows) if allowed is None else int(allowed.sum())
        wanted = k if distinct is None else 4 * k
        while most:
            found = engine.search(queries, min(wanted, most), allowed)
            kept = [_kept(rows, scores, places, k, threshold, distinct) for scores, places in zip(*found)]
            enough = (len(each) == k or threshold is not None and scores[-1] < threshold
                      for each, scores in zip(kept, found[0]))
            if wanted >= most or distinct is None or all(enough):
                return self._named(side, kept)
            wanted *= 4
        return self._named(side, [[]] * len(queries))

    def duplicates(self, closer: float = 0.99) -> list[list[str]]:
        """Groups of pictures that are linked by cosines of at least `closer`, the first of each being the one that
        came first."""
        rows, engine = self._engine("images")
        allowed = self._allowed("images", None)
        places = np.arange(len(rows)) if allowed is None else np.flatnonzero(allowed)
        group = np.arange(len(rows))  # the first picture that each is linked to
        for start in range(0, len(places), 1024):
            block = places[start:start + 1024]
            found = engine.search(rows[block].astype(np.float32), min(NEIGHBOURS, len(places)), allowed)
            for place, scores, near in zip(block, *found):
                for other in near[(scores >= closer) & (near >= 0)]:
                    low, high = sorted((_root(group, place), _root(group, other)))
                    group[high] = low
        linked: dict[int, list[int]] = {}
        for place in places:
            linked.setdefault(_root(group, place), []).append(int(place))
        names = {row: name for row, (name, _) in self.catalogue.named(places.tolist()).items()}
        return [[names[place] for place in some] for some in linked.values() if len(some) > 1]

    def _checked(self, features: np.ndarray, k: int, side: str) -> np.ndarray:
        queries = np.ascontiguousarray(np.atleast_2d(features), np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width or not np.isfinite(queries).all():
            raise ValueError(f"features: expected finite (queries, {self.width}), got shape {queries.shape}")
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        if side == "captions" and not self.store.with_captions:
            raise ValueError(f"{self.folder}: its captions were not encoded; build it with captions")
        return queries

    def _engine(self, side: str) -> tuple[np.ndarray, Exact | Shortlist]:
        """Rows and what searches them."""
        with self._lock:
            if side not in self._engines:
                rows = self.store.rows(side)
                self._engines[side] = rows, make_engine(self.engine, rows, self.folder / side)
            return self._engines[side]

    def _allowed(self, side: str, where: Mapping[str, Any] | None) -> np.ndarray | None:
        """Rows that exist and pass the filters, None where all do."""
        key = (side, repr(sorted((where or {}).items())))
        with self._lock:
            if key not in self._masks:
                if len(self._masks) >= 16:
                    self._masks.clear()
                rows = len(self._engine(side)[0])
                whole = not where and self.catalogue.count("captions" if side == "captions" else "items") == rows
                mask = None if whole else self.catalogue.mask(rows, where, captions=side == "captions")
                self._masks[key] = None if whole or mask.all() else mask
            return self._masks[key]

    def _named(self, side: str, kept: list[list[tuple[float, int]]]) -> Hits:
        """Rows as ids; what another process removed in the meantime is left out."""
        names = self.catalogue.named({row for pairs in kept for _, row in pairs}, captions=side == "captions")
        kept = [[(score, *names[row]) for score, row in pairs if row in names] for pairs in kept]
        texts = [[text for _, _, text in pairs] for pairs in kept] if side == "captions" else None
        return Hits([[name for _, name, _ in pairs] for pairs in kept],
                    [[score for score, _, _ in pairs] for pairs in kept], texts)


def _kept(rows: np.ndarray, scores: np.ndarray, places: np.ndarray, k: int, threshold: float | None,
          distinct: float | None) -> list[tuple[float, int]]:
    """(score, row) of one query's results, after threshold and collapse of near-duplicates."""
    good = places >= 0 if threshold is None else (places >= 0) & (scores >= threshold)
    pairs = list(zip(scores[good].tolist(), places[good].tolist()))
    if distinct is None:
        return pairs[:k]
    features, chosen = rows[places[good]].astype(np.float32), []
    for i in range(len(pairs)):
        if len(chosen) < k and (features[chosen] @ features[i] < distinct).all():
            chosen.append(i)
    return [pairs[i] for i in chosen]


def _root(group: np.ndarray, place: int) -> int:
    """The first of the group that a picture belongs to; the way there is shortened for who comes after."""
    while group[place] != place:
        group[place] = group[group[place]]
        place = group[place]
    return int(place)
