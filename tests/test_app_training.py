"""The Training tab without a browser: which runs, curves, verdicts and the card."""

import pytest
from app_runs import write_gallery, write_metrics, write_run

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import training
from app.bench import Bench
from bitgen import figures


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """first and second with metrics, silent without; on a gallery with captions."""
    place = tmp_path_factory.mktemp("training")
    for seed, (name, later) in enumerate({"first": {}, "second": {"itc": float("nan")}, "silent": None}.items()):
        folder = write_run(place / "runs" / name, seed)
        if later is not None:
            write_metrics(folder, **later)
    write_gallery(place / "gallery")
    return Bench(str(place / "runs/first"), str(place / "gallery"), place / "runs")


def run(bench, name):
    return next(run for run in bench.models.runs if run.endswith(name))


def test_runs_with_metrics_are_offered(bench):
    assert sorted(name for name, _ in training.offered(bench)) == ["first", "second"]


def test_one_run_has_its_panels_and_several_share_theirs(bench):
    first, second = run(bench, "first"), run(bench, "second")
    alone = [axes.get_title(loc="left") for axes in training.curves(bench, [first, first]).axes]
    assert "Gradient norm" in alone and "Contrast (ITC)" in alone
    together = training.curves(bench, [first, second])
    assert {text.get_text() for text in together.legends[0].get_texts()} >= {"first", "second"}


def test_gradients_are_drawn_by_module(bench):
    labels = [text.get_text() for axes in training.gradients(bench, run(bench, "first")).axes
              for text in axes.get_yticklabels()]
    assert {"text", "vision"} <= set(labels)


def test_verdicts_come_gravest_first_and_say_what_to_do(bench):
    found = training.verdicts(bench, run(bench, "second"))
    assert (found[0].check, found[0].verdict) == ("numbers", "BAD")
    rows = training.table(found)
    assert rows[0][0] == "BAD" and "optim.lr" in rows[0][4] and len(rows) == len(found)
    assert training.summary(found).startswith("1 bad")
    healthy = training.table(training.verdicts(bench, run(bench, "first")))
    assert ["OK", "numbers"] in [line[:2] for line in healthy] and "not yet" in [line[0] for line in healthy]


def test_the_card_is_markdown_without_front_matter(bench):
    text = training.card(bench, run(bench, "first"))
    assert text.startswith("# `first`") and "## Limits" in text and "license:" not in text


def test_worst_retrievals_are_those_of_the_run_that_is_looked_at(bench, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "retrievals", lambda rows: drawn.append(rows) or "figure")
    for name in ("first", "second"):
        figure, line = training.worst(bench, bench.start, run(bench, name))
        assert figure == "figure" and line.startswith(f"{name} · newest weights: ") and "24 captions" in line
    for rows in drawn:
        ranks = [row.rank for row in rows]
        assert ranks == sorted(ranks, reverse=True) and len(rows) == training.WORST and ranks[0] > 1
        assert all(len(row.answers) == len(row.right) == training.SHOWN for row in rows)
        assert all(any(row.right) == (row.rank <= training.SHOWN) for row in rows)
    assert [row.query for row in drawn[0]] != [row.query for row in drawn[1]]
    gallery, row = bench.gallery(bench.start), drawn[0][0]
    name, = (name for name in gallery.ids if gallery.captions(name)[0] == row.query)
    scores = gallery.index.features(gallery.ids) @ gallery.encoder.text([row.query])[0]
    assert row.rank == pytest.approx(1 + (scores > scores[gallery.ids.index(name)]).sum())


@pytest.mark.parametrize("callback", [training.gradients, training.verdicts, training.card,
                                      lambda bench, run: training.worst(bench, bench.start, run),
                                      lambda bench, run: training.curves(bench, [run])])
@pytest.mark.parametrize("name", ["/etc", "../first", "", None, "ORG/NAME"])
def test_only_offered_runs_are_read(bench, callback, name):
    with pytest.raises(ValueError, match="choose one of the list"):
        callback(bench, name)


def test_no_run_too_many_and_one_without_metrics_are_refused(bench):
    with pytest.raises(ValueError, match="choose a run"):
        training.curves(bench, [])
    with pytest.raises(ValueError, match="at most 6"):
        training.curves(bench, [str(i) for i in range(7)])
    with pytest.raises(ValueError, match="no metrics"):
        training.verdicts(bench, run(bench, "silent"))
