"""The Compare tab's callbacks: two checkpoints on the same gallery. Plain functions, no gradio.

n sampled pictures with their first captions, N pictures of the gallery, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from app import limits, search
from app.bench import Bench, kept
from app.gallery import Gallery, Progress, silent
from app.models import View
from app.search import Query
from bitgen import retrieval

MOVES = 5  # captions shown that rose most, and as many that fell most


class Place(NamedTuple):
    """A picture of the gallery and where two checkpoints put it for one query."""

    name: str
    text: str
    here: int
    there: int
    score: float
    """Cosine by the checkpoint whose list it is in."""


class Standing(NamedTuple):
    """How well one checkpoint finds a sample of the gallery."""

    report: dict[str, float]
    """Recall with 95 % intervals beside chance, as `recall_at_k` gives it."""
    texts: list[str]
    """(n,) captions asked for."""
    ranks: torch.Tensor
    """(n,) expected rank of the right picture among the n."""


class Move(NamedTuple):
    """A caption whose picture stands elsewhere with the other checkpoint."""

    text: str
    here: float
    there: float


def other(bench: Bench, view: View, source: str, checkpoint: str | None = None, revision: str | None = None,
          progress: Progress = silent) -> View:
    """Another checkpoint on the gallery of `view`, once it is there.

    Raises `ValueError` for what cannot be chosen or loaded, and for the checkpoint that is looked at already.
    """
    bench.model(view)
    choice = bench.models.choose(source, checkpoint, revision)
    if choice == view.choice:
        raise ValueError(f"{choice.title} is what you look at already: choose another checkpoint to compare it with")
    return bench.open(replace(view, choice=choice), progress)


def results(bench: Bench, here: View, there: View, words: str, top: int = 6) -> tuple[list[Place], list[Place]]:
    """The first pictures for some words by each checkpoint, and where the other one puts them.

    Among those that both galleries have: a folder may have changed since one of them was opened. Raises `ValueError`
    for no words, or too many.
    """
    query = Query(limits.text(words, "words"))
    if not query.words:
        raise ValueError("type the words to search with")
    limits.whole(top, "results", 1, limits.RESULTS)
    found = []
    for view in (here, there):
        gallery = bench.gallery(view)
        hits = gallery.index.search(search.query_feature(gallery, query), len(gallery))
        found.append(dict(zip(hits.ids[0], hits.scores[0])))  # in the order of their scores
    both = found[0].keys() & found[1].keys()
    found = [{name: score for name, score in scores.items() if name in both} for scores in found]
    places = [{name: rank for rank, name in enumerate(scores, 1)} for scores in found]
    caption = bench.gallery(here).caption
    return tuple([Place(name, caption(name), places[0][name], places[1][name], scores[name])
                  for name in list(scores)[:top]] for scores in found)


@kept
def standing(bench: Bench, view: View) -> Standing:
    """Recall on a sample of the gallery, measured once for each gallery in memory.

    Raises `ValueError` where fewer than two of the pictures have captions.
    """
    gallery = bench.gallery(view)
    return _measured(gallery, gallery.captioned)


def standings(bench: Bench, here: View, there: View) -> tuple[Standing, Standing]:
    """Both checkpoints on the same pictures: the sample, as far as both galleries have it, where they differ.

    Raises `ValueError` where fewer than two of the pictures have captions.
    """
    one, two = bench.gallery(here), bench.gallery(there)
    if one.captioned == two.captioned:
        return standing(bench, here), standing(bench, there)
    held = set(two.ids)
    names = [name for name in one.captioned if name in held and two.captions(name)]
    return _measured(one, names), _measured(two, names)


def moves(here: Standing, there: Standing, count: int = MOVES) -> tuple[list[Move], list[Move]]:
    """Captions whose picture stands higher, and those whose picture stands lower with the second checkpoint.

    The largest first, by the ratio of ranks: from 20 to 2 is as much as from 200 to 20.
    """
    ratio = (here.ranks / there.ranks).log()
    order = ratio.argsort(descending=True, stable=True).tolist()
    rows = [(Move(here.texts[i], float(here.ranks[i]), float(there.ranks[i])), float(ratio[i])) for i in order]
    return ([move for move, change in rows if change > 0][:count],
            [move for move, change in reversed(rows) if change < 0][:count])


def table(here: Standing, there: Standing) -> list[list[str]]:
    """Recall of both as rows: measure, first, second, difference in points, chance."""
    rows = []
    for way, title in {"t2i": "Words find pictures", "i2t": "Pictures find words"}.items():
        for k in (1, 5, 10):
            key = f"{way}_r{k}"
            one, two = here.report[key], there.report[key]
            rows.append([f"{title}, first {k}", _interval(here.report, key), _interval(there.report, key),
                         f"{100 * (two - one):+.1f}", f"{here.report[f'chance_{key}']:.1%}"])
    return rows


def _measured(gallery: Gallery, names: list[str]) -> Standing:
    """How well the pictures of these names are found by their first captions."""
    if len(names) < 2:
        raise ValueError("this gallery has no captions: how well its pictures are found cannot be measured")
    texts = [gallery.caption(name) for name in names]
    said = gallery.sample_captions if names == gallery.captioned else gallery.encoder.text(texts)
    images, words = (torch.as_tensor(x).float() for x in (gallery.index.features(names), said))
    owner = torch.arange(len(names))
    ranks = retrieval.rank_features(images, words, owner)[1].ranks
    return Standing(retrieval.recall_at_k(images, words, owner, intervals=(1, 5, 10)), texts, ranks)


def _interval(report: dict[str, float], key: str) -> str:
    return f"{report[key]:.1%} ({report[f'{key}_low']:.0%} to {report[f'{key}_high']:.0%})"
