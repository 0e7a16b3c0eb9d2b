"""The Map tab without a browser: what lies where, in which colour, and what a point or a lasso leads to."""

import base64
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import map as map_module
from app.bench import Bench
from app.map import GREY
from app.search import Query
from bitgen import projection, retrieval

COUNT = 24


@pytest.fixture(scope="module")
def bare(place):
    """A bench on five pictures without captions."""
    (place / "bare").mkdir()
    for i in range(5):
        Image.new("RGB", (64, 32), (50 * i, 90, 255 - 50 * i)).save(place / "bare" / f"{i}.png")
    bench = Bench(str(place / "runs/first"), str(place / "bare"), place / "runs")
    bench.open(bench.start)
    return bench


@pytest.fixture(scope="module")
def drawn(bench, view):
    return map_module.chart(bench, view)


def test_pictures_and_their_captions_are_the_points(bench, view, drawn):
    gallery = bench.gallery(view)
    assert drawn.pictures == COUNT and len(drawn.names) == len(drawn.texts) == len(drawn.features) == 2 * COUNT
    for point, picture in enumerate(drawn.owner, drawn.pictures):
        assert drawn.names[point] == drawn.names[picture]
        assert drawn.texts[point] == gallery.captions(drawn.names[picture])[0]
    assert np.allclose(drawn.features[:COUNT], gallery.index.features(drawn.names[:COUNT]))
    assert map_module.chart(bench, view) is drawn, "made once for a gallery"


def test_ranks_are_those_of_retrieval_both_ways(drawn):
    features = torch.from_numpy(drawn.features)
    found = retrieval.rank_features(features[:COUNT], features[COUNT:], torch.from_numpy(drawn.owner))
    assert drawn.ranks.tolist() == torch.cat([ranking.ranks for ranking in found]).tolist()
    assert 1 <= drawn.ranks.min() < drawn.ranks.max() <= COUNT


def test_every_point_has_its_picture_in_the_sheet(drawn):
    sheet = Image.open(io.BytesIO(base64.b64decode(drawn.sheet.partition(",")[2])))
    assert sheet.size == (5 * map_module.TILE,) * 2 and drawn.sheet.startswith("data:image/webp")
    assert np.asarray(sheet)[4 * map_module.TILE:, 4 * map_module.TILE:].max() < 10, "the 25th place is empty"


def test_pca_keeps_its_shape_in_a_frame_of_one(bench, view, drawn):
    placed = map_module.place(bench, view)
    points = projection.project(drawn.features).points
    assert placed.query is None and placed.points.min() == 0 and placed.points.max() == pytest.approx(1)
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (placed.points, points)]
    assert np.allclose(distances[0] * distances[1].max(), distances[1] * distances[0].max(), atol=1e-4)


def test_a_query_lies_where_its_own_point_does(bench, view, drawn):
    for point in (3, COUNT + 3):
        placed = map_module.place(bench, view, "pca", map_module.query_of(drawn, point))
        assert np.allclose(placed.query, placed.points[point], atol=5e-3)
    assert map_module.place(bench, view, "pca", Query()).query is None


def test_umap_is_asked_for_once_and_has_the_query_amid_its_nearest(bench, view, drawn, monkeypatch, tmp_path):
    calls, told = [], []

    def umap(features, seed, cache, say):
        calls.append(cache)
        say("wait")
        return np.random.default_rng(0).normal(size=(len(features), 2)).astype(np.float32)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(projection, "_umap", umap)
    query = map_module.query_of(drawn, 5)
    placed = map_module.place(bench, view, "umap", query, lambda share, text: told.append(text))
    assert told == ["wait"] and calls[0] == tmp_path / "bitgen" and "UMAP" in placed.note and "amid" in placed.note
    near = np.argsort(-(drawn.features @ drawn.features[5]))[:map_module.NEIGHBOURS]
    assert 5 in near and np.allclose(placed.query, placed.points[near].mean(0))
    with pytest.raises(ValueError, match="method"):
        map_module.place(bench, view, "tsne")


def test_where_umap_is_missing_or_points_are_few_pca_is_drawn_and_said_so(bare):
    placed = map_module.place(bare, bare.start, "umap")
    assert "PCA instead" in placed.note and placed.points.shape == (5, 2)


