"""Facts: what a memory is told, and how a folder keeps them beside its model. n facts, D width."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FILE = "facts.safetensors"
PARTS = ("key", "image", "value")


class Fact(NamedTuple):
    """A picture with words, as it is written."""

    text: str
    key: Tensor
    """(D,), between picture and words as far as they agree, else the picture's."""
    image: Tensor
    """(D,), the picture's feature alone: what it is read back with."""
    value: Tensor
    """(D,)."""
    saved: bool = False
    """Whether it was saved with the model, by an earlier session."""


def write(folder: Path, facts: Sequence[Fact]) -> None:
    """Keep facts in a folder, their words in the file's header; no file for none."""
    if facts:
        words = json.dumps([fact.text for fact in facts])
        save_file({name: torch.stack([getattr(fact, name) for fact in facts]) for name in PARTS}, folder / FILE,
                  metadata={"words": words})


def read(folder: Path, width: int) -> tuple[Fact, ...]:
    """The facts that a folder keeps for a model of this width, in their order; none where it keeps none.

    Raises `ValueError` for a file that holds something else.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        with safe_open(path, "pt") as file:
            words = json.loads((file.metadata() or {}).get("words", "null"))
            tensors = {name: file.get_tensor(name) for name in PARTS}
    except json.JSONDecodeError:
        raise ValueError(f"{path}: expected facts with words in its header") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: expected facts as safetensors: {error}") from None
    if not isinstance(words, list) or not all(isinstance(text, str) for text in words):
        raise ValueError(f"{path}: expected facts with words in its header")
    for name, tensor in tensors.items():
        if tensor.shape != (len(words), width) or tensor.dtype != torch.float32:
            raise ValueError(f"{path}: expected facts of {len(words)} words and width {width} in float32, got {name} "
                             f"of {tuple(tensor.shape)} in {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: expected facts in numbers, but some of {name} are not finite")
    return tuple(Fact(text, *row, saved=True) for text, *row in zip(words, *tensors.values()))
