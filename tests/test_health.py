"""The health checks on made-up histories, on a real one, and on runs that are really broken."""

import importlib
import json
import math
from pathlib import Path

import pytest

from bitgen.checks import CHECKLIST, CHECKS
from bitgen.cli import main
from bitgen.config import Config, load_preset, to_dict
from bitgen.health import Doctor, checklist, diagnose, due, read_facts, read_history, summary, worst
from bitgen.logs import RunLog

STEPS = 2000


def facts(**changes):
    """Of a run of the guide's model: 2,000 steps of 400 an epoch, warm over at step 200."""
    config = to_dict(load_preset("tiny"))
    config["optim"] |= {"batch_size": 128, "accumulation": 1, "warmup_steps": 200}
    return {"config": config, "steps": STEPS, "machine": {"processes": 1}, "parameters": {"outside_tower": 8_147_239},
            "data": {"train": {"images": 400 * 128}}} | changes


def healthy_row(step):
    """What a run that learns would log: everything on its way from chance to good within 2,000 steps."""
    done, half = min(step / 1000, 1.0), min(step / 500, 1.0)
    between = lambda start, end: start + (end - start) * done  # noqa: E731
    row = {"step": step, "itc": between(4.85, 0.3), "itc_chance": math.log(128), "t2i": 1 / 128 + 0.9 * half,
           "i2t": 1 / 128 + 0.95 * half, "t2i_chance": 1 / 128, "i2t_chance": 1 / 128, "queue_size": 0.0,
           "logit_scale": between(14.0, 25.0), "itm": 0.6365 if step < 500 else between(0.6365, 0.25),
           "itm_acc": between(0.667, 0.92), "itm_acc_chance": 2 / 3, "text": between(10.8, 2.4), "text_floor": 1.4,
           "text_nll": between(10.8, 1.9), "text_chance": math.log(50257), "total": between(11.0, 2.0),
           "memory_kl": 0.4, "memory_quality": 0.8 * min(step / 200, 1.0), "memory_utilization": 0.9, "grad_norm": 3.0,
           "grad_norm/vision": 1.0, "grad_norm/text": 2.0, "grad_norm/memory": 0.01}
    if step % 400 == 0:
        row |= {"val_total": between(11.5, 2.2), "val_t2i_r1": between(0.002, 0.6), "val_i2t_r1": between(0.002, 0.6),
                "val_chance_t2i_r1": 0.002, "val_text_dealt": 6.0, "val_text_dealt_chance": 5.5}
    return row


def history(until=STEPS, since=0, every=20, **changes):
    """A healthy history in which rows after step `since` have `changes`: numbers, or functions of the healthy row."""
    rows = [healthy_row(step) for step in [1, *range(every, until + 1, every)]]
    for row in rows:
        if row["step"] > since:
            row |= {name: value(row) if callable(value) else value for name, value in changes.items()
                    if not name.startswith("val_") or name in row}
    return rows


def verdict(name, rows, about=None):
    return next(v for v in diagnose(rows, facts() if about is None else about) if v.check == name)


def test_a_healthy_history_is_ok_at_every_step():
    rows = history()
    for end in range(1, len(rows) + 1):
        told = diagnose(rows[:end], facts())
        assert worst(told) == "OK", (rows[end - 1]["step"], [v.line() for v in told if v.verdict != "OK"])
    assert all(passed for what, passed in checklist(told).items() if "Hub" not in what)


# Each check: what makes it WATCH, what makes it BAD ----------------------------------------------------------

