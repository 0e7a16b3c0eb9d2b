"""The run's log: each step once after any resume, on disk and as TensorBoard reads it; a full disk stops nothing."""

import errno
import json
import logging
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import DEFAULT_SIZE_GUIDANCE, EventAccumulator

from bitgen.logs import LAYOUT, RunLog, read_metrics


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance=dict.fromkeys(DEFAULT_SIZE_GUIDANCE, 0)).Reload()


def series(folder, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def test_one_line_a_step_and_the_same_in_tensorboard(tmp_path):
    log = RunLog(tmp_path)
    log.scalars(1, {"itc": torch.tensor(2.5), "lr": 1e-3})
    log.scalars(2, {"itc": math.inf, "lr": 2e-3})
    log.scalars(2, {"val_total": math.nan})
    log.scalars(5, {"itc": np.float32(0.5)})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]  # before any close
    assert lines[0] == {"step": 1, "itc": 2.5, "lr": 1e-3} and lines[2] == {"step": 5, "itc": 0.5}
    assert lines[1]["itc"] == math.inf and math.isnan(lines[1]["val_total"]) and len(lines) == 3
    assert series(tmp_path, "itc") == [(1, 2.5), (2, math.inf), (5, 0.5)]
    log.close()


def test_twenty_kills_leave_each_step_once(tmp_path):
    """The log is dropped without being closed, as by `kill -9`, at a random distance from the last checkpoint."""
    rng, saved, killed = random.Random(0), None, []
    for attempt in range(20):
        log = RunLog(tmp_path, resume_step=saved)
        first = 1 if saved is None else saved + 1
        for step in range(first, first + rng.randint(1, 30)):
            log.scalars(step, {"itc": float(step), "attempt": attempt})
            if step % 10 == 0:
                saved = step
        killed.append(log)
    log = RunLog(tmp_path, resume_step=saved)
    log.scalars(saved + 1, {"itc": saved + 1.0, "attempt": 99})
    expected = [(step, float(step)) for step in range(1, saved + 2)]
    assert [(line["step"], line["itc"]) for line in read_metrics(tmp_path)] == expected
    assert series(tmp_path, "itc") == expected
    attempts = [value for _, value in series(tmp_path, "attempt")]
    assert attempts == sorted(attempts) == [line["attempt"] for line in read_metrics(tmp_path)]


def test_curves_of_another_computer_come_along(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    log = RunLog(there)
    for step in range(1, 8):
        log.scalars(step, {"itc": float(step)})
    log.close()
    here.mkdir()
    (here / "metrics.jsonl").write_bytes((there / "metrics.jsonl").read_bytes())  # what a checkpoint brings
    for start in (5, 6):  # resumed twice: the curves come once
        RunLog(here, resume_step=start).scalars(start + 1, {"itc": 0.5})
    expected = [(step, float(step)) for step in range(1, 6)] + [(6, 0.5), (7, 0.5)]
    assert series(here, "itc") == expected
    assert [(line["step"], line["itc"]) for line in read_metrics(here)] == expected


def test_a_new_run_in_an_old_folder_starts_empty(tmp_path):
    old = RunLog(tmp_path)
    old.layout()
    old.scalars(1, {"itc": 1.0})
    old.scalars(9, {"itc": 9.0})
    new = RunLog(tmp_path)
    new.layout()
    new.scalars(1, {"itc": 5.0})
    assert read_metrics(tmp_path) == [{"step": 1, "itc": 5.0}]
    assert series(tmp_path, "itc") == [(1, 5.0)]


def test_a_torn_line_and_a_torn_event_cost_only_themselves(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 101):
        log.scalars(step, {"itc": float(step)})
    log.close()
    [event_file] = (tmp_path / "tensorboard").iterdir()
    for path in (event_file, tmp_path / "metrics.jsonl"):
        path.write_bytes(path.read_bytes()[:-7])
    assert [step for step, _ in series(tmp_path, "itc")] == list(range(1, 100))
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 100))
    RunLog(tmp_path, resume_step=99).scalars(100, {"itc": 100.0})
    assert [step for step, _ in series(tmp_path, "itc")] == list(range(1, 101))
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 101))


