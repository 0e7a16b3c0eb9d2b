"""The Training tab without a browser: which runs, curves, verdicts and the card."""

import json

import pytest
from app_runs import write_run

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import training
from app.bench import Bench
from bitgen.config import Config, to_dict


def row(step, **more):
    return {"step": step, "itc": 5.0 - step / 100, "itc_chance": 5.05, "itm": 0.69, "itm_acc": 0.5,
            "itm_acc_chance": 0.67, "total": 8.0, "text": 6.0, "grad_norm": 0.3, "grad_norm/text": 0.2,
            "grad_norm/vision": 0.1, "logit_scale": 14.0, **more}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """first and second with metrics, silent without."""
    place = tmp_path_factory.mktemp("training")
    for seed, name in enumerate(("first", "second", "silent")):
        folder = write_run(place / "runs" / name, seed)
        if name != "silent":
            lines = [row(step, **({"itc": float("nan")} if name == "second" and step > 80 else {}))
                     for step in range(1, 101)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            config = to_dict(Config())
            config["optim"]["warmup_steps"] = 10
            (folder / "run.json").write_text(json.dumps(config))
    return Bench(str(place / "runs/first"), "scenes", place / "runs")


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


@pytest.mark.parametrize("callback", [training.gradients, training.verdicts, training.card,
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
