"""What makes a run repeat: the state of every random generator, and sums that are made in one order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.utils.deterministic


def random_state() -> dict:
    """State of Python's, NumPy's and torch's generators as tensors and plain containers."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {"python": [version, list(internal), gauss], "torch": torch.get_rng_state(),
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
            "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []}  # of this process's own device


def restore_random_state(state: dict) -> None:
    """Undo `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On a CPU every sum is made in one order, however its threads are scheduled; elsewhere nothing changes.

    Without it the gradient of `x[index]`, where rows repeat, is added up as threads come by: on a busy computer two
    runs of one seed differ, and a resumed run from one that never stopped. Other devices pay too much for the same.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # to find bugs, and it takes time
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
