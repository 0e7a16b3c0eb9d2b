"""An index answers what looking at every feature would, whatever was added or removed before."""

import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from painted import COLOURS, SIDE, WIDTH, Painter, gallery, noise, painted, unit

from bitgen.engine import Exact
from bitgen.gallery import Pictures
from bitgen.index import Index
from bitgen.matching import Evidence, Weights
from bitgen.query import mix, reordered, rerank

pytest.importorskip("faiss")


def test_search_is_what_looking_at_every_picture_finds(index, painter):
    features = painter.pixels(torch.stack([gallery().load(i, SIDE)[0] for i in range(64)]))
    queries = noise(20, WIDTH)
    hits = index.search(queries, k=7)
    for query, ids, scores in zip(queries, hits.ids, hits.scores):
        expected = sorted((features @ query).tolist(), reverse=True)[:7]
        assert scores == pytest.approx(expected, abs=2e-3)
        assert [features[index.ids().index(name)] @ query for name in ids] == pytest.approx(scores, abs=2e-3)
    assert hits.texts is None and index.search(queries[0], k=3).ids == [hits.ids[0][:3]]


def test_pictures_find_their_captions(index, painter):
    hits = index.search(painter.images([painted("red", "blue"), painted("cyan", "cyan")]), k=2, captions=True)
    assert set(hits.texts[0]) == {"red blue", "blue red"}
    assert hits.texts[1] == ["cyan cyan"] + ["cyan"] or set(hits.texts[1]) <= {"cyan", "cyan cyan"}
    assert [text in index.item(name).captions for name, text in zip(hits.ids[0], hits.texts[0])] == [True, True]


def test_more_than_there_is_gives_what_there_is(index, painter):
    hits = index.search(painter.text(["red"]), k=1000)
    assert sorted(hits.ids[0]) == sorted(index.ids()) and hits.scores[0] == sorted(hits.scores[0], reverse=True)


@pytest.mark.parametrize("where, right", [
    ({"tag": "red"}, lambda a, b: "red" in (a, b)),
    ({"tag": ["red", "blue"]}, lambda a, b: {"red", "blue"} & {a, b}),
    ({"tag": "red", "caption": "BLUE"}, lambda a, b: {a, b} == {"red", "blue"}),
    ({"id": "red*"}, lambda a, b: a == "red"),
    ({"min_width": SIDE, "max_height": SIDE}, lambda a, b: True),
    ({"min_width": SIDE + 1}, lambda a, b: False),
    ({"tag": []}, lambda a, b: False),
    ({"tag": "re"}, lambda a, b: False),
    ({"id": ["no such"] * 2000 + ["red *"]}, lambda a, b: a == "red"),
    ({"caption": ["no such", "green"], "tag": ["no such"] * 2000 + ["red"]}, lambda a, b: {a, b} == {"red", "green"}),
])
def test_filters_leave_exactly_what_they_say(index, painter, where, right):
    expected = {name for name in index.ids() if right(*name.split())}
    assert set(index.search(painter.text(["green"]), k=100, where=where).ids[0]) == expected
    found = index.search(painter.text(["green"]), k=1000, where=where, captions=True)
    assert sorted(found.ids[0]) == sorted(2 * list(expected))


def test_names_with_brackets_and_captions_in_other_alphabets_are_found(tmp_path, painter):
    source = gallery([("red", "blue"), ("red", "red")])
    source.ids[0], source.captions[0][0] = "img[1].png", "Zwei ÄPFEL"
    index = Index.build(tmp_path, source, painter)
    for where in ({"id": "img[1].png"}, {"id": "img[1]*"}, {"caption": "zwei äpfel"}):
        assert index.search(painter.text(["red"]), where=where).ids == [["img[1].png"]]


@pytest.mark.parametrize("where, right", [
    ({"min_width": 30}, "wide.png"), ({"max_width": 20}, "high.png"), ({"min_height": 30}, "high.png"),
    ({"max_height": 20}, "wide.png"), ({"path": "*/a[1]/*"}, "wide.png"),
])
def test_sizes_and_paths_are_those_of_the_file(where, right, tmp_path, painter):
    files = [tmp_path / "a[1]" / "wide.png", tmp_path / "a1" / "high.png"]
    for file, size in zip(files, ((30, 20), (20, 30))):
        file.parent.mkdir()
        painted("red", "red").resize(size).save(file)
    index = Index.build(tmp_path / "index", files, painter)
    assert index.search(painter.text(["red"]), where=where).ids == [[right]]


