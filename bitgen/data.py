"""Batches: the order in which images are visited, which of their captions ride along, and the tensors made of them.

Shapes: B images in a batch, N captions in a batch (those of one image side by side), L tokens, S side in pixels.
What a batch holds is a pure function of (seed, epoch, step): a resumed run sees the same batches, and unreadable
images change nothing but themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from bitgen.dataset import Dataset, Item, open_data
from bitgen.images import BadImage
from bitgen.retrieval import firsts
from bitgen.tokenizer import Tokenizer, plain

__all__ = ["Batch", "BatchSampler", "Collator", "Dataset", "Item", "open_data", "stable_hash"]


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

    def firsts(self) -> torch.Tensor:
        """First caption (B,) of each image. Every image has one."""
        return firsts(self.image_index, len(self.image_ids))

    def first_captions(self, count: int | None) -> Batch:
        """The same images with the first `count` captions of each; None: with all."""
        if count is None:
            return self
        before = self.firsts()[self.image_index]                                 # (N,) captions of the images before
        kept = torch.arange(len(self.image_index), device=before.device) - before < count
        texts = "input_ids", "attention_mask", "image_index", "caption_ids"
        return dataclasses.replace(self, **{name: getattr(self, name)[kept] for name in texts})


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

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer, image_size: int | None, captions_per_image: int | None,
                 seed: int, max_tokens: int = 256):
        """`captions_per_image` None takes all of an image's captions in their order, as evaluation does; `image_size`
        None leaves the pixels where they are: `pixel_values` are then the images' positions (B,)."""
        self.dataset, self.tokenizer, self.image_size = dataset, tokenizer, image_size
        self.captions_per_image, self.seed, self.max_tokens = captions_per_image, seed, max_tokens
        self.bad: dict[str, str] = {}

    def __call__(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """The batch of these positions, of as many images. Raises `ValueError` where none can be read."""
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
            caption_ids=torch.tensor([stable_hash(plain(text)) for text in texts]),
            bad={name: reason for name, reason in self.bad.items() if name not in before})

    def _readable(self, index: int, epoch: int) -> tuple[int, torch.Tensor]:
        """Position and pixels of image `index`, or of a stand-in drawn by (seed, epoch, index) alone."""
        draw = random.Random(stable_hash("stand-in", self.seed, epoch, index))
        chosen = index
        for _ in range(100):
            try:
                return chosen, self._pixels(chosen)
            except BadImage as error:
                self.bad[self.dataset.image_ids[chosen]] = str(error)
                chosen = draw.randrange(len(self.dataset))
        raise ValueError(f"no readable image in 100 tries; the last: {next(reversed(self.bad.values()))}")

    def _pixels(self, index: int) -> torch.Tensor:
        """Of image `index`, or where they are. Raises `BadImage`."""
        if self.image_size is not None:
            return self.dataset.pixels(index, self.image_size)
        if index in self.dataset.bad:
            raise BadImage(self.dataset.bad[index])
        return torch.tensor(index)

    def _choose(self, index: int, epoch: int) -> list[str]:
        """The captions of an image that ride in this epoch, drawn by (seed, epoch, index) alone."""
        captions = self.dataset.captions[index]
        if self.captions_per_image is None:
            return captions
        draw = random.Random(stable_hash("captions", self.seed, epoch, index))
        return draw.sample(captions, min(self.captions_per_image, len(captions)))


def stable_hash(*parts: object) -> int:
    """A signed 64-bit hash of parts (by their text), the same in every process and version."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)
