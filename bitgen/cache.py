"""Prepared pixels: every image of a listing decoded once into a file of uint8, so that training never decodes.

Layout in the cache folder: `<fingerprint>-<size>.u8` holds (N, 3, S, S) in order, `<fingerprint>-<size>.json` the
count and the unreadable ones. The JSON is written last, each file by renaming: a half-written cache is never seen.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitgen.images import BadImage, safe_open_image, to_uint8

CHUNK = 256
MISSING = os.strerror(errno.ENOENT)


class PixelCache:
    """The prepared pixels of one listing at one size."""

    def __init__(self, folder: Path, fingerprint: str, size: int):
        self.size = size
        self._pixels_file = folder / f"{fingerprint}-{size}.u8"
        self._index_file = folder / f"{fingerprint}-{size}.json"

    def open(self) -> tuple[np.ndarray, dict] | None:
        """Read-only memory map uint8 (N, 3, S, S) and the index ({"bad": {position: reason}, ...}); None if absent."""
        if not (self._index_file.is_file() and self._pixels_file.is_file()):
            return None
        try:
            index = json.loads(self._index_file.read_text(encoding="utf-8"))
            shape = (index["count"], 3, self.size, self.size)
            index["bad"] = {int(i): reason for i, reason in index["bad"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):  # cut off by a crash: as if it were not there
            return None
        if not index["count"] or self._pixels_file.stat().st_size != np.prod(shape):
            return None
        return np.memmap(self._pixels_file, np.uint8, "r", shape=shape), index

    def write(self, sources: Iterable[Any], count: int | None, label: str, **index: Any) -> tuple[np.ndarray, dict]:
        """Decode `sources` (what `safe_open_image` takes, or a call that gives it) and open the result.

        Unreadable images are zeros, their reasons in the index. Lists in `index` are stored as they are when all
        sources have been taken. Raises `ValueError` naming the folder where it cannot be written or has no room.
        """
        folder, partial = self._pixels_file.parent, self._pixels_file.with_suffix(f".{os.getpid()}.part")
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _check_room(folder, (count or 0) * 3 * self.size**2)
            file = open(partial, "wb")
        try:
            written, bad = 0, {}
            for pixels in self._decode(sources, count, label):
                if isinstance(pixels, str):
                    bad[written] = pixels
                    pixels = np.zeros((3, self.size, self.size), np.uint8)
                with _writing(folder):
                    file.write(pixels.tobytes())
                written += 1
            with _writing(folder):
                file.close()
                os.replace(partial, self._pixels_file)
                text = json.dumps({"count": written, "size": self.size, "bad": bad, **index})
                partial.write_text(text, encoding="utf-8")
                os.replace(partial, self._index_file)
        finally:
            with suppress(OSError):  # a full disk has been told of where it was written to
                file.close()
            partial.unlink(missing_ok=True)
        return self.open()

    def _decode(self, sources: Iterable[Any], count: int | None, label: str) -> Iterator[np.ndarray | str]:
        """The pixels of all sources in order, or why one has none. Pillow frees the interpreter while it decodes, so
        threads use all cores; chunks bound what waits in memory."""
        sources = iter(sources)
        with ThreadPoolExecutor() as pool, tqdm(total=count, desc=f"preparing {label}", unit="image",
                                                disable=None, leave=False) as bar:
            while chunk := list(islice(sources, CHUNK)):
                yield from pool.map(self._pixels, chunk)
                bar.update(len(chunk))

    def _pixels(self, source: Any) -> np.ndarray | str:
        """uint8 (3, S, S) of one source, or why it has none."""
        try:
            image = safe_open_image(source() if callable(source) else source, at_least=2 * self.size)
            return to_uint8(image, self.size).numpy()
        except BadImage as error:
            return str(error)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns what the disk refuses into a `ValueError` that names the folder. For our own writing alone: what a source
    of images raises says nothing about the cache."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{folder}: cannot hold the prepared images: {error}; "
                         "choose another folder with data.cache") from error


def _check_room(folder: Path, need: int) -> None:
    """Raise `OSError` where the disk has no room for `need` bytes and a fifth more."""
    free = shutil.disk_usage(folder).free
    if free < 1.2 * need:
        raise OSError(f"needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def calls(read: Any, count: int) -> Iterator[Any]:
    """`read(0)`, `read(1)`, ... as calls that have not been made yet."""
    return (lambda i=i: read(i) for i in range(count))


def check_bad(bad: dict[str, str], count: int, allowed: float) -> None:
    """Raise `ValueError` with the list where more than the `allowed` share of `count` images is unreadable."""
    if len(bad) > allowed * count:
        lines = [f"  {name}: {reason}" for name, reason in list(bad.items())[:50]]
        more = [f"  ... and {len(bad) - 50} more"] if len(bad) > 50 else []
        raise ValueError("\n".join([f"{len(bad)} of {count} images are unreadable, more than data.max_bad_fraction = "
                                    f"{allowed:g} allows:", *lines, *more, *not_found(bad, count)]))


def not_found(bad: dict[str, str], count: int) -> list[str]:
    """A line on where images are looked for, if not one of `count` was found; else none."""
    nowhere = len(bad) == count and all(reason.endswith(MISSING) for reason in bad.values())
    return ["  not one of them was found: name their folder with data.image_root"] if nowhere and bad else []