@pytest.mark.parametrize("where, message", [
    ({"caption": None}, "caption: expected text, got None"), ({"tag": ["red", 5]}, "tag: expected text, got 5"),
    ({"id": [["red"]]}, r"id: expected text, got \['red'\]"),
    ({"min_width": "wide"}, "min_width: expected a number of pixels, got 'wide'"),
    ({"max_height": float("nan")}, "max_height: expected a number of pixels, got nan"),
])
def test_what_a_filter_cannot_mean_is_named(index, painter, where, message):
    with pytest.raises(ValueError, match=message):
        index.search(painter.text(["red"]), where=where)


def test_one_filter_is_not_taken_for_another_and_none_is_asked_twice(index, painter, monkeypatch):
    asked, mask = [], index.catalogue.mask
    monkeypatch.setattr(index.catalogue, "mask", lambda length, where, captions: asked.append(where) or mask(
        length, where, captions))
    for _ in range(2):
        for colour in ("red", "blue"):
            assert all(colour in name for name in index.search(painter.text(["red"]), where={"tag": colour}).ids[0])
    assert asked == [{"tag": "red"}, {"tag": "blue"}]


def test_what_another_process_removed_in_the_meantime_is_left_out(index, painter):
    query = painter.text(["red blue"])
    for captions in (False, True):
        assert "red blue" in index.search(query, k=4, captions=captions).ids[0]
    Index.open(index.folder).remove("red blue")
    for captions in (False, True):
        hits = index.search(query, k=4, captions=captions)
        assert "red blue" not in hits.ids[0] and "blue red" in hits.ids[0] and len(hits.ids[0]) == len(hits.scores[0])


def test_a_threshold_does_not_widen_a_search_for_distinct_ones(index, painter, monkeypatch):
    asked = []
    search = Exact.search
    monkeypatch.setattr(Exact, "search", lambda self, queries, k, allowed=None: asked.append(k) or search(
        self, queries, k, allowed))
    hits = index.search(painter.text(["red"]), k=10, threshold=0.9, distinct=0.999)
    assert 0 < len(hits.ids[0]) < 10 and asked == [40]


def test_a_threshold_is_a_cosine(index, painter):
    hits = index.search(painter.text(["red"]), k=64, threshold=0.7)
    assert set(hits.ids[0]) == {name for name in index.ids() if "red" in name} and min(hits.scores[0]) >= 0.7
    assert index.search(painter.text(["red"]), threshold=1.1).ids == [[]]


def test_distinct_results_are_no_copies_of_each_other(index, painter):
    query = painter.text(["red blue"])
    assert index.search(query, k=3).ids[0][:2] in (["red blue", "blue red"], ["blue red", "red blue"])
    hits = index.search(query, k=20, distinct=0.99)
    features = index.features(hits.ids[0])
    closest = features @ features.T - 2 * np.eye(len(features))
    assert len(hits.ids[0]) == 20 and closest.max() < 0.99
    assert hits.scores[0] == sorted(hits.scores[0], reverse=True)
    assert len(index.search(query, k=64, distinct=0.99).ids[0]) == 36  # unordered pairs of eight colours


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_distinct_ones_are_found_behind_many_copies_for_every_query(order, tmp_path, painter):
    """Of one query the first forty are copies of each other; the other has all it asked for at once."""
    seen = ["red"] * 40 + [colour for colour in COLOURS if colour != "red"]
    source = Pictures("copies", [f"{colour} {i}" for i, colour in enumerate(seen)],
                      [painted(colour, colour) for colour in seen], [[]] * len(seen), [[]] * len(seen))
    queries = unit(np.array([[.1, 9, .3, .2, 0, 0, 0, 0], [.1, 0, .2, .3, 0, 0, 0, 0]], np.float32))
    index = Index.build(tmp_path, source, painter)
    hits = index.search(queries[order], k=3, distinct=0.99)
    right = [["red", "green", "blue"], ["blue", "green", "black"]]
    assert [[name.split()[0] for name in ids] for ids in hits.ids] == [right[i] for i in order]


