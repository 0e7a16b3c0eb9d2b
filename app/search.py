"""The Search tab's callbacks: words and pictures find pictures and captions. Plain functions, no gradio.

Q queries (one here), K candidates, D width.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from app import limits
from app.bench import Bench
from app.gallery import Gallery
from app.models import View
from bitgen.query import mix, reordered

Find = Literal["images", "captions"]
GOOD_LENGTH = 55  # characters of an example
READ = ("match: how likely picture and words belong together; words: nats that they gain by the picture; "
        "was: the rank by similarity alone")
PLAIN = ("a person outdoors", "something red", "a close-up", "two things side by side", "an empty street")


@dataclass(frozen=True)
class Query:
    """What is looked for: words, a picture (of the gallery, or one of the visitor's own), or both."""

    words: str = ""
    less: str = ""
    """Words for what the results should have less of."""
    name: str | None = None
    """A picture of the gallery."""
    file: str | Image.Image | None = None
    """The visitor's own picture: a file, or the picture itself."""
    weight: float = 0.5
    """Share of the words where there are both."""

    @property
    def pictured(self) -> bool:
        """Whether a picture is part of it."""
        return self.name is not None or self.file is not None


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
    """Tags of which the picture must have one."""
    rerank: bool = False
    """Put the first candidates in the order of contrast, matching and the decoder's words together."""
    distinct: bool = False
    """Of near-duplicates show the best alone."""

    @property
    def where(self) -> dict:
        """The filters as an index takes them."""
        return ({"caption": self.contains} if self.contains else {}) | ({"tag": list(self.tags)} if self.tags else {})


class Hit(NamedTuple):
    """One result."""

    name: str
    """The picture's id."""
    text: str
    """The caption that was found, or the picture's first one."""
    score: float
    """Cosine similarity."""
    match: float | None
    """The matching head's probability that query and result belong together, where re-ranking asked for it."""
    told: float | None
    """How much likelier the decoder finds the words with the picture than with a blank one, in nats, likewise."""
    before: int
    """Rank by similarity alone, from 1."""


@dataclass(frozen=True)
class Answer:
    """Results, best first, and what they are to be held against."""

    hits: list[Hit]
    wish: Wish
    searched: int
    """Pictures, or captions, in the gallery."""
    typical: float
    """Mean similarity of some of them: what a random one scores."""
    rank: int | None
    """Rank of the right answer by similarity alone, where the query is of the gallery itself."""
    chance: float | None
    """The rank that a random order would give it, in expectation."""
    seconds: float
    note: str = ""


def search(bench: Bench, view: View, query: Query, wish: Wish = Wish()) -> Answer:  # noqa: B008 - frozen
    """The best of the view's gallery for a query. Raises `ValueError` for an empty query or a setting out of range."""
    started = time.perf_counter()
    _check(query, wish)
    gallery = bench.gallery(view)
    feature = query_feature(gallery, query)
    captions, itself = wish.find == "captions", wish.find == "images" and query.name is not None
    if captions and not gallery.captions_count:
        raise ValueError("this gallery has no captions: find pictures instead")
    wanted = max(wish.top, limits.CANDIDATES if wish.rerank else 0) + itself
    found = gallery.index.search(feature, wanted, captions=captions, where=wish.where, threshold=wish.floor,
                                 distinct=limits.ALIKE if wish.distinct else None)
    texts = found.texts[0] if captions else [gallery.caption(name) for name in found.ids[0]]
    rows = [row for row in zip(found.ids[0], texts, found.scores[0]) if not itself or row[0] != query.name]
    hits = [Hit(*row, None, None, rank) for rank, row in enumerate(rows, 1)]
    note = ""
    if wish.rerank:
        hits, note = _reranked(gallery, query, wish, hits)
    rank, chance = _truth(gallery, query, wish, feature)
    typical = float(((gallery.sample_captions if captions else gallery.sample_pictures) @ feature[0]).mean())
    return Answer(hits[:wish.top], wish, gallery.captions_count if captions else len(gallery), typical, rank, chance,
                  time.perf_counter() - started, note)


def query_feature(gallery: Gallery, query: Query) -> np.ndarray:
    """The query as one unit vector (1, D): words and picture by weight, less what is unwanted."""
    encoder, both = gallery.encoder, bool(query.words) and query.pictured
    parts = []
    if query.words:
        parts.append((encoder.text([query.words]), query.weight if both else 1))
    if query.pictured:
        picture = encoder.images([query.file]) if query.file else gallery.index.features([query.name])
        parts.append((picture, 1 - query.weight if both else 1))
    if query.less:
        parts.append((encoder.text([query.less]), -0.5))
    features, weights = zip(*parts)
    return mix(np.concatenate(features), weights)


def examples(bench: Bench, view: View, count: int = 4) -> list[str]:
    """Captions of the gallery to try, none of them long, or plain words where it has none."""
    gallery = bench.gallery(view)
    lines = [line for name in gallery.sample for line in gallery.captions(name)]
    return sorted(set(lines), key=lambda line: (abs(len(line) - GOOD_LENGTH), line))[:count] or list(PLAIN[:count])


def any_picture(bench: Bench, view: View) -> str:
    """The id of a picture of the gallery, another one each time."""
    return random.choice(bench.gallery(view).ids)


def summary(answer: Answer) -> str:
    """One line about an answer: what was searched, how fast, and what chance would do."""
    if not answer.hits:
        filtered, floor = bool(answer.wish.where), answer.wish.floor > -1
        return ("Nothing that passes the filters is this similar." if filtered and floor else
                "Nothing passes the filters." if filtered else "Nothing is this similar.")
    things = ("captions" if answer.wish.find == "captions" else "pictures")[:None if answer.searched != 1 else -1]
    things += ", filtered," * bool(answer.wish.where)
    parts = [f"{answer.searched:,} {things} in {1000 * answer.seconds:.0f} ms",
             f"best {max(hit.score for hit in answer.hits):.2f}, a random one {answer.typical:.2f}"]
    if answer.rank is not None:
        parts.append(f"the right one at rank {answer.rank:,}, by chance at {answer.chance:,.0f}")
    return " · ".join(parts + [answer.note] * bool(answer.note))


def _check(query: Query, wish: Wish) -> None:
    limits.text(query.words, "words")
    limits.text(query.less, "less of")
    limits.text(wish.contains, "captions containing")
    limits.whole(wish.top, "results", 1, limits.RESULTS)
    limits.number(wish.floor, "smallest similarity", -1, 1)
    limits.number(query.weight, "share of the words", 0, 1)
    if wish.find not in ("images", "captions"):
        raise ValueError(f"find: expected images or captions, got {wish.find!r}")
    if not (query.words or query.less or query.pictured):
        raise ValueError("type some words or give a picture to search with")


def _reranked(gallery: Gallery, query: Query, wish: Wish, hits: list[Hit]) -> tuple[list[Hit], str]:
    """The first candidates in the order of contrast, matching and words together, and a note where none can judge."""
    if wish.find == "images" and query.words:
        pair = [gallery.original(hit.name) for hit in hits], [query.words]
    elif wish.find == "captions" and query.pictured:
        pair = [query.file or gallery.original(query.name)], [hit.text for hit in hits]
    else:
        return hits, "not re-ranked: that takes words and a picture"
    order, match, told = reordered(gallery.encoder, *pair, [hit.score for hit in hits])
    return [hits[i]._replace(match=match[i], told=told[i]) for i in order], READ


def _truth(gallery: Gallery, query: Query, wish: Wish, feature: np.ndarray) -> tuple[int | None, float | None]:
    """(rank of the right answer, the rank a random order gives it) of a query that the gallery knows."""
    captions = wish.find == "captions"
    if wish.where or query.less or query.file or captions != (query.name is not None and not query.words):
        return None, None
    right = query.name if captions else gallery.said_of.get(query.words)
    own = gallery.captions(right) if right is not None else []
    if not own:
        return None, None
    keys = gallery.encoder.text(own) if captions else gallery.index.features([right])
    score = float((keys @ feature[0]).max())
    total = gallery.captions_count if captions else len(gallery)
    # A little below its score: the index holds half precision.
    at_least = gallery.index.search(feature, total, captions=captions, threshold=score - 1e-3).ids[0]
    return 1 + at_least.index(right), (total + 1) / (len(own) + 1 if captions else 2)
