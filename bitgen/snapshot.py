"""What resuming puts back: all of a run beside its published weights, as tensors and plain containers.

A state that lacks a part is refused: a run that goes on with other random numbers would be another run, unnoticed.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_model
from torch import Tensor
from torch.optim import Optimizer
from tqdm.auto import tqdm

from bitgen import checkpoint
from bitgen.admission import tensors
from bitgen.config import Config, portable, to_dict
from bitgen.exits import DAMAGED, NUMBERS, Stop
from bitgen.hub import resolve_resume
from bitgen.logs import METRICS
from bitgen.model import BitGen
from bitgen.objective import Objective
from bitgen.optimizer import load_named_state, named_state
from bitgen.processing import Processor
from bitgen.randomness import random_state, restore_random_state

LOG = 500_000_000
"""Largest `metrics.jsonl` that a checkpoint puts back, bytes: some 500,000 lines."""


def find(wanted: str | None, run_folder: Path) -> Path | None:
    """The checkpoint that the setting `resume` means; None where a run starts anew.

    `auto` is the newest of the run folder that verifies, and every later one is named with the reason why not;
    `hub://ORG/NAME` is pulled into the run folder. Raises `ValueError` where it cannot be, and `Stop` where there are
    checkpoints and none can be loaded: starting anew would in time delete them.
    """
    if wanted is None:
        return None
    if wanted != "auto":
        path = resolve_resume(wanted, run_folder)
        if held := _mistaken(path):
            raise ValueError(f"resume {wanted!r}: {held}")
        try:
            checkpoint.verify(path)
        except checkpoint.CheckpointError as error:
            raise Stop(f"cannot resume: {error}", DAMAGED) from error
        return path
    path, rejected = checkpoint.newest(run_folder)
    for bad, reason in rejected:
        tqdm.write(f"rejected {bad}: {reason}", file=sys.stderr)
    if path is None and rejected:
        raise Stop(f"cannot resume: none of the {len(rejected)} checkpoints in {run_folder} can be loaded; nothing was "
                   "changed. Leave --resume out, with another --output-dir, to start anew", DAMAGED)
    return path


def _mistaken(path: Path) -> str:
    """What a path that is meant to be a checkpoint folder is instead; nothing where it may be one."""
    if not path.is_dir():
        return "no such folder; expected `auto`, a checkpoint folder such as runs/scenes/checkpoint-200, or hub://ORG/NAME"
    held = sorted(found.name for found in path.glob("checkpoint-*") if found.is_dir())
    return f"a run folder; name one of its checkpoints: {', '.join(held)}" if held else ""


def take(run_folder: Path, objective: Objective, optimizer: Optimizer, accelerator: Accelerator,
         progress: dict) -> dict:
    """The state of a run, its metrics so far included; called by all processes together.

    `progress`: the counters that are the run's own. Raises `Stop` where a tensor is not finite: nobody could go on.
    """
    states = [random_state()]
    if accelerator.num_processes > 1:
        states = [None] * accelerator.num_processes
        torch.distributed.all_gather_object(states, random_state())
    state = {"progress": progress, "objective": objective.state_dict(), "random": states,
             "optimizer": named_state(optimizer, objective.model),
             "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
             "here": here(accelerator), "metrics": _metrics(run_folder)}
    if broken := [name for name, tensor in tensors(state) if not torch.isfinite(tensor).all()]:
        raise Stop(f"{len(broken)} tensors hold NaN or infinity, such as {broken[0]}: not saved, and the checkpoint "
                   "before stands. Go on from that one with a tenth of optim.lr, or with --precision float32", NUMBERS)
    return state


def restore(folder: Path, run_folder: Path, objective: Objective, optimizer: Optimizer,
            accelerator: Accelerator) -> dict:
    """Undo `take` with the state in a checkpoint's `folder`; returns the counters, says what cannot be the same.

    Raises `Stop` for a state that lacks a part or does not fit.
    """
    try:
        [file] = folder.glob("checkpoint-*.pt")
        state = torch.load(file, map_location="cpu", weights_only=True)
        objective.load_state_dict(state["objective"])
        load_named_state(optimizer, objective.model, state["optimizer"])
        if accelerator.scaler and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
        progress, changed = state["progress"], differences(state["here"], here(accelerator))
        metrics = _unpacked(state["metrics"].numpy().tobytes())
        restore_random_state(state["random"][accelerator.process_index % len(state["random"])])
    except Exception as error:  # torch has no common class for what is wrong with a file
        reason = f"{error} is missing" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise Stop(f"cannot resume from {folder}: its training state is not whole: {reason}", DAMAGED) from error
    exact = f"; not bit-exact: {', '.join(changed)}" if changed else ""
    if accelerator.is_main_process:
        _put_back(metrics, run_folder)
        tqdm.write(f"resumed from {folder} at step {progress['step']}{exact}", file=sys.stderr)
    return progress


def writers(config: Config, model: BitGen, processor: Processor, metrics: dict,
            state: dict) -> dict[str, Callable[[Path], None]]:
    """The files of a checkpoint, name -> function that writes it: the weights to use, and the `state` to go on from.

    They may go to the Hub: no path of this computer is in them.
    """
    def plain(values: dict) -> Callable[[Path], None]:
        text = json.dumps(portable(values), indent=2)
        return lambda path: path.write_text(text, encoding="utf-8")

    reasons = {name: _without_folder(reason) for name, reason in state["progress"].get("unreadable", {}).items()}
    state = state | {"progress": state["progress"] | {"unreadable": reasons}}
    return {
        "model.safetensors": lambda path: save_model(model, str(path), metadata={"format": "pt"}),
        "config.json": plain({"model": to_dict(config.model), "vision": to_dict(config.vision)}),
        "run.json": plain(to_dict(config)),
        "metrics.json": plain(metrics),
        "tokenizer.json": lambda path: processor.tokenizer.save(path.parent),
        "preprocessor_config.json": lambda path: processor.save(path.parent),
        f"checkpoint-{metrics['step']}.pt": lambda path: torch.save(state, path),
    }


def _without_folder(reason: str) -> str:
    """`/disk/ann/coco/3.jpg: no picture` -> `3.jpg: no picture`."""
    image, colon, why = reason.partition(": ")
    return image.rpartition("/")[2].rstrip("')") + colon + why if colon else reason


def size(state: dict, model: BitGen) -> int:
    """Bytes of the tensors that `writers` write."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in tensors([state, model.state_dict()]))


