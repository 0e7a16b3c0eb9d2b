"""`scenes`, the embedded data set: two or three coloured shapes, a relation and a background, five captions each.

Everything is generated from a seed with integer arithmetic only (shapes are integer half-plane and distance tests on
a grid of 4 x 4 samples a pixel; draws come from `RandomState`, whose stream is frozen), so that pixels and captions
are the same on every machine. Scenes are laid out in 64ths of the side and then scaled: another size shows the same
scenes with the same captions. Eight colour-shape pairs are held out: no train or val image has one, every test image
has exactly one.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitgen.config import cache_folder
from bitgen.scene_words import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, attributes_right, write_captions

__all__ = ["HELD_OUT", "VERSION", "Scenes", "attributes_right", "render"]

VERSION = 5  # raise it when a pixel or a caption changes: it names the cache
UNITS = 64  # layout units along a side
SAMPLES = 4  # samples a pixel and axis
CELL = 8  # units along a cell of the grid that scenes are laid out on; a patch of the demo's tower sees one
BLOCK = {"small": 2, "large": 3}  # cells along the square that an object has for itself
GAP = 2  # units between two objects side by side
DIAMETER = {size: cells * CELL - GAP for size, cells in BLOCK.items()}  # units
JITTER = 8  # largest change of a colour channel
DRAWS = 192  # random numbers set aside for each scene; the longest needs 150
LIMITS = {"train": 1_000_000, "val": 20_000, "test": 5_000}  # images; val and test scenes differ pairwise in meaning

# Body and ink (stripes, dots) of each colour: the ink keeps the hue and stands out from the body.
RGB = {
    "red": ((214, 38, 44), (255, 152, 146)), "orange": ((244, 128, 24), (122, 52, 0)),
    "yellow": ((246, 212, 42), (140, 104, 0)), "green": ((40, 146, 62), (140, 224, 136)),
    "cyan": ((60, 200, 216), (0, 88, 108)), "blue": ((36, 74, 208), (128, 168, 255)),
    "purple": ((124, 44, 160), (206, 144, 238)), "pink": ((246, 130, 186), (142, 24, 88)),
}
GROUND_RGB = {"white": (250, 250, 250), "grey": (200, 200, 200), "mint": (204, 238, 214), "beige": (240, 220, 184)}

HELD_OUT = (("red", "heart"), ("orange", "circle"), ("yellow", "cross"), ("green", "star"),
            ("cyan", "diamond"), ("blue", "triangle"), ("purple", "ring"), ("pink", "square"))
SEEN = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)

# Corners in thousandths of the half side, y down, as an outline that may be concave.
POLYGONS = {
    "square": ((-860, -860), (860, -860), (860, 860), (-860, 860)),
    "triangle": ((0, -980), (1000, 820), (-1000, 820)),
    "diamond": ((0, -1000), (760, 0), (0, 1000), (-760, 0)),
    "cross": ((-340, -980), (340, -980), (340, -340), (980, -340), (980, 340), (340, 340),
              (340, 980), (-340, 980), (-340, 340), (-980, 340), (-980, -340), (-340, -340)),
    "star": ((0, -1000), (270, -310), (1000, -300), (430, 160), (630, 880),
             (0, 470), (-630, 880), (-430, 160), (-1000, -300), (-270, -310)),
    "heart": ((-950, -130), (-480, -480), (0, -300), (480, -480), (950, -130), (0, 940)),
}


@dataclass
class Scenes:
    """Images with five captions each, and what is true of them."""

    pixels: np.ndarray
    """(N, 3, S, S) uint8, RGB, read from the cache as it is used."""
    captions: list[list[str]]
    """N lists of five captions, differently worded."""
    truth: list[dict]
    """N scene dicts (see `bitgen.scene_words`); each object also has `centre` [x, y] and `box` [left, top, right,
    bottom] in pixels, right and bottom exclusive."""
    image_ids: list[str]
    """N names, unique across splits and seeds."""

    def __len__(self) -> int:
        return len(self.image_ids)


def render(split: str, count: int, seed: int = 0, size: int = 64, cache: str | Path | None = None) -> Scenes:
    """`count` scenes of `split` (train, val or test), `size` pixels wide, drawn once and then read from `cache`.

    The first n of a longer set are the set of n. Train and val follow one distribution; no two scenes of val, or of
    test, share objects (colour, shape) and relation, so that a caption identifies its image. `cache` is
    that of all data unless given. Raises `ValueError` for an unknown split or a count, seed or size out of range.
    """
    _check(split, count, seed, size)
    folder = cache_folder(cache)
    stem = f"scenes-v{VERSION}-{split}-{count}-seed{seed}-{size}px"
    pixels, texts = folder / f"{stem}.npy", folder / f"{stem}.json"
    if not (pixels.is_file() and texts.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        _write_files(pixels, texts, split, count, seed, size)
    return Scenes(np.load(pixels, mmap_mode="r"), **json.loads(texts.read_text(encoding="utf-8")))


def _check(split: str, count: int, seed: int, size: int) -> None:
    if split not in LIMITS:
        raise ValueError(f"scenes: unknown split {split!r}; known: {', '.join(LIMITS)}")
    ranges = {"count": (count, 1, LIMITS[split]), "seed": (seed, 0, 2**32 - 1), "size": (size, 24, 1024)}
    for name, (value, low, high) in ranges.items():
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            setting = {"count": "data.scenes_train, ", "size": "vision.image_size, "}.get(name, "")
            raise ValueError(f"scenes: {setting}{name} of {split} must be a whole number from {low} to {high}, "
                             f"got {value!r}")


def _write_files(pixels: Path, texts: Path, split: str, count: int, seed: int, size: int) -> None:
    """Draw and write both files under temporary names, then rename: a half-written set is never seen."""
    unfinished = [path.with_name(f"{path.name}.{os.getpid()}.tmp") for path in (pixels, texts)]
    images = np.lib.format.open_memmap(unfinished[0], "w+", np.uint8, (count, 3, size, size))
    captions, truth = [], []
    for image, (scene, lines) in zip(images, compose(split, count, seed)):
        captions.append(lines)
        truth.append(draw(scene, image))
    images.flush()
    ids = [f"scenes-{split}-{seed}-{i:06d}" for i in range(count)]
    record = json.dumps({"captions": captions, "truth": truth, "image_ids": ids})
    unfinished[1].write_text(record, encoding="utf-8")
    for path, final in zip(unfinished, (pixels, texts)):
        os.replace(path, final)


def compose(split: str, count: int, seed: int) -> Iterator[tuple[dict, list[str]]]:
    """The scenes of a split in layout units, with their captions: a pure function of (split, seed, position)."""
    random = np.random.RandomState([seed, list(LIMITS).index(split)])
    meanings: set = set()
    while count:
        below = _dice(random)
        scene = _lay_out(_choose_pairs(split, below), below)
        if scene is None or (split != "train" and _meaning(scene) in meanings):
            continue
        meanings.add(_meaning(scene))
        count -= 1
        yield scene, write_captions(scene, below)


def _dice(random: np.random.RandomState) -> Callable[[int], int]:
    """`below(n)` for one scene; each has as many numbers, so that no scene depends on what those before it drew."""
    numbers = iter(random.randint(0, 2**31, size=DRAWS, dtype=np.int64).tolist())
    return lambda n: next(numbers) % n


def _choose_pairs(split: str, below: Callable[[int], int]) -> list[tuple[str, str]]:
    """Two or three different (colour, shape) pairs; in test one of them, at any place, is a held-out one."""
    pool, count = list(SEEN), 2 + below(2)
    pairs = [pool.pop(below(len(pool))) for _ in range(count)]
    if split == "test":
        pairs[below(count)] = HELD_OUT[below(len(HELD_OUT))]
    return pairs


def _meaning(scene: dict) -> tuple:
    """What a caption always says. Three objects are told by themselves: every two of them stand in some relation."""
    pairs = [(thing["colour"], thing["shape"]) for thing in scene["objects"]]
    return tuple(sorted(pairs)) if len(pairs) == 3 else (scene["relation"], *pairs)


def _lay_out(pairs: list[tuple[str, str]], below: Callable[[int], int]) -> dict | None:
    """A scene of these (colour, shape) pairs with corners in layout units, or None where the third found no room."""
    objects = [{"colour": colour, "shape": shape, "size": list(SIZES)[below(2)], "texture": list(TEXTURES)[below(3)],
                "shift": [below(2 * JITTER + 1) - JITTER for _ in "rgb"]} for colour, shape in pairs]
    spans = [BLOCK[thing["size"]] for thing in objects]
    places = _pair_places(*spans[:2])
    cells = list(places[below(len(places))])
    relation = ("left of", "above")[below(2)]
    if relation == "above":
        cells = [(x, y) for y, x in cells]
    if len(pairs) == 3:
        free = _free_places(spans[2], tuple(zip(cells, spans)))
        if not free:
            return None
        cells.append(free[below(len(free))])
    for thing, cell in zip(objects, cells):
        thing["corner"] = tuple(CELL * place + GAP // 2 for place in cell)
    return {"objects": objects, "relation": relation, "background": list(BACKGROUNDS)[below(len(BACKGROUNDS))],
            "shift": below(2 * JITTER + 1) - JITTER}


@functools.cache
def _pair_places(one: int, other: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """All cells of two blocks, the first left of the second: more than twice as far along the row as across it."""
    last = UNITS // CELL
    corners = itertools.product(range(last - one + 1), range(last - one + 1),
                                range(last - other + 1), range(last - other + 1))
    return [((x, y), (x2, y2)) for x, y, x2, y2 in corners
            if x2 >= x + one and 2 * x2 + other - 2 * x - one > 2 * abs(2 * y2 + other - 2 * y - one)]


def _free_places(span: int, taken: tuple[tuple[tuple[int, int], int], ...]) -> list[tuple[int, int]]:
    """All cells where a block of `span` cells overlaps none of those taken (cell, span)."""
    room = range(UNITS // CELL - span + 1)
    return [(x, y) for x, y in itertools.product(room, room)
            if all(x + span <= left or left + other <= x or y + span <= top or top + other <= y
                   for (left, top), other in taken)]


def draw(scene: dict, image: np.ndarray) -> dict:
    """Draw a scene in layout units into `image` (3, S, S) uint8; returns the truth with centres and boxes in pixels."""
    size = image.shape[1]
    ground = np.clip(np.array(GROUND_RGB[scene["background"]]) + scene["shift"], 0, 255)[:, None, None]
    image[:] = ground
    objects = []
    for thing in scene["objects"]:
        left, top = (value * size // UNITS for value in thing["corner"])
        span = DIAMETER[thing["size"]] * size // UNITS
        cover, ink, extent = stamp(thing["shape"], thing["texture"], span)
        shift = np.array(thing["shift"])[:, None, None]
        body, mark = (np.clip(np.array(rgb)[:, None, None] + shift, 0, 255) for rgb in RGB[thing["colour"]])
        whole = SAMPLES * SAMPLES
        mixed = ground * (whole - cover) + body * (cover - ink) + mark * ink
        image[:, top:top + span, left:left + span] = (mixed + whole // 2) // whole
        box = [left + extent[0], top + extent[1], left + extent[2], top + extent[3]]
        named = {field: thing[field] for field in ("shape", "colour", "size", "texture")}
        objects.append({**named, "centre": [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], "box": box})
    return {"objects": objects, "relation": scene["relation"], "background": scene["background"]}


@functools.cache
def stamp(shape: str, texture: str, span: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """How many of a pixel's 16 samples lie in the shape, and how many in its ink, (span, span) each, and the box."""
    steps = 2 * np.arange(span * SAMPLES, dtype=np.int64) + 1 - span * SAMPLES  # odd numbers around the centre
    x, y = steps[None, :], steps[:, None]
    inside = _inside(shape, x * 1000, y * 1000, span * SAMPLES)
    inked = inside & _inked(texture, x, y, span)
    cover, ink = (part.reshape(span, SAMPLES, span, SAMPLES).sum(axis=(1, 3)) for part in (inside, inked))
    columns, rows = np.flatnonzero(cover.any(axis=0)), np.flatnonzero(cover.any(axis=1))
    return cover, ink, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _inside(shape: str, x: np.ndarray, y: np.ndarray, half: int) -> np.ndarray:
    """Whether points (in thousandths of a half sample, from the centre) lie in `shape` of half side `half`."""
    def disc(cx: int, cy: int, radius: int) -> np.ndarray:
        return (x - cx * half) ** 2 + (y - cy * half) ** 2 <= (radius * half) ** 2

    if shape == "circle":
        return disc(0, 0, 980)
    if shape == "ring":
        return disc(0, 0, 1000) & ~disc(0, 0, 480)
    outline = _polygon(POLYGONS[shape], x, y, half)
    return outline | disc(-480, -400, 520) | disc(480, -400, 520) if shape == "heart" else outline


def _polygon(corners: tuple[tuple[int, int], ...], x: np.ndarray, y: np.ndarray, half: int) -> np.ndarray:
    """Points inside an outline: a ray to the right crosses it an odd number of times."""
    odd = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        between = (y >= y0 * half) & (y < y1 * half)
        odd ^= between & ((x - x0 * half) * (y1 - y0) < (y - y0 * half) * (x1 - x0))
    return odd


def _inked(texture: str, x: np.ndarray, y: np.ndarray, span: int) -> np.ndarray:
    """Whether points carry ink: in level stripes or round dots, four a side, one of them at the centre."""
    period = max(6 * SAMPLES, span * SAMPLES // 2)  # half samples: a quarter of the side, at least 3 pixels
    dx, dy = ((value + period // 2) % period - period // 2 for value in (x, y))
    if texture == "striped":
        return np.broadcast_to(4 * abs(dy) <= period, (y.size, x.size))
    if texture == "dotted":
        return 9 * (dx ** 2 + dy ** 2) <= period ** 2
    return np.zeros((y.size, x.size), dtype=bool)
