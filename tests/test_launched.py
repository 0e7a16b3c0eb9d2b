"""`bitgen train` as torchrun starts it: two processes are one run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import TINY, differences, state_of, steady

from bitgen import checkpoint
from bitgen.logs import read_metrics


def launched(folder, *changes):
    """`bitgen train` on two processes of one thread each, as torchrun starts it; quick (see `small_runs.quick`)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               "-m", "small_runs", "train", *TINY, "--output-dir", str(folder), "--optim.batch-size", "8",
               "--validate-every", "100", "--optim.accumulation", "2", "--save-every", "2",
               "--data.captions-per-image", "2", *changes]
    places = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def children(process):
    """Process ids of the two that train."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find the processes")
def test_two_processes_train_one_run_and_one_that_dies_ends_the_other(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    uninterrupted = launched(whole)
    assert uninterrupted.wait(300) == 0, uninterrupted.stdout.read()
    process, until = launched(broken), time.monotonic() + 200
    while not (broken / "checkpoint-2" / checkpoint.MANIFEST).is_file() and time.monotonic() < until:
        time.sleep(0.05)
    both = children(process)
    os.kill(both[1], signal.SIGKILL)
    assert process.wait(60) != 0 and not any(Path(f"/proc/{pid}").is_dir() for pid in both)
    assert not (broken / "checkpoint-6").is_dir(), "it was not at its end"
    resumed = launched(broken, "--resume", "auto")
    assert resumed.wait(300) == 0, resumed.stdout.read()
    assert differences(state_of(whole, 6), state_of(broken, 6)) == ["/metrics"]
    assert [steady(line) for line in read_metrics(whole)] == [steady(line) for line in read_metrics(broken)]
