"""Every engine finds what brute force finds, exactly or nearly."""

import numpy as np
import pytest
from painted import noise, unit

from bitgen.engine import Exact, Shortlist, make_engine
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


@pytest.mark.parametrize("kind, recall", [("two-stage", 0.98), ("graph", 0.9)])
def test_a_short_list_finds_what_brute_force_finds(kind, recall, tmp_path):
    rows = noise(20_000).astype(np.float16)
    queries = near(rows)
    engine = make_engine(kind, rows, tmp_path / "rows")
    scores, found = engine.search(queries, 10)
    right = [set(best(rows, query, 10)) for query in queries]
    assert np.mean([len(one & set(places)) / 10 for one, places in zip(right, found)]) >= recall
    assert scores[0] == pytest.approx(rows[found[0]].astype(np.float32) @ queries[0]), "scores are those of the rows"
    assert (tmp_path / f"rows.{kind}.faiss").stat().st_size < (len(rows) * 32 if kind == "two-stage" else 1e9)


def test_a_short_list_under_a_filter(tmp_path, monkeypatch):
    rows = noise(20_000).astype(np.float16)
    queries = near(rows)
    engine = make_engine("two-stage", rows, tmp_path / "rows")
    for few in (10**9, 0):  # looked at one by one; through the codes
        monkeypatch.setattr("bitgen.engine.FEW", few)
        for allowed in (np.arange(20_000) % 50 == 0, np.arange(20_000) < 4):
            places = np.flatnonzero(allowed)
            found = engine.search(queries, min(10, len(places)), allowed)[1]
            assert allowed[found].all()
            right = [set(places[best(rows[places], query, 10)]) for query in queries]
            assert np.mean([len(one & set(some)) / len(one) for one, some in zip(right, found)]) >= 0.98


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


def test_the_engine_is_chosen_by_size_and_can_be_set(tmp_path, index, painter):
    assert isinstance(make_engine("auto", np.zeros((99_999, 2), np.float16), tmp_path / "a"), Exact)
    assert isinstance(make_engine("two-stage", noise(999), tmp_path / "b"), Exact), "too few to learn from"
    with pytest.raises(ValueError, match="engine: expected one of auto, exact, two-stage, graph, got 'fast'"):
        Index.open(index.folder, engine="fast")


def test_without_faiss_searching_says_what_to_install(index, painter, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        Index.open(index.folder, painter).search(painter.text(["red"]))