@pytest.mark.parametrize("features, how, message", [
    (np.zeros((1, 9)), {}, r"\(queries, 8\), got shape \(1, 9\)"),
    (np.full((1, 8), np.nan), {}, "finite"),
    (np.zeros((1, 8)), {"k": 0}, "k: expected at least 1"),
    (np.zeros((1, 8)), {"threshold": np.nan}, "threshold: expected a cosine, got nan"),
    (np.zeros((1, 8)), {"distinct": float("nan")}, "distinct: expected a cosine, got nan"),
    (np.zeros((1, 8)), {"where": {"colour": "red"}}, "no filter 'colour'; there are tag"),
])
def test_questions_that_cannot_be_answered(index, features, how, message):
    with pytest.raises(ValueError, match=message):
        index.search(features, **how)


def test_captions_that_were_not_encoded(tmp_path, painter):
    index = Index.build(tmp_path, gallery(), painter, captions=False)
    with pytest.raises(ValueError, match="captions were not encoded"):
        index.search(painter.text(["red"]), captions=True)
    assert index.item("red blue").captions == ["red blue", "red"], "they are still told"


def test_nothing_is_found_in_nothing(tmp_path, painter):
    index = Index.build(tmp_path, gallery([("red", "red")]), painter)
    index.remove("red red")
    assert len(index) == 0 and index.search(painter.text(["red"])).ids == [[]] and index.duplicates() == []


# Mixed queries and matching -------------------------------------------------------------------------------


def test_mixed_queries_say_what_is_added_and_what_is_taken_away(index, painter):
    picture, green, red = painter.images([painted("red", "blue")]), painter.text(["green"]), painter.text(["red"])
    before = index.search(picture, k=2).ids[0]
    after = index.search(mix(np.concatenate([picture, green, red]), [1, 0.7, -0.7]), k=2).ids[0]
    assert set(before) == {"red blue", "blue red"} and set(after) == {"green blue", "blue green"}


def test_a_mixture_is_the_weighted_sum_at_unit_length():
    features = noise(3)
    total = 0.5 * features[0] + 2 * features[1] - features[2]
    assert mix(features, [0.5, 2, -1])[0] == pytest.approx(total / np.linalg.norm(total), abs=1e-6)
    for weights, message in (([1, 1], "3 features and 2 weights"), ([0, 0, 0], "nothing is left"),
                             ([np.inf, 1, 1], "nothing is left")):
        with pytest.raises(ValueError, match=message):
            mix(features, weights)


def test_matching_tells_apart_what_contrast_cannot(index, painter):
    words = ["red blue", "blue red"]
    hits = index.search(painter.text(words), k=6)
    assert hits.scores[0][0] == pytest.approx(hits.scores[0][1], abs=1e-3), "contrast does not see which is left"
    ranked = rerank(painter, index, words, hits)
    assert [ids[0] for ids in ranked.ids] == words and ranked.matches[0][0] > 0.9 > 0.1 > ranked.matches[0][1]
    assert sorted(ranked.ids[0]) == sorted(hits.ids[0]) and sorted(ranked.scores[0]) == sorted(hits.scores[0])
    found = index.search(painter.images([painted("red", "blue")]), k=4, captions=True)
    assert rerank(painter, index, [painted("red", "blue")], found).texts[0][0] == "red blue"
    assert rerank(painter, index, words, hits, Weights(0, 0)).scores == hits.scores


def told(odds, seen, blind):
    """An encoder that says the same of any results; a cosine of 1 is worth ten nats."""
    found = Evidence(*(torch.tensor(x) for x in (odds, seen, blind)))
    return SimpleNamespace(evidence=lambda images, texts: found, scale=10.0)


@pytest.mark.parametrize("cosines, odds, seen, first", [
    ([0.4, 0.1], [0.0, 8.0], [0.0, 0.0], 0),         # three nats of contrast are more than eight of matching
    ([0.4, 0.1], [0.0, 16.0], [0.0, 0.0], 1),        # and less than sixteen
    ([0.4, 0.1], [0.0, 0.0], [-30.0, -26.0], 0),     # more than four of words
    ([0.4, 0.1], [0.0, 0.0], [-30.0, -22.0], 1),     # and less than eight
])
def test_what_the_witnesses_weigh_beside_the_contrast(cosines, odds, seen, first):
    assert reordered(told(odds, seen, [-25.0, -25.0]), ["image"] * 2, ["words"], cosines)[0][0] == first


