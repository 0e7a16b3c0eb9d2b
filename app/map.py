"""The Map tab's callbacks: pictures and captions of a gallery as points in one plane. Plain functions, no gradio.

N pictures of the gallery's sample, M first captions, P = N + M points (pictures first), D width, K memory slots.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from app import limits, vocabulary
from app.bench import Bench, kept
from app.gallery import Gallery, Progress, silent
from app.models import View
from app.search import Query, query_feature
from bitgen import projection, retrieval
from bitgen.config import cache_folder

Method = Literal["pca", "umap"]
By = Literal["kind", "words", "slot", "rank"]
WAYS = {"kind": "Picture or caption", "words": "Words", "slot": "Memory slot", "rank": "Rank of its counterpart"}
COLOURS = 5
"""Groups that have a colour each."""
GREY = COLOURS
"""The group of all that belong to none of them."""
RANKS = {"found first": 1, "at rank 2 to 5": 5, "at 6 to 20": 20, "further down": math.inf}
SELDOM, OFTEN = 0.03, 0.6  # words of fewer, or of more of the captions, tell nothing
OFFERED = 40  # words to colour by
TILE = 64  # pixels of a picture that is shown at its point
NEIGHBOURS = 5  # points among which UMAP's map has the query
LISTED = 60  # rows about what was chosen


class Chart(NamedTuple):
    """What is drawn of a gallery: shared by all who look at it, changed by none."""

    names: list[str]
    """(P,) id of the picture, or of the picture that the caption is of."""
    texts: list[str]
    """(P,) the caption, or the picture's first one; may be empty for a picture."""
    owner: np.ndarray
    """(M,) int: point of each caption's picture."""
    features: np.ndarray
    """(P, D) float32, unit length."""
    ranks: np.ndarray
    """(P,) rank of its counterpart among those of the map, from 1; NaN for a picture without a caption."""
    slots: np.ndarray | None
    """(P,) int: the memory slot that its address has most of; None for a model without memory."""
    sheet: str
    """The N pictures in rows of a square, as a data URI."""

    @property
    def pictures(self) -> int:
        """N."""
        return len(self.names) - len(self.owner)


class Placed(NamedTuple):
    """Where the points lie."""

    points: np.ndarray
    """(P, 2) in 0 to 1, x to the right, y upwards, both in one scale."""
    query: np.ndarray | None
    """(2,) the place of the query, which may lie outside of 0 to 1."""
    note: str
    """How it was drawn and how to read it."""


class Groups(NamedTuple):
    """The colour of every point."""

    members: list[int]
    """(P,) group of each, 0 to `GREY`."""
    legend: list[tuple[int, str]]
    """Groups with their names and shares."""


# The points -----------------------------------------------------------------------------------------------

@kept
def chart(bench: Bench, view: View) -> Chart:
    """The points of the view's gallery, made once for each gallery in memory."""
    gallery, memory = bench.gallery(view), bench.model(view).model.memory
    firsts = [gallery.caption(name) for name in gallery.sample]
    owner = np.flatnonzero(np.isin(gallery.sample, gallery.captioned))
    images = np.asarray(gallery.sample_pictures, dtype=np.float32)
    features, ranks = images, np.full(len(images), np.nan)
    if len(owner):
        words = np.asarray(gallery.sample_captions, dtype=np.float32)
        features, ranks = np.concatenate([images, words]), np.full(len(images) + len(words), np.nan)
        found = retrieval.rank_features(torch.from_numpy(images[owner]), torch.from_numpy(words),
                                        torch.arange(len(owner)))
        ranks[owner], ranks[len(images):] = (ranking.ranks.numpy() for ranking in found)
    slots = None
    if memory is not None:
        with torch.no_grad():
            slots = memory.address(torch.from_numpy(features)).abs().argmax(1).numpy()
    names, texts = ([*all_of, *(all_of[i] for i in owner)] for all_of in (gallery.sample, firsts))
    return Chart(names, texts, owner, features, ranks, slots, _sheet(gallery))


