"""What a run cannot be asked afterwards: its data counted, its parameters by part, the code and machine it ran on.

Written by the trainer at its start (`run_facts.json`) and by `bitgen evaluate` (what its numbers are of); the model
card and the checks of a run's health read it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bitgen.checkpoint import file_digest, replace_text
from bitgen.config import Config, DataConfig, from_dict, located
from bitgen.precision import precision
from bitgen.retrieval import LEVEL

if TYPE_CHECKING:
    from bitgen.dataset import Dataset
    from bitgen.model import BitGen

FACTS = "run_facts.json"
WEIGHTS = "model.safetensors"
PACKAGES = ("bitgen", "torch", "transformers", "accelerate", "tokenizers", "huggingface_hub", "safetensors", "numpy")


def gather(config: Config, model: BitGen, train: Dataset, val: Dataset, steps: int,
           device: torch.device | str = "cpu", processes: int = 1) -> dict:
    """The facts of a run that is about to start, as plain values. `steps`: optimizer steps it is to take."""
    return {
        "steps": steps,
        "data": {"train": counted(train), "val": counted(val)},
        "parameters": {"total": sum(p.numel() for p in model.parameters()), "outside_tower": model.outside_tower(),
                       "learning": sum(p.numel() for p in model.parameters() if p.requires_grad),
                       "by_part": model.parameter_counts()},
        "machine": machine(torch.device(device)) | {"processes": processes},
        "precision": precision(config.precision),
        "software": software(),
        "git": revision(),
    }


def write(folder: str | Path, facts: dict) -> None:
    """Writes `run_facts.json`. Raises `OSError`."""
    replace_text(Path(folder) / FACTS, json.dumps(facts, indent=2) + "\n")


def counted(data: Dataset) -> dict[str, int]:
    """How much of what a data set holds: images (of these `unreadable`), captions, different ones, those in ASCII."""
    texts = [text for captions in data.captions for text in captions]
    return {"images": len(data), "unreadable": len(data.bad), "captions": len(texts),
            "different_captions": len(set(texts)), "ascii_captions": sum(map(str.isascii, texts))}


def machine(device: torch.device) -> dict:
    """What is computed on; a GPU by its name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": device.type, "name": name, "cpu_cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "system": platform.system()}


def software() -> dict[str, str]:
    """Versions of Python, of this package and of what it computes with."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that was not installed
            continue
    return versions


def revision(file: Path = Path(__file__)) -> dict | None:
    """The commit of the repository that this code is tracked in, and whether tracked files were `changed` since.

    None where that cannot be told: installed from a package, no git, or somebody else's repository around it.
    """
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, timeout=20,
                              check=True).stdout.strip()
    try:
        git("ls-files", "--error-unmatch", file.name)
        return {"revision": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def evaluated(source: str, checkpoint: str | None, data: str, split: str) -> dict:
    """What an evaluation's numbers are of: data set, split, sha256 of the weights (None for a Hub id's), and the
    `level` of its confidence intervals."""
    weights = Path(source).expanduser() / (checkpoint or "") / WEIGHTS
    return {"data": data, "split": split, "checkpoint": checkpoint, "level": LEVEL,
            "weights": file_digest(weights) if weights.is_file() else None}


def settings(folder: Path) -> dict:
    """Of a run or checkpoint folder, as its `run.json` tells them; empty where it has none.

    A checkpoint's names no folder of this computer: the run that it lies in knows them. Raises `ValueError`.
    """
    own, around = (read_settings(path) if path.is_file() else {}
                   for path in (folder / "run.json", folder.parent / "run.json"))
    return located(own, around)


def read_settings(path: Path) -> dict:
    """What a `run.json` holds. Raises `ValueError` where that is nothing: usual settings may not stand in for it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not readable: {error}") from None
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{path}: expected the settings of a run, got {str(values)!r:.80}")
    return values


def data_settings(source: str, checkpoint: str | None, root: str | None) -> DataConfig:
    """How the data set `root` (None: the run's own) is opened to evaluate the run `source`: as the run did, if it did.

    Of another one, or the same by another name, at least the same images are held out as were from training.
    """
    folder = Path(source).expanduser() / (checkpoint or "")
    if not (found := settings(folder)):
        return DataConfig(root=root or DataConfig.root)
    own = from_dict(DataConfig, found.get("data", {}), where=f"{folder / 'run.json'}: data")
    here = own.cache and Path(own.cache).expanduser().is_dir()  # that of another computer is not
    cache = own.cache if here else None
    root = own.root if root is None else root
    if root == own.root or (Path(root).exists() and Path(root).resolve() == Path(own.root).expanduser().resolve()):
        return replace(own, root=root, cache=cache)
    return DataConfig(root=root, val_fraction=own.val_fraction, cache=cache)
