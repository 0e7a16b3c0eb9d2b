"""Where it looks: what words and places have to do with each other, over a picture. Plain functions, no gradio.

W words, G cells along a side.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from app import limits
from app.bench import Bench
from app.models import View
from bitgen.grounding import attended, ground, words_of
from bitgen.images import safe_open_image

SIDE = 480  # pixels of the picture that is shown
DARK = 0.3  # brightness of what is not looked at
By = Literal["maps", "attention"]


@dataclass(frozen=True)
class Sight:
    """A picture, words about it, and their grounding; kept in the visitor's session, so it is small."""

    jpeg: bytes
    """The picture, at most SIDE pixels a side."""
    words: list[str]
    maps: np.ndarray
    """(W, G, G): how much every place speaks for each word."""
    attention: np.ndarray
    """(W, G', G'): the fusion's attention from words to patches, weighted by the gradient of matching."""
    attention_back: np.ndarray
    """(W, G', G'): the same from patches to words."""
    match: float
    """Probability that they belong together."""

    @property
    def image(self) -> np.ndarray:
        """The picture as it is shown, uint8 (SIDE, SIDE, 3)."""
        picture = Image.open(io.BytesIO(self.jpeg))
        way = Image.Resampling.NEAREST if max(picture.size) < SIDE else Image.Resampling.BICUBIC
        return np.asarray(picture.resize((SIDE, SIDE), way))


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
    shown = bench.gallery(view).original(name) if name is not None else safe_open_image(file)
    inputs = loaded.processor(images=[shown], text=[text])
    with torch.inference_mode():
        match = float(loaded.model.match(**inputs)[0])
    words, maps = ground(loaded.model, loaded.processor.tokenizer, **inputs)
    spans = words_of(loaded.processor.tokenizer, inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist())
    forth, back = attended(loaded.model, **inputs)
    return Sight(_jpeg(shown), words, maps.numpy(), _by_word(spans, forth), _by_word(spans, back.T), match)


def _jpeg(picture: Image.Image) -> bytes:
    out, small = io.BytesIO(), picture.copy()
    small.thumbnail((SIDE, SIDE))
    small.save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def _by_word(spans: list[tuple[str, list[int]]], by_token: torch.Tensor) -> np.ndarray:
    """(L, P) by token as (W, G, G) by word."""
    side = int(by_token.shape[1] ** 0.5)
    return torch.stack([by_token[places].sum(0) for _, places in spans]).unflatten(1, (side, side)).numpy()


def heat(sight: Sight, word: int | None = None, by: By = "maps") -> np.ndarray:
    """The picture (SIDE, SIDE, 3) uint8, bright where a word looks and dark elsewhere; by default for all words."""
    maps, image = getattr(sight, by), sight.image
    weights = (maps.mean(0) if word is None else maps[word]).clip(min=0)
    small = Image.fromarray((255 * weights / max(weights.max(), 1e-9)).astype(np.uint8))
    light = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)[..., None] / 255
    grey = DARK * image.mean(-1, keepdims=True)
    return (grey + light * (image - grey)).clip(0, 255).astype(np.uint8)


def at(sight: Sight, x: float, y: float, by: By = "maps") -> list[tuple[str, float]]:
    """Each word with how much a place (x, y in pixels of the shown picture) speaks for it, the strongest being 1."""
    maps = sight.attention_back if by == "attention" else sight.maps
    cells = maps.shape[-1]
    column, row = (min(max(int(value * cells / SIDE), 0), cells - 1) for value in (x, y))
    weights = maps[:, row, column].clip(min=0)
    shares = weights / max(weights.max(), 1e-9)
    return list(zip(sight.words, shares.round(3).tolist()))


def strengths(sight: Sight, by: By = "maps") -> list[tuple[str, float]]:
    """Each word with how much its best place speaks for it, the strongest word's being 1."""
    most = getattr(sight, by).clip(min=0).max((1, 2))
    return list(zip(sight.words, (most / max(most.max(), 1e-9)).round(3).tolist()))