QUEUED = {"queue_size": 4096.0, "itc_chance": (math.log(128) + math.log(128 + 4096)) / 2}
CASES = [
    ("numbers", {"itc": lambda r: math.nan if r["step"] == STEPS else r["itc"]}, "WATCH"),
    ("numbers", {"itc": math.nan}, "BAD"),
    ("numbers", {"grad_norm": math.inf}, "BAD"),
    ("numbers", {"logit_scale": math.nan}, "BAD"),
    ("temperature", {"logit_scale": 100.0}, "WATCH"),
    ("gradient", {"grad_norm/text": 0.01}, "WATCH"),
    ("gradient", {"grad_norm/text": 0.0}, "BAD"),
    ("vision tower", {"grad_norm/vision": 1e-4}, "WATCH"),
    ("vision tower", {"grad_norm/vision": 0.0}, "BAD"),
    ("losses", {"itm": 0.7}, "WATCH"),
    ("losses", {"itm": 1.5}, "BAD"),
    ("losses", {"text_nll": 15.0}, "BAD"),
    ("contrast", {"itc": 4.5}, "WATCH"),
    ("contrast", {"itc": 4.85}, "BAD"),
    ("contrast", {**QUEUED, "itc": QUEUED["itc_chance"]}, "BAD"),
    ("retrieval", {"t2i": 0.02}, "WATCH"),
    ("retrieval", {"i2t": 1 / 128}, "BAD"),
    ("retrieval, epoch 5", {"t2i": 0.2}, "WATCH"),
    ("held-out retrieval", {"val_t2i_r1": 0.004}, "WATCH"),
    ("held-out retrieval", {"val_t2i_r1": 0.002}, "BAD"),
    ("queue", {**QUEUED, "itc_batch": 0.02, "itc": 0.5}, "OK"),
    ("queue", {**QUEUED, "itc_batch": 0.02, "itc": 0.65}, "WATCH"),
    ("queue", {**QUEUED, "itc_batch": 0.02, "itc": math.log(1 + 4096 / 32) / 2}, "BAD"),
    ("queue", {**QUEUED, "itc_batch": 1.0, "itc": math.log(1 + 4096 / 32) / 2}, "OK"),     # hard, but for the batch too
    ("matching", {"itm": 0.631}, "WATCH"),
    ("matching", {"itm": 0.6365}, "BAD"),
    ("matching, epoch 5", {"itm_acc": 0.7}, "WATCH"),
    ("text", {"text": 9.6}, "WATCH"),
    ("text", {"text": 10.9}, "BAD"),
    ("leak", {"val_text_dealt": 4.5}, "WATCH"),
    ("leak", {"val_text_dealt": 0.5}, "BAD"),
    ("memory use, epoch 2", {"memory_utilization": 0.2}, "WATCH"),
    ("memory use, epoch 2", {"memory_utilization": 1 / 32}, "BAD"),
    ("memory use", {"memory_utilization": 0.4}, "WATCH"),
    ("memory use", {"memory_utilization": 1 / 32}, "BAD"),
    ("memory quality", {"memory_quality": 0.4}, "WATCH"),
    ("memory quality", {"memory_quality": 0.0}, "BAD"),
    ("validation", {"val_total": math.nan}, "WATCH"),
    ("validation", {"val_total": lambda r: 2.5 if r["step"] == STEPS else r["val_total"]}, "WATCH"),
]


