"""What a run is made of: its tokenizer, its model, its optimizer; new ones, or those of the checkpoint it goes on from.

`resume_from` is a checkpoint folder, or None.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim import AdamW, Optimizer

from bitgen.admission import check_extent, check_sizes, check_tokenizer
from bitgen.config import Config, VisionConfig, from_dict, to_dict
from bitgen.cooccurrence import token_embedding
from bitgen.dataset import Dataset
from bitgen.model import EMBEDDING_STD, BitGen
from bitgen.optimizer import MuonAdamW, parameter_groups
from bitgen.tokenizer import Tokenizer
from bitgen.vision import resolve_tower

GPT2 = "openai-community/gpt2"
SHAPING = {
    "model": ("hidden_size", "text_layers", "decoder_layers", "num_heads", "intermediate_size", "max_tokens",
              "fusion_layers", "fusion_gates", "memory_slots"),
    "vision": ("name", "trainable", "image_size", "mean", "std"),  # not `pretrained`, which may be elsewhere by now
    "loss": ("queue",),
    "optim": ("muon",),
}
"""Settings that weights, queue and optimizer of a checkpoint were made for."""
OF_THE_TOWER = ("mean", "std")
"""Those that a pretrained tower brings along where they are left as they usually are."""


def make_tokenizer(config: Config, data: Dataset, resume_from: Path | None) -> Tokenizer:
    """The run's own where it resumes, else as `data.tokenizer` says, trained on the captions of `data`.

    Raises `ValueError` for a tokenizer that cannot be had, and for one that could not be loaded again after training.
    """
    source = config.data.tokenizer
    if resume_from is not None:
        return Tokenizer.load(resume_from)
    if source == "train":
        return Tokenizer.train([text for captions in data.captions for text in captions], config.data.vocab_size)
    if source != "gpt2" and not Path(source).expanduser().is_dir():
        raise ValueError(f"data.tokenizer {source!r}: no such folder; expected `train`, `gpt2` or a folder with "
                         "tokenizer.json, vocab.json and merges.txt, or encoder.json and vocab.bpe")
    try:
        tokenizer = Tokenizer.gpt2(GPT2 if source == "gpt2" else Path(source).expanduser())
        with tempfile.TemporaryDirectory() as folder:
            check_tokenizer(tokenizer.save(folder), tokenizer.vocab_size)
    except (ValueError, OSError) as error:
        raise ValueError(f"data.tokenizer {source!r} cannot be used: {error}") from error
    return tokenizer


def make_model(config: Config, tokenizer: Tokenizer, captions: Sequence[Sequence[str]],
               resume_from: Path | None) -> BitGen:
    """The model; completes `config.model` and `.vision`.

    Where the run is new its tower has its pretrained weights, and its words begin as `model.embedding_start` says, from
    the `captions` of each training image.

    Raises `ValueError` for one that is so large that `bitgen.load` would refuse it after training, and for a checkpoint
    of a model of other sizes, another queue or another optimizer.
    """
    weights = None
    config.model.vocab_size = tokenizer.vocab_size
    if resume_from is None:
        config.vision, weights = resolve_tower(config.vision)
    else:  # the tower's configuration is in the checkpoint; where it once came from may be gone
        saved = json.loads((resume_from / "run.json").read_text(encoding="utf-8"))
        _check_same(config, saved, resume_from)
        config.vision = replace(from_dict(VisionConfig, saved["vision"]), patch_dropout=config.vision.patch_dropout)
    check_sizes(config.model, config.vision)
    model = BitGen(config.model, config.vision)
    check_extent(model)
    if weights is not None:
        model.vision.load_state_dict(weights)
    if resume_from is None and config.model.embedding_start == "captions":
        embedding = model.text.embedding.weight.data
        company = token_embedding(captions, tokenizer, embedding.shape[1], config.model.max_tokens)
        torch.where(company.any(1, keepdim=True), company * EMBEDDING_STD, embedding, out=embedding)
    model.tokenizer = tokenizer
    return model


def _check_same(config: Config, saved: dict, resume_from: Path) -> None:
    """Raise `ValueError` where weights or optimizer of the checkpoint with `saved` settings could not be taken over."""
    usual, now = to_dict(Config()), to_dict(config)  # older runs lack what was usual in their time
    changed = []
    for part, name in ((part, name) for part, names in SHAPING.items() for name in names):
        old, new, default = (values[part].get(name, usual[part][name]) for values in (saved, now, usual))
        if new != old and not (name in OF_THE_TOWER and new == default):
            changed.append(f"{part}.{name} {old} -> {new}")
    old, new = saved["loss"]["momentum"], config.loss.momentum
    if bool(old) != bool(new):
        changed.append(f"loss.momentum {old} -> {new}")
    if changed:
        raise ValueError(f"cannot resume from {resume_from} with a model of other sizes, another queue or another "
                         f"optimizer: {', '.join(changed)}; leave them as they were, or begin anew in another "
                         "--output-dir")


def make_optimizer(model: BitGen, config: Config) -> Optimizer:
    """AdamW, or Muon and AdamW, with groups at their peak rates."""
    groups, betas = parameter_groups(model, config.optim), config.optim.betas
    if config.optim.muon:
        return MuonAdamW(groups, betas, config.optim.muon_momentum)
    return AdamW(groups, betas=betas, fused=True)
