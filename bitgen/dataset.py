"""Data sets: images with their captions by position, opened from whatever layout they lie in, pixels prepared.

Shapes: N images, S side in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from PIL import Image

from bitgen.cache import PixelCache, cache_folder, calls
from bitgen.config import DataConfig
from bitgen.formats import find_splits
from bitgen.images import BadImage, safe_open_image, to_uint8
from bitgen.listing import SPLITS, Listing, digest
from bitgen.shards import HUB, hub_rows, hub_splits
from bitgen.tokenizer import clean

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
                 truth: list[dict] | None = None):
        """`prepared` uint8 (N, 3, S, S) with the positions that are `bad`; `truth` of generated scenes."""
        self.image_ids, self.captions = listing.image_ids, listing.captions
        self.truth = truth
        self.bad = bad or {}
        self._read, self._prepared = listing.read, prepared

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> Item:
        """Item i. Raises `BadImage` where its image cannot be read."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        if i in self.bad:
            raise BadImage(self.bad[i])
        return Item(self.image_ids[i], safe_open_image(self._read(i)), self.captions[i])

    def pixels(self, i: int, size: int) -> torch.Tensor:
        """uint8 (3, S, S) of image i: copied where prepared at this size, else decoded. Raises `BadImage`."""
        if i in self.bad:
            raise BadImage(self.bad[i])
        if self._prepared is not None and self._prepared.shape[-1] == size:
            return torch.from_numpy(np.array(self._prepared[i]))
        return to_uint8(safe_open_image(self._read(i), at_least=2 * size), size)


