"""Pictures to be indexed: a folder of images, a data set, or a list of files, all read the same way."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from tqdm import tqdm

from bitgen.catalogue import Item
from bitgen.config import DataConfig
from bitgen.dataset import open_data
from bitgen.formats import find_splits, recognise
from bitgen.images import FORMATS, SUFFIXES, BadImage, safe_open_image, to_uint8
from bitgen.tokenizer import clean

if TYPE_CHECKING:
    from bitgen.dataset import Dataset

log = logging.getLogger(__name__)

THUMBNAIL = 256  # pixels: the longer side of a thumbnail
QUALITY = 90
AHEAD = 3  # batches decoded ahead of the model


@dataclass
class Pictures:
    """Pictures by position; nothing is decoded before `load`."""

    name: str
    """Where they came from, for people to read."""
    ids: list[str]
    sources: Sequence[Any]
    """What `safe_open_image` takes for each, or a call without arguments that gives it."""
    captions: Sequence[list[str]]
    tags: Sequence[list[str]]
    folder: Path | None = None
    """The folder that they are all the pictures of, ids being paths inside it; None where they are of none."""

    def __post_init__(self):
        if len(set(self.ids)) < len(self.ids):
            twice = Counter(self.ids).most_common(1)[0][0]
            raise ValueError(f"{self.name}: two pictures have the id {twice!r}; ids must differ")

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, places: Iterable[int]) -> Pictures:
        """These pictures alone, in this order."""
        places = list(places)
        return Pictures(self.name, *([part[i] for i in places] for part in
                                     (self.ids, self.sources, self.captions, self.tags)))

    def load(self, i: int, size: int) -> tuple[torch.Tensor, Item, bytes]:
        """Picture i as the model's uint8 pixels (3, S, S), what is known of it, and its thumbnail (JPEG).

        Raises `BadImage` where it cannot be read.
        """
        source = self._source(i)
        stamp = _stamp(source)  # before it is read: a change in the meantime is then seen the next time
        image = safe_open_image(source, at_least=2 * size)
        path = os.path.abspath(source) if isinstance(source, (str, Path)) else None
        item = Item(self.ids[i], *_seen_size(source, image), self._said(i), list(self.tags[i]), path, stamp)
        return to_uint8(image, size), item, thumbnail(image)

    def changed(self, i: int, before: Item) -> bool:
        """Is picture i another than it was: its captions, where it has any now, or its stamp, where it had one?"""
        if (said := self._said(i)) and said != before.captions:
            return True
        try:
            return before.stamp is not None and _stamp(self._source(i)) != before.stamp
        except BadImage:
            return True

    def _said(self, i: int) -> list[str]:
        """Its captions that say something."""
        return [text for text in self.captions[i] if clean(text)]

    def _source(self, i: int) -> Any:
        return self.sources[i]() if callable(self.sources[i]) else self.sources[i]


def _stamp(source: Any) -> tuple[int, int] | None:
    """`Item.stamp` of a picture as it is now; None of a file that is not there, and of one that is open."""
    if isinstance(source, (bytes, Image.Image)):  # of a shard: its own time would tell of a change in all of it
        content = source if isinstance(source, bytes) else source.tobytes()
        return len(content), int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), signed=True)
    try:
        found = os.stat(source) if isinstance(source, (str, Path)) else None
    except OSError:
        return None
    return found and (found.st_size, found.st_mtime_ns)


def pictures(source: str | Path | Dataset | Pictures | Sequence[str | Path]) -> Pictures:
    """Any gallery as `Pictures`: a folder of images, an opened data set, or a list of image files.

    Ids are paths inside the folder, the data set's own, or file names. Raises `ValueError` where there is no picture.
    """
    if isinstance(source, Pictures):
        return source
    if isinstance(source, (str, Path)):
        return of_folder(Path(source))
    return of_data(source) if hasattr(source, "listing") else of_files(source)


def find(root: str, split: str, image_size: int) -> Pictures:
    """The pictures that `root` names: a data set's `split` where it is one, else every image in a folder, or one file.

    Raises `ValueError` where it is neither, and for a data set without this split.
    """
    return data_or_images(root, lambda config: replace(of_data(open_data(config, split, image_size)),
                                                       name=f"{root} {split}"))


def data_or_images(root: str, read: Callable[[DataConfig], Pictures]) -> Pictures:
    """What `read` makes of `root` where it is a data set, else every image in a folder, or one file.

    A folder of images may hold files that look like captions and are none; the log says so. Raises `ValueError` where
    it is neither, and what `read` raises.
    """
    path = Path(root).expanduser()
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return replace(of_files([path]), name=root)
    if path.is_dir() and not _recognised(path):
        return of_folder(path)
    config = DataConfig(root=root, max_bad_fraction=1.0)  # an index leaves out what it cannot read, and names it
    try:
        return read(config)
    except ValueError:
        reason = _unreadable(config) if path.is_dir() else ""
        if not reason or not _image_files(path):
            raise
        log.warning("%s: no data set, its images are taken by themselves: %s", root, reason)
        return of_folder(path)


def _recognised(folder: Path) -> bool:
    """Whether its files have the names of a data set's."""
    try:
        return bool(recognise(folder))
    except ValueError:
        return False


