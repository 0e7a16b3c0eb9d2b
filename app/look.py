"""Where it looks: what words and places have to do with each other, over a picture. Plain functions, no gradio.

W words, G cells along a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from app import limits
from app.bench import Bench
from app.models import Loaded, View
from bitgen.attention import match_looks
from bitgen.grounding import ground, words_of

SIDE = 384  # pixels of the picture that the heat lies on
HEAT = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], float)  # viridis, 5 stops


By = Literal["maps", "attention"]


@dataclass(frozen=True)
class Sight:
    """A picture, words about it, and their grounding; kept in the visitor's session."""

    image: np.ndarray
    """uint8 (SIDE, SIDE, 3)."""
    words: list[str]
    maps: np.ndarray
    """(W, G, G): how much every place speaks for each word."""
    attention: np.ndarray
    """(W, G', G'): attention of the fusion's words to its patches, weighted by the gradient of matching."""
    match: float
    """Probability that they belong together."""


def look(bench: Bench, view: View, name: str | None, file: str | None, text: str) -> Sight:
    """Ground the words of `text` in a picture of the gallery or in the visitor's own.

    Raises `ValueError` where words or picture are missing.
    """
    text = limits.text(text, "words")
    if not text:
        raise ValueError("type the words to look for in the picture")
    if name is None and file is None:
        raise ValueError("choose a picture first")
    loaded = bench.model(view)
    shown = bench.gallery(view).original(name) if name is not None else file
    inputs = loaded.processor(images=[shown], text=[text])
    with torch.inference_mode():
        match = float(loaded.model.match(**inputs)[0])
    picture = shown if isinstance(shown, Image.Image) else Image.open(shown)
    image = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST if picture.width < SIDE else None)
    words, maps = ground(loaded.model, loaded.processor.tokenizer, **inputs)
    return Sight(np.asarray(image), words, maps.numpy(), _attention(loaded, inputs), match)


def _attention(loaded: Loaded, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """`match_looks` by word, as squares."""
    ids = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist()
    by_token = match_looks(loaded.model, **inputs)
    side = int(by_token.shape[1] ** 0.5)
    by_word = [by_token[places].sum(0) for _, places in words_of(loaded.processor.tokenizer, ids)]
    return torch.stack(by_word).unflatten(1, (side, side)).numpy()


def heat(sight: Sight, word: int | None = None, by: By = "maps") -> np.ndarray:
    """The picture (SIDE, SIDE, 3) uint8 with where a word looks on it; all words together where none is given."""
    maps = getattr(sight, by)
    weights = (maps.mean(0) if word is None else maps[word]).clip(min=0)
    weights = weights / max(weights.max(), 1e-9)
    small = Image.fromarray((255 * weights).astype(np.uint8))
    smooth = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float) / 255
    stops = smooth * (len(HEAT) - 1)
    below = np.minimum(stops.astype(int), len(HEAT) - 2)
    colour = HEAT[below] + (HEAT[below + 1] - HEAT[below]) * (stops - below)[..., None]
    grey = sight.image.mean(-1, keepdims=True)
    return (0.45 * grey + 0.55 * colour).clip(0, 255).astype(np.uint8)


def at(sight: Sight, x: float, y: float, by: By = "maps") -> list[tuple[str, float]]:
    """Each word with how much a place (x, y in pixels of the shown picture) speaks for it, the strongest being 1."""
    maps = getattr(sight, by)
    cells = maps.shape[-1]
    column, row = (min(max(int(value * cells / SIDE), 0), cells - 1) for value in (x, y))
    weights = maps[:, row, column].clip(min=0)
    shares = weights / max(weights.max(), 1e-9)
    return list(zip(sight.words, shares.round(3).tolist()))


def strengths(sight: Sight, by: By = "maps") -> list[tuple[str, float]]:
    """Each word with how much its best place speaks for it, the strongest word's being 1."""
    most = getattr(sight, by).clip(min=0).max((1, 2))
    return list(zip(sight.words, (most / max(most.max(), 1e-9)).round(3).tolist()))
