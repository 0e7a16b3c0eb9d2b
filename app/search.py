"""The Search tab's callbacks: words and pictures find pictures and captions. Plain functions, no gradio.

Q = 1 query, N images, M captions, K candidates, D width.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from app import limits
from app.bench import Bench
from app.gallery import Gallery
from app.models import Loaded, View
from bitgen.images import safe_open_image
from bitgen.model import unit

Find = Literal["images", "captions"]


@dataclass(frozen=True)
class Query:
    """What is looked for: words, a picture (of the gallery by place, or one of the visitor's own), or both."""

    words: str = ""
    less: str = ""
    """Words for what the results should have less of."""
    place: int | None = None
    """A picture of the gallery."""
    file: str | None = None
    """The visitor's own picture."""
    weight: float = 0.5
    """Share of the words where there are both."""

    def __bool__(self) -> bool:
        return bool(self.words or self.less or self.place is not None or self.file)


@dataclass(frozen=True)
class Wish:
    """How the results should be."""

    find: Find = "images"
    top: int = 12
    floor: float = -1.0
    """Smallest similarity shown."""
    contains: str = ""
    """Text that one of the picture's captions must have."""
    tags: tuple[str, ...] = ()
    """Tags that the picture must have, all of them."""
    rerank: bool = False
    """Put the first candidates in the order of contrast and matching together."""


class Hit(NamedTuple):
    """One result."""

    place: int
    """The picture, by its place in the gallery."""
    name: str
    text: str
    """The caption that was found, or the picture's first one."""
    score: float
    """Cosine similarity."""
    match: float | None
    """Probability that query and result belong together, where re-ranking asked for it."""
    before: int
    """Rank by similarity alone, from 1."""


@dataclass(frozen=True)
class Answer:
    """Results, best first, and what they are to be held against."""

    hits: list[Hit]
    find: Find
    searched: int
    """Candidates that passed the filters."""
    typical: float
    """Mean similarity of all candidates: what a random result would score."""
    rank: float | None
    """Rank of the right answer, where the query is of the gallery itself."""
    chance: float | None
    """The rank that a random order would give it, in expectation."""
    seconds: float
    note: str = ""


def search(bench: Bench, view: View, query: Query, wish: Wish = Wish()) -> Answer:  # noqa: B008 - frozen
    """The best of the view's gallery for a query. Raises `ValueError` for an empty query or a setting out of range."""
    started = time.perf_counter()
    _check(query, wish)
    loaded, gallery = bench.model(view), bench.gallery(view)
    feature = query_feature(loaded, gallery, query)
    keys = gallery.images if wish.find == "images" else gallery.texts
    owner = torch.arange(len(gallery.images)) if wish.find == "images" else gallery.owner
    allowed = _allowed(gallery, wish)[owner]
    if wish.find == "images" and query.place is not None:
        allowed = allowed & (owner != query.place)
    candidates = allowed.nonzero().flatten()
    if not len(candidates):
        reason = "this gallery has no captions" if not len(keys) else "the filters leave nothing"
        return Answer([], wish.find, 0, 0.0, None, None, time.perf_counter() - started, reason)
    scores = keys[candidates] @ feature
    order = scores.argsort(descending=True, stable=True)
    kept = order[scores[order] >= wish.floor][:max(wish.top, limits.CANDIDATES if wish.rerank else 0)]
    hits = [_hit(gallery, wish, int(owner[candidates[i]]), int(candidates[i]), float(scores[i]), None, place + 1)
            for place, i in enumerate(kept)]
    note = ""
    if wish.rerank:
        hits, note = _reranked(loaded, gallery, query, wish, hits)
    rank, chance = _truth(gallery, query, wish, owner[candidates], scores)
    return Answer(hits[:wish.top], wish.find, len(candidates), float(scores.mean()), rank, chance,
                  time.perf_counter() - started, note)


@torch.no_grad()
def query_feature(loaded: Loaded, gallery: Gallery, query: Query) -> Tensor:
    """The query as one unit vector (D,): words and picture by weight, less what is unwanted."""
    words = _text_feature(loaded, query.words) if query.words else None
    image = None
    if query.file:
        image = loaded.model.encode_image(**loaded.processor(images=[query.file]))[0]
    elif query.place is not None:
        image = gallery.images[query.place]
    if words is not None and image is not None:
        mixed = query.weight * words + (1 - query.weight) * image
    else:
        mixed = words if image is None else image
    if query.less:
        unwanted = 0.5 * _text_feature(loaded, query.less)
        mixed = -unwanted if mixed is None else mixed - unwanted
    return unit(mixed)


def examples(bench: Bench, view: View, count: int = 5) -> list[str]:
    """Captions of the gallery to try, or plain words where it has none."""
    lines = bench.gallery(view).lines
    step = max(1, len(lines) // count)
    return lines[::step][:count] or ["a person outdoors", "something red", "a close-up", "food on a table"]


def any_place(bench: Bench, view: View) -> int:
    """A picture of the gallery, by place."""
    return random.randrange(len(bench.gallery(view).pictures))


def picture(bench: Bench, view: View, query: Query) -> Image.Image | None:
    """The picture of a query, RGB."""
    if query.file:
        return safe_open_image(query.file)
    return None if query.place is None else bench.gallery(view).pictures.read(query.place)


def summary(answer: Answer) -> str:
    """One line about an answer: what was searched, how fast, and what chance would do."""
    if not answer.hits:
        return answer.note or "Nothing is this similar: lower the smallest similarity."
    parts = [f"{answer.searched:,} {answer.find} in {1000 * answer.seconds:.0f} ms",
             f"best {answer.hits[0].score:.2f}, a random one {answer.typical:.2f}"]
    if answer.rank is not None:
        parts.append(f"the right one is at rank {answer.rank:,.0f} (by chance {answer.chance:,.0f})")
    return " · ".join(parts + [answer.note] * bool(answer.note))


def _check(query: Query, wish: Wish) -> None:
    if not query:
        raise ValueError("type some words or give a picture to search with")
    limits.text(query.words, "words")
    limits.text(query.less, "less of")
    limits.text(wish.contains, "captions containing")
    limits.whole(wish.top, "results", 1, limits.RESULTS)
    limits.number(wish.floor, "smallest similarity", -1, 1)
    limits.number(query.weight, "share of the words", 0, 1)
    if wish.find not in ("images", "captions"):
        raise ValueError(f"find: expected images or captions, got {wish.find!r}")


def _text_feature(loaded: Loaded, words: str) -> Tensor:
    return loaded.model.encode_text(**loaded.processor(text=[words]))[0]


def _allowed(gallery: Gallery, wish: Wish) -> Tensor:
    """(N,) bool: pictures that pass the filters."""
    allowed = torch.ones(len(gallery.images), dtype=torch.bool)
    if wish.contains:
        wanted = wish.contains.casefold()
        says = [any(wanted in line.casefold() for line in lines) for lines in gallery.pictures.captions]
        allowed &= torch.tensor(says)
    if wish.tags:
        allowed &= torch.tensor([set(wish.tags) <= set(tags) for tags in gallery.pictures.tags])
    return allowed


def _hit(gallery: Gallery, wish: Wish, place: int, candidate: int, score: float, match: float | None,
         before: int) -> Hit:
    said = gallery.pictures.captions[place]
    text = gallery.lines[candidate] if wish.find == "captions" else (said[0] if said else "")
    return Hit(place, gallery.pictures.names[place], text, score, match, before)


@torch.no_grad()
def _reranked(loaded: Loaded, gallery: Gallery, query: Query, wish: Wish, hits: list[Hit]) -> tuple[list[Hit], str]:
    """The first candidates in the order of ITC logit + ITM log-odds, and a note where matching cannot judge."""
    model, processor = loaded
    if not hits:
        return hits, ""
    if wish.find == "images" and query.words:
        pixels = processor(images=[gallery.pictures.read(hit.place) for hit in hits])["pixel_values"]
        words = processor(text=[query.words])
        pairs = torch.arange(len(hits)), torch.zeros(len(hits), dtype=torch.int64)
    elif wish.find == "captions" and (query.file or query.place is not None):
        shown = query.file or gallery.pictures.read(query.place)
        pixels, words = processor(images=[shown])["pixel_values"], processor(text=[hit.text for hit in hits])
        pairs = torch.zeros(len(hits), dtype=torch.int64), torch.arange(len(hits))
    else:
        return hits, "not re-ranked: matching compares words with a picture"
    image, text = model.image_tokens(pixels), model.text_tokens(**words)
    logits = model.match_tokens(image.tokens, text.tokens, words["attention_mask"], pairs)
    odds = logits[:, 1] - logits[:, 0]
    total = model.scale() * torch.tensor([hit.score for hit in hits]) + odds
    first = total.argsort(descending=True, stable=True).tolist()
    return [hits[i]._replace(match=float(odds[i].sigmoid())) for i in first], ""


def _truth(gallery: Gallery, query: Query, wish: Wish, owner: Tensor,
           scores: Tensor) -> tuple[float | None, float | None]:
    """(rank of the right answer, the rank a random order gives it) of a query that the gallery knows."""
    words_alone = query.words and not query.less and query.place is None and not query.file
    if wish.find == "images" and words_alone:
        right = gallery.said_of.get(query.words)
    elif wish.find == "captions" and query.place is not None and not query.words and not query.less:
        right = query.place
    else:
        return None, None
    own = owner == right
    if right is None or not own.any():
        return None, None
    better = float((scores > scores[own].max() + 1e-6).sum())
    return 1 + better, (len(scores) + 1) / (int(own.sum()) + 1)
