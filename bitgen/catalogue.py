"""What an index knows of its pictures beside their features: one SQLite file, so that a kill never leaves half of it.

    items       row in the features, id, size in pixels, path, tags        thumbnails   row, JPEG
    captions    row in the caption features, its picture's row, text       skipped      id, why it cannot be read
    files       row, stamp of the picture as it was read                   removed      id that is to stay out
    facts       format, model, width … and how many rows of each feature file count
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
SCHEMA = """
    CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE items (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, width INTEGER NOT NULL,
                        height INTEGER NOT NULL, path TEXT, tags TEXT NOT NULL);
    CREATE TABLE captions (row INTEGER PRIMARY KEY, item INTEGER NOT NULL, text TEXT NOT NULL);
    CREATE INDEX captions_of ON captions (item);
    CREATE TABLE thumbnails (row INTEGER PRIMARY KEY, jpeg BLOB NOT NULL);
    CREATE TABLE skipped (id TEXT PRIMARY KEY, reason TEXT NOT NULL);
"""
LATER = ("files (row INTEGER PRIMARY KEY, size INTEGER NOT NULL, changed INTEGER NOT NULL)",
         "removed (id TEXT PRIMARY KEY)")
"""Tables that the first indexes of this format do not have."""
FILTERS = {
    "tag": "EXISTS (SELECT 1 FROM json_each(items.tags) WHERE value = ?)",
    "caption": "EXISTS (SELECT 1 FROM captions WHERE item = items.row AND instr(folded(text), folded(?)))",
    "id": "items.id GLOB replace(?, '[', '[[]')",
    "path": "items.path GLOB replace(?, '[', '[[]')",
    "min_width": "items.width >= ?",
    "max_width": "items.width <= ?",
    "min_height": "items.height >= ?",
    "max_height": "items.height <= ?",
}
"""What a search can be narrowed to: `tag` is equal, `caption` holds the words in any case, `id` and `path` match (with
* and ?)."""
MANY = 500  # values looked for at once: SQLite takes expressions that are a thousand deep


@dataclass
class Item:
    """One picture of an index."""

    id: str
    width: int
    """Pixels, as the picture is seen."""
    height: int
    captions: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    path: str | None = None
    """The file it was read from, where it was a file."""
    stamp: tuple[int, int] | None = None
    """Size of that file in bytes and when it was changed, in nanoseconds; of a picture that is no file, its bytes'
    number and hash. None where nobody noted it."""


class Catalogue:
    """The SQLite file of an index. Reads may come from any thread; who writes holds `transaction`."""

    def __init__(self, path: Path, create: bool = False):
        """Raises `ValueError` where there is no catalogue of this format."""
        if not create and not path.is_file():
            raise ValueError(f"{path.parent}: no index here ({path.name} is missing); `bitgen index` builds one")
        self.path = path
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._db.create_function("folded", 1, str.casefold, deterministic=True)  # SQLite's `lower` knows ASCII alone
        try:
            self._db.execute("PRAGMA trusted_schema = OFF")
            if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] and create:
                self._db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} INSERT INTO facts VALUES ('format', '{FORMAT}');"
                                       "COMMIT")
            found = self.fact("format")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: not the catalogue of an index: {error}") from None
        if found != FORMAT:
            raise ValueError(f"{path}: an index of format {found}, this version reads {FORMAT}: build it anew")
        self._complete()

    def _complete(self) -> None:
        """Give an index the tables it lacks; one that cannot be written to has them in memory, empty."""
        for table in LATER:
            try:
                self._db.execute(f"CREATE TABLE IF NOT EXISTS main.{table}")
            except sqlite3.OperationalError as error:
                if "readonly" not in str(error) and "unable to open" not in str(error):
                    raise
                self._db.execute(f"CREATE TABLE IF NOT EXISTS temp.{table}")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside stands, or nothing of it; other writers wait."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def fact(self, key: str, default: Any = None) -> Any:
        """A JSON value by its name."""
        found = self._db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return default if found is None else json.loads(found[0])

    def set_fact(self, key: str, value: Any) -> None:
        """Keep a JSON value under a name."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(value)))

    # Pictures ---------------------------------------------------------------------------------------------

    def add(self, row: int, caption_row: int, items: Sequence[Item], thumbnails: Sequence[bytes]) -> int:
        """Pictures for the rows from `row` on, their captions from `caption_row` on; returns how many captions.

        Those of an id that is there already take its place.
        """
        self._drop([item.id for item in items if self.has(item.id)])
        rows = range(row, row + len(items))
        texts = [(place, text) for place, item in zip(rows, items) for text in item.captions]
        self._db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", [
            (place, item.id, item.width, item.height, item.path, json.dumps(item.tags, ensure_ascii=False))
            for place, item in zip(rows, items)])
        self._db.executemany("INSERT INTO captions VALUES (?, ?, ?)", [
            (caption_row + n, place, text) for n, (place, text) in enumerate(texts)])
        self._db.executemany("INSERT INTO thumbnails VALUES (?, ?)", list(zip(rows, thumbnails)))
        self._db.executemany("INSERT INTO files VALUES (?, ?, ?)", [
            (place, *item.stamp) for place, item in zip(rows, items) if item.stamp is not None])
        self.unskip(item.id for item in items)
        return len(texts)

    def remove(self, ids: Iterable[str]) -> None:
        """Forget pictures with their captions and thumbnails. Raises `ValueError` for an id that is not there."""
        for name in ids:
            self.row(name)
            self._drop([name])

    def _drop(self, names: Sequence[str]) -> None:
        for table, column in (("captions", "item"), ("thumbnails", "row"), ("files", "row"), ("items", "row")):
            self._db.executemany(f"DELETE FROM {table} WHERE {column} = (SELECT row FROM items WHERE id = ?)",
                                 [(name,) for name in names])

    def keep_out(self, ids: Iterable[str]) -> None:
        """Note pictures that are not to come in again."""
        self._db.executemany("INSERT OR REPLACE INTO removed VALUES (?)", [(name,) for name in ids])

    def let_in(self, ids: Iterable[str]) -> None:
        """Take back what `keep_out` noted of these."""
        self._db.executemany("DELETE FROM removed WHERE id = ?", [(name,) for name in ids])

    def kept_out(self) -> set[str]:
        """Ids of the pictures that are not to come in again."""
        return {name for (name,) in self._db.execute("SELECT id FROM removed")}

    def skip(self, reasons: Mapping[str, str]) -> None:
        """Note pictures that could not be read; what they were before is forgotten."""
        self._drop(list(reasons))
        self._db.executemany("INSERT OR REPLACE INTO skipped VALUES (?, ?)", list(reasons.items()))

    def unskip(self, ids: Iterable[str]) -> None:
        """Forget that these could not be read."""
        self._db.executemany("DELETE FROM skipped WHERE id = ?", [(name,) for name in ids])

    def skipped(self) -> dict[str, str]:
        """Pictures that could not be read, with the reason."""
        return dict(self._db.execute("SELECT id, reason FROM skipped ORDER BY rowid"))

    def count(self, table: str = "items") -> int:
        """How many pictures (`items`) or `captions` there are."""
        return self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    def ids(self) -> list[str]:
        """Every picture's id, in the order in which they came."""
        return [name for (name,) in self._db.execute("SELECT id FROM items ORDER BY row")]

    def paths(self) -> dict[str, str | None]:
        """Every picture's id with the file it was read from."""
        return dict(self._db.execute("SELECT id, path FROM items ORDER BY row"))

    def row(self, name: str) -> int:
        """Row of a picture. Raises `ValueError` for an id that is not there."""
        found = self._db.execute("SELECT row FROM items WHERE id = ?", (name,)).fetchone()
        if found is None:
            raise ValueError(f"{self.path.parent}: no picture {name!r} in this index")
        return found[0]

    def has(self, name: str) -> bool:
        """Is there a picture of this id?"""
        return self._db.execute("SELECT 1 FROM items WHERE id = ?", (name,)).fetchone() is not None

    def item(self, name: str) -> Item:
        """Everything known of a picture."""
        row, width, height, path, tags, *stamp = self._db.execute(
            "SELECT row, width, height, path, tags, size, changed FROM items LEFT JOIN files USING (row) "
            "WHERE id = ?", (name,)).fetchone() or (self.row(name),)
        texts = [text for (text,) in self._db.execute("SELECT text FROM captions WHERE item = ? ORDER BY row", (row,))]
        return Item(name, width, height, texts, json.loads(tags), path, _stamp(*stamp))

    def entries(self, after: int, limit: int) -> list[tuple[int, Item, list[int]]]:
        """Pictures by row from `after` (exclusive) on, at most `limit`: (row, item, rows of its captions)."""
        found = self._db.execute("SELECT row, id, width, height, path, tags, size, changed FROM items "
                                 "LEFT JOIN files USING (row) WHERE row > ? ORDER BY row LIMIT ?",
                                 (after, limit)).fetchall()
        entries = {row: (row, Item(name, width, height, [], json.loads(tags), path, _stamp(*stamp)), [])
                   for row, name, width, height, path, tags, *stamp in found}
        said = self._db.execute("SELECT row, item, text FROM captions WHERE item IN (SELECT value FROM json_each(?)) "
                                "ORDER BY row", (json.dumps(list(entries)),))
        for caption_row, row, text in said:
            entries[row][1].captions.append(text)
            entries[row][2].append(caption_row)
        return list(entries.values())

    def thumbnail(self, name: str) -> bytes:
        """JPEG of a picture."""
        return self._db.execute("SELECT jpeg FROM thumbnails WHERE row = ?", (self.row(name),)).fetchone()[0]

    # Rows -------------------------------------------------------------------------------------------------

    def named(self, rows: Iterable[int], captions: bool = False) -> dict[int, tuple[str, str | None]]:
        """Row -> (id, None), or caption row -> (id, text); rows that are gone are left out."""
        ask = ("SELECT captions.row, id, text FROM captions JOIN items ON items.row = item WHERE captions.row IN "
               if captions else "SELECT row, id, NULL FROM items WHERE row IN ")
        found = self._db.execute(f"{ask} (SELECT value FROM json_each(?))", (json.dumps(list(rows)),))
        return {row: (name, text) for row, name, text in found}

    def mask(self, length: int, where: Mapping[str, Any] | None, captions: bool = False) -> np.ndarray:
        """bool (length,): rows of pictures (or captions) that exist and that `where` lets through.

        A list of values means any of them; several filters all hold. Raises `ValueError` for an unknown filter, and
        for values that are no text, or no number of pixels.
        """
        mask = self._rows(length, captions)
        for key, value in (where or {}).items():
            wanted, found = _wanted(key, value), np.zeros(length, bool)
            for start in range(0, len(wanted), MANY):
                found |= self._rows(length, captions, FILTERS[key], wanted[start:start + MANY])
            mask &= found
        return mask

    def _rows(self, length: int, captions: bool, condition: str = "1", values: Sequence[Any] = ()) -> np.ndarray:
        """bool (length,): rows that exist and for which the condition holds with any of the values."""
        rows, join = ("captions.row", "JOIN captions ON item = items.row") if captions else ("items.row", "")
        conditions = " OR ".join([condition] * max(len(values), 1))
        found = self._db.execute(f"SELECT {rows} FROM items {join} WHERE {conditions}", values)
        mask = np.zeros(length, bool)
        rows = np.fromiter((row for (row,) in found), np.int64)
        mask[rows[rows < length]] = True
        return mask


def _wanted(key: str, value: Any) -> list[str] | list[float]:
    """The values of which a filter takes any, checked."""
    if key not in FILTERS:
        raise ValueError(f"where: no filter {key!r}; there are {', '.join(FILTERS)}")
    values = list(value) if isinstance(value, (list, tuple, set)) else [value]
    kind, what = (Real, "a number of pixels") if key.startswith(("min_", "max_")) else (str, "text")
    for each in values:
        if not isinstance(each, kind) or each != each:
            raise ValueError(f"where: {key}: expected {what}, got {each!r}")
    return values if kind is str else [float(each) for each in values]


def _stamp(size: int | None, changed: int | None) -> tuple[int, int] | None:
    return None if size is None else (size, changed)
