"""Galleries: pictures with captions and tags, indexed for one model; and what visitors upload.

An index lies in the cache of the computer and is opened again at the next start; an upload's lies in a temporary
folder of its own and goes with it. N pictures, D width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from app import limits
from app.models import Loaded
from bitgen.config import DataConfig, cache_folder
from bitgen.dataset import Dataset, open_data, sources
from bitgen.gallery import Pictures, data_or_images, of_data, of_files
from bitgen.images import BadImage, safe_open_image
from bitgen.index import Index
from bitgen.query import Encoder

EXAMPLES = 400  # pictures that captions to try, and what a random result scores, are taken from
Progress = Callable[[float, str], None]


def silent(share: float, text: str) -> None:
    """The progress of what nobody watches."""


class Gallery:
    """An index with the model it was made for. Searched by all visitors, changed by none.

    Pictures are known by their id.
    """

    def __init__(self, index: Index, encoder: Encoder, source: Pictures):
        self.index, self.encoder, self.ids = index, encoder, index.ids()
        self._source, self._place = source, {name: i for i, name in enumerate(source.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def captions(self, name: str) -> list[str]:
        """What is said of a picture; may be empty."""
        return self.index.item(name).captions

    def caption(self, name: str) -> str:
        """The first of them; empty where there is none."""
        return next(iter(self.captions(name)), "")

    def picture(self, name: str) -> Image.Image:
        """A picture to show, RGB, at most 256 pixels a side."""
        return Image.open(io.BytesIO(self.index.thumbnail(name))).convert("RGB")

    def original(self, name: str) -> Image.Image:
        """A picture for the model to look at, RGB: from where it came, or as it is shown where that has gone."""
        source = self._source.sources[self._place[name]] if name in self._place else None
        try:
            return safe_open_image(source() if callable(source) else source)
        except BadImage:
            return self.picture(name)

    @cached_property
    def sample(self) -> list[str]:
        """Ids of some pictures, the same ones every time."""
        return random.Random(0).sample(self.ids, min(EXAMPLES, len(self.ids)))

    @cached_property
    def captioned(self) -> list[str]:
        """Those of the sample that have captions."""
        return [name for name in self.sample if self.captions(name)]

    @cached_property
    def sample_pictures(self) -> np.ndarray:
        """Features (n, D) of the sample: what a random picture scores."""
        return self.index.features(self.sample)

    @cached_property
    def sample_captions(self) -> np.ndarray:
        """Features (n, D) of the first caption of each that has one: what a random caption scores."""
        return self.encoder.text([self.caption(name) for name in self.captioned])

    @cached_property
    def tags(self) -> list[str]:
        """Every tag that any picture has."""
        return sorted({tag for tags in self._source.tags for tag in tags})

    @cached_property
    def captions_count(self) -> int:
        """Captions of all pictures together."""
        return self.index.catalogue.count("captions")

    @cached_property
    def said_of(self) -> dict[str, str]:
        """From a caption to the first picture that it is said of: the right answer for a query that is a caption.

        What is said of a picture that cannot be read leads nowhere: it is in no index.
        """
        said, held = {}, set(self.ids)
        for name, captions in zip(self._source.ids, self._source.captions):
            for line in captions if name in held else ():
                said.setdefault(line, name)
        return said


def open_gallery(source: Pictures, loaded: Loaded, folder: Path, progress: Progress = silent) -> Gallery:
    """The gallery of `source` for one model, indexed below `folder` as far as it is not yet.

    Raises `ValueError` where no picture can be read.
    """
    encoder = Encoder(loaded.model, loaded.processor)
    name = hashlib.blake2b(f"{source.name} {encoder.fingerprint}".encode(), digest_size=12).hexdigest()
    index = Index.build(folder / name, source, encoder,
                        progress=lambda done, total: progress(done / total, f"Encoding {total:,} pictures"))
    index.store.remove(set(index.ids()) - set(source.ids))  # not `index.remove`: they may come back
    if not len(index):
        reasons = "; ".join(f"{name}: {_reason(why)}" for name, why in list(index.skipped.items())[:5])
        raise ValueError(f"no picture can be used. {reasons}")
    return Gallery(index, encoder, source)


def indexes() -> Path:
    """Where the indexes of this computer's galleries lie."""
    return cache_folder(None) / "galleries"


def find_pictures(root: str, image_size: int) -> Pictures:
    """The held-out images of a data set (all of them where none are held out), or every image in a folder.

    What lies on this computer has its whole path in its name, wherever it was typed: `photos` of two working folders
    are two galleries, and an index goes by the name. Raises `ValueError` for neither.
    """
    if root == "scenes":
        data = open_data(DataConfig(root=root), "test", image_size)
        return dataclasses.replace(of_data(data), name=f"scenes {image_size}", tags=[_tags(x) for x in data.truth])
    found, place = data_or_images(root, lambda config: _held_out(config, image_size)), Path(root).expanduser()
    whole = f"{os.path.abspath(place)}{found.name.removeprefix(str(place))}"
    return dataclasses.replace(found, name=whole) if place.exists() else found


