"""The Memory tab's callbacks: write facts, read them back, forget and undo. No gradio; the slots are in `app.slots`.

What a visitor writes is a list of facts in the visitor's own session (`Edits`); the model that all visitors share is
only read. A session starts with the facts that were saved with the model, none for one that was only trained. Its
memory is the prior with its facts written one after the other: so what is forgotten or undone leaves no trace, to the
bit. D width, n facts or pictures.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from app import limits
from app.bench import Bench, kept
from app.facts import Fact
from app.models import Choice, Loaded, View
from bitgen.memory import Belief
from bitgen.model import BitGen
from bitgen.slots import Facts

FACTS = 48
"""Facts of a session."""
UNDO = 32
"""Steps that can be undone."""
WORDS = 300
"""Characters of a fact's words."""
KNOWN = 200  # pictures of the gallery that tell what a slot stands for
BATCH = 50


@dataclass(frozen=True)
class Edits:
    """What a visitor wrote into the memory of one checkpoint; never changed, only replaced."""

    choice: Choice | None = None
    facts: tuple[Fact, ...] = ()
    past: tuple[tuple[Fact, ...], ...] = ()
    """The facts before each of the last steps."""

    def then(self, facts: tuple[Fact, ...]) -> Edits:
        """The next step."""
        return replace(self, facts=facts, past=(*self.past, self.facts)[-UNDO:])


class Known(NamedTuple):
    """Pictures of a gallery with their first captions, as the memory would hold them."""

    names: list[str]
    texts: list[str]
    facts: Facts


class Told(NamedTuple):
    """What the model makes of a picture with one state of the memory."""

    caption: str
    variance: float
    """Of the reading, noise included: how unsure the memory is."""
    recalled: list[tuple[str, str, float]]
    """(where it is from, words, cosine less the mean), the nearest first."""


# Editing --------------------------------------------------------------------------------------------------


def of(bench: Bench, view: View | None, edits: Edits) -> Edits:
    """The edits as far as they belong to the checkpoint of this view: another one starts with its saved facts."""
    if view is None:
        return Edits()
    return edits if edits.choice == view.choice else Edits(view.choice, bench.model(view).facts)


def saved_of(edits: Edits) -> int:
    """How many of the facts were saved with the model."""
    return sum(fact.saved for fact in edits.facts)


def write(bench: Bench, view: View, edits: Edits, file: str | Image.Image | None, text: str) -> Edits:
    """The edits with one more fact: a picture, given as a file or as it is, with words.

    Raises `ValueError` for a missing picture, no or too many words, a full session, and numbers that are not finite.
    """
    loaded, edits, text = with_memory(bench, view), of(bench, view, edits), limits.text(text, "words")
    if not file:
        raise ValueError("give the picture that the words are about")
    if not text:
        raise ValueError("type the words that the memory should keep with the picture")
    if len(text) > WORDS:
        raise ValueError(f"words: {len(text)} characters; a fact has at most {WORDS}")
    if len(edits.facts) >= FACTS:
        raise ValueError(f"{FACTS} facts are written, which is as many as a session may have: forget one first")
    key, image, value = (row[0] for row in _encoded(loaded, [file], [text]))
    if not all(torch.isfinite(x).all() for x in (key, image, value)):
        raise ValueError("the model's numbers for this fact are not finite: nothing was written")
    return edits.then((*edits.facts, Fact(text, key, image, value)))


def forget(bench: Bench, view: View, edits: Edits, number: int) -> Edits:
    """The edits without fact `number`, counted from 1. Raises `ValueError` where there is no such fact."""
    edits = of(bench, view, edits)
    if not edits.facts:
        raise ValueError("nothing is written, so nothing can be forgotten")
    if number is None:
        raise ValueError("choose the fact to forget")
    place = limits.whole(number, "number of the fact", 1, len(edits.facts)) - 1
    return edits.then(edits.facts[:place] + edits.facts[place + 1:])


def undo(bench: Bench, view: View, edits: Edits) -> Edits:
    """The edits before the last step. Raises `ValueError` where there was none."""
    edits = of(bench, view, edits)
    if not edits.past:
        raise ValueError("there is nothing to undo")
    return replace(edits, facts=edits.past[-1], past=edits.past[:-1])


@torch.no_grad()
def belief(model: BitGen, edits: Edits) -> Belief:
    """What the memory holds: its prior with the facts written in their order."""
    held = model.memory.prior()
    for fact in edits.facts:
        held = model.memory.write(held, fact.key[None], fact.value[None])
    return held


# Reading --------------------------------------------------------------------------------------------------