@pytest.mark.parametrize("check, changes, wanted", CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_wrong_gets_its_verdict_and_only_once_its_step_has_come(check, changes, wanted):
    rows = history(since=800, **changes)
    assert verdict(check, rows).verdict == wanted
    early = verdict(check, rows[:1])
    assert early.verdict == "OK" and (not early.judged or early.due == 1)
    if wanted == "BAD":
        assert verdict(check, rows).line().startswith(f"BAD {check}") and verdict(check, rows).remedy


def test_every_check_has_a_case_for_each_verdict_that_it_can_give():
    elsewhere = {"parameters", "Hub", "text collapse"}   # below: of facts, or where nothing else is logged
    told = {(check, wanted) for check, _, wanted in CASES}
    for check in CHECKS:
        if check.name not in elsewhere:
            assert (check.name, "WATCH") in told and (check.bad is None or (check.name, "BAD") in told), check.name


@pytest.mark.parametrize("place, wanted", [(0.2, "OK"), (0.1, "WATCH"), (0.03, "BAD")])
def test_text_at_its_label_smoothing_floor_is_a_collapse_unless_the_leak_was_measured(place, wanted):
    low = 1.4 + place * (math.log(50257) - 1.4)
    rows = history(since=800, text=low)
    assert not verdict("text collapse", rows).judged and verdict("leak", rows).verdict == "OK"
    unmeasured = [{key: value for key, value in row.items() if "dealt" not in key} for row in rows]
    assert verdict("text collapse", unmeasured).verdict == wanted and not verdict("leak", unmeasured).judged


@pytest.mark.parametrize("width, vocab, count, wanted", [
    (128, 50257, 8_147_239, "OK"), (128, 512, 1_779_879, "OK"), (64, 512, 421_607, "OK"), (256, 512, 7_825_191, "OK"),
    (128, 50257, 1_779_879, "WATCH"), (128, 50257, 22e6, "WATCH"), (128, 512, 8_147_239, "WATCH"),
])
def test_parameters_are_judged_as_if_the_vocabulary_were_gpt2s(width, vocab, count, wanted):
    about = facts(parameters={"outside_tower": count})
    about["config"]["model"] |= {"hidden_size": width, "vocab_size": vocab}
    assert verdict("parameters", history(1), about).verdict == wanted


def test_numbers_of_weights_and_of_steps_between_two_logged_ones_count():
    def told(**changes):
        return verdict("numbers", [row | {name: values[n] for name, values in changes.items()}
                                   for n, row in enumerate(history()[-4:])]).verdict

    nan = math.nan
    assert told() == "OK" and told(weight_norm=[1, 2, 3, 4], skipped_in_all=[0, 0, 0, 0]) == "OK"
    assert told(weight_norm=[1, 2, 3, nan]) == "WATCH" and told(weight_norm=[1, 2, nan, nan]) == "BAD"
    assert told(skipped_in_all=[0, 0, 0, 2]) == "WATCH" and told(skipped_in_all=[0, 0, 1, 2]) == "BAD"
    assert told(skipped_in_all=[1, 7, 7, 7]) == "OK", "what is over is over"


def test_another_width_and_a_run_without_facts_have_no_range():
    about = facts()
    about["config"]["model"]["hidden_size"] = 96
    assert not verdict("parameters", history(1), about).judged and not verdict("parameters", history(1), {}).judged


def test_the_hub_is_judged_only_where_there_is_one():
    assert not verdict("Hub", history()).judged
    about = facts()
    about["config"]["hub"] = {"repo": "org/name", "push_every": 1000}
    rows = history(4000)
    assert verdict("Hub", rows, about).verdict == "WATCH"                      # nothing has arrived
    assert not verdict("Hub", history(2000), about).judged, "the first is still on its way, nothing to tick off"
    assert verdict("Hub", [row | {"hub_step": 3000.0} for row in rows], about).verdict == "OK"
    assert verdict("Hub", [row | {"hub_step": 1000.0} for row in rows], about).verdict == "WATCH"


def test_a_frozen_tower_is_bad_unless_it_is_pretrained_and_frozen_on_purpose():
    rows = [{key: value for key, value in row.items() if key != "grad_norm/vision"} for row in history()]
    about = facts()
    assert verdict("vision tower", rows, about).verdict == "BAD"
    about["config"]["vision"] |= {"trainable": "none"}
    assert verdict("vision tower", rows, about).verdict == "BAD"               # random and frozen
    about["config"]["vision"] |= {"pretrained": "somewhere/dinov2"}
    assert not verdict("vision tower", rows, about).judged


def test_parts_that_a_run_does_not_have_are_not_judged():
    without = ("memory_", "itm", "text", "val_")
    rows = [{key: value for key, value in row.items() if not key.startswith(without)} for row in history()]
    told = {v.check: v for v in diagnose(rows, facts())}
    assert all(not told[name].judged for name in ("memory use", "memory quality", "matching", "text", "leak", "queue"))
    assert told["validation"].verdict == "WATCH" and worst(list(told.values())) == "WATCH"   # never validated


# Scale -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [16, 128, 4224])
def test_stuck_is_measured_against_the_candidates_that_were_there(candidates):
    chance = math.log(candidates)
    stuck = history(since=0, itc=chance * 0.99, itc_chance=chance)
    learning = history(since=0, itc=chance * 0.6, itc_chance=chance)
    assert verdict("contrast", stuck).verdict == "BAD" and verdict("contrast", learning).verdict == "OK"


@pytest.mark.parametrize("batch, guess, learned", [(2, 0.5, 0.9), (32, 1 / 32, 0.12), (4096, 1 / 4096, 0.001)])
def test_retrieval_is_measured_against_chance_in_any_batch(batch, guess, learned):
    rows = history(t2i_chance=1 / batch, t2i=guess, i2t=guess)
    assert verdict("retrieval", rows).verdict in ("WATCH", "BAD")
    assert verdict("retrieval", history(t2i_chance=1 / batch, t2i=learned, i2t=learned)).verdict == "OK"


def test_a_gradient_of_another_scale_is_as_healthy():
    for scale in (0.001, 1000.0):
        rows = [row | {key: value * scale for key, value in row.items() if key.startswith("grad_norm")}
                for row in history()]
        assert verdict("gradient", rows).verdict == "OK" and verdict("vision tower", rows).verdict == "OK"


def test_matching_waits_for_the_contrast():
    slow = history(since=0, itm=0.6365, t2i=0.2, i2t=0.2)              # a hard set: the contrast is still on its way
    assert not verdict("matching", slow).judged
    assert verdict("matching", history(since=0, itm=0.6365)).verdict == "BAD"
    quarter = next(row["step"] for row in history() if row["t2i"] + row["i2t"] >= 0.5)
    assert [verdict("matching", history(8 * quarter - wait)).judged for wait in (20, 0)] == [False, True]


def test_dues_shrink_with_the_run_but_never_to_nothing():
    check = next(check for check in CHECKS if check.name == "contrast")
    about = {"epoch_steps": 100}
    dues = [due(check, about | {"steps": steps}) for steps in (100_000, 2000, 1000, 100, 6)]
    assert dues == [500, 500, 250, 100, 100]
    fifth = next(check for check in CHECKS if check.name == "retrieval, epoch 5")
    assert due(fifth, about | {"steps": 6}) == 500


def test_a_validation_that_is_not_due_is_not_missed():
    about = facts(config=facts()["config"] | {"validate_every": 600})
    rows = [{key: value for key, value in row.items() if not key.startswith("val_")} for row in history(700)]
    assert not verdict("validation", [row for row in rows if row["step"] <= 600], about).judged
    assert verdict("validation", rows, about).verdict == "WATCH"


def test_a_smoke_run_of_a_few_steps_is_never_bad():
    rows = history(6, every=1, t2i=0.0, i2t=0.0, itc=4.9, memory_quality=0.0)
    assert worst(diagnose(rows, facts(steps=6))) == "OK"


def test_nothing_is_bad_while_the_rate_warms_up():
    rows = history(180, **{"grad_norm/vision": 0.0, "itc": math.nan})
    told = diagnose(rows, facts())
    assert worst(told) == "WATCH" and {v.check for v in told if v.verdict == "WATCH"} >= {"numbers", "vision tower"}


def test_an_epoch_of_unknown_length_is_read_off_the_first_validation():
    assert verdict("memory use", history(), {"steps": STEPS}).due == 1200
    config = to_dict(Config())
    config["validate_every"] = 50                                     # validations then say nothing about epochs
    assert verdict("memory use", history(), {"config": config}).due is None


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="empty"):
        diagnose([], facts())


