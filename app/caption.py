"""The Caption and match tab's callbacks. Plain functions, no gradio."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from PIL import Image

from app import limits
from app.bench import Bench
from app.memory import Edits, belief
from app.models import Loaded, View

Way = Literal["greedy", "beam", "nucleus"]
Given = str | Image.Image | None  # a visitor's picture: a file, or the picture itself
BEAMS, TOP_P, SAMPLES = 4, 0.9, 3


class Score(NamedTuple):
    """How well words fit a picture."""

    text: str
    similarity: float
    """Cosine of their features."""
    match: float
    """Probability of the matching head, which reads both together."""
    share: float
    """Softmax over the texts of the contrastive logits: 1 / (number of texts) is chance."""


def caption(bench: Bench, view: View, file: Given, way: Way = "greedy", temperature: float = 1.0,
            seed: int | None = None) -> list[str]:
    """Captions of a picture: one by `greedy` or `beam`, several different ones by `nucleus` sampling.

    Facts that were saved with the model are in its memory.

    Raises `ValueError` for no picture, an unknown way or a temperature out of range.
    """
    loaded = bench.model(view)
    how = {"greedy": {}, "beam": {"num_beams": BEAMS}, "nucleus": {"top_p": TOP_P}}
    if way not in how:
        raise ValueError(f"way: expected one of {', '.join(how)}, got {way!r}")
    pixels = _pixels(loaded, file)
    options = dict(how[way])
    if way == "nucleus":
        options["temperature"] = limits.number(temperature, "temperature", 0.1, 2)
        if seed is not None:
            options["generator"] = torch.Generator().manual_seed(limits.whole(seed, "seed", 0, 2**31))
        pixels = pixels.expand(SAMPLES, -1, -1, -1)
    with torch.inference_mode():
        known = belief(loaded.model, Edits(view.choice, loaded.facts)) if loaded.facts else None
        return list(dict.fromkeys(loaded.model.caption(pixels, belief=known, **options)))


def scores(bench: Bench, view: View, file: Given, texts: Sequence[str]) -> list[Score]:
    """Each text against one picture, best share first. Raises `ValueError` for no picture or no text."""
    loaded = bench.model(view)
    texts = [limits.text(text, "text") for text in limits.several(texts, "texts")]
    texts = list(dict.fromkeys(filter(None, texts)))
    if not texts:
        raise ValueError("type at least one text")
    if len(texts) > limits.LABELS:
        raise ValueError(f"{len(texts)} texts; at most {limits.LABELS}")
    model, words, pixels = loaded.model, loaded.processor(text=texts), _pixels(loaded, file)
    with torch.inference_mode():
        image, text = model.image_tokens(pixels), model.text_tokens(**words)
        cosines = text.feature @ image.feature[0]
        one, many = torch.zeros(len(texts), dtype=torch.int64), torch.arange(len(texts))
        matches = model.match_tokens(image.tokens, text.tokens, words["attention_mask"], (one, many)).softmax(-1)[:, 1]
        shares = (model.scale() * cosines).softmax(0)
    found = [Score(*row) for row in zip(texts, cosines.tolist(), matches.tolist(), shares.tolist())]
    return sorted(found, key=lambda score: -score.share)


def classify(bench: Bench, view: View, file: Given, labels: str, template: str = "a picture of {}") -> list[Score]:
    """Zero-shot classification: labels, one a line or between commas, each put into the template's `{}`.

    The scores carry the labels as typed. Raises `ValueError` for a template without `{}` and fewer than two labels.
    """
    template = limits.text(template, "template")
    if "{}" not in template:
        raise ValueError("template: write {} where the label goes, such as 'a picture of {}'")
    parts = limits.text(labels, "labels").replace(",", "\n").splitlines()
    names = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if len(names) < 2:
        raise ValueError("labels: type two or more, one a line or between commas")
    said = {template.replace("{}", name): name for name in names}
    return [score._replace(text=said[score.text]) for score in scores(bench, view, file, list(said))]


def any_picture(bench: Bench, view: View) -> Image.Image:
    """A picture of the gallery, RGB, another one each time."""
    gallery = bench.gallery(view)
    return gallery.original(random.choice(gallery.ids))


def _pixels(loaded: Loaded, file: Given) -> torch.Tensor:
    """(1, 3, S, S) of the visitor's picture. Raises `ValueError` where there is none, or it cannot be read."""
    if not file:
        raise ValueError("give a picture first")
    return loaded.processor(images=[file])["pixel_values"]
