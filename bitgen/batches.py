"""What a run is fed: batch number n, read by workers, augmented and normalised on the device.

Batch n is a pure function of (seed, n), so a resumed run is fed what the run would have been fed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from bitgen.config import Config
from bitgen.data import Batch, BatchSampler, Collator
from bitgen.images import augment, normalise
from bitgen.tokenizer import Tokenizer

STALLED = 120
"""Seconds without a batch after which a worker counts as hung."""


class Batches(Dataset):
    """Item n is batch number n of the run, whichever worker makes it: uint8 pixels, not yet augmented."""

    def __init__(self, sampler: BatchSampler, collator: Collator):
        self.sampler, self.collator = sampler, collator

    def __getitem__(self, number: int) -> Batch:
        epoch, step = divmod(number, self.sampler.epoch_steps)
        return self.collator(self.sampler.batch(epoch, step), epoch)


class Feed:
    """The training batches of process `rank` of `world`."""

    def __init__(self, dataset, tokenizer: Tokenizer, config: Config, device: torch.device, rank: int = 0,
                 world: int = 1):
        """Raises `ValueError` where the images do not fill one batch of every process."""
        self.config, self.device, self.rank = config, device, rank
        self.sampler = BatchSampler(len(dataset), config.optim.batch_size, config.seed, rank, world)
        self.collator = Collator(dataset, tokenizer, config.vision.image_size, config.data.captions_per_image,
                                 config.seed, config.model.max_tokens)

    @property
    def epoch(self) -> int:
        """Batches of one pass over the images."""
        return self.sampler.epoch_steps

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number `start` to `stop` - 1, ready for the model."""
        workers = self.config.data.workers
        # A generator of its own: an iterator draws a seed, and of the common one a resumed run would draw twice.
        loader = DataLoader(Batches(self.sampler, self.collator), batch_size=None, num_workers=workers,
                            sampler=range(start, stop), generator=torch.Generator(),
                            prefetch_factor=4 if workers else None, timeout=STALLED if workers else 0)
        for number, batch in enumerate(loader, start):
            yield self.prepare(batch, number)

    def prepare(self, batch: Batch, number: int) -> Batch:
        """Batch `number` on the device, cropped, coloured and normalised; a pure function of (seed, number)."""
        batch = batch.to(self.device)
        config, vision = self.config.data, self.config.vision
        pixels = batch.pixel_values
        if config.augment != "off":
            seed = (self.config.seed * 1_000_003 + number) * 64 + self.rank
            generator = torch.Generator(self.device).manual_seed(seed)
            pixels = augment(pixels, config.crop_scale, config.flip, generator)
        return dataclasses.replace(batch, pixel_values=normalise(pixels, vision.mean, vision.std))
