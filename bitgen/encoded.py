"""Held-out images and captions, encoded once: what retrieval, re-ranking and the index's figures are measured on.

N images, M captions (any number an image), L caption tokens, P patches, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitgen.images import BadImage, normalise
from bitgen.precision import inference_autocast

log = logging.getLogger(__name__)


@dataclass
class Gallery:
    """Held-out images and all their captions, encoded once; kept on the CPU."""

    image_features: Tensor
    """(N, D), unit length."""
    text_features: Tensor
    """(M, D), unit length."""
    owner: Tensor
    """(M,) int64: the image of each caption, as an index into the N."""
    indices: list[int]
    """The N readable images' places in the data set."""
    image_tokens: Tensor | None = None
    """(N, 1+P, D); only re-ranking needs these four."""
    text_tokens: Tensor | None = None
    """(M, L, D)."""
    input_ids: Tensor | None = None
    """(M, L) int64."""
    attention_mask: Tensor | None = None
    """(M, L) bool."""

    def fold(self, images: slice, captions: Tensor) -> Gallery:
        """The part with these images and the captions (indices) that belong to them."""
        return Gallery(self.image_features[images], self.text_features[captions], self.owner[captions] - images.start,
                       self.indices[images], self.image_tokens[images], self.text_tokens[captions],
                       self.input_ids[captions], self.attention_mask[captions])


@torch.no_grad()
def encode(model, processor, dataset, batch_size: int = 64, device: str | torch.device | None = None) -> Gallery:
    """The `Gallery` of a data set's readable images and all their captions. Unreadable ones are named in the log."""
    images, indices, device = [], [], device or next(model.parameters()).device
    for rows, pixel_values in batches(processor, dataset, batch_size, device, warn=True):
        with inference_autocast(device):
            encoded = model.image_tokens(pixel_values)
        images.append((encoded.feature.cpu(), encoded.tokens.cpu()))
        indices += rows
    if not indices:
        raise ValueError(f"nothing to evaluate: none of the {len(dataset)} images of the data set can be read")
    captions = [text for i in indices for text in dataset.captions[i]]
    owner = torch.tensor([place for place, i in enumerate(indices) for _ in dataset.captions[i]])
    ids, mask = words(processor, captions, "cpu")
    texts = []
    for rows in torch.arange(len(captions)).split(batch_size * 4):
        with inference_autocast(device):
            encoded = model.text_tokens(ids[rows].to(device), mask[rows].to(device))
        texts.append((encoded.feature.cpu(), encoded.tokens.cpu()))
    (image_features, image_tokens), (text_features, text_tokens) = (map(torch.cat, zip(*x)) for x in (images, texts))
    return Gallery(image_features, text_features, owner, indices, image_tokens, text_tokens, ids, mask)


def words(processor, captions: list[str], device) -> tuple[Tensor, Tensor]:
    """input_ids (M, L) and attention_mask (M, L) bool of captions."""
    inputs = processor(text=captions)
    return inputs["input_ids"].to(device), inputs["attention_mask"].bool().to(device)


def batches(processor, dataset, batch_size: int, device, warn: bool = False) -> Iterator[tuple[list[int], Tensor]]:
    """(places in the data set, normalised pixels (B, 3, S, S)) of the images that can be read, in order."""
    for start in range(0, len(dataset), batch_size):
        pixels = {}
        for i in range(start, min(start + batch_size, len(dataset))):
            try:
                pixels[i] = dataset.pixels(i, processor.vision.image_size)
            except BadImage as error:
                log.log(logging.WARNING if warn else logging.DEBUG, "skipped %s: %s", dataset.image_ids[i], error)
        if pixels:
            vision, batch = processor.vision, torch.stack(list(pixels.values())).to(device)
            yield list(pixels), normalise(batch, vision.mean, vision.std)
