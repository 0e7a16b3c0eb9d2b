"""A run that is killed, stopped, refused the disk or damaged ends as if nothing had been; see benchmarks/faults.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(900)  # all of it is done for the first test; a minute where nobody else computes


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    result = tmp_path_factory.mktemp("faults") / "found.json"
    command = [sys.executable, ROOT / "benchmarks/faults.py", "--kills", "20", "--steps", "40", "--json", result]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(result.read_text())


def test_twenty_kills_cost_nothing(found):
    kills = found["kills"]
    assert kills["kills"] == 20 and kills["inside a save"] >= 8, kills
    assert (kills["failed resumes"], kills["runs that differ"]) == (0, 0), kills["differing"]


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_the_step_saves_and_tells_which(found, name, status):
    stopped = found["signals"][name]
    assert (stopped["status"], stopped["resumed"], stopped["differs"]) == (status, 0, [])


def test_a_second_signal_does_not_wait(found):
    assert found["signals"]["twice"]["status"] == 143 and found["signals"]["twice"]["seconds"] < 50  # the save takes 60


@pytest.mark.parametrize("refusal", ["too_large", "read_only", "no_space", "unmounted"])
def test_two_refused_saves_are_two_warnings(found, refusal):
    run = found["disk"][f"{refusal}, twice"]
    assert (run["status"], run["newest"], run["differs"]) == (0, "checkpoint-40", [])
    assert len(run["warnings"]) == 2
    for warning, step in zip(run["warnings"], (15, 20)):
        assert all(part in warning for part in (f"checkpoint-{step}:", "bytes needed", "bytes free", "goes on"))


@pytest.mark.parametrize("refusal", ["too_large", "read_only", "no_space", "unmounted"])
def test_a_third_ends_the_run_and_leaves_what_was_good(found, refusal):
    run = found["disk"][f"{refusal}, for good"]
    assert (run["status"], run["newest"], run["rejected"]) == (74, "checkpoint-5", 0)
    assert len(run["warnings"]) == 3


def test_a_flipped_bit_costs_one_checkpoint(found):
    damage = found["damage"]
    assert damage["files"] >= 8 and damage["fell back"] == damage["named"] == damage["files"]
    assert (damage["resumed"], damage["differs"]) == (0, [])


def test_a_run_without_a_good_checkpoint_is_left_alone(found):
    damage = found["damage"]
    assert (damage["all damaged"], damage["deleted"]) == (3, 0)
    assert "none of the 2 checkpoints" in damage["printed"][-1] and len(damage["printed"]) == 4


@pytest.mark.parametrize("part", ["random", "progress"])
def test_a_state_that_is_not_whole_is_refused(found, part):
    assert found["state"][part]["status"] == 3 and f"'{part}' is missing" in found["state"][part]["printed"]
