"""What a run is fed is the same wherever images live and whoever makes the batches."""

import dataclasses
import itertools
import os
import signal
import time

import numpy as np
import pytest
import torch
from layouts import SIZE, memory, texts

from bitgen import batches
from bitgen.batches import COPIED, Feed, on_device, resident
from bitgen.config import Config, DataConfig, OptimConfig, VisionConfig
from bitgen.data import Batch, BatchSampler
from bitgen.dataset import Dataset
from bitgen.exits import Stop
from bitgen.images import normalise
from bitgen.tokenizer import Tokenizer

CPU = torch.device("cpu")


def prepared(bad=()):
    """Twenty-four images, prepared; those that are `bad` are zeros, as in the cache."""
    plain = memory(24)
    pixels = np.stack([plain.pixels(i, SIZE).numpy() * (i not in bad) for i in range(24)])
    return Dataset(plain.listing, pixels, dict.fromkeys(bad, "broken"))


def fed(data, workers=None, augment="light"):
    """Three batches of a run, one of them of the second epoch."""
    tokenizer = Tokenizer.train([text for i in range(24) for text in texts(i)], 300)
    config = Config(data=DataConfig(workers=workers, augment=augment), vision=VisionConfig(image_size=SIZE),
                    optim=OptimConfig(batch_size=12))
    return list(Feed(data, tokenizer, config, CPU).batches(0, 3))


def equal(ours, theirs):
    names = [field.name for field in dataclasses.fields(Batch) if field.name != "bad"]  # each worker tells what it met
    return all(torch.equal(getattr(one, name), getattr(other, name)) for one, other in zip(ours, theirs)
               for name in names)


@pytest.mark.parametrize("bad", [(), (3, 17)])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_live_on_the_device_give_the_same_batches(bad, workers, monkeypatch):
    usual = fed(prepared(bad))
    monkeypatch.setattr(batches, "resident", on_device)  # as on a GPU that has room
    living = fed(prepared(bad), workers)
    assert equal(living, usual) and living[0].pixel_values.shape == (12, 3, SIZE, SIZE)
    assert {name for batch in living for name in batch.bad} == {prepared().image_ids[i] for i in bad}


def test_all_images_are_copied(monkeypatch):
    monkeypatch.setattr(batches, "COPIED", 7)
    pixels = prepared()._prepared
    assert COPIED != 7 and torch.equal(on_device(pixels, CPU), torch.from_numpy(pixels))


@pytest.mark.parametrize("free, stays", [(4 * 24 * 3 * SIZE**2, True), (4 * 24 * 3 * SIZE**2 - 4, False)])
def test_images_live_on_a_gpu_where_they_take_a_quarter_of_what_is_free(free, stays, monkeypatch):
    gpu, copied = torch.device("cuda"), []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    monkeypatch.setattr(batches, "on_device", lambda pixels, device: copied.append(device) or "there")
    assert resident(prepared()._prepared, gpu) == ("there" if stays else None)
    assert copied == ([gpu] if stays else [])
    assert resident(prepared()._prepared, CPU) is None and resident(memory().prepared(SIZE), gpu) is None


def test_a_gpu_is_fed_by_workers(monkeypatch):
    made = []
    monkeypatch.setattr(batches, "DataLoader", lambda *_, num_workers, **__: made.append(num_workers) or [])
    monkeypatch.setattr(batches, "resident", lambda *_: None)
    for device, workers in (("cpu", None), ("cuda", None), ("cuda", 0), ("cpu", 2)):
        config = Config(data=DataConfig(workers=workers), optim=OptimConfig(batch_size=12))
        assert list(Feed(prepared(), None, config, torch.device(device)).batches(0, 3)) == []
    assert made == [0, 4, 0, 2]


def test_an_image_looks_otherwise_in_each_batch_and_process_and_as_it_is_without_augmentation():
    pixels = torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8).repeat(4, 1, 1, 1)
    batch = Batch(pixels, *[torch.zeros(4, dtype=torch.int64)] * 5)

    def seen(number=0, rank=0, seed=0, augment="light"):
        config = Config(data=DataConfig(augment=augment), optim=OptimConfig(batch_size=12), seed=seed)
        return Feed(prepared(), None, config, CPU, rank, world=2).prepare(batch, number).pixel_values

    whole, usual = normalise(pixels, VisionConfig.mean, VisionConfig.std), seen()
    assert torch.equal(seen(), usual) and torch.equal(seen(augment="off"), whole)
    looks = [whole, usual, seen(number=1), seen(rank=1), seen(seed=1)]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(looks, 2))


def killed(i):
    os.kill(os.getpid(), signal.SIGKILL)


def silent(i):
    time.sleep(60)


@pytest.mark.parametrize("does, told", [(killed, "exited unexpectedly|killed"), (silent, "timed out")])
def test_a_worker_that_is_gone_or_silent_ends_the_run_and_names_its_images(does, told, monkeypatch):
    plain, parent = memory(24), os.getpid()
    read = lambda i: (plain.listing.read if os.getpid() == parent else does)(i)  # noqa: E731
    listing = dataclasses.replace(plain.listing, read=read)
    monkeypatch.setattr(batches, "STALLED", 3)
    with pytest.raises(Stop, match=told) as stop:
        fed(Dataset(listing), workers=1)
    first = [f"{i}.png" for i in BatchSampler(24, 12, 0).batch(0, 0)[:8]]
    assert stop.value.code == 70 and ", ".join(first) in str(stop.value)