# The doctor -------------------------------------------------------------------------------------------------


def feed(doctor, rows):
    """Verdicts that changed and items that were ticked, with their steps."""
    changed, ticked = [], []
    for row in rows:
        step, values = row["step"], {key: value for key, value in row.items() if key != "step"}
        changed += [(step, v.check, v.verdict) for v in doctor.update(step, values)]
        ticked += [(step, what) for what in doctor.news]
    return changed, ticked


def test_the_doctor_says_when_a_verdict_changes_and_ticks_the_checklist_off_once(tmp_path):
    doctor = Doctor(tmp_path, facts())
    changed, ticked = feed(doctor, history(since=1200, itc=4.85))
    assert changed[0][1:] == ("contrast", "WATCH") and (changed[-1][1], changed[-1][2]) == ("contrast", "BAD")
    assert sorted(what for _, what in ticked) == sorted(what for what, check in CHECKLIST if check != "Hub")
    by_item = {what: step for step, what in ticked}
    assert by_item["parameters are in the size's range"] == 1 and by_item["gradients are alive"] == 100
    assert by_item["the contrast falls"] == 500 and by_item["retrieval is above chance"] == 1000
    assert by_item["the validation loss is tracked"] == 400 and by_item["the memory is used"] == 800
    written = json.loads((tmp_path / "health.json").read_text())
    assert written["step"] == STEPS and written["worst"] == "BAD"
    assert {v["check"]: v["verdict"] for v in written["verdicts"]} == {v.check: v.verdict for v in doctor.verdicts}
    assert [path.name for path in tmp_path.iterdir()] == ["health.json"]


