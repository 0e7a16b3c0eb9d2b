"""`bitgen evaluate`, `doctor`, `diagnose` and `card`: what a run has become."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bitgen.arguments import RUN, check_files, parse, write


@dataclass
class Evaluate:
    """Retrieval, re-ranked retrieval and caption quality of a trained model on held-out images."""

    run: RUN
    """Run folder, checkpoint folder or Hub id."""
    data: str | None = None
    """Data set, as `data.root` of training takes it; by default the run's own, `scenes` where that is not known."""
    split: Literal["train", "val", "test"] = "test"
    """Which part of it."""
    json: str | None = None
    """File that receives all numbers."""
    picture: str | None = None
    """PNG that receives best, typical and worst retrievals; by default `retrievals.png` in the run folder."""
    checkpoint: str | None = None
    """A checkpoint of the run, such as checkpoint-1000, instead of its newest weights."""
    rerank: int = 32
    """Candidates that are read together with the query and put into a new order; 0 leaves that out."""
    device: str = "cpu"
    """Device to compute on."""


@dataclass
class Doctor:
    """Say whether a run is learning: the training guide's good and bad signs, and what to do about the bad ones."""

    run: RUN
    """Run folder."""
    json: bool = False
    """Print everything as JSON."""
    strict: bool = False
    """End with exit status 1 where a verdict is BAD."""


@dataclass
class Diagnose:
    """Look inside a model: training, retrieval, features, memory and network on one page that carries everything."""

    run: RUN
    """Run folder, checkpoint folder or Hub id."""
    out: str = "report.html"
    """HTML file that receives the page."""
    data: str | None = None
    """Data set to look through, as `data.root` of training takes it; by default the run's own."""
    split: Literal["train", "val", "test"] = "val"
    """Which part of it."""
    images: int = 200
    """How many of its images."""
    checkpoint: str | None = None
    """A checkpoint of the run, such as checkpoint-1000, instead of its newest weights."""
    device: str = "cpu"
    """Device to compute on."""


@dataclass
class Card:
    """Write the model card of a run, `README.md` and `curves.png` in its folder, from its own files."""

    run: RUN
    """Run folder."""


def evaluate(argv: list[str]) -> int:
    """Measure it: `bitgen evaluate runs/scenes --data scenes --split test`."""
    options = parse(Evaluate, "bitgen evaluate", argv)
    if options.rerank < 0:
        raise ValueError(f"rerank must be at least 0, got {options.rerank}")
    picture = options.picture or str((Path(options.run) if Path(options.run).is_dir() else Path()) / "retrievals.png")
    check_files(json=options.json, picture=picture)
    from bitgen import evaluate as module
    from bitgen.data import open_data
    from bitgen.facts import data_settings, evaluated
    from bitgen.hub import load

    model, processor = load(options.run, checkpoint=options.checkpoint, device=options.device)
    opened = data_settings(options.run, options.checkpoint, options.data)
    dataset = open_data(opened, options.split, processor.vision.image_size)
    gallery = module.encode(model, processor, dataset, device=options.device)
    report = module.evaluate(model, processor, dataset, rerank=options.rerank, gallery=gallery)
    print(module.summary(report))
    if options.json:
        of = evaluated(options.run, options.checkpoint, opened.root, options.split)
        write(options.json, json.dumps(report | {"of": of}, indent=2))
    module.picture(gallery, dataset, processor.vision.image_size).savefig(picture)
    print(f"best, typical and worst retrievals: {picture}")
    return 0


def doctor(argv: list[str]) -> int:
    """Is it learning? `bitgen doctor runs/scenes`."""
    options = parse(Doctor, "bitgen doctor", argv)
    from bitgen import health

    history = health.read_history(options.run)
    verdicts = health.diagnose(history, health.read_facts(options.run))
    print(health.report(history[-1]["step"], verdicts) if options.json else health.summary(verdicts))
    return int(options.strict and health.worst(verdicts) == "BAD")


def diagnose(argv: list[str]) -> int:
    """Look inside, on one page: `bitgen diagnose runs/scenes --out report.html`."""
    options = parse(Diagnose, "bitgen diagnose", argv)
    check_files(out=options.out)
    from bitgen import report

    page = report.write(options.run, options.out, options.data, options.split, options.images, options.checkpoint,
                        options.device)
    print(f"report: {page}")
    return 0


def card(argv: list[str]) -> int:
    """Write the model card of a run: `bitgen card runs/scenes`."""
    options = parse(Card, "bitgen card", argv)
    from bitgen import card as module

    print(f"model card: {module.write(options.run)}")
    return 0
