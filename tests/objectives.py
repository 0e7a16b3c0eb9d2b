"""Objectives of tiny models and batches that are hard to get right."""

from dataclasses import replace

import torch
from conftest import tiny_batch, tiny_model

from bitgen.config import LossConfig
from bitgen.model import Encoded
from bitgen.objective import Objective


def objective(gates=0.5, model=None, seed=0, **loss):
    settings = {"queue": 32, "queue_start": 0, "episode": 4, "left_out": 0.0, **loss}
    return Objective(tiny_model(seed, gates, **(model or {})), LossConfig(**settings))


def tricky_batch(seed=0):
    """Twelve captions, one to three an image; images 0 and 3 are the same, captions 2 (of 1) and 9 (of 5) are equal."""
    batch = tiny_batch(seed=seed)
    ids, captions = batch.image_ids.clone(), batch.caption_ids.clone()
    ids[3], captions[9] = ids[0], captions[2]
    return replace(batch, image_index=torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5]), image_ids=ids,
                   caption_ids=captions)


def firsts(batch):
    """Place of each image's first caption."""
    owner = batch.image_index.tolist()
    return [owner.index(i) for i in range(len(batch.image_ids))]


def spied(function, calls):
    """`function`, noting arguments and result of each call."""
    def call(*args):
        calls.append((args, function(*args)))
        return calls[-1][1]
    return call


def perfect(task, images=6):
    """Each image and its captions at one place, different images orthogonal."""
    batch = tiny_batch(images=images)
    features = torch.eye(32)[:images]
    tokens = task.model.image_tokens(batch.pixel_values).tokens, task.model.text_tokens(
        batch.input_ids, batch.attention_mask).tokens
    return batch, Encoded(tokens[0], features), Encoded(tokens[1], features[batch.image_index])