def open_data(config: DataConfig, split: str, image_size: int, seed: int = 0) -> Dataset:
    """The data set that `config.root` names, its `train`, `val` or `test` images.

    Data without a validation split give `val_fraction` of their training images to it: by image, never by caption.
    `seed` is that of the data (which images, which scenes), not of the run, so that evaluation finds the same split.
    Captions without a word and images without captions are left out. Raises `ValueError` for a root that is not
    recognised, a split that is not there (naming those that are), and more than `max_bad_fraction` unreadable images.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if config.root == "scenes" or config.format == "scenes":
        return _scenes(config, split, image_size, seed)
    if config.root.startswith(HUB) or config.format == "hub":
        return _streamed(config, split, image_size, seed)
    listing = _with_captions(_split(config, split, seed))
    if split == "train" and config.limit is not None:
        listing = listing.select(range(min(config.limit, len(listing.image_ids))))
    if not listing.image_ids:
        raise ValueError(f"{config.root}: no images with captions in split {split!r}")
    return prepare(listing, config, image_size, f"{split} images")


def prepare(listing: Listing, config: DataConfig, image_size: int, label: str, always: bool = False) -> Dataset:
    """A data set with its pixels prepared: found in the cache, or written there if small enough (or `always`).

    Raises `ValueError` with the list where more than `config.max_bad_fraction` of the images are unreadable.
    """
    count = len(listing.image_ids)
    cache = PixelCache(cache_folder(config.cache), listing.fingerprint, image_size)
    found = cache.open()
    if found is None and (always or count * 3 * image_size**2 <= PREPARE_BYTES):
        found = cache.write(calls(listing.read, count), count, label)
    if found is None:
        return Dataset(listing)
    pixels, index = found
    check_bad({listing.image_ids[i]: reason for i, reason in index["bad"].items()}, count, config.max_bad_fraction)
    return Dataset(listing, pixels, index["bad"])


def check_bad(bad: dict[str, str], count: int, allowed: float) -> None:
    """Raise `ValueError` with the list where more than the `allowed` share of `count` images is unreadable."""
    if len(bad) > allowed * count:
        lines = [f"  {name}: {reason}" for name, reason in list(bad.items())[:50]]
        more = [f"  ... and {len(bad) - 50} more"] if len(bad) > 50 else []
        raise ValueError("\n".join([f"{len(bad)} of {count} images are unreadable, more than data.max_bad_fraction = "
                                    f"{allowed:g} allows:", *lines, *more]))


def _scenes(config: DataConfig, split: str, image_size: int, seed: int) -> Dataset:
    from bitgen.scenes import render
    count = min(config.scenes_train, config.limit or config.scenes_train) if split == "train" else SCENES[split]
    scenes = render(split, count, seed=seed, size=image_size, cache=cache_folder(config.cache))
    listing = Listing(list(scenes.image_ids), list(scenes.captions), partial(_picture, scenes.pixels), "scenes")
    return Dataset(listing, scenes.pixels, truth=scenes.truth)


def _streamed(config: DataConfig, split: str, image_size: int, seed: int) -> Dataset:
    """A Hub data set: its first `config.limit` rows are streamed once, in order, into the cache, where they can be
    read in any order. What is in the cache is not asked for again: it works offline from then on."""
    repo = config.root.removeprefix(HUB)
    caches = {source: PixelCache(cache_folder(config.cache), digest(HUB, repo, source, config.limit), image_size)
              for source in SPLITS}
    source, found = split, caches[split].open()
    if found is None and split == "val" and (shared := caches["train"].open()) and "val" not in shared[1]["splits"]:
        source, found = "train", shared
    if found is None:
        names = hub_splits(repo)
        source = "train" if split == "val" and "val" not in names else split
        if source not in names:
            raise ValueError(f"{config.root}: no split {source!r}; it has {', '.join(names.values()) or 'none'}")
        ids, captions = [], []
        rows = _grouping(islice(hub_rows(repo, names[source]), config.limit), ids, captions)
        found = caches[source].write(rows, config.limit, f"{config.root} {names[source]}", splits=names,
                                     image_ids=ids, captions=captions)
    if found is None:
        raise ValueError(f"{config.root}: split {source!r} is empty")
    pixels, index = found
    check_bad({index["image_ids"][i]: reason for i, reason in index["bad"].items()}, len(pixels),
              config.max_bad_fraction)
    listing = _with_captions(Listing(index["image_ids"], index["captions"], partial(_row, pixels, index["bad"]), HUB))
    shares = source == "train" and "val" not in index["splits"]
    return Dataset(_share(listing, config, split, seed) if shares else listing)


def _grouping(rows: Iterator, image_ids: list[str], captions: list[list[str]]) -> Iterator[bytes]:
    """The image bytes of streamed rows; their ids and captions are added to the lists. Rows of one image that follow
    each other are one image."""
    for image_id, texts, data in rows:
        if image_ids and image_ids[-1] == image_id:
            captions[-1].extend(texts)
            continue
        image_ids.append(image_id)
        captions.append(texts)
        yield data or b""


def _row(pixels: np.ndarray, bad: dict[int, str], i: int) -> Image.Image:
    """Image i of uint8 (N, 3, S, S), or `BadImage` where it has none."""
    if i in bad:
        raise BadImage(bad[i])
    return _picture(pixels, i)


def _picture(pixels: np.ndarray, i: int) -> Image.Image:
    """Image i of uint8 (N, 3, S, S)."""
    return Image.fromarray(np.ascontiguousarray(pixels[i].transpose(1, 2, 0)))


def _split(config: DataConfig, split: str, seed: int) -> Listing:
    """The listing of one split, carved out of the training images where the data has no validation split."""
    splits = find_splits(config)
    source = splits.get(split) or splits.get("any")
    if source is None and split == "val":
        source = splits.get("train")
    if source is None:
        raise ValueError(f"{config.root}: no split {split!r}; it has {', '.join(sorted(splits)) or 'none'}")
    listing = source()
    return listing if {"any", "val"} & set(splits) or split == "test" else _share(listing, config, split, seed)


def _share(listing: Listing, config: DataConfig, split: str, seed: int) -> Listing:
    """What `split` (train or val) gets of training images that both must share."""
    held = held_out(listing.image_ids, config.val_fraction, seed)
    return listing.select([i for i, name in enumerate(listing.image_ids) if (name in held) == (split == "val")])


def held_out(image_ids: Sequence[str], fraction: float, seed: int) -> set[str]:
    """The `fraction` of the images (at least one, never all) that validation gets: those of the lowest hash, so that
    an image stays on its side when others come and go."""
    if not 0 < fraction < 1 or len(image_ids) < 2:
        raise ValueError(f"data.val_fraction: expected a share in (0, 1) of at least 2 images, "
                         f"got {fraction} of {len(image_ids)}")
    count = min(max(1, round(fraction * len(image_ids))), len(image_ids) - 1)
    return set(sorted(image_ids, key=lambda name: digest(seed, name))[:count])


def _with_captions(listing: Listing) -> Listing:
    """The listing without captions that hold no word, and without images that then have none."""
    captions = [[text for text in texts if clean(text)] for texts in listing.captions]
    kept = dataclasses.replace(listing, captions=captions)
    return kept.select([i for i, texts in enumerate(captions) if texts])
