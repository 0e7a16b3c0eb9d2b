"""Questions to an index: words and pictures as features, weighted sums of them, and which model made them.

Shapes: Q queries, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitgen.encoded import words
from bitgen.images import normalise
from bitgen.matching import TO_CAPTIONS, TO_IMAGES, Evidence, Weights, blind_likelihood, evidence
from bitgen.model import BitGen, Encoded, unit
from bitgen.processing import Processor

PARTS = ("vision.", "project.", "norm_image.", "itc_image.", "text.", "itc_text.")
"""Weights that contrastive features come from; memory, fusion and decoder have no part in them."""
SETTINGS = ("num_heads", "pooling", "ternary")
"""What features depend on that weights do not show; all other settings may change without an index being lost."""


@dataclass
class Hits:
    """What Q queries found, best first; a query may have found fewer than were asked for."""

    ids: list[list[str]]
    """Ids of pictures; where captions were searched, of the pictures that they belong to."""
    scores: list[list[float]]
    """Cosines."""
    texts: list[list[str]] | None = None
    """The captions, where captions were searched."""
    matches: list[list[float]] | None = None
    """The matching head's probability that query and result belong together, where they were re-ranked."""
    gains: list[list[float]] | None = None
    """How much likelier the decoder finds the words with the picture than with a blank one, in nats, likewise."""


class Encoder:
    """A model with its processor, as a maker of features."""

    def __init__(self, model: BitGen, processor: Processor):
        self.model, self.processor = model, processor
        self.fingerprint = fingerprint(model, processor)
        self.width = model.config.hidden_size
        self.image_size = processor.vision.image_size

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def scale(self) -> float:
        """What turns a cosine into a logit of the contrast."""
        return float(self.model.scale().detach())

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

    def words(self, texts: Sequence[str]) -> tuple[Encoded, Tensor, Tensor]:
        """Tokens and features of captions, their input_ids (Q, L) and attention mask (Q, L) bool."""
        ids, mask = words(self.processor, list(texts), self.device)
        return self.model.text_tokens(ids, mask), ids, mask

    @torch.inference_mode()
    def evidence(self, images: Sequence, texts: Sequence[str]) -> Evidence:
        """`Evidence` (n,) that image i and caption i belong together; one image, or one caption, stands for all.

        Raises `ValueError` for other numbers of the two.
        """
        count = max(len(images), len(texts))
        if not {len(images), len(texts)} <= {1, count}:
            raise ValueError(f"evidence: {len(images)} images and {len(texts)} texts; expected as many, or one of them")
        image = self.model.image_tokens(self.processor(images=images)["pixel_values"].to(self.device))
        text, ids, mask = self.words(texts)
        pairs = tuple(torch.arange(count, device=self.device) if n == count else
                      torch.zeros(count, dtype=torch.int64, device=self.device) for n in (len(images), len(texts)))
        return evidence(self.model, image, text, ids, mask, pairs, blind_likelihood(self.model, ids, mask))


def rerank(encoder: Encoder, index: Any, queries: Sequence, hits: Hits, weights: Weights | None = None) -> Hits:
    """`hits` of Q queries in the order of ITC logit and evidence, which `matches` and `gains` hold.

    queries: the words that found pictures, or the pictures (as `Processor` takes them) that found captions; `weights`
    are those of the direction unless given.
    """
    found = Hits([], [], None if hits.texts is None else [], [], [])
    for i, query in enumerate(queries):
        if hits.texts is None:
            pair = [index.image(name) for name in hits.ids[i]], [query]
        else:
            pair = [query], hits.texts[i]
        order, match, gain = reordered(encoder, *pair, hits.scores[i], weights)
        for kept, some in ((found.ids, hits.ids[i]), (found.scores, hits.scores[i]), (found.matches, match),
                           (found.gains, gain), *([] if hits.texts is None else [(found.texts, hits.texts[i])])):
            kept.append([some[j] for j in order])
    return found


def reordered(encoder: Encoder, images: Sequence, texts: Sequence[str], cosines: Sequence[float],
              weights: Weights | None = None) -> tuple[list[int], list[float], list[float]]:
    """n results, of one text or one image, by ITC logit and evidence: their new order; and, in the old one, the
    matching head's probability and how much the picture tells of the words (`Evidence.match`, `.gain`). `weights` are
    those of the direction unless given.
    """
    if not len(cosines):
        return [], [], []
    found = encoder.evidence(images, texts)
    weights = weights or (TO_CAPTIONS if len(texts) > len(images) else TO_IMAGES)
    total = found.weigh(encoder.scale * torch.as_tensor(cosines, dtype=torch.float32), weights)
    return total.argsort(descending=True, stable=True).tolist(), found.match.tolist(), found.gain.tolist()


def fingerprint(model: BitGen, processor: Processor) -> str:
    """32 hex digits that change with anything a feature depends on: encoder weights, sizes, image preparation."""
    state = hashlib.blake2b(digest_size=16)
    vision = processor.vision
    said = {"image_size": vision.image_size, "mean": list(vision.mean), "std": list(vision.std),
            "max_tokens": processor.max_tokens, "tower": model.vision_config.tower,
            **{name: getattr(model.config, name) for name in SETTINGS}}
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
