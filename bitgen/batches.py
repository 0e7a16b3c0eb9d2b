"""What a run is fed: batch number n, read by workers, augmented and normalised on the device.

Batch n is a pure function of (seed, n), so a resumed run is fed what the run would have been fed. Prepared images live
on a GPU that has room for them: a batch then brings their positions, and no pixel is sent twice.

N images, B of them in a batch, S side in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bitgen.config import Config
from bitgen.data import Batch, BatchSampler, Collator
from bitgen.exits import WORKER, Stop
from bitgen.images import augment, normalise
from bitgen.tokenizer import Tokenizer

STALLED = 120
"""Seconds without a batch after which a worker counts as hung."""
NAMED = 8
"""Images of a batch that are named where its maker is gone."""
WORKERS = 4
"""Processes that make batches where the trainer's own has a GPU to keep busy."""
SHARE = 0.25
"""Of a GPU's free memory that images may take to live there."""
COPIED = 1024
"""Images copied to a GPU at a time."""


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
        self.config, self.device, self.rank, size = config, device, rank, config.vision.image_size
        self.pixels = resident(dataset.prepared(size), device)
        self.sampler = BatchSampler(len(dataset), config.optim.batch_size, config.seed, rank, world)
        self.collator = Collator(dataset, tokenizer, size if self.pixels is None else None,
                                 config.data.captions_per_image, config.seed, config.model.max_tokens)

    @property
    def epoch(self) -> int:
        """Batches of one pass over the images."""
        return self.sampler.epoch_steps

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches number `start` to `stop` - 1, ready for the model. Raises `Stop` where a worker dies or hangs."""
        workers = self.config.data.workers
        workers = WORKERS * (self.device.type == "cuda") if workers is None else workers
        # A generator of its own: an iterator draws a seed, and of the common one a resumed run would draw twice.
        loader = DataLoader(Batches(self.sampler, self.collator), batch_size=None, num_workers=workers,
                            sampler=range(start, stop), generator=torch.Generator(),
                            prefetch_factor=4 if workers else None, timeout=STALLED if workers else 0)
        for number, batch in enumerate(self._made(loader, start), start):
            yield self.prepare(batch, number)

    def _made(self, loader: DataLoader, number: int) -> Iterator[Batch]:
        """What the loader gives, beginning with batch `number`; the loss of a worker names what was in the making."""
        try:
            for batch in loader:
                yield batch
                number += 1
        except RuntimeError as error:  # DataLoader has no class of its own for a worker that is gone or silent
            if not loader.num_workers or isinstance(error, torch.OutOfMemoryError):
                raise
            raise Stop(f"{error}; in the making: {self._names(number)}, ... `--data.workers 0` does without workers",
                       WORKER) from error

    def _names(self, number: int) -> str:
        """The first images of a batch."""
        epoch, step = divmod(number, self.epoch)
        return ", ".join(self.collator.dataset.image_ids[i] for i in self.sampler.batch(epoch, step)[:NAMED])

    def prepare(self, batch: Batch, number: int) -> Batch:
        """Batch `number` on the device, cropped, coloured and normalised; a pure function of (seed, number)."""
        batch = batch.to(self.device)
        config, vision = self.config.data, self.config.vision
        pixels = batch.pixel_values if self.pixels is None else self.pixels[batch.pixel_values]
        if config.augment != "off":
            seed = (self.config.seed * 1_000_003 + number) * 64 + self.rank
            generator = torch.Generator(self.device).manual_seed(seed)
            pixels = augment(pixels, config.crop_scale, config.flip, generator)
        return dataclasses.replace(batch, pixel_values=normalise(pixels, vision.mean, vision.std))


def resident(prepared: np.ndarray | None, device: torch.device) -> Tensor | None:
    """All prepared images, uint8 (N, 3, S, S), on a GPU with room for them; None where they stay on disk."""
    if prepared is None or device.type != "cuda" or prepared.nbytes > SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    return on_device(prepared, device)


def on_device(prepared: np.ndarray, device: torch.device) -> Tensor:
    """The same images in the device's memory; a memory map is read once, a part at a time."""
    pixels = torch.empty(prepared.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(prepared), COPIED):
        pixels[start:start + COPIED] = torch.from_numpy(np.array(prepared[start:start + COPIED]))
    return pixels
