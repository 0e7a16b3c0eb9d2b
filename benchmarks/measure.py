"""What the benchmarks share: where they ran, times of several calls in turn, memory, arithmetic, table, JSON.

On a CPU times are CPU seconds of one thread and the calls take turns (A B C A B C), so that ratios hold on a busy
computer too; on a GPU they are seconds between two synchronisations, of a GPU that should be ours alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from bitgen.accounting import ATTENTION_ON_CPU
from bitgen.precision import precision

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = precision("auto")
DTYPE = {"bf16": torch.bfloat16, "float32": torch.float32}[PRECISION]
CLOCK = "CPU seconds" if DEVICE.type == "cpu" else "seconds, synchronised"


def parser(doc: str) -> argparse.ArgumentParser:
    """A command line with `--json`, explained by the benchmark's docstring."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="file for the environment and all that was measured")
    return made


def begin(threads: int | None = 1, clock: str = CLOCK) -> dict[str, object]:
    """Set the number of threads (None: as it is) and the seed; prints and returns where this runs.

    clock: what seconds are, where they are not those of `seconds`.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.manual_seed(0)
    found = {"device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else processor(), "precision": PRECISION,
             "threads": torch.get_num_threads(), "torch": torch.__version__, "transformers": transformers.__version__,
             "python": platform.python_version(), "clock": clock}
    print("; ".join(f"{name} {value}" for name, value in found.items()) + "\n", flush=True)
    return found


def processor() -> str:
    """The CPU's name and what it multiplies bf16 with."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", text)]
    return " ".join([name[1] if name else platform.machine(), *flags])


# Time -----------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], object]) -> float:
    """What one call takes."""
    if DEVICE.type == "cpu":
        started = time.process_time()
        call()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(calls: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call in each of `rounds`, in which all have their turn; `warm_up` rounds before do not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            taken = seconds(call)
            if number >= warm_up:
                times[name].append(taken)
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: median(some) for name, some in times.items()}


def ratio(times: dict[str, list[float]], name: str, over: str) -> float:
    """How many times as long `name` takes as `over`: the median over rounds of both in one round."""
    return median(a / b for a, b in zip(times[name], times[over], strict=True))


# Arithmetic and memory ------------------------------------------------------------------------------------


def flops(call: Callable[[], object]) -> int:
    """Products of matrices, convolutions and attention of one call, 2 for each multiplication with its addition."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as counter:
        call()
    return counter.get_total_flops()


def ceiling(dtype: torch.dtype = DTYPE, size: int | None = None, rounds: int = 15) -> float:
    """FLOP/s of the product of two square matrices, the most that this device is seen to do."""
    size = size or (1024 if DEVICE.type == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(in_turn({"product": lambda: a @ b}, rounds, 3)["product"])


def peak_bytes(call: Callable[[], object]) -> int:
    """How much more memory than before a call needs at once. The call was made before, so that what stays is there.

    Raises `ValueError` where it cannot be measured: neither a GPU nor Linux.
    """
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    if platform.system() != "Linux":
        raise ValueError(f"memory: measured on Linux or a GPU, not on {platform.system()}")
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    call()
    return max(_status("VmHWM") - before, 0)


def _status(field: str) -> int:
    return int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


# Output ---------------------------------------------------------------------------------------------------


def table(columns: list[str], rows: list[list[object]]) -> str:
    """Markdown; numbers with three significant digits."""
    return "\n".join([row(columns), row(["---"] * len(columns)), *map(row, rows)]) + "\n"


def row(cells: Sequence[object]) -> str:
    """A line of a table."""
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(path: Path | None, found: dict) -> None:
    """The measurements as JSON, where a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