def _held_out(config: DataConfig, image_size: int) -> Pictures:
    splits = sources(config, image_size)
    split = next((name for name in ("test", "val") if name in splits), "train")
    return dataclasses.replace(of_data(Dataset(splits[split]())), name=f"{config.root} {split}")


def _tags(scene: dict) -> list[str]:
    """What a generated scene shows, to filter by."""
    fields = ("colour", "shape", "size", "texture")
    tags = {f"{field}: {thing[field]}" for thing in scene["objects"] for field in fields}
    return sorted(tags | {f"objects: {len(scene['objects'])}", f"background: {scene['background']}"})


@dataclasses.dataclass
class Brought:
    """What a session has uploaded so far, kept or not.

    It counts in place: of an event that fails, what it would have returned is lost.
    """

    files: set[str] = dataclasses.field(default_factory=set)
    """Their paths: with every upload the page hands over all that it lists, those from before too."""
    size: int = 0
    """Bytes."""

    def add(self, files: Sequence[str | Path]) -> None:
        """Count some more files. Raises `ValueError` where a session may not bring as many, and says what is left."""
        new = {str(file) for file in files} - self.files
        size = sum(Path(file).stat().st_size for file in new)
        left, room = limits.FILES - len(self.files), limits.UPLOAD_BYTES - self.size
        if len(new) > left or size > room:
            raise ValueError(f"{len(new)} files of {size / 1e6:.0f} MB: a session may upload {limits.FILES} files of "
                             f"{limits.UPLOAD_BYTES / 1e6:.0f} MB in all, and {left} of {room / 1e6:.0f} MB are left")
        self.files |= new
        self.size += size


class Uploads:
    """Pictures that visitors brought, each upload under a key that nobody can guess; bounded in number and time."""

    def __init__(self, keep: int = limits.UPLOADS, seconds: float = limits.UPLOAD_SECONDS):
        self._keep, self._seconds = keep, seconds
        self._temporary = tempfile.TemporaryDirectory(prefix="bitgen-uploads-")  # goes when the server stops
        self._folder = Path(self._temporary.name)
        self._used: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, files: Sequence[str], loaded: Loaded, progress: Progress = silent) -> tuple[str, list[str]]:
        """The key of a new gallery and, for each file that was left out, its name with the reason.

        How many files a session may bring is counted by `Brought`. Raises `ValueError` where no file can be used.
        """
        key = f"upload-{secrets.token_hex(16)}"
        source = dataclasses.replace(of_files(files), name=key)
        try:
            gallery = open_gallery(source, loaded, self._folder / key, progress)
        except ValueError:
            self.drop(key)
            raise
        with self._lock:
            self._used[key] = time.monotonic()
        self.forget_old()
        reasons = gallery.index.skipped
        return key, [f"{name}: {_reason(reasons[name])}" for name in source.ids if name in reasons]

    def use(self, key: str) -> None:
        """Its time begins anew. Raises `ValueError` where it is no longer kept."""
        with self._lock:
            if key not in self._used:
                raise ValueError("the uploaded pictures are no longer on the server: upload them again")
            self._used[key] = time.monotonic()
            self._used.move_to_end(key)

    def pictures(self, key: str) -> tuple[Pictures, Path]:
        """The pictures of an upload, to be indexed for another model, and the folder for it.

        Raises `ValueError` where it is no longer kept.
        """
        self.use(key)
        first = Index.open(next((self._folder / key).iterdir()))
        names = first.ids()
        return Pictures(key, names, [_Kept(first, name) for name in names], [[]] * len(names),
                        [[]] * len(names)), self._folder / key

    def drop(self, key: str) -> None:
        """Forget an upload, if it is there."""
        with self._lock:
            self._used.pop(key, None)
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def forget_old(self) -> None:
        """Drop what was not used for long, and the oldest beyond `keep`."""
        with self._lock:
            newest_first = list(reversed(self._used.items()))
        for place, (key, used) in enumerate(newest_first):
            if place >= self._keep or time.monotonic() - used > self._seconds:
                self.drop(key)


@dataclasses.dataclass(slots=True)
class _Kept:
    """A picture of an upload, as it was kept."""

    index: Index
    name: str

    def __call__(self) -> bytes:
        return self.index.thumbnail(self.name)


def _reason(message: str) -> str:
    """Why a file was left out, without the path it has on the server."""
    return message.partition(": ")[2]
