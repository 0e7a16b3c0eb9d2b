"""Training runs of six steps that the tests of the trainer and of all around it share (see `run` in conftest.py)."""

import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from bitgen.cli import main, parse_config
from bitgen.dataset import SCENES
from bitgen.randomness import repeatable

TINY = ["--config", "scenes", "--config", "nano", "--data.scenes-train", "128", "--vision.image-size", "32",
        "--optim.batch-size", "16", "--optim.max-steps", "6", "--optim.epochs", "4", "--log-every", "1",
        "--save-every", "3", "--validate-every", "6", "--loss.queue", "64", "--loss.queue-start", "2",
        "--loss.episode", "8"]


def config(folder, *changes):
    return parse_config([*TINY, "--output-dir", str(folder), *changes])


@contextmanager
def quick():
    """Runs draw nothing and validate on 40 scenes, for either would take longer than their training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCENES, "val", 40)
        patch.setattr("bitgen.boards.validated", lambda *_: None)
        patch.setattr("bitgen.boards.finished", lambda *_: None)
        patch.setattr("bitgen.card._draw", lambda *_: False)
        yield


def mute(trainer):
    """The trainer with a journal and a meter that note nothing: for single steps, outside `fit`."""
    trainer.journal = SimpleNamespace(bad={}, unreadable=lambda _: None, validated=lambda *_: None)
    trainer.meter = SimpleNamespace(batch=lambda *_: nullcontext(), aside=nullcontext)
    return trainer


def one_step(trainer, *batches):
    """The report of a single training step, on the run's own first batches unless on these; nothing is logged."""
    batches = iter(batches) if batches else trainer.feed.batches(0, trainer.config.optim.accumulation)
    with repeatable(trainer.device):
        return mute(trainer)._train_step(batches)


def state_of(folder, step):
    return torch.load(folder / f"checkpoint-{step}" / f"checkpoint-{step}.pt", weights_only=True)


def differences(a, b, path=""):
    """Places where two nested states differ in a single bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        return [found for i, (x, y) in enumerate(zip(a, b)) for found in differences(x, y, f"{path}/{i}")]
    return [] if a == b else [path]


def steady(line):
    """A metrics line without what depends on the clock, on work done twice, or on what is drawn."""
    return {key: value for key, value in line.items()
            if key not in ("images_per_second", "hub_step") and not key.startswith(("cost/", "features/", "probe/"))}


if __name__ == "__main__":  # `bitgen`, for processes of their own
    with quick():
        sys.exit(main())
