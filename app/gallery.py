"""Galleries: pictures with captions and tags, their features by one model, and what visitors upload.

N images, M captions (any number an image, also none), D width.
"""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from app import limits
from app.models import Loaded
from bitgen.config import DataConfig
from bitgen.data import open_data
from bitgen.images import BadImage, safe_open_image

SIDE = 512  # longest side of a picture that is kept of an upload, pixels
BATCH = 64
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
Progress = Callable[[float, str], None]


def silent(share: float, text: str) -> None:
    """The progress of what nobody watches."""


@dataclass
class Pictures:
    """What a gallery shows, whatever the model: N pictures with names, captions and tags."""

    names: list[str]
    captions: list[list[str]]
    tags: list[tuple[str, ...]]
    read: Callable[[int], Image.Image]
    """Picture i, RGB."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Gallery:
    """Pictures and their features by one model; searched, never changed."""

    pictures: Pictures
    images: Tensor
    """(N, D), unit length."""
    texts: Tensor
    """(M, D), unit length."""
    owner: Tensor
    """(M,) int64: the picture of each caption."""
    lines: list[str] = field(default_factory=list)
    """The M captions."""

    @cached_property
    def said_of(self) -> dict[str, int]:
        """From a caption to the first picture that it is said of: the truth of a query that is a caption."""
        return {line: int(i) for line, i in reversed(list(zip(self.lines, self.owner)))}

    @cached_property
    def tags(self) -> list[str]:
        """Every tag that any picture has."""
        return sorted({tag for tags in self.pictures.tags for tag in tags})


@torch.no_grad()
def encode(loaded: Loaded, pictures: Pictures, progress: Progress = silent) -> Gallery:
    """The gallery of `pictures` by one model."""
    model, processor = loaded
    images, texts = [], []
    for start in range(0, len(pictures), BATCH):
        progress(start / len(pictures), f"Encoding {len(pictures):,} pictures")
        batch = [pictures.read(i) for i in range(start, min(start + BATCH, len(pictures)))]
        images.append(model.encode_image(**processor(images=batch)))
    lines = [line for captions in pictures.captions for line in captions]
    for start in range(0, len(lines), 4 * BATCH):
        progress(start / len(lines), f"Encoding {len(lines):,} captions")
        texts.append(model.encode_text(**processor(text=lines[start:start + 4 * BATCH])))
    owner = [i for i, captions in enumerate(pictures.captions) for _ in captions]
    width = images[0].shape[1]
    return Gallery(pictures, torch.cat(images), torch.cat(texts) if texts else torch.empty(0, width),
                   torch.tensor(owner, dtype=torch.int64), lines)


# Where pictures come from ---------------------------------------------------------------------------------


def open_pictures(root: str, image_size: int) -> Pictures:
    """The held-out images of a data set, or every image in a folder. Raises `ValueError` for neither."""
    folder = Path(root).expanduser()
    try:
        return _of_data(root, image_size)
    except ValueError as error:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
        if not files:
            raise ValueError(f"gallery {root!r}: no data set and no folder of images: {error}") from None
        return Pictures([path.name for path in files], [[] for _ in files], [() for _ in files],
                        lambda i: safe_open_image(files[i], at_least=SIDE))


def _of_data(root: str, image_size: int) -> Pictures:
    """The test split of a data set, or what it has instead."""
    error = None
    for split in ("test", "val", "train"):
        try:
            data = open_data(DataConfig(root=root), split, image_size)
        except ValueError as found:
            error = error or found
            continue
        truth = data.truth or [{} for _ in range(len(data))]
        return Pictures(data.image_ids, data.captions, [_tags(scene) for scene in truth], partial(_picture, data))
    raise error


def _picture(data, i: int) -> Image.Image:
    return data[i].image


def _tags(scene: dict) -> tuple[str, ...]:
    """What a generated scene shows, as tags to filter by."""
    tags = {f"{field}: {thing[field]}" for thing in scene.get("objects", ())
            for field in ("colour", "shape", "size", "texture")}
    if scene:
        tags |= {f"objects: {len(scene['objects'])}", f"background: {scene['background']}"}
    return tuple(sorted(tags))


# Uploads --------------------------------------------------------------------------------------------------


class Uploads:
    """Galleries that visitors brought, each under a key that nobody can guess; in memory and bounded."""

    def __init__(self, keep: int = limits.UPLOADS, seconds: float = limits.UPLOAD_SECONDS):
        self._keep, self._seconds = keep, seconds
        self._there: OrderedDict[str, tuple[float, Pictures]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, files: Sequence[str], names: Sequence[str] | None = None,
            progress: Progress = silent) -> tuple[str, list[str]]:
        """The key of a new gallery and, for each file that was left out, its name with the reason.

        Each image is re-encoded as a JPEG of at most `SIDE` pixels: position data and anything appended go.
        Raises `ValueError` where no file can be used.
        """
        names = [Path(file).name for file in files] if names is None else list(names)
        if len(files) > limits.FILES:
            raise ValueError(f"{len(files)} files; at most {limits.FILES} at a time")
        if sum(Path(file).stat().st_size for file in files) > limits.UPLOAD_BYTES:
            raise ValueError(f"more than {limits.UPLOAD_BYTES // 10**6} MB in one upload")
        kept, refused = [], []
        for i, (file, name) in enumerate(zip(files, names)):
            progress(i / len(files), f"Reading {len(files)} files")
            try:
                kept.append((name, _shrunk(safe_open_image(file, at_least=SIDE))))
            except BadImage as error:
                refused.append(f"{name}: {str(error).removeprefix(f'{file}: ')}")
        if not kept:
            raise ValueError("none of the files is a picture that can be used. " + "; ".join(refused[:5]))
        data = [jpeg for _, jpeg in kept]
        pictures = Pictures([name for name, _ in kept], [[] for _ in kept], [() for _ in kept],
                            lambda i: safe_open_image(data[i]))
        key = f"upload-{secrets.token_hex(16)}"
        with self._lock:
            self._there[key] = time.monotonic(), pictures
            self._forget_old()
        return key, refused

    def get(self, key: str) -> Pictures:
        """The pictures of an upload. Raises `ValueError` where it is no longer kept."""
        with self._lock:
            self._forget_old()
            if key not in self._there:
                raise ValueError("the uploaded pictures are no longer on the server: upload them again")
            self._there[key] = time.monotonic(), self._there.pop(key)[1]
            return self._there[key][1]

    def drop(self, key: str) -> None:
        """Forget an upload, if it is there."""
        with self._lock:
            self._there.pop(key, None)

    def _forget_old(self) -> None:
        while self._there:
            key, (used, _) = next(iter(self._there.items()))
            if len(self._there) <= self._keep and time.monotonic() - used <= self._seconds:
                return
            del self._there[key]


def _shrunk(image: Image.Image) -> bytes:
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()
