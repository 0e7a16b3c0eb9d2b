"""Captions in JSON or CSV beside a folder of images: Karpathy's splits, COCO's captions_*.json, and plain CSV.

Files come from strangers: whatever is wrong in one is a `ValueError` of one line naming the file, the record and the
key; and no image outside the image folder is ever opened, by `..`, an absolute path or a symbolic link.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bitgen.folders import image_folder, inside, usual_folders
from bitgen.images import SUFFIXES
from bitgen.listing import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SPLIT_COLUMN,
    SPLITS,
    Listing,
    Splits,
    as_captions,
    by_split,
    column,
    grouped,
    images_digest,
    listed,
    split_named,
)

QUOTES = 'a quoted caption ends with its quote, and a quote in it stands twice: "a ""stop"" sign"'
KARPATHY_SPLITS = {**{split: split for split in SPLITS}, "restval": "train"}


def karpathy_splits(root: Path, image_root: str | None) -> Splits:
    """`dataset*.json` of Karpathy and Fei-Fei 2015 (arXiv 1412.2306): `images[]` with `filename`, `filepath` (COCO),
    `split` (restval is training) and `sentences[].raw`."""
    path = root
    if root.is_dir():
        path = _only(sorted(root.glob("dataset*.json")) or sorted(root.glob("*.json")), "JSON file")
    content = _load_json(path)
    folder, rows = None, []
    for i, record in enumerate(_records(content, "images", path)):
        where = f"{path}: images[{i}]"
        name = _value(record, "filename", str, where)
        if "filepath" in record:
            name = f"{_value(record, 'filepath', str, where)}/{name}"
        folder = folder or image_folder(image_root, usual_folders(path.parent), name)
        split = KARPATHY_SPLITS.get(_value({"split": "train", **record}, "split", str, where))
        if split is None:
            raise ValueError(f"{where}.split: expected {', '.join(KARPATHY_SPLITS)}, got {record['split']!r}")
        captions = as_captions(_value(record, "sentences", list, where), f"{where}.sentences")
        rows.append((split, (name, captions, inside(folder, name, where))))
    return _by_row(rows)


def coco_splits(root: Path, image_root: str | None) -> Splits:
    """`captions_<split>*.json` in a folder or its `annotations/`, the images of each in a folder of its name (of
    `image_root`, or that itself)."""
    files = [root]
    if root.is_dir():
        files = [file for part in ("", "annotations") for file in (root / part).glob("captions_*.json")]
    named = by_split(Path(file.name.removeprefix("captions_")) for file in files)
    files = {file.name.removeprefix("captions_"): file for file in files}
    return {split: functools.partial(read_coco, files[_only(some, f"{split} file").name], image_root)
            for split, some in named.items()}


def read_coco(path: Path, image_root: str | None = None) -> Listing:
    """COCO's caption annotations: `images[]` with `id` and `file_name`, `annotations[]` with `image_id`, `caption`.

    Images without a caption stay in the listing, with none. Raises `ValueError` for a record that is not as it
    should be, an id that comes twice, or an annotation of an image that is not listed.
    """
    content = _load_json(path)
    base = path.parent.parent if path.parent.name == "annotations" else path.parent
    name = path.stem.removeprefix("captions_")
    usual = [base / name, base / "images" / name, base / "images", base]
    captions: dict[int, list[str]] = {}
    folder, places = None, []
    for i, record in enumerate(_records(content, "images", path)):
        where = f"{path}: images[{i}]"
        number = _value(record, "id", int, where)
        if number in captions:
            raise ValueError(f"{where}.id: {number} has been given to an image before")
        captions[number] = []
        file = _value(record, "file_name", str, where)
        folder = folder or image_folder(image_root, usual, file, name)
        places.append(inside(folder, file, where))
    seen = set()
    for i, record in enumerate(_records(content, "annotations", path)):
        where = f"{path}: annotations[{i}]"
        number = _value(record, "image_id", int, where)
        if number not in captions:
            raise ValueError(f"{where}.image_id: no image has the id {number}")
        if "id" in record and _value(record, "id", int, where) in seen:
            raise ValueError(f"{where}.id: {record['id']} has been given to an annotation before")
        seen.add(record.get("id"))
        captions[number].append(_value(record, "caption", str, where))
    return _listing([(str(number), texts, place) for (number, texts), place
                     in zip(captions.items(), places, strict=True)])


def csv_splits(root: Path, image_root: str | None) -> Splits:
    """`<split>*.csv` (or .txt, as Flickr8k's captions.txt) in a folder; one file is what its column `split` says row by
    row, or else its name, or else training data."""
    files = [root] if root.is_file() else sorted(root.glob("*.csv")) or sorted(root.glob("*.txt"))
    if len(files) == 1 and SPLIT_COLUMN in next(_csv_rows(files[0]), {}):
        return _by_row(_csv_images(files[0], image_root))
    return {split: functools.partial(read_csv, _only(some, f"{split} file"), image_root)
            for split, some in by_split(files).items()}


def read_csv(path: Path, image_root: str | None = None) -> Listing:
    """CSV with a header: a column image, filename or file_name, and a column caption or captions (one caption, or a
    list of them in JSON or as Python writes it). Rows of the same image are one image.

    Raises `ValueError` naming the row for what is not so, for a column `split` that names none, and for a quote that
    is not closed: it would make one caption of the rows that follow.
    """
    return _listing(row for _, row in _csv_images(path, image_root))


def _csv_images(path: Path, image_root: str | None) -> Iterator[tuple[str, tuple[str, list[str], str]]]:
    """Split (train where there is no column of it) and image id, captions, file of each row."""
    for i, row in enumerate(_csv_rows(path)):
        where = f"{path}: row {i}"
        if i == 0:
            image, caption = column(row, IMAGE_COLUMNS, str(path)), column(row, CAPTION_COLUMNS, str(path))
            folder = image_folder(image_root, usual_folders(path.parent), row[image] or "")
        if None in row or None in row.values():
            raise ValueError(f"{where}: expected as many fields as the header has; quote a caption that holds commas")
        if (swallowed := _swallowed(row, image, caption)) is not None:
            raise ValueError(f"{where}: expected one row, got another one in its caption: {swallowed[:80]!r}; {QUOTES}")
        split = split_named(row[SPLIT_COLUMN], where) if SPLIT_COLUMN in row else "train"
        texts = listed(row[caption], f"{where}.{caption}")
        yield split, (row[image], texts, inside(folder, row[image], f"{where}.{image}"))


def _swallowed(row: dict[str, str], image: str, caption: str) -> str | None:
    """A further line of a caption that is a row of its own, as it names an image: the quote before it is not closed."""
    names = list(row)
    place = names.index(image) - (len(names) if names.index(image) > names.index(caption) else 0)
    for line in row[caption].splitlines()[1:]:
        fields = line.split(",")  # a caption may hold commas: columns behind it are counted from the end
        if len(fields) >= len(names) and fields[place].strip('" ').lower().endswith(SUFFIXES):
            return line
    return None


def _csv_rows(path: Path) -> Iterator[dict]:
    line = 1
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                line = reader.line_num + 1
                yield row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not readable as CSV in UTF-8: {error}") from None
    except csv.Error as error:
        raise ValueError(f"{path}: not readable as CSV from line {line} on: {error}; {QUOTES}") from None


def _load_json(path: Path) -> dict:
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, NaN, giant integers; nesting
        raise ValueError(f"{path}: not valid JSON in UTF-8: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with a list 'images', got a {type(content).__name__}")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _records(content: dict, key: str, path: Path) -> list[dict]:
    """The list of objects under a key."""
    records = content.get(key)
    if not isinstance(records, list):
        found = "nothing" if records is None else f"a {type(records).__name__}"
        raise ValueError(f"{path}: {key}: expected a list of records, got {found}")
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"{path}: {key}[{i}]: expected an object, got {str(record)[:80]!r}")
    return records


def _value(record: dict, key: str, kind: type, where: str) -> Any:
    """A value of exactly this kind (true is no id, "1" neither)."""
    if type(record.get(key)) is not kind:
        found = repr(record[key])[:80] if key in record else "nothing"
        raise ValueError(f"{where}.{key}: expected {kind.__name__}, got {found}")
    return record[key]


def _only(files: list[Path], what: str) -> Path:
    if len(files) != 1:
        raise ValueError(f"expected one {what}, found {', '.join(map(str, files)) or 'none'}; name the file itself")
    return files[0]


def _by_row(rows: Iterable[tuple[str, tuple[str, list[str], str]]]) -> Splits:
    """The splits of rows that come with the name of theirs."""
    found: dict[str, list] = {}
    for split, row in rows:
        found.setdefault(split, []).append(row)
    return {split: functools.partial(_listing, some) for split, some in found.items()}


def _listing(rows: Iterable[tuple[str, list[str], str]]) -> Listing:
    """The listing of rows (image id, captions, file); missing files show when they are read."""
    image_ids, captions, paths = grouped(rows)
    return Listing(image_ids, captions, paths.__getitem__, images_digest(paths))
