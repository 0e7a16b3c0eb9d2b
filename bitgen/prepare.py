"""What can be done with a data set before training: look it over, and decode it once for good."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitgen.cache import CHUNK, calls, not_found
from bitgen.config import DataConfig, VisionConfig
from bitgen.dataset import Dataset, open_data, sources
from bitgen.images import BadImage, safe_open_image, to_uint8
from bitgen.listing import Listing, digest
from bitgen.ranges import check_ranges
from bitgen.tokenizer import clean, plain

LOOK = 64
"""Side in pixels at which two images that are equal count as one."""


def check(config: DataConfig) -> dict[str, Any]:
    """Look at every image and caption of a data set; nothing is left out, nothing stops at what is bad.

    Gives, for each split under `splits`: `images`, `captions`, `unreadable` {id: reason}, `without_captions` [id],
    `same_caption_twice` [id] (training takes it once), `duplicate_images` [[id, ...]] (equal pictures),
    `repeated_captions` (texts under more than one image), `captions_per_image` and `words` (least, mean, most); and
    `in_two_splits` [[id, ...]], pictures that would let training see what is evaluated. Raises `ValueError` for a
    data set that cannot be opened at all.
    """
    pictures: dict[str, dict[str, list[str]]] = defaultdict(dict)
    report: dict[str, Any] = {"root": config.root, "splits": {}}
    for split, source in sources(dataclasses.replace(config, max_bad_fraction=1.0), LOOK).items():
        listing = source()
        looks = _look(listing, split)
        for name, (seen, _) in zip(listing.image_ids, looks, strict=True):
            if seen:
                pictures[seen].setdefault(split, []).append(name)
        report["splits"][split] = _describe(listing, looks, [p[split] for p in pictures.values() if split in p])
    report["in_two_splits"] = [[f"{split}: {name}" for split, names in places.items() for name in names]
                               for places in pictures.values() if len(places) > 1]
    return report


def _describe(listing: Listing, looks: list[tuple[str, str]], pictures: list[list[str]]) -> dict[str, Any]:
    """The part of the report on one split; `looks` as `_look` gives them, `pictures` the ids of each picture."""
    captions = [[text for text in texts if clean(text)] for texts in listing.captions]
    owners = Counter(text for texts in captions for text in set(map(plain, texts)))
    return {
        "images": len(listing.image_ids),
        "captions": sum(map(len, captions)),
        "unreadable": {name: reason for name, (_, reason) in zip(listing.image_ids, looks, strict=True) if reason},
        "without_captions": [name for name, texts in zip(listing.image_ids, captions, strict=True) if not texts],
        "same_caption_twice": [name for name, texts in zip(listing.image_ids, captions, strict=True)
                               if len(set(map(plain, texts))) < len(texts)],
        "duplicate_images": [names for names in pictures if len(names) > 1],
        "repeated_captions": sum(count > 1 for count in owners.values()),
        "captions_per_image": _range([len(texts) for texts in captions]),
        "words": _range([len(text.split()) for texts in captions for text in texts]),
    }


def _look(listing: Listing, label: str) -> list[tuple[str, str]]:
    """(digest of the picture, "") or ("", why it cannot be read) for each image."""
    images = calls(listing.read, len(listing.image_ids))
    looks: list[tuple[str, str]] = []
    with ThreadPoolExecutor() as pool, tqdm(total=len(listing.image_ids), desc=f"checking {label}", unit="image",
                                            disable=None, leave=False) as bar:
        while chunk := list(islice(images, CHUNK)):
            looks += pool.map(_look_at, chunk)
            bar.update(len(chunk))
    return looks


def _look_at(read: Any) -> tuple[str, str]:
    try:
        pixels = to_uint8(safe_open_image(read(), at_least=2 * LOOK), LOOK)
    except BadImage as error:
        return "", str(error)
    return digest(pixels.numpy().tobytes()), ""


def _range(values: Sequence[int]) -> dict[str, float]:
    """Least, mean and most of counts."""
    if not values:
        return {"min": 0, "mean": 0.0, "max": 0}
    return {"min": min(values), "mean": sum(values) / len(values), "max": max(values)}


def summary(report: dict[str, Any]) -> str:
    """A report of `check` in a few lines, for the terminal, in which … is the folder of the data set."""
    lines = []
    for split, part in report["splits"].items():
        each, words = part["captions_per_image"], part["words"]
        lines.append(f"{split}: {part['images']} images, {part['captions']} captions "
                     f"({each['min']}-{each['max']} an image, {words['mean']:.1f} words each)")
        lines += [f"  {name}: {len(part[key])}, such as {_such_as(part[key])}"
                  for key, name in _FINDINGS.items() if part[key]]
        lines += not_found(part["unreadable"], part["images"])
        if part["repeated_captions"]:
            lines.append(f"  texts under more than one image: {part['repeated_captions']}")
    if report["in_two_splits"]:
        lines.append(f"pictures in more than one split: {len(report['in_two_splits'])} "
                     f"({_such_as(report['in_two_splits'])})")
    return "\n".join(lines).replace(f"{Path(report['root']).expanduser().resolve()}/", "…/")


def _such_as(found: dict[str, str] | list) -> str:
    """The first three findings; with the first one's reason, where they have reasons."""
    named = "; ".join(map(_names, list(found)[:3]))
    return f"{named} ({next(iter(found.values()))})" if isinstance(found, dict) else named


def _names(found: str | list[str]) -> str:
    """One finding: an image, or the images that are the same."""
    return found if isinstance(found, str) else " = ".join(found)


_FINDINGS = {"unreadable": "unreadable images", "without_captions": "images without captions",
             "same_caption_twice": "images that have a caption twice",
             "duplicate_images": "pictures that come more than once"}


def whole(config: DataConfig) -> Dataset:
    """The first split that a data set has, all of it, to be drawn; unreadable images stay in it."""
    config = dataclasses.replace(config, max_bad_fraction=1.0)
    return Dataset(next(iter(sources(config, LOOK).values()))())


def contact_sheet(dataset: Dataset, path: str | Path, count: int = 24, size: int = 128) -> None:
    """Draw `count` images spread over the data set, each above its first caption, into a picture file.

    Others stand in for those that cannot be read. Raises `ValueError` where none can.
    """
    from bitgen import data_figures

    shown: dict[int, np.ndarray] = {}
    spread = (k * len(dataset) // count for k in range(min(count, len(dataset))))
    for i in dict.fromkeys([*spread, *range(len(dataset))]):
        if len(shown) == count:
            break
        try:
            shown[i] = dataset.pixels(i, size).numpy()
        except BadImage:
            continue  # the report names it
    if not shown:
        raise ValueError("no image could be read: no contact sheet")
    places = sorted(shown)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    title = f"{len(places)} of {len(dataset):,} images, each with its first caption"
    data_figures.contact_sheet([shown[i] for i in places], [dataset.captions[i] for i in places],
                               title=title).savefig(path, dpi=120)


def prepare(config: DataConfig, image_size: int) -> dict[str, dict[str, int]]:
    """Decode every split of a data set once into the cache, whatever its size; training then finds it there.

    Gives `images` and `unreadable` of each split. Raises `ValueError` for settings that training would refuse, and
    where too many images are unreadable, or the cache folder has no room.
    """
    check_ranges(config, "data")
    check_ranges(VisionConfig(image_size=image_size), "vision")
    names = list(sources(config, image_size))
    if "train" in names and "val" not in names:
        names.append("val")
    opened = {split: open_data(config, split, image_size, always=True) for split in names}
    return {split: {"images": len(dataset), "unreadable": len(dataset.bad)} for split, dataset in opened.items()}