def test_hopeless_is_what_stays_bad():
    doctor = Doctor("nowhere", facts())
    doctor._write = lambda step: None
    rows = history(since=1200, memory_quality=0.0)
    first = None
    for row in rows:
        doctor.update(row["step"], {key: value for key, value in row.items() if key != "step"})
        doctor.update(row["step"], {"a second part": 0.0})            # of the same row counts once
        bad = verdict("memory quality", doctor.history).verdict == "BAD"
        first = first or (row["step"] if bad else None)
        assert (doctor.hopeless is not None) == (first is not None and row["step"] >= first + 2 * 20)
    assert doctor.hopeless.check == "memory quality"


def test_a_step_logged_in_two_parts_is_one_row_and_nan_is_valid_json(tmp_path):
    doctor = Doctor(tmp_path, {})
    doctor.update(10, {"itc": math.nan, "grad_norm": math.inf})
    doctor.update(10, {"val_total": math.nan})
    assert len(doctor.history) == 1 and doctor.history[0].keys() == {"step", "itc", "grad_norm", "val_total"}
    written = json.loads((tmp_path / "health.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert {v["check"]: v["value"] for v in written["verdicts"]}["validation"] is None


def test_the_row_of_an_epochs_last_step_comes_before_its_validation():
    facts = {"config": {"optim": {"batch_size": 16, "accumulation": 1}}, "data": {"train": {"images": 1600}},
             "machine": {"processes": 1}}
    verdict = lambda *rows: {v.check: v for v in diagnose(rows, facts)}["validation"]  # noqa: E731
    assert not verdict({"step": 100, "itc": 1.0}).judged
    assert verdict({"step": 100, "itc": 1.0}, {"step": 110, "itc": 1.0}).verdict == "WATCH"
    assert verdict({"step": 100, "itc": 1.0, "val_total": 2.0}).verdict == "OK"


def test_a_resumed_run_goes_on_with_what_stands_and_says_nothing_twice(tmp_path):
    rows = history(since=1200, itc=4.85)
    log = RunLog(tmp_path)
    for row in rows[:80]:
        log.scalars(row["step"], {key: value for key, value in row.items() if key != "step"})
    log.close()
    before, after = Doctor(tmp_path / "other", facts()), Doctor(tmp_path, facts())
    before._write = lambda step: None
    feed(before, rows[:80])
    assert (feed(after, rows[80:])) == feed(before, rows[80:])
    assert after.verdicts == before.verdicts == diagnose(rows, facts())


def test_a_disk_that_refuses_is_warned_of_once(tmp_path, caplog):
    doctor = Doctor(tmp_path, {})
    (tmp_path / ".health.json.tmp").mkdir()
    for step in (1, 2, 3):
        doctor.update(step, {"grad_norm": 1.0})
    assert caplog.text.count("health.json is not up to date") == 1
    (tmp_path / ".health.json.tmp").rmdir()
    doctor.update(4, {"grad_norm": 1.0})
    assert json.loads((tmp_path / "health.json").read_text())["step"] == 4


# The command ------------------------------------------------------------------------------------------------


@pytest.fixture
def sick(tmp_path):
    """A run folder of a run whose contrast is stuck."""
    (tmp_path / "run.json").write_text(json.dumps(facts()["config"]))
    (tmp_path / "run_facts.json").write_text(json.dumps({k: v for k, v in facts().items() if k != "config"}))
    rows = history(itc=4.85)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_settings_that_are_not_whole_and_those_that_are_none(sick):
    (sick / "run.json").write_text('{"data": {"root": "x"}}')
    assert main(["doctor", str(sick)]) in (0, 1)
    (sick / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="run.json: no object but '\\[\\]'; move it away"):
        read_facts(sick)


def test_the_command_prints_verdicts_remedies_and_the_checklist(sick, capsys):
    assert read_facts(sick) == facts()
    assert main(["doctor", str(sick)]) == 0
    told = capsys.readouterr().out
    assert told.strip() == summary(diagnose(read_history(sick), facts())).strip()
    assert "BAD   contrast" in told and "bitgen data check" in told and "[!] the contrast falls" in told
    assert "[x] gradients are alive" in told and "[ ] checkpoint and card" in told


def test_strict_ends_with_1_where_something_is_bad(sick, capsys):
    assert main(["doctor", str(sick), "--strict"]) == 1
    assert main(["doctor", str(sick), "--strict", "--json"]) == 1
    rows = history()
    (sick / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["doctor", str(sick), "--strict", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["worst"] == "OK" and len(told["verdicts"]) == len(CHECKS)


@pytest.mark.parametrize("name, content, told", [("metrics.jsonl", "", "metrics.jsonl"), ("run.json", "{", "run.json")])
def test_a_folder_without_metrics_or_with_a_broken_file_is_named(sick, name, content, told, capsys):
    (sick / name).write_text(content)
    assert main(["doctor", str(sick)]) == 65
    assert told in capsys.readouterr().err
    assert main(["doctor", str(sick / "nowhere")]) == 65


# Real runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/doctor.py as a module."""
    folder = Path(__file__).parents[1] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return importlib.import_module("doctor")


FEW = {"data": {"scenes_train": 256}, "vision": {"image_size": 32}, "loss": {"queue": 32, "queue_start": 2}}


@pytest.mark.parametrize("kind, steps", [("frozen random tower", 30), ("lr x 100", 60), ("healthy", 30)])
def test_really_broken_runs_are_seen_and_a_healthy_one_is_not_called_bad(benchmark, kind, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark.Trainer, "_validated", lambda self: False)   # not needed here, and slow
    found = benchmark.run(kind, 0, tmp_path, FEW | {"optim": {"max_steps": steps, "batch_size": 16}})
    expected = benchmark.KINDS[kind].check
    if expected is None:
        assert found.bad == []
        written = {v.check: v for v in diagnose(read_history(tmp_path), read_facts(tmp_path))}
        assert written["vision tower"].judged and written["gradient"].judged
        unread = {check.name for check in CHECKS if check.measure(read_history(tmp_path), read_facts(tmp_path)) is None}
        later = {"held-out retrieval", "validation", "matching", "leak", "Hub"}
        assert unread <= later, "every sign finds what it reads, in time"
    else:
        assert expected in found.bad and found.since <= 30


def test_the_table_is_sound():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names) and {check for _, check in CHECKLIST} <= set(names)
    for check in CHECKS:
        worse = (lambda a, b: a < b) if check.better == "high" else (lambda a, b: a > b)
        assert check.better in ("high", "low") and (check.bad is None or worse(check.bad, check.watch)), check.name
        assert check.rule and check.meaning and check.remedy and check.measure.__doc__
        assert check.judge(check.watch) == "OK"                       # a limit itself is not beyond
        assert check.bad is None or check.judge(check.bad) == "WATCH"