def _unreadable(config: DataConfig) -> str:
    """Why a split of a data set on disk cannot be read, or that none lists an image; nothing where it is one."""
    try:
        listings = [read() for read in find_splits(config).values()]
    except ValueError as error:
        return str(error)
    return "" if any(listing.image_ids for listing in listings) else "its tables list no images"


def _image_files(folder: Path) -> list[Path]:
    """Every image file below `folder`, sorted. Linked folders belong to it, each once.

    What has a name that is not UTF-8 is left out, and the log names it: no index could tell it.
    """
    found, seen = [], set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [path for name in names if (path := Path(where, name)).suffix.lower() in SUFFIXES and path.is_file()]
    strange = {path for path in found if not _utf8(path)}
    if strange:
        log.warning("%s: %d images are left out, for their names are not UTF-8: %s", folder, len(strange),
                    ", ".join(ascii(path.name) for path in sorted(strange)[:5]))
    return sorted(set(found) - strange)


def _utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def of_folder(folder: Path) -> Pictures:
    """Every image file below `folder`, sorted; the names of its sub-folders are its tags."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    files = _image_files(folder)
    if not files:
        raise ValueError(f"{folder}: no image files ({', '.join(sorted(SUFFIXES))}) in it")
    inside = [path.relative_to(folder) for path in files]
    return Pictures(str(folder), [path.as_posix() for path in inside], files, [[]] * len(files),
                    [list(path.parts[:-1]) for path in inside], Path(os.path.abspath(folder)))


def of_files(files: Sequence[str | Path]) -> Pictures:
    """A list of files, such as an upload; a name that comes again gets a number."""
    ids: dict[str, None] = {}
    for path in map(Path, files):
        names = (path.name if n == 1 else f"{path.stem} ({n}){path.suffix}" for n in range(1, len(files) + 2))
        ids[next(name for name in names if name not in ids)] = None
    if not ids:
        raise ValueError("gallery: an empty list of files")
    return Pictures("files", list(ids), [Path(path) for path in files], [[]] * len(ids), [[]] * len(ids))


def of_data(dataset: Dataset) -> Pictures:
    """A data set as `open_data` gives it, with its captions. Raises `ValueError` for one without images."""
    if not len(dataset):
        raise ValueError("gallery: a data set without images")
    readers = [_Reader(dataset.listing.read, i) for i in range(len(dataset))]
    return Pictures("data set", list(dataset.image_ids), readers, dataset.captions, [[]] * len(dataset))


@dataclass(slots=True)
class _Reader:
    """`read(i)`, not called yet."""

    read: Any
    i: int

    def __call__(self):
        return self.read(self.i)


@dataclass
class Loaded:
    """A batch ready for the model: B readable pictures, and why others are not."""

    pixels: torch.Tensor
    """uint8 (B, 3, S, S)."""
    items: list[Item]
    thumbnails: list[bytes]
    bad: dict[str, str]


def loaded(source: Pictures, size: int, batch_size: int, progress: Callable[[int, int], None] | None = None,
           already: int = 0) -> Iterator[Loaded]:
    """All pictures in batches, in order, decoded by threads ahead of who takes them.

    progress: called with (done, in all) after each batch was used, `already` counted in; by default a bar.
    """
    total = len(source) + already
    with ThreadPoolExecutor() as pool, tqdm(total=total, initial=already, desc="indexing", unit="image",
                                            disable=None if progress is None else True, leave=False) as bar:
        queue: deque[Future] = deque()
        for start in range(0, len(source), batch_size):
            while len(queue) < AHEAD * batch_size and (i := start + len(queue)) < len(source):
                queue.append(pool.submit(_attempt, source, i, size))
            results = [queue.popleft().result() for _ in range(min(batch_size, len(source) - start))]
            good = [result for result in results if not isinstance(result[1], str)]
            pixels, items, thumbnails = zip(*good) if good else ((), [], [])
            yield Loaded(torch.stack(pixels) if good else torch.empty(0), list(items), list(thumbnails),
                         dict(result for result in results if isinstance(result[1], str)))
            bar.update(len(results))
            if progress is not None:
                progress(already + start + len(results), total)


def _attempt(source: Pictures, i: int, size: int) -> tuple:
    """What `load` gives, or (id, reason) where the picture cannot be read."""
    try:
        return source.load(i, size)
    except BadImage as error:
        return source.ids[i], str(error)


def thumbnail(image: Image.Image) -> bytes:
    """JPEG of an RGB image, at most `THUMBNAIL` pixels a side; re-encoded, so that nothing else of the file is kept."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.info.clear()
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY, subsampling=0)  # full colour: thumbnails are small, edges matter
    return out.getvalue()


def _seen_size(source: Any, image: Image.Image) -> tuple[int, int]:
    """(width, height) of the original as it is seen; `image` may have been decoded smaller, and is upright."""
    if isinstance(source, Image.Image):
        return image.size
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as header:
        width, height = header.size
    return (width, height) if (width >= height) == (image.width >= image.height) else (height, width)