def test_everything_else_that_is_shown_once_a_run(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    for resume in (None, 3):
        log = RunLog(tmp_path, resume)
        log.layout()
        log.hparams({"model": {"hidden_size": 8, "betas": [0.9, 0.98]}, "resume": None}, ["val_t2i_r1"])
        step = (resume or 0) + 1
        log.histogram("weights", torch.randn(4, 5).bfloat16(), step)
        log.histogram("broken", torch.full((3,), math.nan), step)
        log.image("worst", torch.zeros(3, 8, 9, dtype=torch.uint8), step)
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([1, 2])
        log.figure("curve", figure, step)
        log.text("health", "**OK**", step)
    seen = events(tmp_path)
    assert [e.step for e in seen.Histograms("weights")] == [1, 4] and "broken" not in seen.Tags()["histograms"]
    assert [(e.width, e.height) for e in seen.Images("worst")] == [(9, 8)] * 2
    assert [e.step for e in seen.Images("curve")] == [1, 4]
    assert [e.step for e in seen.Tensors("health/text_summary")] == [1, 4]
    assert [e.step for e in seen.Tensors("custom_scalars__config__")] == [0]
    assert set(seen.PluginTagToContent("hparams")) == {
        "_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    assert b"model.hidden_size" in seen.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert "Good signs" in LAYOUT and len(list(tmp_path.iterdir())) == 2  # no second run folder for the settings


def test_wrong_use_raises(tmp_path):
    log = RunLog(tmp_path)
    log.scalars(3, {"itc": 1.0})
    with pytest.raises(ValueError, match="step 2 was logged already; the last one was 3"):
        log.scalars(2, {"itc": 1.0})
    with pytest.raises(ValueError, match="step 3: itc logged twice"):
        log.scalars(3, {"itc": 1.0, "itm": 1.0})
    with pytest.raises(ValueError, match="step 3"):
        RunLog(tmp_path, resume_step=3).scalars(3, {"itm": 1.0})


@pytest.mark.parametrize("broken", ["_write_line", "_record"])
def test_a_full_disk_is_one_warning(tmp_path, monkeypatch, caplog, broken):
    log = RunLog(tmp_path)
    log.scalars(1, {"itc": 1.0})

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log, broken, refuse)
    with caplog.at_level(logging.WARNING):
        for step in range(2, 10):
            log.scalars(step, {"itc": 1.0})
            log.histogram("weights", torch.zeros(3), step)
        log.close()
    [record] = caplog.records
    assert "No space left" in record.message and str(tmp_path) in record.message


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    log = RunLog(tmp_path / "file")
    log.scalars(1, {"itc": 1.0})
    log.layout()
    log.close()
    assert len(caplog.records) == 1 and "logging is off" in caplog.text


def test_the_operating_system_refuses(tmp_path):
    """A real limit on file size: training goes on, what was written before still reads."""
    code = """
import resource, signal, sys
from bitgen.logs import RunLog
log = RunLog(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
for step in range(1, 500):
    log.scalars(step, {"itc": float(step)})
log.close()
print("trained", log.on)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1])
    assert done.stdout == "trained False\n" and done.returncode == 0, done.stderr
    assert done.stderr.count("File too large") == 1 and "Traceback" not in done.stderr
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 20
    assert [step for step, _ in series(tmp_path, "itc")][:20] == list(range(1, 21))


def test_lines_that_are_no_rows_are_left_out(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('[1]\n{"a": 1}\n{"step": "2"}\nnull\n{"step": 3, "itc": 5.0}\n')
    assert read_metrics(tmp_path) == [{"step": 3, "itc": 5.0}] and caplog.text.count("is left out") == 4
