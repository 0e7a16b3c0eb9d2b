"""What a run costs: arithmetic, images a second, energy, memory and time, summed over all its sessions.

    meter = Meter(folder, device, resumed=False)
    with meter.batch(images):          # forward and backward of one batch
        ...
    with meter.aside():                # validation, a checkpoint
        ...
    log(meter.scalars())               # `cost/…`; `accounting.json` is brought up to date

What cannot be measured is left out, never guessed: no counter, no energy.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from bitgen.checkpoint import replace_text

ACCOUNTING = "accounting.json"
POWERCAP = Path("/sys/class/powercap")

# torch's table has the attention kernels of GPUs only; without these two the CPU's attention would count as nothing.
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)}


class Meter:
    """The account of one run. It goes on from the folder's `accounting.json` where the run was `resumed`.

    Work that a crash threw away was done all the same and stays counted, up to the last call of `scalars`. With
    several `processes` the main one keeps the account: its images and arithmetic times their number, its own memory,
    and no energy. `accounting.json` holds `samples` (images seen in training), `flops` and `flops_per_sample` (of
    training alone, by kind of batch; products of matrices, convolutions and attention), `seconds`, `training_seconds`
    (those not spent `aside`), `peak_memory_bytes`, `peak_device_memory_bytes`, `energy_joules`, `energy_sources` and
    `sessions`.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", resumed: bool = False,
                 processes: int = 1, history: Sequence[dict[str, float]] = ()):
        """history: the rows that a resumed run has logged; their `cost/…` count where the file tells less, as on
        another computer."""
        self.path, self.device, self.processes = Path(folder) / ACCOUNTING, torch.device(device), processes
        self.totals = max(read(folder), _logged(history), key=lambda costs: costs.get("samples", 0)) if resumed else {}
        counters = energy_counters(self.device) if processes == 1 else {}
        if self.totals and set(self.totals.get("energy_sources", [])) != set(counters):
            counters = {}  # a part of the run went without one of these: their sum would be of something else
            self.totals = {key: value for key, value in self.totals.items() if not key.startswith("energy_")}
        self.totals["sessions"] = self.totals.get("sessions", 0) + 1
        self._counters = counters
        self._energy = {name: counter() for name, counter in counters.items()}
        self._since, self._aside, self._images = time.perf_counter(), 0.0, 0  # of the last report, and after it

    @contextmanager
    def batch(self, samples: int, kind: str = "batch") -> Iterator[None]:
        """Around forward and backward of one batch of `samples` images.

        The first batch of each `kind` is counted operation by operation, which changes none of its numbers. Give
        batches of unequal work unequal kinds, such as those before and after the queue begins.
        """
        costs = self.totals.setdefault("flops_per_sample", {})
        if kind in costs:
            yield
        else:
            # Uncompiled: what is first called while torch counts operations would stay so for the whole run.
            with (torch.compiler.set_stance("force_eager"),
                  FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as counter):
                yield
            costs[kind] = counter.get_total_flops() / samples
        self._add(samples=samples * self.processes, flops=samples * self.processes * costs[kind])
        self._images += samples * self.processes

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is not training: validation, a checkpoint. It does not slow the images a second down."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._aside += time.perf_counter() - started

    def scalars(self) -> dict[str, float]:
        """Totals so far as `cost/…`, `images_per_second` since the last call; `accounting.json` is brought up to date.

        Where the disk refuses, the file stays as it was and the account goes on in memory.
        """
        now = time.perf_counter()
        seconds, training = now - self._since, now - self._since - self._aside
        self._add(seconds=seconds, training_seconds=training)
        self._read_energy()
        self._peak("peak_memory_bytes", peak_memory())
        if self.device.type == "cuda":
            self._peak("peak_device_memory_bytes", torch.cuda.max_memory_allocated(self.device))
        report = {f"cost/{key}": float(value) for key, value in self.totals.items() if isinstance(value, (int, float))}
        if self._images:
            report["images_per_second"] = self._images / training
        self._since, self._aside, self._images = now, 0.0, 0
        self._write()
        return report

    def _add(self, **amounts: float) -> None:
        for key, amount in amounts.items():
            self.totals[key] = self.totals.get(key, 0) + amount

    def _peak(self, key: str, value: int) -> None:
        self.totals[key] = max(self.totals.get(key, 0), value)

    def _read_energy(self) -> None:
        """Adds what each counter went up by."""
        for name, counter in self._counters.items():
            value = counter()
            self._add(energy_joules=value - self._energy[name])
            self._energy[name] = value
        if self._counters:
            self.totals["energy_sources"] = sorted(self._counters)

    def _write(self) -> None:
        with suppress(OSError):  # the next one may fit
            replace_text(self.path, json.dumps(self.totals, indent=2) + "\n")


def _logged(history: Sequence[dict[str, float]]) -> dict:
    """The last totals that were logged; not the energy, of which the log does not say who counted it."""
    costs = {key.removeprefix("cost/"): value for row in history for key, value in row.items()
             if key.startswith("cost/") and "energy" not in key}
    return {key: int(value) if "seconds" not in key else value for key, value in costs.items()}


def read(folder: str | Path) -> dict:
    """What `accounting.json` of a run holds; empty where there is none, or none that can be read."""
    try:
        found = json.loads((Path(folder) / ACCOUNTING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def peak_memory() -> int:
    """The most memory this process has held at once, bytes.

    Linux tells it in /proc; `ru_maxrss`, asked elsewhere, would there begin at the peak of whoever started us.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# Energy ---------------------------------------------------------------------------------------------------


def energy_counters(device: torch.device, powercap: Path = POWERCAP) -> dict[str, Callable[[], float]]:
    """Counters that only go up, in joules, by what they measure; empty where nothing counts.

    `RAPL …`: processor packages and memory of the whole machine, whoever uses it (readable to root alone on most
    kernels). `NVML …`: the GPU of `device`, with nvidia-ml-py installed.
    """
    counters = {f"RAPL {zone.name.removeprefix('intel-rapl:')} {name}": _Rapl(zone)
                for zone in sorted(powercap.glob("intel-rapl:*"))
                if (name := _domain(zone)) is not None}
    return counters | (_nvml(device) if device.type == "cuda" else {})


def _domain(zone: Path) -> str | None:
    """`package-0` or `dram`, where this counter can be read; others (`core`, `psys`) count the same joules again."""
    try:
        name = (zone / "name").read_text().strip()
        int((zone / "energy_uj").read_text())
    except (OSError, ValueError):
        return None
    return name if name.startswith("package") or name == "dram" else None


class _Rapl:
    """One zone in joules; the kernel's counter starts again at 0 after `max_energy_range_uj`, minutes to hours."""

    def __init__(self, zone: Path):
        self.file = zone / "energy_uj"
        self.range = int((zone / "max_energy_range_uj").read_text())
        self.last, self.total = int(self.file.read_text()), 0

    def __call__(self) -> float:
        value = int(self.file.read_text())
        self.total += (value - self.last) % self.range
        self.last = value
        return self.total / 1e6


def _nvml(device: torch.device) -> dict[str, Callable[[], float]]:
    """The GPU's own counter, millijoules since its driver was loaded (Volta and newer)."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except ImportError:
        return {}
    except pynvml.NVMLError:
        return {}
    return {f"NVML {torch.cuda.get_device_name(device)}":
            lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3}
