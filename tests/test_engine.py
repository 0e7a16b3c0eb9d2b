"""Every engine finds what brute force finds, exactly or nearly."""

from pathlib import Path

import numpy as np
import pytest
from painted import noise, unit

from bitgen.engine import RECIPES, Exact, Shortlist, make_engine
from bitgen.index import Index

pytest.importorskip("faiss")


def near(rows, count=50):
    """Queries beside some of the rows."""
    chosen = rows[:: len(rows) // count][:count].astype(np.float32)
    return unit(chosen + 0.05 * np.random.default_rng(1).standard_normal(chosen.shape, np.float32))


def best(rows, query, k):
    return np.argsort(-(rows.astype(np.float32) @ query), kind="stable")[:k]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_exact_search_is_brute_force(dtype, tmp_path):
    rows = noise(3000).astype(dtype)
    engine = make_engine("auto", rows, tmp_path / "rows")
    assert isinstance(engine, Exact)
    scores, found = engine.search(noise(20, seed=1), 10)
    for query, places in zip(noise(20, seed=1), found):
        assert places.tolist() == best(rows, query, 10).tolist()
    allowed = np.arange(3000) % 7 == 0
    scores, found = engine.search(noise(20, seed=1), 10, allowed)
    few = np.flatnonzero(allowed)
    for query, places in zip(noise(20, seed=1), found):
        assert places.tolist() == few[best(rows[few], query, 10)].tolist()


@pytest.mark.parametrize("kind, recall", [("two-stage", 0.98), ("lists", 0.98)])
def test_a_short_list_finds_what_brute_force_finds(kind, recall, tmp_path):
    rows = noise(20_000).astype(np.float16)
    queries = near(rows)
    engine = make_engine(kind, rows, tmp_path / "rows")
    scores, found = engine.search(queries, 10)
    right = [set(best(rows, query, 10)) for query in queries]
    assert np.mean([len(one & set(places)) / 10 for one, places in zip(right, found)]) >= recall
    assert scores[0] == pytest.approx(rows[found[0]].astype(np.float32) @ queries[0]), "scores are those of the rows"
    assert (tmp_path / f"rows.{kind}.faiss").stat().st_size < len(rows) * (32 if kind == "two-stage" else 40)


@pytest.mark.parametrize("kind", ["two-stage", "lists"])
def test_islands_of_near_duplicates_are_all_found(kind, tmp_path):
    """Eighty copies of each picture: a graph of neighbours falls apart here, and finds 0.6 of them."""
    pictures = noise(250, width=64, clusters=250)
    copies = np.repeat(pictures, 80, 0) + 0.01 * np.random.default_rng(2).standard_normal((20_000, 64))
    rows = unit(copies.astype(np.float32))
    queries = unit(pictures + 0.3 * noise(250, width=64, seed=3))
    found = make_engine(kind, rows, tmp_path / "rows").search(queries, 10)[1]
    assert np.mean([len(set(best(rows, query, 10)) & set(places)) / 10
                    for query, places in zip(queries, found)]) >= 0.98


@pytest.mark.parametrize("kind", ["two-stage", "lists"])
def test_a_short_list_under_a_filter(kind, tmp_path, monkeypatch):
    rows = noise(20_000).astype(np.float16)
    queries = near(rows)
    engine = make_engine(kind, rows, tmp_path / "rows")
    for few in (10**9, 0):  # looked at one by one; through the codes
        monkeypatch.setattr("bitgen.engine.FEW", few)
        for allowed in (np.arange(20_000) % 50 == 0, np.arange(20_000) < 4):
            places = np.flatnonzero(allowed)
            found = engine.search(queries, min(10, len(places)), allowed)[1]
            assert allowed[found].all()
            right = [set(places[best(rows[places], query, 10)]) for query in queries]
            assert np.mean([len(one & set(some)) / len(one) for one, some in zip(right, found)]) >= 0.98


def test_lists_are_looked_through_until_enough_rows_pass_the_filter(tmp_path, monkeypatch):
    rows = noise(20_000, clusters=2)
    engine = make_engine("lists", rows, tmp_path / "rows")
    monkeypatch.setattr("bitgen.engine.FEW", 0)
    far = np.argsort(rows @ rows[0])[:50]  # in lists that a query like row 0 has no business with
    allowed = np.isin(np.arange(len(rows)), far)
    assert set(engine.search(rows[:1], 50, allowed)[1][0]) == set(far)
    assert set(engine.search(rows[:1], 20_000)[1][0]) == set(range(20_000))


def test_what_an_engine_learned_is_kept_and_grows(tmp_path, monkeypatch):
    rows = noise(20_000).astype(np.float16)
    first = make_engine("two-stage", rows[:15_000], tmp_path / "rows")
    learned = []
    learn = Shortlist._learn
    monkeypatch.setattr(Shortlist, "_learn", lambda self, faiss: learned.append(1) or learn(self, faiss))
    again = make_engine("two-stage", rows[:15_000], tmp_path / "rows")
    grown = make_engine("two-stage", rows, tmp_path / "rows")
    assert not learned
    queries = near(rows)
    assert (first.search(queries, 5)[1] == again.search(queries, 5)[1]).all()
    right = [set(best(rows, query, 10)) for query in queries]
    assert np.mean([len(a & set(b)) / 10 for a, b in zip(right, grown.search(queries, 10)[1])]) >= 0.98
    make_engine("two-stage", rows[:1200], tmp_path / "rows")
    assert learned, "codes of more rows than there are belong to something else"


@pytest.mark.parametrize("count, anew", [(2000, False), (2001, True)])
def test_what_was_learned_from_less_than_half_of_the_rows_is_learned_anew(count, anew, tmp_path, monkeypatch):
    rows, learned, learn = noise(count), [], Shortlist._learn
    make_engine("two-stage", rows[:1000], tmp_path / "rows")
    monkeypatch.setattr(Shortlist, "_learn", lambda self, faiss: learned.append(1) or learn(self, faiss))
    make_engine("two-stage", rows, tmp_path / "rows")
    assert bool(learned) == anew


def test_what_was_learned_of_features_of_another_width_is_not_used(tmp_path):
    make_engine("two-stage", noise(1000, width=16), tmp_path / "rows")
    rows = noise(1000, width=32)
    assert make_engine("two-stage", rows, tmp_path / "rows").search(rows[:1], 1)[1].tolist() == [[0]]


@pytest.mark.parametrize("damage", [lambda whole: whole[:500], lambda whole: whole[:-1], lambda whole: b"",
                                    lambda whole: b"no index" * 100])
def test_a_file_of_what_was_learned_that_is_damaged_is_made_anew(damage, tmp_path):
    rows, file = noise(1000), tmp_path / "rows.two-stage.faiss"
    make_engine("two-stage", rows, tmp_path / "rows")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert make_engine("two-stage", rows, tmp_path / "rows").search(rows[:1], 1)[1].tolist() == [[0]]
    assert len(file.read_bytes()) == len(whole) and list(tmp_path.iterdir()) == [file]


def test_a_disk_that_takes_nothing_does_not_end_a_search(tmp_path, monkeypatch):
    def full(index, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("write error: No space left on device")

    monkeypatch.setattr("faiss.write_index", full)
    rows = noise(1000)
    for folder in (tmp_path, tmp_path / "gone"):
        assert make_engine("two-stage", rows, folder / "rows").search(rows[:1], 1)[1].tolist() == [[0]]
    assert not list(tmp_path.iterdir())


def test_a_short_list_is_twice_as_long_as_what_is_asked_for(tmp_path, monkeypatch):
    """The last of many would else be those that the codes happened to put first."""
    rows = noise(3000)
    engine, asked = make_engine("two-stage", rows, tmp_path / "rows"), []
    candidates = engine._candidates
    monkeypatch.setattr(engine, "_candidates", lambda queries, length: asked.append(length) or candidates(
        queries, length))
    for k in (10, 180):
        engine.search(rows[:1], k)
    assert asked == [RECIPES["two-stage"].shortlist, 360]


@pytest.mark.parametrize("count, kind", [(99_999, "exact"), (100_000, "two-stage"), (4_999_999, "two-stage"),
                                         (5_000_000, "lists")])
def test_the_engine_goes_by_the_number_of_rows(count, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("bitgen.engine.Exact", lambda rows: "exact")
    monkeypatch.setattr("bitgen.engine.Shortlist", lambda rows, kind, path: kind)
    assert make_engine("auto", np.broadcast_to(np.float16(0), (count, 2)), tmp_path / "rows") == kind


def test_the_engine_can_be_set(tmp_path, index, painter):
    for kind, count in (("two-stage", 1000), ("lists", 1000)):
        assert len(set(make_engine(kind, noise(count), tmp_path / kind).search(noise(1), 10)[1][0])) == 10
    assert isinstance(make_engine("two-stage", noise(999), tmp_path / "b"), Exact), "too few to learn from"
    with pytest.raises(ValueError, match="engine: expected one of auto, exact, two-stage, lists, got 'fast'"):
        Index.open(index.folder, engine="fast")


def test_without_faiss_searching_says_what_to_install(index, painter, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ValueError, match=r"pip install 'bitgen\[index\]'"):
        Index.open(index.folder, painter).search(painter.text(["red"]))
