"""What resuming puts back: all of a run beside its published weights, as tensors and plain containers.

A state that lacks a part is refused: a run that goes on with other random numbers would be another run, unnoticed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import Optimizer
from tqdm.auto import tqdm

from bitgen import checkpoint
from bitgen.exits import DAMAGED, Stop
from bitgen.objective import Objective
from bitgen.randomness import random_state, restore_random_state


def find(wanted: str | None, run_folder: Path) -> Path | None:
    """The checkpoint that the setting `resume` means; None where a run starts anew.

    `auto` is the newest of the run folder that verifies, and every later one is named with the reason why not.
    Raises `Stop` where there are checkpoints and none can be loaded: starting anew would in time delete them.
    """
    if wanted is None:
        return None
    if wanted != "auto":
        try:
            checkpoint.verify(wanted)
        except checkpoint.CheckpointError as error:
            raise Stop(f"cannot resume: {error}", DAMAGED) from error
        return Path(wanted)
    path, rejected = checkpoint.newest(run_folder)
    for bad, reason in rejected:
        tqdm.write(f"rejected {bad}: {reason}", file=sys.stderr)
    if path is None and rejected:
        raise Stop(f"cannot resume: none of the {len(rejected)} checkpoints in {run_folder} can be loaded; nothing was "
                   "changed. Leave --resume out, with another --output-dir, to start anew", DAMAGED)
    return path


def take(objective: Objective, optimizer: Optimizer, accelerator: Accelerator, progress: dict) -> dict:
    """The state of a run; called by all processes together. `progress`: the counters that are its own."""
    states = [random_state()]
    if accelerator.num_processes > 1:
        states = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(states, random_state())
    return {"progress": progress, "objective": objective.state_dict(), "optimizer": optimizer.state_dict(),
            "random": states, "here": here(accelerator)}


def restore(folder: Path, objective: Objective, optimizer: Optimizer, accelerator: Accelerator) -> dict:
    """Undo `take` with a checkpoint's state file; returns the counters and says where the run cannot be the same.

    Raises `Stop` for a state that lacks a part or does not fit.
    """
    try:
        [file] = folder.glob("checkpoint-*.pt")
        state = torch.load(file, map_location="cpu", weights_only=True)
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        progress, changed = state["progress"], differences(state["here"], here(accelerator))
        restore_random_state(state["random"][accelerator.process_index % len(state["random"])])
    except Exception as error:  # torch has no common class for what is wrong with a file
        reason = f"{error} is missing" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise Stop(f"cannot resume from {folder}: its training state is not whole: {reason}", DAMAGED) from error
    exact = f"; not bit-exact: {', '.join(changed)}" if changed else ""
    if accelerator.is_main_process:
        tqdm.write(f"resumed from {folder} at step {progress['step']}{exact}", file=sys.stderr)
    return progress


def here(accelerator: Accelerator) -> dict[str, Any]:
    """What has to be the same for the same bits: sums over other threads or kernels round otherwise."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "device": name,
            "precision": accelerator.mixed_precision, "processes": accelerator.num_processes}


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`["threads 2 -> 4"]`: what is not as it was."""
    return [f"{name} {then.get(name)} -> {value}" for name, value in now.items() if then.get(name) != value]
