"""A model with the images that it is looked at through: what a report's chapters need, made when first asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from bitgen import diagnostics, health, probes
from bitgen.checkpoint import course
from bitgen.config import LossConfig, from_dict
from bitgen.data import Batch, Dataset, open_data
from bitgen.encoded import Gallery, encode
from bitgen.facts import data_settings, settings
from bitgen.hub import load
from bitgen.logs import read_metrics
from bitgen.model import BitGen
from bitgen.processing import Processor
from bitgen.retrieval import recall_at_k

CLOSE = 16  # images of the batch that gradients, activations and attention are measured on


@dataclass
class Case:
    """A model with the images that it is looked at through."""

    name: str
    model: BitGen
    processor: Processor
    data: Dataset
    settings: dict
    """Of `run.json`; empty where there is none."""
    history: list[dict[str, float]]
    facts: health.Facts
    """For the health checks."""
    checkpoints: list[Path]
    where: str
    """What the images are, for the reader."""

    @cached_property
    def untrained(self) -> BitGen:
        """A model of the same sizes that has learned nothing, on the same device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = BitGen(self.model.config, self.model.vision_config)
        return model.eval().to(next(self.model.parameters()).device)

    @cached_property
    def gallery(self) -> Gallery:
        """All images and captions, encoded once."""
        return encode(self.model, self.processor, self.data, device=next(self.model.parameters()).device)

    @cached_property
    def batch(self) -> Batch:
        """The first images, two captions each."""
        return diagnostics.batch_of(self.data, self.processor, CLOSE).to(next(self.model.parameters()).device)

    @cached_property
    def truth(self) -> list[dict] | None:
        """The scenes of the gallery's images, where they are known."""
        return self.data.truth and [self.data.truth[i] for i in self.gallery.indices]

    @cached_property
    def labels(self) -> probes.Labels:
        """What is known of each image: its scene, else the words of its captions."""
        return probes.known_labels(self.data, self.gallery.indices)

    @cached_property
    def recall(self) -> dict[str, float]:
        """Of the gallery by contrast, with intervals and chance."""
        features = self.gallery.image_features, self.gallery.text_features
        return recall_at_k(*features, self.gallery.owner, intervals=(1, 5, 10))

    @cached_property
    def loss(self) -> LossConfig:
        """The weights it was trained with, where they are known."""
        return from_dict(LossConfig, self.settings.get("loss", {}), where="loss")


def gather(source: str, data: str | None = None, split: str = "val", images: int = 200, checkpoint: str | None = None,
           device: str = "cpu") -> Case:
    """The case of `source`, a run, checkpoint folder or Hub id, seen through the first `images` of a data set.

    data: as `data.root` of training takes it, by default what the run was trained on, else `scenes`. Raises
    `ValueError` as loading and opening do, and for fewer than 2 images.
    """
    if images < 2:
        raise ValueError(f"images: a page needs at least 2, got {images}")
    model, processor = load(source, checkpoint=checkpoint, device=device)
    folder = Path(source).expanduser()
    run = folder / checkpoint if checkpoint and (folder / checkpoint / "run.json").is_file() else folder
    known, config = settings(run), data_settings(source, checkpoint, data)
    opened = open_data(config, split, processor.vision.image_size, known.get("seed", 0))
    shown = opened.first(images)
    history, facts = (read_metrics(folder), health.read_facts(folder)) if folder.is_dir() else ([], {})
    where = f"{len(shown):,} of {len(opened):,} images of {Path(config.root).name}, {split}"
    return Case(f"{folder.name} {checkpoint or ''}".strip(), model, processor, shown, known, history, facts,
                course(folder) if folder.is_dir() else [], where)
