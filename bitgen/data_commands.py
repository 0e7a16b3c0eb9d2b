"""`bitgen data`: a data set looked over, or decoded once."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bitgen.arguments import check_files, parse, positional, write
from bitgen.config import DataConfig, Format

DATA = positional(str, "DATA")


@dataclass
class Source:
    """A data set."""

    root: DATA
    """Data set, as `data.root` of training takes it."""
    format: Format = "auto"
    """How it is laid out."""
    image_root: str | None = None
    """Folder of the image files where it is not beside the captions."""


@dataclass
class Check(Source):
    """Count images, captions, duplicates, unreadable files and images without captions; draw a contact sheet."""

    sheet: str = "contact-sheet.png"
    """PNG that receives the contact sheet."""
    json: str | None = None
    """File that receives the report."""


@dataclass
class Prepare(Source):
    """Decode the images once into a uint8 cache, from which training with the same settings reads without waiting."""

    image_size: int = 224
    """Side of the prepared images, pixels."""
    cache: str | None = DataConfig.cache
    """Folder of the prepared images, as `data.cache` of training; by default `~/.cache/bitgen`."""
    val_fraction: float = DataConfig.val_fraction
    """Share of the training images that validation gets, as `data.val_fraction` of training."""
    limit: int | None = DataConfig.limit
    """Prepare only the first n training images (rows, of `hub://`), as `data.limit` of training."""
    max_bad_fraction: float = DataConfig.max_bad_fraction
    """Share of unreadable images above which it stops, as `data.max_bad_fraction` of training."""


def data(argv: list[str]) -> int:
    """Look a data set over, or prepare it: `bitgen data check FOLDER`."""
    options = parse({"check": Check, "prepare": Prepare}, "bitgen data", argv)
    if isinstance(options, Check):
        check_files(json=options.json, sheet=options.sheet)
    from bitgen import prepare as module

    config = DataConfig(**{name: value for name, value in vars(options).items() if hasattr(DataConfig, name)})
    if isinstance(options, Prepare):
        for split, part in module.prepare(config, options.image_size).items():
            print(f"{split}: {part['images']} images prepared at {options.image_size} px, "
                  f"{part['unreadable']} unreadable")
        return 0
    report = module.check(config)
    print(module.summary(report))
    if options.json:
        write(options.json, json.dumps(report, indent=2))
    module.contact_sheet(module.whole(config), options.sheet)
    print(f"contact sheet: {options.sheet}")
    return 0