@torch.no_grad()
def tell(bench: Bench, view: View, edits: Edits, file: str | Image.Image | None,
         top: int = 5) -> tuple[Told, Told]:
    """What the model makes of a picture before and after this session's edits, with saved facts in both.

    Raises `ValueError` for no picture.
    """
    loaded, edits = with_memory(bench, view), of(bench, view, edits)
    if not file:
        raise ValueError("give a picture to ask about")
    pixels = loaded.processor(images=[file])["pixel_values"]
    known, model = known_of(bench, view), loaded.model
    feature = model.encode_image(pixels)
    sides = []
    for facts in (loaded.facts, edits.facts):
        state = belief(model, Edits(facts=facts))
        reading = model.memory.read(state, feature)
        sides.append(Told(model.caption(pixels, belief=state)[0], float(reading.variance[0]),
                          _nearest(reading.mean, facts, known, top)))
    return sides[0], sides[1]


@torch.no_grad()
def read_back(bench: Bench, view: View, edits: Edits) -> list[tuple[str, int, float, float]]:
    """Each fact read with its picture alone: (words, its rank among the facts, variance before any was written,
    variance now).
    """
    model, edits = with_memory(bench, view).model, of(bench, view, edits)
    if not edits.facts:
        return []
    images, values = (torch.stack([getattr(fact, name) for fact in edits.facts]) for name in ("image", "value"))
    before = model.memory.read(model.memory.prior(), images).variance
    reading = model.memory.read(belief(model, edits), images)
    centre = values.mean(0) if len(values) > 1 else torch.zeros_like(values[0])
    cosines = _unit(reading.mean - centre) @ _unit(values - centre).T
    ranks = 1 + (cosines > cosines.diagonal()[:, None]).sum(1)
    rows = zip(edits.facts, ranks.tolist(), before.tolist(), reading.variance.tolist())
    return [(fact.text, *row) for fact, *row in rows]


def summary(rows: list[tuple[str, int, float, float]], saved: int = 0) -> str:
    """One line about what `read_back` found; saved: how many of the facts were saved with the model."""
    if not rows:
        return "Nothing is written in this session: what you see is the model's prior."
    first = sum(row[1] == 1 for row in rows)
    back = "1 comes back first when its picture is shown" if first == 1 else \
        f"{first} come back first when their pictures are shown"
    kept = f"{saved} of them saved with the model, " if saved else ""
    return (f"{len(rows)} written, {kept}{back} (by chance 1 would) · "
            f"unsure {np.mean([row[3] for row in rows]):.3f} now, {np.mean([row[2] for row in rows]):.3f} before")


@kept
def known_of(bench: Bench, view: View) -> Known:
    """Some pictures of the gallery with captions, encoded once for each gallery in memory."""
    loaded, gallery = with_memory(bench, view), bench.gallery(view)
    names = gallery.captioned[:KNOWN]
    texts = [gallery.caption(name) for name in names]
    rows = [slice(start, start + BATCH) for start in range(0, len(names), BATCH)]
    parts = [_encoded(loaded, [gallery.original(name) for name in names[i]], texts[i]) for i in rows]
    return Known(names, texts, Facts(*map(torch.cat, zip(*parts))) if parts else Facts(*(torch.zeros(0, 1),) * 3))


def any_fact(bench: Bench, view: View) -> tuple[Image.Image, str]:
    """A picture of the gallery with a caption of another one: a fact that the model cannot know.

    Raises `ValueError` where the gallery has no captions.
    """
    gallery = bench.gallery(view)
    if not gallery.captioned:
        raise ValueError("this gallery has no captions to take: give a picture, and words of your own")
    other = random.choice(gallery.captioned)
    name = random.choice([name for name in gallery.sample if name != other] or [other])
    return gallery.original(name), gallery.caption(other)


# Inside ---------------------------------------------------------------------------------------------------


def with_memory(bench: Bench, view: View) -> Loaded:
    """The model of a view. Raises `ValueError` where it has no memory."""
    loaded = bench.model(view)
    if loaded.model.memory is None:
        raise ValueError("this model has no memory: it was trained with model.memory_slots=0")
    return loaded


@torch.no_grad()
def _encoded(loaded: Loaded, images: list, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, features of the images and values, (n, D) each."""
    inputs, model = loaded.processor(images=images, text=texts), loaded.model
    image = model.image_tokens(inputs["pixel_values"])
    text = model.text_tokens(inputs["input_ids"], inputs["attention_mask"])
    key, value = model.fact(image, text, inputs["attention_mask"])
    return key.float(), image.feature.float(), value.float()


def _nearest(reading: Tensor, facts: tuple[Fact, ...], known: Known, top: int) -> list[tuple[str, str, float]]:
    """The facts and pictures whose values are nearest to a reading (1, D)."""
    values = [fact.value[None] for fact in facts] + ([known.facts.value] if known.names else [])
    if not values:
        return []
    values = torch.cat(values)
    centre = known.facts.value.mean(0) if known.names else torch.zeros_like(values[0])
    cosines = (_unit(reading - centre) @ _unit(values - centre).T)[0]
    named = [("written", fact.text) for fact in facts] + [("gallery", text) for text in known.texts]
    return [(*named[i], float(cosines[i])) for i in cosines.argsort(descending=True)[:top].tolist()]


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=1e-9)
