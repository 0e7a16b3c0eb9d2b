"""Questions to an index: words and pictures as features, weighted sums of them, and which model made them.

Shapes: Q queries, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from bitgen.images import normalise
from bitgen.model import BitGen, Encoded, unit
from bitgen.processing import Processor

PARTS = ("vision.", "project.", "norm_image.", "itc_image.", "text.", "itc_text.")
"""Weights that contrastive features come from; memory, fusion and decoder have no part in them."""


class Encoder:
    """A model with its processor, as a maker of features."""

    def __init__(self, model: BitGen, processor: Processor):
        self.model, self.processor = model, processor
        self.fingerprint = fingerprint(model, processor)
        self.width = model.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def text(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (Q, D), unit length, of captions."""
        return self.words(texts)[0].feature.float().cpu().numpy()

    @torch.inference_mode()
    def images(self, images: Sequence) -> np.ndarray:
        """float32 (Q, D), unit length, of what `Processor` takes as images. Raises `BadImage`."""
        pixels = self.processor(images=images)["pixel_values"].to(self.device)
        return self.model.image_tokens(pixels).feature.float().cpu().numpy()

    @torch.inference_mode()
    def pixels(self, pixels: Tensor) -> np.ndarray:
        """float32 (Q, D), unit length, of uint8 pixels (Q, 3, S, S)."""
        vision = self.processor.vision
        encoded = self.model.image_tokens(normalise(pixels.to(self.device), vision.mean, vision.std))
        return encoded.feature.float().cpu().numpy()

    def words(self, texts: Sequence[str]) -> tuple[Encoded, Tensor]:
        """Tokens and features of captions, and their attention mask (Q, L) bool."""
        words = self.processor(text=list(texts))
        ids, mask = words["input_ids"].to(self.device), words["attention_mask"].bool().to(self.device)
        return self.model.text_tokens(ids, mask), mask


def fingerprint(model: BitGen, processor: Processor) -> str:
    """32 hex digits that change with anything a feature depends on: encoder weights, sizes, image preparation."""
    state = hashlib.blake2b(digest_size=16)
    vision = processor.vision
    said = {"image_size": vision.image_size, "mean": list(vision.mean), "std": list(vision.std),
            "max_tokens": processor.max_tokens, "model": asdict(model.config), "tower": model.vision_config.tower}
    state.update(json.dumps(said, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(PARTS):
            state.update(name.encode())
            state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return state.hexdigest()


def mix(features: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """One query (1, D), unit length: the sum of `features (n, D)`, each times its weight; negative takes away.

    `"beach" + this picture - "people"` is `mix([beach, picture, people], [1, 1, -1])`. Raises `ValueError` where
    nothing is left.
    """
    features = np.atleast_2d(np.asarray(features, np.float32))
    if len(features) != len(weights) or not len(weights):
        raise ValueError(f"mix: {len(features)} features and {len(weights)} weights; expected one weight for each")
    total = np.asarray(weights, np.float32) @ features
    if not np.isfinite(total).all() or np.linalg.norm(total) < 1e-6:
        raise ValueError(f"mix: with weights {[float(w) for w in weights]} nothing is left to look for")
    return unit(torch.from_numpy(total)[None]).numpy()
