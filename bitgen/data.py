"""Images with their captions: data sets, the order they are visited in, and the batches made of them.

Shapes: B images in a batch, N captions in a batch (those of one image side by side), L tokens, S side in pixels.
What a batch holds is a pure function of (seed, epoch, step): a resumed run sees the same batches, and unreadable
images change nothing but themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from bitgen import formats
from bitgen.cache import PixelCache, cache_folder, calls
from bitgen.config import DataConfig
from bitgen.formats import Listing
from bitgen.images import BadImage, safe_open_image, to_uint8
from bitgen.tokenizer import Tokenizer, clean

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


@dataclass
class Batch:
    """Tensors of one step. `image_index` says which of the B images each of the N captions belongs to."""

    pixel_values: torch.Tensor
    """uint8 (B, 3, S, S): augmented and normalised on the device."""
    input_ids: torch.Tensor
    """int64 (N, L)."""
    attention_mask: torch.Tensor
    """bool (N, L), true for real tokens."""
    image_index: torch.Tensor
    """int64 (N,), ascending, in [0, B)."""
    image_ids: torch.Tensor
    """int64 (B,), a stable hash of the image's id."""
    caption_ids: torch.Tensor
    """int64 (N,), a stable hash of the caption's text: equal texts are equal whatever their case and spacing."""
    bad: dict[str, str] = field(default_factory=dict)
    """Images that could not be read and were replaced, with the reason."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True)
                 for f in dataclasses.fields(self) if f.name != "bad"}
        return dataclasses.replace(self, **moved)


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
    if split not in formats.SPLITS:
        raise ValueError(f"split: expected one of {', '.join(formats.SPLITS)}, got {split!r}")
    if config.root == "scenes" or config.format == "scenes":
        return _scenes(config, split, image_size, seed)
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
    scenes = render(split, count, seed=seed, size=image_size)
    listing = Listing(list(scenes.image_ids), list(scenes.captions), partial(_picture, scenes.pixels), "scenes")
    return Dataset(listing, scenes.pixels, truth=scenes.truth)


def _picture(pixels: np.ndarray, i: int) -> Image.Image:
    """Image i of uint8 (N, 3, S, S)."""
    return Image.fromarray(np.ascontiguousarray(pixels[i].transpose(1, 2, 0)))


def _split(config: DataConfig, split: str, seed: int) -> Listing:
    """The listing of one split, carved out of the training images where the data has no validation split."""
    splits = formats.find_splits(config)
    source = splits.get(split) or splits.get("any")
    if source is None and split == "val":
        source = splits.get("train")
    if source is None:
        raise ValueError(f"{config.root}: no split {split!r}; it has {', '.join(sorted(splits)) or 'none'}")
    listing = source()
    if "any" in splits or "val" in splits or split == "test":
        return listing
    held = held_out(listing.image_ids, config.val_fraction, seed)
    return listing.select([i for i, name in enumerate(listing.image_ids) if (name in held) == (split == "val")])


def held_out(image_ids: Sequence[str], fraction: float, seed: int) -> set[str]:
    """The `fraction` of the images (at least one, never all) that validation gets: those of the lowest hash, so that
    an image stays on its side when others come and go."""
    if not 0 < fraction < 1 or len(image_ids) < 2:
        raise ValueError(f"data.val_fraction: expected a share in (0, 1) of at least 2 images, "
                         f"got {fraction} of {len(image_ids)}")
    count = min(max(1, round(fraction * len(image_ids))), len(image_ids) - 1)
    return set(sorted(image_ids, key=lambda name: formats.digest(seed, name))[:count])


def _with_captions(listing: Listing) -> Listing:
    """The listing without captions that hold no word, and without images that then have none."""
    captions = [[text for text in texts if clean(text)] for texts in listing.captions]
    kept = dataclasses.replace(listing, captions=captions)
    return kept.select([i for i, texts in enumerate(captions) if texts])


class BatchSampler:
    """Which images form which batch: a shuffle of each epoch, cut into batches for each of `world` processes."""

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        """Raises `ValueError` where `length` images do not fill one batch of every process."""
        if length < batch_size * world:
            raise ValueError(f"batch_size: {batch_size} images x {world} processes are more than the {length} given")
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.length = length
        self.epoch_steps = length // (batch_size * world)
        self._epoch, self._order = -1, []

    def batch(self, epoch: int, step: int) -> list[int]:
        """Positions of the images of step `step` (from 0, below `epoch_steps`) of `epoch` on this process."""
        if not 0 <= step < self.epoch_steps:
            raise IndexError(f"step {step} of {self.epoch_steps}")
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(stable_hash("order", self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(self.length, generator=generator).tolist()
        start = (step * self.world + self.rank) * self.batch_size
        return self._order[start:start + self.batch_size]


class Collator:
    """Makes batches of positions; unreadable images are replaced and recorded in `.bad` (image id -> reason)."""

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer, image_size: int, captions_per_image: int | None,
                 seed: int, max_tokens: int = 256):
        """`captions_per_image` None takes all of an image's captions in their order, as evaluation does."""
        self.dataset, self.tokenizer, self.image_size = dataset, tokenizer, image_size
        self.captions_per_image, self.seed, self.max_tokens = captions_per_image, seed, max_tokens
        self.bad: dict[str, str] = {}

    def __call__(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """The batch of these positions, of exactly as many images. Raises `ValueError` where no image is readable."""
        before = set(self.bad)
        images = [self._readable(i, epoch) for i in indices]
        captions = [self._choose(i, epoch) for i, _ in images]
        texts = [text for some in captions for text in some]
        input_ids, attention_mask = self.tokenizer.encode(texts, self.max_tokens)
        return Batch(
            pixel_values=torch.stack([pixels for _, pixels in images]),
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_index=torch.tensor([b for b, some in enumerate(captions) for _ in some]),
            image_ids=torch.tensor([stable_hash(self.dataset.image_ids[i]) for i, _ in images]),
            caption_ids=torch.tensor([stable_hash(" ".join(text.casefold().split())) for text in texts]),
            bad={name: reason for name, reason in self.bad.items() if name not in before})

    def _readable(self, index: int, epoch: int) -> tuple[int, torch.Tensor]:
        """Position and pixels of image `index`, or of a stand-in drawn by (seed, epoch, index) alone."""
        draw = random.Random(stable_hash("stand-in", self.seed, epoch, index))
        chosen = index
        for _ in range(100):
            try:
                return chosen, self.dataset.pixels(chosen, self.image_size)
            except BadImage as error:
                self.bad[self.dataset.image_ids[chosen]] = str(error)
                chosen = draw.randrange(len(self.dataset))
        raise ValueError(f"no readable image in 100 tries; the last: {next(reversed(self.bad.values()))}")

    def _choose(self, index: int, epoch: int) -> list[str]:
        """The captions of an image that ride in this epoch, drawn by (seed, epoch, index) alone."""
        captions = self.dataset.captions[index]
        if self.captions_per_image is None:
            return captions
        draw = random.Random(stable_hash("captions", self.seed, epoch, index))
        return draw.sample(captions, min(self.captions_per_image, len(captions)))


def batches(sampler: BatchSampler, collator: Collator, epoch: int, start: int = 0, workers: int = 0) -> Iterator[Batch]:
    """The batches of an epoch from step `start` on, made by `workers` other processes (0: by this one)."""
    if not workers:
        return (collator(sampler.batch(epoch, step), epoch) for step in range(start, sampler.epoch_steps))
    steps = _Steps(sampler, collator, epoch)
    return iter(DataLoader(steps, batch_size=None, sampler=range(start, sampler.epoch_steps), num_workers=workers,
                           timeout=120))


@dataclass
class _Steps:
    """The steps of an epoch as a map-style data set for worker processes."""

    sampler: BatchSampler
    collator: Collator
    epoch: int

    def __getitem__(self, step: int) -> Batch:
        return self.collator(self.sampler.batch(self.epoch, step), self.epoch)

    def __len__(self) -> int:
        return self.sampler.epoch_steps


def stable_hash(*parts: object) -> int:
    """A signed 64-bit hash of parts (by their text), the same in every process and version."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)
