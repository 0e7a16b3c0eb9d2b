"""What retrieval gets wrong: the worst queries, and which attributes are taken for which.

N images, M captions, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bitgen import retrieval
from bitgen.scene_words import COLOURS, SHAPES

NEAREST = 5  # wrong images that a caption is held against


class Mistake(NamedTuple):
    """A caption and what it found instead of its image."""

    caption: int
    """Index of the caption, of M."""
    image: int
    """Index of its image, of N."""
    rank: float
    """Place of its image, from 1."""
    found: list[int]
    """The first images, best first."""


class Confusion(NamedTuple):
    """What the wrong images nearest to a caption have where the right one has something else."""

    names: list[str]
    """C values of the attribute."""
    shares: Tensor
    """(C, C): of the right image's values (rows), the share that those wrong images have as (columns); what is missing
    to 1 they do not have at all."""
    chance: Tensor
    """(C,): what a wrong image drawn at random would have on the diagonal."""


def worst(image_features: Tensor, text_features: Tensor, owner: Tensor, count: int = 10,
          shown: int = 5) -> list[Mistake]:
    """The captions whose image comes last, worst first, at most one an image."""
    ranks = retrieval.rank_features(image_features, text_features, owner)[1].ranks
    chosen, seen = [], set()
    for caption in ranks.argsort(descending=True, stable=True).tolist():
        if int(owner[caption]) not in seen and len(chosen) < count and ranks[caption] > 1:
            seen.add(int(owner[caption]))
            chosen.append(caption)
    found = retrieval.nearest(text_features[chosen], image_features, shown)[1].tolist() if chosen else []
    return [Mistake(i, int(owner[i]), ranks[i].item(), images) for i, images in zip(chosen, found)]


def differences(image_features: Tensor, text_features: Tensor, owner: Tensor,
                truth: Sequence[dict]) -> tuple[dict[str, float], dict[str, float]]:
    """Share of the captions whose nearest wrong image differs from the right one in each attribute.

    Beside it the same for wrong images drawn at random. Keys `colour`, `shape`, `size`, `texture`, `relation`,
    `background`; no keys for a single image. truth: the N scenes.
    """
    near = _nearest_wrong(image_features, text_features, owner, 1)
    pairs = [(right, wrong[0]) for right, wrong in zip(owner.tolist(), near) if wrong]
    found, chance = {}, {}
    for name in ("colour", "shape", "size", "texture", "relation", "background") if pairs else ():
        values = [_value(scene, name) for scene in truth]
        alike = Counter(values)
        found[name] = sum(values[right] != values[wrong] for right, wrong in pairs) / len(pairs)
        chance[name] = 1 - sum(alike[values[right]] - 1 for right, _ in pairs) / len(pairs) / (len(truth) - 1)
    return found, chance


def _nearest_wrong(image_features: Tensor, text_features: Tensor, owner: Tensor, count: int) -> list[list[int]]:
    """For each caption the nearest images that are not its own, nearest first: up to `count`, as many as there are.

    Nearest, not found first: a good model hardly errs, and what it would get wrong can be seen all the same.
    """
    count = min(count, len(image_features) - 1)
    first = retrieval.nearest(text_features, image_features, count + 1)[1].tolist()
    return [[image for image in found if image != right][:count] for right, found in zip(owner.tolist(), first)]


def _value(scene: dict, name: str) -> object:
    """What a scene has of an attribute: one value, or those of its things, in any order."""
    return scene[name] if name in scene else tuple(sorted(thing[name] for thing in scene["objects"]))


def confusion(image_features: Tensor, text_features: Tensor, owner: Tensor, truth: Sequence[dict],
              field: str) -> Confusion:
    """What `field`, `colour` or `shape`, of the right image is in the five wrong images nearest to each caption.

    Values that both have are right; those left over on both sides are taken for one another, in equal parts.
    """
    tables = {"colour": COLOURS, "shape": SHAPES}
    if field not in tables:
        raise ValueError(f"field: expected 'colour' or 'shape', got {field!r}")
    names = list(tables[field])
    place = {name: i for i, name in enumerate(names)}
    counts = torch.zeros(len(names), len(names), dtype=torch.float64)
    having = [Counter(thing[field] for thing in scene["objects"]) for scene in truth]
    nearest = _nearest_wrong(image_features, text_features, owner, NEAREST)
    for right, near in zip(owner.tolist(), nearest):
        for wrong in near:
            true, seen = having[right], having[wrong]
            for name, number in (true & seen).items():
                counts[place[name], place[name]] += number
            missed, extra = list((true - seen).elements()), list((seen - true).elements())
            for name in missed:
                for other in extra:
                    counts[place[name], place[other]] += 1 / len(extra)
    asked = torch.tensor([sum(having[right][name] * len(near) for right, near in zip(owner.tolist(), nearest))
                          for name in names])[:, None]
    return Confusion(names, counts / asked.clamp(1), torch.tensor([_by_chance([h[name] for h in having])
                                                                   for name in names], dtype=torch.float64))


def _by_chance(numbers: Sequence[int]) -> float:
    """Share of a value's occurrences that another image, drawn at random, has too; `numbers` of them in each image."""
    images, held = Counter(numbers), len(numbers) * sum(numbers)
    both = sum(min(one, other) * many * (images[other] - (one == other))
               for one, many in images.items() for other in images)
    return both / max(held - sum(numbers), 1)
