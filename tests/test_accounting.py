"""The account of a run: counted arithmetic, sums over sessions, energy from counters alone."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_batch, tiny_model

from bitgen import accounting
from bitgen.accounting import Meter, energy_counters, peak_memory, read
from bitgen.config import LossConfig
from bitgen.objective import Objective


def test_arithmetic_is_counted_as_by_hand(tmp_path):
    """Forward of a linear layer: 2 x rows x in x out; backward to the weight the same, to the input once more."""
    meter, layer = Meter(tmp_path), torch.nn.Linear(5, 7)
    x = torch.randn(3, 5, requires_grad=True)
    with meter.batch(3):
        layer(x).sum().backward()
    assert meter.totals["flops_per_sample"] == {"batch": 3 * 2 * 5 * 7}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_the_cpu_is_not_free(tmp_path, dtype):
    """Two products of (L, d) with (L, d) for each head and row: 2 x 2 x L x L x d."""
    meter = Meter(tmp_path)
    q = torch.randn(2, 3, 11, 8, dtype=dtype)
    with meter.batch(2):
        F.scaled_dot_product_attention(q, q, q)
    assert meter.totals["flops_per_sample"]["batch"] == 3 * 2 * 2 * 11 * 11 * 8


def test_only_the_first_batch_of_a_kind_is_counted(tmp_path):
    meter, weight = Meter(tmp_path), torch.randn(4, 4)
    for kind, rows in (("early", 1), ("early", 10), ("late", 5)):
        with meter.batch(10, kind):
            torch.randn(rows, 4) @ weight
    assert meter.totals["flops_per_sample"] == {"early": 3.2, "late": 16.0}
    assert meter.totals["samples"] == 30
    assert meter.totals["flops"] == pytest.approx(2 * 10 * 3.2 + 10 * 16.0)


@pytest.mark.parametrize("bf16", [False, True])
def test_counting_changes_no_bit_of_a_step(tmp_path, bf16):
    gradients = []
    for kind in ("counted", "again", "again"):
        objective = Objective(tiny_model(gates=0.3), LossConfig(queue=16, queue_start=0)).train()
        torch.manual_seed(0)
        meter = Meter(tmp_path)
        meter.totals["flops_per_sample"] = {"again": 1.0}
        with meter.batch(6, kind), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses, _, _ = objective(tiny_batch())
            losses["total"].backward()
        gradients.append([p.grad for p in objective.model.parameters() if p.grad is not None])
    counted, plain, _ = gradients
    assert len(counted) > 50 and all(torch.equal(a, b) for a, b in zip(counted, plain, strict=True))


def test_the_momentum_copy_and_the_queue_cost_something(tmp_path):
    meter = Meter(tmp_path)
    objective = Objective(tiny_model(), LossConfig(queue=16, queue_start=1)).train()
    for kind in ("without queue", "with queue"):
        with meter.batch(6, kind):
            losses, _, pending = objective(tiny_batch())
            losses["total"].backward()
        objective.after_step((tiny_batch(), pending))
    costs = meter.totals["flops_per_sample"]
    assert costs["with queue"] > 1.05 * costs["without queue"]


def test_a_resumed_run_adds_up_and_a_new_one_begins_at_zero(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 100.0, 103.0, 500.0])
    monkeypatch.setattr(accounting, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    for resumed in (False, True):
        meter = Meter(tmp_path, resumed=resumed)
        with meter.batch(8):
            pass
        report = meter.scalars()
    assert report["cost/samples"] == 16 and report["cost/seconds"] == 13.0
    assert report["images_per_second"] == pytest.approx(8 / 3)
    kept = read(tmp_path)
    assert kept["sessions"] == 2 and kept["samples"] == 16 and kept["seconds"] == 13.0
    assert Meter(tmp_path, resumed=False).totals == {"sessions": 1}


def test_time_aside_does_not_slow_training_down(tmp_path, monkeypatch):
    clock = iter([0.0, 2.0, 7.0, 9.0, 10.0])
    monkeypatch.setattr(accounting, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    meter = Meter(tmp_path)
    with meter.batch(8):
        pass
    with meter.aside():  # from 2.0 to 7.0
        pass
    report = meter.scalars()
    assert report["images_per_second"] == 2.0
    assert (report["cost/seconds"], report["cost/training_seconds"]) == (9.0, 4.0)
    assert "images_per_second" not in meter.scalars(), "no batch since the last report"


def test_several_processes_count_together_and_claim_no_energy(tmp_path, monkeypatch):
    monkeypatch.setattr(accounting, "energy_counters", lambda device: {"RAPL": lambda: 1.0})
    meter = Meter(tmp_path, processes=4)
    with meter.batch(8):
        pass
    report = meter.scalars()
    assert report["cost/samples"] == 32 and "cost/energy_joules" not in report


def test_peak_memory_is_this_process_alone_in_bytes():
    """A child knows its own peak, not that of the process that started it."""
    torch.zeros(50_000_000)  # 200 MB, and torch itself
    code = ("import bitgen.accounting as a; before = a.peak_memory(); block = bytearray(b'x') * 150_000_000;"
            "print(before, a.peak_memory())")
    before, after = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                            check=True).stdout.split())
    assert 140_000_000 < after - before < 200_000_000
    assert peak_memory() > 200_000_000


def test_the_peak_of_all_sessions_is_kept(tmp_path):
    meter = Meter(tmp_path)
    meter.totals["peak_memory_bytes"] = 10**15
    assert meter.scalars()["cost/peak_memory_bytes"] == 10**15


@pytest.mark.parametrize("content", ["", "[1]", "{", "null"])
def test_an_account_that_cannot_be_read_is_no_account(tmp_path, content):
    (tmp_path / "accounting.json").write_text(content)
    assert read(tmp_path) == {} and read(tmp_path / "gone") == {}


def test_a_disk_that_refuses_does_not_stop_the_run(tmp_path):
    meter = Meter(tmp_path / "gone")
    assert meter.scalars()["cost/seconds"] > 0 and not (tmp_path / "gone").exists()


# Energy ---------------------------------------------------------------------------------------------------


def zone(folder, number, name, joules, most=1000):
    path = folder / f"intel-rapl:{number}"
    path.mkdir(exist_ok=True)
    for file, value in {"name": name, "energy_uj": int(joules * 1e6), "max_energy_range_uj": int(most * 1e6)}.items():
        (path / file).write_text(f"{value}\n")


def test_no_counter_no_energy(tmp_path):
    assert energy_counters(torch.device("cpu"), tmp_path) == {}


def test_rapl_counts_packages_and_memory_once_and_survives_its_overflow(tmp_path):
    for number, name in {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "psys"}.items():
        zone(tmp_path, number, name, 990)
    counters = energy_counters(torch.device("cpu"), tmp_path)
    assert sorted(counters) == ["RAPL 0 package-0", "RAPL 0:1 dram"]
    package = counters["RAPL 0 package-0"]
    assert package() == 0.0
    zone(tmp_path, "0", "package-0", 998)
    assert package() == 8.0
    zone(tmp_path, "0", "package-0", 5)                                              # went over 1,000
    assert package() == 15.0


def test_energy_is_what_the_counters_rose_by_over_all_sessions(tmp_path, monkeypatch):
    readings = iter([50.0, 57.0, 200.0, 203.0])
    monkeypatch.setattr(accounting, "energy_counters", lambda device: {"RAPL": lambda: next(readings)})
    for resumed in (False, True):
        report = Meter(tmp_path, resumed=resumed).scalars()
    assert report["cost/energy_joules"] == 10.0 and read(tmp_path)["energy_sources"] == ["RAPL"]


def test_energy_of_a_run_that_was_partly_unmeasured_is_unknown(tmp_path, monkeypatch):
    sessions = [{"RAPL": lambda: 1.0}, {}, {"RAPL": lambda: 1.0}]
    for number, counters in enumerate(sessions):
        monkeypatch.setattr(accounting, "energy_counters", lambda device, counters=counters: counters)
        report = Meter(tmp_path, resumed=number > 0).scalars()
        assert ("cost/energy_joules" in report) == (number == 0)
    assert not [key for key in read(tmp_path) if key.startswith("energy")]


def test_a_gpu_counts_in_joules_where_its_library_is_there(monkeypatch, tmp_path):
    millijoules = iter([7_000, 9_500])
    nvml = SimpleNamespace(
        NVMLError=RuntimeError, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(millijoules) if handle == "GPU-ab-12" else 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="ab-12"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    counters = energy_counters(torch.device("cuda"), tmp_path)
    assert counters["NVML H"]() == 9.5                        # the first reading was the try

    def refuse():
        raise RuntimeError("no driver")
    nvml.nvmlInit = refuse
    assert energy_counters(torch.device("cuda"), tmp_path) == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_counters(torch.device("cuda"), tmp_path) == {}


def test_the_file_is_whole_at_any_moment(tmp_path, monkeypatch):
    meter = Meter(tmp_path)
    meter.scalars()
    before = (tmp_path / "accounting.json").read_text()
    monkeypatch.setattr("bitgen.checkpoint.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
    meter.scalars()
    assert (tmp_path / "accounting.json").read_text() == before and json.loads(before)
    assert [path.name for path in tmp_path.iterdir()] == ["accounting.json"]