def _sheet(gallery: Gallery) -> str:
    across = math.ceil(math.sqrt(len(gallery.sample)))
    sheet = Image.new("RGB", (across * TILE, across * TILE))
    for i, name in enumerate(gallery.sample):
        tile = gallery.picture(name)
        tile.thumbnail((TILE, TILE))
        row, column = divmod(i, across)
        sheet.paste(tile, (column * TILE + (TILE - tile.width) // 2, row * TILE + (TILE - tile.height) // 2))
    file = io.BytesIO()
    sheet.save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


# Their places ---------------------------------------------------------------------------------------------


def place(bench: Bench, view: View, method: Method = "pca", query: Query | None = None,
          progress: Progress = silent) -> Placed:
    """The points in the plane, and the visitor's last query among them.

    UMAP is kept on disk by what went into it, so it is waited for once; it cannot place a new point at once, so the
    query stands in the middle of its nearest. Raises `ValueError` for another method.
    """
    drawn = chart(bench, view)
    projected = projection.project(drawn.features, method, cache=cache_folder(None),
                                   say=lambda text: progress(0.1, text))
    low, high = projected.points.min(0), projected.points.max(0)
    scale = max(float((high - low).max()), 1e-9)
    inside = (projected.points - low) / scale
    if query is None or not (query.words or query.pictured):
        return Placed(inside, None, projected.note)
    feature = query_feature(bench.gallery(view), query)
    if projected.method == "pca":
        return Placed(inside, (projection.pca(drawn.features).project(feature)[0] - low) / scale, projected.note)
    near = np.argsort(-(drawn.features @ feature[0]))[:NEIGHBOURS]
    return Placed(inside, inside[near].mean(0), f"{projected.note}; the query stands amid its {len(near)} nearest")


def page(drawn: Chart, placed: Placed) -> dict:
    """What the page needs to draw the points: plain values, and nothing that is read as HTML."""
    return {"points": placed.points.round(4).tolist(), "pictures": drawn.pictures, "owner": drawn.owner.tolist(),
            "texts": [text or name for text, name in zip(drawn.texts, drawn.names)], "sheet": drawn.sheet,
            "ranks": [None if math.isnan(rank) else round(rank) for rank in drawn.ranks.tolist()]}


# Their colours --------------------------------------------------------------------------------------------


def groups(drawn: Chart, by: By = "kind", words: Sequence[str] = ()) -> Groups:
    """Every point's group, and the groups' names with the share of points in each.

    words: those to tell apart, at most 5, by default such that many points have exactly one; a point with several of
    them is grey. Raises `ValueError` for another way, too many words, and slots of a model without memory.
    """
    if by not in WAYS:
        raise ValueError(f"by: expected one of {', '.join(WAYS)}, got {by!r}")
    named, rest = {"kind": _by_kind, "words": _by_words, "slot": _by_slot, "rank": _by_rank}[by](drawn, words)
    members = np.full(len(drawn.names), GREY)
    for number, mask in enumerate(named.values()):
        members[mask] = number
    names = [*enumerate(named), (GREY, rest)]
    counts = Counter(members.tolist())
    return Groups(members.tolist(), [(i, f"{name}: {counts[i] / len(members):.0%}") for i, name in names if counts[i]])


def _by_kind(drawn: Chart, _) -> tuple[dict[str, np.ndarray], str]:
    captions = np.arange(len(drawn.names)) >= drawn.pictures
    return {"picture": ~captions, "caption": captions}, ""


def _by_rank(drawn: Chart, _) -> tuple[dict[str, np.ndarray], str]:
    bounds = [0, *RANKS.values()]
    return {name: (drawn.ranks > low) & (drawn.ranks <= high)
            for name, low, high in zip(RANKS, bounds, bounds[1:])}, "without a caption"


def _by_slot(drawn: Chart, _) -> tuple[dict[str, np.ndarray], str]:
    if drawn.slots is None:
        raise ValueError("this model has no memory, so its points have no slot")
    most = [slot for slot, _ in Counter(drawn.slots.tolist()).most_common(COLOURS)]
    return {f"slot {slot}": drawn.slots == slot for slot in most}, "other slots"


def _by_words(drawn: Chart, words: Sequence[str]) -> tuple[dict[str, np.ndarray], str]:
    said = vocabulary.words(drawn.texts)
    words = list(dict.fromkeys(limits.text(word, "word").lower() for word in words)) or telling(drawn)
    if len(words) > COLOURS:
        raise ValueError(f"{len(words)} words; at most {COLOURS} have a colour")
    masks = np.array([[word in each for each in said] for word in words], dtype=bool).reshape(len(words), len(said))
    alone = masks & (masks.sum(0) == 1)
    return dict(zip(words, alone)), "none of them, or several"


def telling(drawn: Chart) -> list[str]:
    """At most 5 of the words offered, such that many points have exactly one of them."""
    return vocabulary.apart(vocabulary.words(drawn.texts), offered(drawn), COLOURS)


def offered(drawn: Chart) -> list[str]:
    """Words to colour by: said of some of the pictures and not of most, the most frequent first."""
    said = vocabulary.words(drawn.texts[:drawn.pictures])
    return [word for word in vocabulary.telling(said, SELDOM, OFTEN) if len(word) > 2][:OFFERED]


# What was chosen ------------------------------------------------------------------------------------------


def query_of(drawn: Chart, point: int) -> Query:
    """A point as a query: a picture, or a caption's words. Raises `ValueError` where there is no such point."""
    point = limits.whole(point, "point", 0, len(drawn.names) - 1)
    return Query(name=drawn.names[point]) if point < drawn.pictures else Query(drawn.texts[point])


def checked(drawn: Chart, points: object) -> list[int]:
    """Points that a page sent, each once, in their order. Raises `ValueError` for anything else, and for none."""
    if not isinstance(points, list) or len(points) > len(drawn.names):
        raise ValueError("points: expected a list of numbers, each of a point of the map")
    found = sorted({limits.whole(point, "point", 0, len(drawn.names) - 1) for point in points})
    if not found:
        raise ValueError("no point lies inside: draw around some")
    return found


def worst_first(drawn: Chart, points: Sequence[int]) -> list[int]:
    """Points, at most 60, those whose counterpart is found last on top."""
    return sorted(points, key=lambda i: (-np.nan_to_num(drawn.ranks[i], nan=0.0), i))[:LISTED]


def table(drawn: Chart, points: Sequence[int]) -> list[list[str]]:
    """Rows about points, in their order: what it is, its words, the rank of its counterpart."""
    return [["picture" if i < drawn.pictures else "caption", drawn.texts[i] or drawn.names[i],
             "–" if math.isnan(drawn.ranks[i]) else f"{drawn.ranks[i]:.0f}"] for i in points]


def summary(drawn: Chart, points: Sequence[int]) -> str:
    """One line about chosen points beside all of the map: how many, how well found, which words stand out."""
    points = np.asarray(points)
    pictures = int((points < drawn.pictures).sum())
    parts = [f"{pictures:,} pictures and {len(points) - pictures:,} captions of {len(drawn.names):,} points"]
    ranks, all_ranks = (x[~np.isnan(x)] for x in (drawn.ranks[points], drawn.ranks))
    if len(ranks):
        parts.append(f"counterpart first for {(ranks == 1).mean():.0%} (all: {(all_ranks == 1).mean():.0%}), "
                     f"median rank {np.median(ranks):.0f} (all: {np.median(all_ranks):.0f})")
    said = vocabulary.words(drawn.texts)
    inside, everywhere = (Counter(word for i in some for word in said[i]) for some in (points, range(len(said))))
    lift = {word: inside[word] / len(points) / (everywhere[word] / len(said)) for word in offered(drawn)
            if inside[word] > 1}
    best = sorted((word for word in lift if lift[word] > 1.05), key=lambda word: -lift[word])[:5]
    if best:
        parts.append("more often said here: " + ", ".join(f"{word} ×{lift[word]:.1f}" for word in best))
    return " · ".join(parts)
