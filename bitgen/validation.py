"""Validation during training: the losses of the whole held-out split, and its recall."""

from __future__ import annotations

import dataclasses
import logging

import torch
from accelerate import Accelerator

from bitgen.cache import check_bad
from bitgen.config import Config
from bitgen.data import Batch, Collator
from bitgen.encoded import Gallery
from bitgen.images import normalise
from bitgen.leak import leak
from bitgen.model import BitGen
from bitgen.objective import Objective
from bitgen.retrieval import recall_at_k
from bitgen.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@torch.no_grad()
def validate(model: BitGen, config: Config, data, tokenizer: Tokenizer, accelerator: Accelerator,
             batch_size: int = 100) -> tuple[dict[str, float], Gallery]:
    """Losses without queue and without augmentation, and recall over the whole split; the same at every call.

    With them what the decoder makes of words in random order (`bitgen.leak`), in the last batch. Images that cannot be
    read are left out and named in the log; too many of them (`data.max_bad_fraction`) raise `ValueError`.

    Nothing of the model's state changes: hard negatives and left-out images come from a fixed seed.
    """
    objective = Objective(model, dataclasses.replace(config.loss, queue=0, momentum=0.0)).eval()
    places = [i for i in range(len(data)) if i not in data.bad]
    collator = Collator(data, tokenizer, config.vision.image_size, None, config.seed, config.model.max_tokens)
    sums: dict[str, float] = {}
    images, texts, owners, kept = [], [], [], []
    gpu = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpu):
        torch.manual_seed(0)
        for start in range(0, len(places), batch_size):
            rows, read = _readable(collator, places[start: start + batch_size])
            if not rows:
                continue
            batch = read.to(accelerator.device)
            pixels = normalise(batch.pixel_values, config.vision.mean, config.vision.std)
            batch = dataclasses.replace(batch, pixel_values=pixels)
            with accelerator.autocast():
                image, text = model.image_tokens(pixels), model.text_tokens(batch.input_ids, batch.attention_mask)
                losses, report, _ = objective.score(image, text, batch)
            images.append(image.feature)
            texts.append(text.feature)
            owners.append(batch.image_index + len(kept))
            kept += rows
            for name, value in {**losses, **report}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(pixels) / len(places)
        check_bad(collator.bad, len(data), config.data.max_bad_fraction)
        if not kept:
            reasons = {data.image_ids[i]: reason for i, reason in data.bad.items()} | collator.bad
            first = ": ".join(next(iter(reasons.items())))
            raise ValueError(f"none of the {len(data)} validation images can be read, such as {first}")
        sums = {name: value / (len(kept) / len(places)) for name, value in sums.items()}
        with accelerator.autocast():  # last of all, so that nothing above draws other random numbers for it
            sums |= leak(objective, image, batch)
    gallery = Gallery(*(torch.cat(x).cpu() for x in (images, texts, owners)), indices=kept)
    recall = recall_at_k(gallery.image_features, gallery.text_features, gallery.owner)
    return {**sums, **{name: float(value) for name, value in recall.items()}, "images": len(kept)}, gallery


def _readable(collator: Collator, places: list[int]) -> tuple[list[int], Batch]:
    """Those of the places whose image can be read, and the batch of these, without stand-ins."""
    batch = collator(places, 0)
    for name, reason in batch.bad.items():
        log.warning("skipped %s: %s", name, reason)
    kept = [i for i in places if collator.dataset.image_ids[i] not in collator.bad]
    return kept, batch if len(kept) == len(places) or not kept else collator(kept, 0)
