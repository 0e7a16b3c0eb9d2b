"""Data sets: images with their captions by position, opened from whatever layout they lie in, pixels prepared.

Shapes: N images, S side in pixels.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bitgen.cache import PixelCache, calls, check_bad
from bitgen.config import DataConfig, cache_folder
from bitgen.formats import find_splits
from bitgen.images import BadImage, picture, safe_open_image, to_uint8
from bitgen.listing import SPLITS, Listing, Splits, digest
from bitgen.streamed import HUB, hub_splits
from bitgen.tokenizer import clean, plain

log = logging.getLogger(__name__)

SCENES = {"val": 500, "test": 1000}
"""Images of the generated validation and test splits."""
PREPARE_BYTES = 4 * 10**9
"""Pixels up to this size are prepared without being asked; above it, `bitgen data prepare` does it."""


@dataclass
class Item:
    """One image with all its captions."""

    image_id: str
    image: Image.Image
    captions: list[str]


class Dataset:
    """Images with captions, by position: `ds[i]`, or in parts `ds.pixels(i, size)`, `ds.captions[i]`."""

    def __init__(self, listing: Listing, prepared: np.ndarray | None = None, bad: dict[int, str] | None = None,
                 truth: list[dict] | None = None, max_bad_fraction: float = 1.0):
        """`prepared` uint8 (N, 3, S, S) with the positions that are `bad`; `truth` of generated scenes;
        `max_bad_fraction` of unreadable images above which batches are refused."""
        self.listing, self.truth = listing, truth
        self.image_ids, self.captions = listing.image_ids, listing.captions
        self.bad, self.max_bad_fraction = bad or {}, max_bad_fraction
        self._prepared = prepared

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> Item:
        """Item i. Raises `BadImage` where its image cannot be read."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        if i in self.bad:
            raise BadImage(self.bad[i])
        return Item(self.image_ids[i], safe_open_image(self.listing.read(i)), self.captions[i])

    def pixels(self, i: int, size: int) -> torch.Tensor:
        """uint8 (3, S, S) of image i: copied where prepared at this size, else decoded. Raises `BadImage`."""
        if i in self.bad:
            raise BadImage(self.bad[i])
        if (prepared := self.prepared(size)) is not None:
            return torch.from_numpy(np.array(prepared[i]))
        return to_uint8(safe_open_image(self.listing.read(i), at_least=2 * size), size)

    def prepared(self, size: int) -> np.ndarray | None:
        """uint8 (N, 3, S, S) of all images where they are prepared at this size; zeros where one is `bad`."""
        return self._prepared if self._prepared is not None and self._prepared.shape[-1] == size else None

    def first(self, count: int) -> Dataset:
        """The first `count` images as a data set of their own; all of them where there are fewer."""
        kept = range(min(count, len(self)))
        prepared = None if self._prepared is None else self._prepared[: len(kept)]
        return Dataset(self.listing.select(kept), prepared, {i: why for i, why in self.bad.items() if i < count},
                       self.truth and self.truth[: len(kept)], self.max_bad_fraction)


