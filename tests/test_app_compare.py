"""The Compare tab without a browser: two checkpoints on one gallery."""

import shutil

import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import compare, search
from app.bench import Bench
from app.compare import Standing
from app.main import build_app
from app.models import Choice, View
from app.search import Query, Wish


@pytest.fixture(scope="module")
def views(bench):
    here = bench.open(bench.start)
    return here, compare.other(bench, here, here.choice.source, "checkpoint-7")


def test_each_side_is_what_its_checkpoint_finds_and_ranks_cross_over(bench, views):
    sides = compare.results(bench, *views, "a red ring", 6)
    for view, side in zip(views, sides):
        hits = search.search(bench, view, Query("a red ring"), Wish(top=6)).hits
        assert [place.name for place in side] == [hit.name for hit in hits]
    assert [place.here for place in sides[0]] == [place.there for place in sides[1]] == [1, 2, 3, 4, 5, 6]
    shared = {place.name: place for place in sides[0]}
    for place in sides[1]:
        if place.name in shared:
            assert place[2:4] == shared[place.name][2:4]
    assert any(place.here != place.there for place in sides[0])


def test_a_checkpoint_beside_itself_is_refused(bench, views):
    here = views[0]
    with pytest.raises(ValueError, match="already"):
        compare.other(bench, here, here.choice.source)
    for bad in ("/etc", "", None):
        with pytest.raises(ValueError, match="choose one of the runs"):
            compare.other(bench, here, bad)
    with pytest.raises(ValueError, match="checkpoint-1000"):
        compare.other(bench, here, here.choice.source, "../second")
    with pytest.raises(ValueError, match="no model is loaded"):
        compare.other(bench, None, here.choice.source)


def test_a_query_needs_words(bench, views):
    for words, message in (("", "type the words"), (None, "type the words"), ("x" * 3000, "at most 2000")):
        with pytest.raises(ValueError, match=message):
            compare.results(bench, *views, words)


def test_recall_of_both_stands_beside_chance(bench, views):
    both = compare.standings(bench, *views)
    assert compare.standing(bench, views[0]) is both[0] and len(both[0].texts) == 24
    rows = compare.table(*both)
    assert len(rows) == 6 and rows[0][4] == f"{1 / 24:.1%}"
    first, second = both[0].report["t2i_r1"], both[1].report["t2i_r1"]
    assert rows[0][1].startswith(f"{first:.1%}") and rows[0][3] == f"{100 * (second - first):+.1f}"
    assert both[0].report["t2i_r1"] == pytest.approx((both[0].ranks == 1).double().mean().item())


def test_a_folder_that_changed_between_two_checkpoints_is_compared_in_what_both_have(bench, place):
    folder = place / "changing"
    shutil.copytree(place / "gallery", folder)
    bench.gallery_names.append(str(folder))
    here = bench.open(View(bench.start.choice, str(folder)))
    bench.gallery(here)
    Image.new("RGB", (32, 32), "red").save(folder / "new.png")
    with open(folder / "captions.csv", "a") as table:
        table.write("new.png,a red picture\n")
    (folder / "scene-00.png").unlink()
    there = compare.other(bench, here, here.choice.source, "checkpoint-7")
    sides = compare.results(bench, here, there, "a red ring", 60)
    names = {f"scene-{i:02}.png" for i in range(1, 24)}
    assert all({place.name for place in side} == names for side in sides)
    assert [place.here for place in sides[0]] == [place.there for place in sides[1]] == list(range(1, 24))
    both = compare.standings(bench, here, there)
    assert both[0].texts == both[1].texts and len(both[0].texts) == len(both[0].ranks) == len(both[1].ranks) == 23


def test_what_moved_most_comes_first():
    here = Standing({}, ["a", "b", "c", "d"], torch.tensor([20.0, 3.0, 1.0, 4.0]))
    there = Standing({}, ["a", "b", "c", "d"], torch.tensor([2.0, 30.0, 1.0, 3.0]))
    up, down = compare.moves(here, there)
    assert [move.text for move in up] == ["a", "d"] and [tuple(move) for move in down] == [("b", 3.0, 30.0)]
    assert compare.moves(here, here) == ([], [])


@pytest.fixture(scope="module")
def bare(place):
    """A folder of three pictures of which nothing is said."""
    (place / "bare").mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (80 * i, 9, 9)).save(place / "bare" / f"{i}.png")
    return place / "bare"


def test_a_gallery_without_captions_cannot_be_measured(place, bare):
    bench = Bench(str(place / "runs/first"), str(bare), place / "runs")
    here = bench.open(bench.start)
    there = compare.other(bench, here, here.choice.source, "checkpoint-7")
    with pytest.raises(ValueError, match="no captions"):
        compare.standings(bench, here, there)
    assert all(len(side) == 3 for side in compare.results(bench, here, there, "a red ring"))


def test_only_what_takes_captions_is_left_out_of_the_page_without_them(place, bare):
    run = str(place / "runs/first")
    events = build_app(run, str(bare), str(place / "runs")).fns.values()
    compared = next(event.fn for event in events if event.api_name == "compared")
    asked = View(Choice(run), str(bare)), run, "checkpoint-7", "a red ring"
    _, line, panel, measures, *tables, first, second = compared(*asked)
    assert "This gallery has no captions" in line and not measures.visible and tables == [[], [], []]
    assert panel.visible and len(first) == len(second) == 3