def here(accelerator: Accelerator) -> dict[str, Any]:
    """What has to be the same for the same bits: sums over other threads or kernels round otherwise."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "device": name,
            "precision": accelerator.mixed_precision, "processes": accelerator.num_processes}


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`["threads 2 -> 4"]`: what is not as it was."""
    return [f"{name} {then.get(name)} -> {value}" for name, value in now.items() if then.get(name) != value]


def _metrics(run_folder: Path) -> Tensor:
    """`metrics.jsonl` as it stands, compressed, uint8 (bytes,)."""
    path = run_folder / METRICS
    data = zlib.compress(path.read_bytes() if path.is_file() else b"")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpacked(metrics: bytes) -> bytes:
    """The log in a checkpoint. Raises `ValueError` for one that is cut off, or larger than any log."""
    stream = zlib.decompressobj()
    found = stream.decompress(metrics, LOG + 1)
    if len(found) > LOG:
        raise ValueError(f"its metrics have more than {LOG:,} bytes")
    if not stream.eof:
        raise ValueError("its metrics are cut off")
    return found


def _put_back(metrics: bytes, run_folder: Path) -> None:
    """What was logged up to a checkpoint, where this folder holds something else: on another computer, after a crash.

    A disk that refuses costs the curves' beginning, not the run.
    """
    path, partial = run_folder / METRICS, run_folder / f".{METRICS}.tmp"
    try:
        if not path.is_file() or not path.read_bytes().startswith(metrics):
            partial.write_bytes(metrics)
            os.replace(partial, path)
    except OSError as error:
        tqdm.write(f"warning: {path} was not put back: {error}", file=sys.stderr)