def open_data(config: DataConfig, split: str, image_size: int, seed: int = 0, always: bool = False) -> Dataset:
    """The data set that `config.root` names, its `train`, `val` or `test` images, `seed` being that of `scenes`.

    Data without a validation split give `val_fraction` of their training images to it: by image, never by caption, and
    the same ones whatever the seed of a run, so that evaluation never meets what was trained on. Captions are cleaned;
    those without a word, those that a training image has twice, and images without captions, are left out. Pixels are
    prepared where they need less than `PREPARE_BYTES`, or `always`; a line in the log says where they are not. Raises
    `ValueError` for a root that is not recognised, a split that is not there (naming those that are), and more than
    `max_bad_fraction` unreadable images.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if config.root == "scenes" or config.format == "scenes":
        return _scenes(config, split, image_size, seed)
    listing = _split(sources(config, image_size), config, split)
    if split == "train" and config.limit is not None:
        listing = listing.select(range(min(config.limit, len(listing.image_ids))))
    return _prepared(listing, config, image_size, f"{split} images", always)


def sources(config: DataConfig, image_size: int) -> Splits:
    """What reads each split that the data set itself has, with nothing left out."""
    if config.root == "scenes" or config.format == "scenes":
        return {split: lambda split=split: _scenes(config, split, image_size, 0).listing for split in SPLITS}
    if config.root.startswith(HUB) or config.format == "hub":
        return hub_splits(config, image_size)
    return find_splits(config)


def _prepared(listing: Listing, config: DataConfig, image_size: int, label: str, always: bool) -> Dataset:
    """A data set with its pixels prepared: found in the cache, or written there if small enough (or `always`)."""
    if not listing.fingerprint:
        return Dataset(listing, max_bad_fraction=config.max_bad_fraction)
    count = len(listing.image_ids)
    cache = PixelCache(cache_folder(config.cache), listing.fingerprint, image_size)
    found = cache.open()
    if found is None and (always or count * 3 * image_size**2 <= PREPARE_BYTES):
        found = cache.write(calls(listing.read, count), count, label)
    if found is None:
        log.warning("%s: %d %s at %d px are decoded each time they are used; `bitgen data prepare` with the same "
                    "settings does it once", config.root, count, label, image_size)
        return Dataset(listing, max_bad_fraction=config.max_bad_fraction)
    pixels, index = found
    check_bad({listing.image_ids[i]: reason for i, reason in index["bad"].items()}, count, config.max_bad_fraction)
    return Dataset(listing, pixels, index["bad"], max_bad_fraction=config.max_bad_fraction)


def _scenes(config: DataConfig, split: str, image_size: int, seed: int) -> Dataset:
    from bitgen.scenes import render
    count = min(config.scenes_train, config.limit or config.scenes_train) if split == "train" else SCENES[split]
    scenes = render(split, count, seed=seed, size=image_size, cache=cache_folder(config.cache))
    listing = Listing(list(scenes.image_ids), list(scenes.captions), partial(picture, scenes.pixels), "")
    return Dataset(listing, scenes.pixels, truth=scenes.truth)


def _split(splits: Splits, config: DataConfig, split: str) -> Listing:
    """The listing of one split, carved out of the training images where the data has no validation split.

    A single file that is held out stands for whichever evaluation split is asked for.
    """
    source = splits.get(split)
    if source is None and split == "val":
        source = splits.get("train")
    if source is None and split != "train" and len(splits) == 1 and Path(config.root).expanduser().is_file():
        source = next((read for name, read in splits.items() if name != "train"), None)
    if source is None:
        raise ValueError(f"{config.root}: no split {split!r}; it has {', '.join(sorted(splits)) or 'none'}")
    listing = _with_captions(source(), distinct=split == "train")
    if not listing.image_ids:
        raise ValueError(f"{config.root}: no images with captions in split {split!r}")
    return listing if "val" in splits or split == "test" else _share(listing, config, split)


def _share(listing: Listing, config: DataConfig, split: str) -> Listing:
    """What `split` (train or val) gets of training images that both must share."""
    held = held_out(listing.image_ids, config.val_fraction)
    return listing.select([i for i, name in enumerate(listing.image_ids) if (name in held) == (split == "val")])


def held_out(image_ids: Sequence[str], fraction: float) -> set[str]:
    """The `fraction` of the images (at least one, never all) that validation gets: those of the lowest hash, so that
    an image stays on its side when others come and go."""
    if not 0 < fraction < 1 or len(image_ids) < 2:
        raise ValueError(f"data.val_fraction: expected a share in (0, 1) of at least 2 images, "
                         f"got {fraction} of {len(image_ids)}")
    count = min(max(1, round(fraction * len(image_ids))), len(image_ids) - 1)
    return set(sorted(image_ids, key=digest)[:count])


def _with_captions(listing: Listing, distinct: bool) -> Listing:
    """The listing without captions that hold no word, and without images that then have none.

    Captions as `clean` leaves them: whatever draws or logs one later gets no megabytes, controls or broken characters.
    `distinct`: of an image's captions that are the same, the first alone. Where all that is drawn of an image is one
    text, the memory has nothing to learn from it. Evaluation counts captions as they stand, as other people do.
    """
    captions = [[text for text in map(clean, texts) if text] for texts in listing.captions]
    if distinct:
        captions = [_once(texts) for texts in captions]
    kept = dataclasses.replace(listing, captions=captions)
    return kept.select([i for i, texts in enumerate(captions) if texts])


def _once(texts: list[str]) -> list[str]:
    """The captions that are not the same as one before."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(plain(text), text)
    return list(first.values())
