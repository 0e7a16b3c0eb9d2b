"""Training runs of six steps that the tests of the trainer and of all around it share."""

import pytest
import torch

from bitgen.cli import parse_config
from bitgen.dataset import SCENES
from bitgen.trainer import Trainer

TINY = ["--config", "scenes", "--config", "nano", "--data.scenes-train", "128", "--vision.image-size", "32",
        "--optim.batch-size", "16", "--optim.max-steps", "6", "--optim.epochs", "4", "--log-every", "1",
        "--save-every", "3", "--validate-every", "6", "--loss.queue", "64", "--loss.queue-start", "2",
        "--loss.episode", "8"]


def config(folder, *changes):
    return parse_config([*TINY, "--output-dir", str(folder), *changes])


@pytest.fixture(scope="module", autouse=True, name="small")
def few_to_validate():
    """100 scenes to validate on: with 500, validation takes most of a short run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCENES, "val", 100)
        yield


@pytest.fixture(scope="module", name="run")
def finished_run(tmp_path_factory, small):
    """A finished run of six steps, with all its pictures."""
    folder = tmp_path_factory.mktemp("run")
    Trainer(config(folder)).fit()
    return folder


@pytest.fixture(autouse=True, name="plain")
def undrawn(run, monkeypatch):
    """Other runs draw nothing: it would take longer than their training."""
    monkeypatch.setattr("bitgen.boards.validated", lambda *_: None)
    monkeypatch.setattr("bitgen.boards.finished", lambda *_: None)
    monkeypatch.setattr("bitgen.card._draw", lambda *_: False)


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
