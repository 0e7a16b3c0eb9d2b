"""A memory that was edited, as a file to download or, with its model, as a new folder below one of the operator's.

Such a folder opens like any checkpoint: `bitgen.load(folder)`, `bitgen app FOLDER`. The app goes on from its facts,
which lie beside the model (`app.facts`). A script reads them through the memory's persistent belief, in which nothing
else is written, not even what the last training steps wrote:

    model.caption(pixel_values, belief=model.memory.persistent())
"""

from __future__ import annotations

import copy
import json
import os
import re
import tempfile
from pathlib import Path

import torch

from app import facts
from app.bench import Bench
from app.memory import Edits, belief, of, with_memory
from app.models import Loaded, View
from bitgen.config import to_dict
from bitgen.memory import EpisodicMemory
from bitgen.model import BitGen

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MOST = 100
"""Folders below the operator's; the next is refused, so that visitors do not fill the disk."""
HERE = ("127.0.0.1", "localhost", "::1")
"""Hosts at which nobody but this computer is listened to."""


def place(folder: str | None, host: str) -> Path | None:
    """The operator's folder, made where it is not there; None for none.

    Raises `ValueError` where it cannot be written, and where others than this computer would write to its disk.
    """
    if folder is None:
        return None
    if host not in HERE:
        raise ValueError(f"--save-to lets visitors write to this computer's disk, so it needs --host 127.0.0.1, "
                         f"got --host {host}")
    path = Path(folder).resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise ValueError(f"--save-to {folder}: expected a folder that can be written: {error.strerror}") from None


@torch.no_grad()
def edited(model: BitGen, edits: Edits) -> EpisodicMemory:
    """A copy of the model's memory whose `persistent()` is what the session's memory holds."""
    memory = copy.deepcopy(model.memory)
    written = belief(model, edits) - model.memory.prior()
    memory.written_precision.copy_(written.precision)
    memory.written_information.copy_(written.information)
    return memory


def download(bench: Bench, view: View, edits: Edits) -> bytes:
    """The edited memory as safetensors, under the names that it has in a checkpoint, its facts' words in the header."""
    from safetensors.torch import save

    model, edits = with_memory(bench, view).model, of(bench, view, edits)
    state = {f"memory.{name}": x.contiguous() for name, x in edited(model, edits).state_dict().items()}
    words = json.dumps([fact.text for fact in edits.facts])
    return save(state, {"format": "pt", "facts": words, "checkpoint": view.choice.title})


def save(bench: Bench, view: View, edits: Edits, name: str | None) -> Path:
    """The model with the edited memory and its facts as the new folder `name` below the operator's, there whole or not
    at all.

    Raises `ValueError` where there is no folder to save below, for a name that is none or taken, for one too many, and
    where the disk refuses.
    """
    loaded, edits, name = with_memory(bench, view), of(bench, view, edits), name or ""
    if bench.save_to is None:
        raise ValueError("saving is off: start the app with --save-to FOLDER, or download the memory")
    if not NAME.fullmatch(name):
        raise ValueError(f"name of the new folder: expected 1 to 64 letters, digits, - and _, got {name[:100]!r}")
    target = bench.save_to / name
    if os.path.lexists(target):
        raise ValueError(f"name of the new folder: there is a {name!r} already, and nothing is written over")
    if len(os.listdir(bench.save_to)) >= MOST:
        raise ValueError(f"{MOST} folders are saved, which is as many as there may be: take some away first")
    try:
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=bench.save_to) as partial:
            whole = Path(partial, name)
            whole.mkdir()
            _write(whole, loaded, edits)
            os.rename(whole, target)  # fails where somebody was faster: what holds files is not replaced
    except OSError as error:
        raise ValueError(f"{name!r} was not saved: {error.strerror}") from None
    return target


def _write(folder: Path, loaded: Loaded, edits: Edits) -> None:
    from safetensors.torch import save_model

    model = copy.copy(loaded.model)  # shares everything but the table of its parts, in which the memory is another
    model._modules = {**loaded.model._modules, "memory": edited(loaded.model, edits)}
    loaded.processor.save(folder)
    config = {"model": to_dict(model.config), "vision": to_dict(model.vision_config)}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    facts.write(folder, edits.facts)