def test_colours_tell_kinds_ranks_slots_and_words_apart(bench, view, drawn):
    kinds = map_module.groups(drawn)
    assert kinds.members == [0] * COUNT + [1] * COUNT and kinds.legend == [(0, "picture: 50%"), (1, "caption: 50%")]
    ranks = map_module.groups(drawn, "rank").members
    for group, rank in zip(ranks, drawn.ranks):
        assert (group == 0) == (rank == 1) and (group == 1) == (1 < rank <= 5)
    slots = map_module.groups(drawn, "slot").members
    address = bench.model(view).model.memory.address(torch.from_numpy(drawn.features)).argmax(1)
    for group in set(slots) - {GREY}:
        assert len({int(address[i]) for i in range(2 * COUNT) if slots[i] == group}) == 1
    words = map_module.groups(drawn, "words", ["red", "Blue"])
    for group, text in zip(words.members, drawn.texts):
        has = [word in text.lower().split() for word in ("red", "blue")]
        assert group == (GREY if sum(has) != 1 else has.index(True))
    assert sum(int(name.rpartition(" ")[2][:-1]) for _, name in words.legend) in (99, 100, 101)


def test_words_to_colour_by_tell_something(drawn):
    offered = map_module.offered(drawn)
    said = [sum(word in text.lower().split() for text in drawn.texts[:COUNT]) for word in offered]
    assert offered and "a" not in offered and 0 < max(said) <= map_module.OFTEN * COUNT
    members = map_module.groups(drawn, "words").members
    first = map_module.groups(drawn, "words", offered[:map_module.COLOURS]).members
    assert members.count(GREY) <= first.count(GREY), "chosen to leave few points grey"


@pytest.mark.parametrize("by, words, message", [
    ("size", (), "expected one of kind, words"), ("words", list("abcdef"), "at most 5"),
    ("words", ["x" * 2001], "at most 2000")])
def test_other_colours_are_refused(drawn, by, words, message):
    with pytest.raises(ValueError, match=message):
        map_module.groups(drawn, by, words)


def test_a_model_without_memory_has_no_slots(drawn):
    with pytest.raises(ValueError, match="no memory"):
        map_module.groups(drawn._replace(slots=None), "slot")


def test_a_point_becomes_a_query(drawn):
    assert map_module.query_of(drawn, 2) == Query(name=drawn.names[2])
    assert map_module.query_of(drawn, COUNT + 2) == Query(drawn.texts[COUNT + 2])


@pytest.mark.parametrize("point", [-1, 2 * COUNT, None, "3", math.nan, True, [1]])
def test_a_point_that_is_none_is_refused(drawn, point):
    for ask in (lambda: map_module.query_of(drawn, point), lambda: map_module.checked(drawn, [1, point])):
        with pytest.raises(ValueError, match="point"):
            ask()


@pytest.mark.parametrize("points", [None, "12", {"0": 1}, [], list(range(99))])
def test_a_lasso_that_is_none_is_refused(drawn, points):
    with pytest.raises(ValueError, match="point"):
        map_module.checked(drawn, points)


def test_a_lasso_lists_the_worst_first_and_says_what_stands_out(drawn):
    red = [i for i in range(2 * COUNT) if "red" in drawn.texts[i].lower().split()]
    points = map_module.checked(drawn, [*red, red[0]])
    assert points == red
    rows = map_module.table(drawn, map_module.worst_first(drawn, points))
    ranks = [float(row[2]) for row in rows]
    assert ranks == sorted(ranks, reverse=True) and len(rows) == len(red)
    assert {row[0] for row in rows} == {"picture", "caption"}
    line = map_module.summary(drawn, points)
    assert f"{len(red) // 2} pictures and {len(red) // 2} captions of {2 * COUNT} points" in line
    assert f"(all: {(drawn.ranks == 1).mean():.0%})" in line and "red ×" in line


def test_pictures_without_captions_are_drawn_without_ranks(bare):
    drawn = map_module.chart(bare, bare.start)
    assert drawn.pictures == 5 and len(drawn.owner) == 0 and np.isnan(drawn.ranks).all()
    page = map_module.page(drawn, map_module.place(bare, bare.start))
    assert page["texts"] == drawn.names and page["ranks"] == [None] * 5
    assert map_module.groups(drawn, "rank").legend == [(GREY, "without a caption: 100%")]
    assert map_module.offered(drawn) == [] and set(map_module.groups(drawn, "words").members) == {GREY}
    assert map_module.table(drawn, [0]) == [["picture", drawn.names[0], "–"]]
    assert map_module.summary(drawn, [0, 1]) == "2 pictures and 0 captions of 5 points"
