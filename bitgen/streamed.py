"""Data sets of the Hub, streamed once, in order, into the cache, where their images can be read in any order.

What is in the cache is never asked for again: it works offline from then on, and a resumed run sees the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from bitgen.cache import PixelCache, check_bad
from bitgen.config import DataConfig, cache_folder
from bitgen.images import BadImage, picture
from bitgen.listing import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    Listing,
    Names,
    Splits,
    as_captions,
    column,
    digest,
    split_of,
)

HUB = "hub://"
GROUPING = 2  # raise it when rows are made images in another way: it names the cache


def hub_splits(config: DataConfig, image_size: int) -> Splits:
    """The splits of `hub://ORG/NAME`, as calls that stream them (of training the first `config.limit` rows) at this
    size."""
    repo = config.root.removeprefix(HUB)
    known = cache_folder(config.cache) / f"{digest(HUB, repo)}.splits.json"
    if not known.is_file():
        datasets = _datasets(repo)
        with _streaming(repo):
            names = datasets.get_dataset_split_names(repo)
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(names), encoding="utf-8")
    names = json.loads(known.read_text(encoding="utf-8"))
    return {split: partial(_stream, repo, name, config.limit if split == "train" else None, config, image_size)
            for name in reversed(names) if (split := split_of(name))}


def _stream(repo: str, name: str, limit: int | None, config: DataConfig, image_size: int) -> Listing:
    """The listing of (the first `limit` rows of) a split, whose images are those of the cache."""
    cache = PixelCache(cache_folder(config.cache), digest(HUB, repo, name, limit, GROUPING), image_size)
    found = cache.open()
    if found is None:
        image_ids, captions = [], []
        rows = _grouping(islice(_rows(repo, name), limit), image_ids, captions)
        found = cache.write(rows, limit, f"{HUB}{repo} {name}", image_ids=image_ids, captions=captions)
    if found is None:
        raise ValueError(f"{HUB}{repo}: split {name!r} is empty")
    pixels, index = found
    image_ids, bad = index["image_ids"], index["bad"]
    check_bad({image_ids[i]: reason for i, reason in bad.items()}, len(pixels), config.max_bad_fraction)
    return Listing(image_ids, index["captions"], partial(_row, pixels, bad), "")


def _rows(repo: str, name: str) -> Iterator[tuple[str, list[str], bytes | None]]:
    """Path, captions and bytes of each row, streamed in order; nothing is decoded."""
    datasets, where = _datasets(repo), f"{HUB}{repo}"
    with _streaming(repo):
        stream = datasets.load_dataset(repo, split=name, streaming=True)
        columns = stream.column_names or list(next(iter(stream), {}))
    image, caption = column(columns, IMAGE_COLUMNS, where), column(columns, CAPTION_COLUMNS, where)
    for i, row in enumerate(_told(stream.cast_column(image, datasets.Image(decode=False)), repo)):
        value = row[image] or {}
        captions = as_captions(row[caption], f"{where}: row {i}", nulls=True)
        yield value.get("path") or f"{name}:{i}", captions, value.get("bytes")


def _told(stream: Iterable[dict], repo: str) -> Iterator[dict]:
    """The rows of a stream, whose errors name the data set."""
    with _streaming(repo):
        yield from stream


@contextmanager
def _streaming(repo: str) -> Iterator[None]:
    """Turns what `datasets` and its clients raise, dozens of unrelated types, into a `ValueError` that names the data
    set."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{HUB}{repo}: could not be streamed: {type(error).__name__}: {error}; "
                         "is its name right, and the Hub in reach?") from error


def _grouping(rows: Iterator, image_ids: list[str], captions: list[list[str]]) -> Iterator[bytes]:
    """The image bytes of streamed rows; their ids and captions are added to the lists. Rows of one path are one image
    where their bytes are the same."""
    names, places = Names(), {}
    for path, texts, data in rows:
        image_id = names(path, data or b"")
        if image_id in places:
            captions[places[image_id]].extend(texts)
            continue
        places[image_id] = len(image_ids)
        image_ids.append(image_id)
        captions.append(texts)
        yield data or b""


def _row(pixels: np.ndarray, bad: dict[int, str], i: int) -> Image.Image:
    """Image i of the cache, or `BadImage` where it had none."""
    if i in bad:
        raise BadImage(bad[i])
    return picture(pixels, i)


def _datasets(repo: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{HUB}{repo}: Hub data sets need the package datasets: pip install 'bitgen[data]'") from None
    return datasets
