"""Loading a model from a run, a checkpoint folder or the Hugging Face Hub. Nothing is ever unpickled."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file

from bitgen.config import ModelConfig, VisionConfig, from_dict
from bitgen.model import BitGen
from bitgen.processing import Processor

FILES = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")


def load(source: str | Path, checkpoint: str | None = None, revision: str | None = None,
         device: str | torch.device = "cpu") -> tuple[BitGen, Processor]:
    """Model (in evaluation mode) and processor of a run folder, a checkpoint folder or a Hub repository.

    checkpoint: a folder inside it such as `checkpoint-1000`; by default the newest weights at its root.
    revision: branch, tag or commit on the Hub. Raises `ValueError` naming what is missing or does not fit.
    """
    folder = _folder(str(source), checkpoint, revision)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        held = sorted(path.name for path in folder.glob("checkpoint-*") if path.is_dir())
        raise ValueError(f"{folder}: no model here, {', '.join(missing)} missing"
                         + (f"; its checkpoints: {', '.join(held)}" if held else ""))
    processor = Processor.load(folder)
    model = read_model(folder)
    if model.config.vocab_size != processor.tokenizer.vocab_size:
        raise ValueError(f"{folder}: the model has {model.config.vocab_size} tokens, its tokenizer.json "
                         f"{processor.tokenizer.vocab_size}")
    model.tokenizer = processor.tokenizer
    return model.to(device).eval(), processor


def read_model(folder: Path) -> BitGen:
    """The model of `config.json` and `model.safetensors`: every tensor of the right name, shape and finite."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        model = BitGen(from_dict(ModelConfig, values["model"], where="model"),
                       from_dict(VisionConfig, values["vision"], where="vision"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the configuration of a BitGen model: {error}") from None
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: does not fit config.json beside it: {error}") from None
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{path}: {len(broken)} tensors hold NaN or infinity, such as {broken[0]}")
    return model


def _folder(source: str, checkpoint: str | None, revision: str | None) -> Path:
    """The local folder of `source`, downloaded where it is a Hub id."""
    local = Path(source).expanduser()
    if checkpoint is not None and not re.fullmatch(r"checkpoint-\d+", checkpoint):
        raise ValueError(f"checkpoint {checkpoint!r}: expected a name such as 'checkpoint-1000'")
    if local.is_dir():
        if revision is not None:
            raise ValueError(f"revision {revision!r} applies to a Hub id; {source!r} is a folder")
        return local / checkpoint if checkpoint else local
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise ValueError(f"{source!r}: no such folder, and no Hub id such as ORG/NAME")
    patterns = [f"{checkpoint}/{name}" if checkpoint else name for name in FILES]
    root = Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    return root / checkpoint if checkpoint else root