@pytest.mark.parametrize("seen, blind, first", [
    ([-5.0, -20.0], [-5.0, -30.0], 1),               # usual words are as likely without the picture: it tells nothing
    ([-5.0, -20.0], [-5.0, -26.0], 1),               # six nats that it tells are more than one of contrast
    ([-5.0, -20.0], [-5.0, -24.0], 0),               # and four are less
])
def test_captions_are_weighed_without_what_they_are_worth_alone(seen, blind, first):
    order = reordered(told([0.0, 0.0], seen, blind), ["image"], ["usual words", "unusual words"], [0.2, 0.1])[0]
    assert order[0] == first


# Changing -------------------------------------------------------------------------------------------------


def test_ids_stay_when_others_come_and_go(index, painter):
    every = {name: index.features([name])[0] for name in index.ids()}
    index.remove(["red blue", "black black", "white white"])
    with pytest.raises(ValueError, match="'red blue' in this index"):
        index.item("red blue")
    assert len(index) == 61 and "red blue" not in index
    assert "red blue" not in index.search(painter.text(["red blue"]), k=100, captions=True).ids[0]
    assert index.search(painter.text(["red blue"]), k=100).ids[0][0] == "blue red"
    assert index.add(gallery([("red", "blue")]), painter) == ["red blue"]
    reopened = Index.open(index.folder, painter)
    for one in (index, reopened):
        assert len(one) == 62 and one.ids()[-1] == "red blue"
        for name in one.ids():
            assert (one.features([name])[0] == every[name]).all()
        assert set(one.search(painter.text(["red blue"]), k=2).ids[0]) == {"red blue", "blue red"}


def test_nothing_is_kept_of_what_was_removed(index):
    index.remove(["red blue", "red red"])
    for table, count in (("items", 62), ("thumbnails", 62), ("files", 62), ("captions", 124)):
        assert index.catalogue.count(table) == count, table


def test_adding_twice_and_removing_twice_are_refused_and_change_nothing(index, painter):
    with pytest.raises(ValueError, match="'red blue' is in the index already"):
        index.add(gallery([("red", "blue")]), painter)
    index.remove(["red red"])
    with pytest.raises(ValueError, match="no picture 'red red'"):
        index.remove(["red blue", "red red"])
    assert "red blue" in index and len(index) == 63


def test_building_again_takes_in_what_is_new(tmp_path, painter):
    Index.build(tmp_path, gallery([("red", "blue"), ("red", "red")]), painter)
    counting = Painter()
    index = Index.build(tmp_path, gallery([("red", "blue"), ("green", "red"), ("red", "red")]), counting)
    assert index.ids() == ["red blue", "red red", "green red"] and counting.encoded == 1


def test_what_was_removed_stays_out_until_it_is_asked_for(index, painter):
    index.remove(["red blue", "red red"])
    counting = Painter()
    again = Index.build(index.folder, gallery(), counting)
    assert len(again) == 62 and counting.encoded == 0 and again.removed == {"red blue", "red red"}
    with pytest.raises(ValueError, match="'white white' was not removed"):
        again.restore(["red red", "white white"])
    assert again.add(gallery([("red", "blue")]), painter) == ["red blue"] and again.removed == {"red red"}
    again.restore("red red")
    assert len(Index.build(index.folder, gallery(), painter)) == 64


def test_duplicates_are_grouped(tmp_path, painter):
    pairs = [(a, b) for a in COLOURS for b in COLOURS if a < b]
    source = gallery(pairs)
    source.ids[:3] = ["one", "two", "three"]
    source.sources[1] = source.sources[2] = source.sources[0]
    index = Index.build(tmp_path, source, painter)
    assert index.duplicates() == [["one", "two", "three"]]
    index.remove("one")
    assert index.duplicates() == [["two", "three"]]
    assert len(index.duplicates(closer=-1.0)[0]) == len(pairs) - 1


def test_a_query_of_another_model_is_refused(index):
    with pytest.raises(ValueError, match="made by another model .* load that one, or build the index anew"):
        Index.open(index.folder, Painter("another"))
    with pytest.raises(ValueError, match="made by another model"):
        Index.build(index.folder, gallery([("red", "blue")]), Painter("another"))
    with pytest.raises(ValueError, match="made by another model"):
        index.add(gallery([("red", "blue")]), Painter("another"))
    assert len(Index.open(index.folder)) == 64


def test_a_catalogue_is_read_by_plain_sqlite(index):
    rows = sqlite3.connect(index.folder / "catalogue.sqlite").execute("SELECT id FROM items ORDER BY row").fetchall()
    assert [name for name, in rows] == index.ids()
