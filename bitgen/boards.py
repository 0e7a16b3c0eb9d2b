"""What TensorBoard shows of a run beside its curves: after each validation, how features, memory and attention stand.

    boards.validated(log, step, model, gallery, data)
    boards.finished(log, step, model, data, loss)

Curves are logged as they come; here are histograms, pictures, the projector's thumbnails, the precision of matching and
what can be read off the features; at the end what costs more: which loss reaches which part, and how the loss lies.
N images, M captions, K slots.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitgen import feature_figures, memory_figures, network_figures
from bitgen.attention import attention_entropy, decoder_attention
from bitgen.config import LossConfig
from bitgen.data import Batch
from bitgen.diagnostics import activations, batch_of, deterministic_eval, gradient_table, landscape
from bitgen.encoded import Gallery
from bitgen.evaluate import picture
from bitgen.geometry import geometry, similarity
from bitgen.images import normalise
from bitgen.logs import RunLog
from bitgen.model import BitGen
from bitgen.probes import FOLDS, known_labels, probe
from bitgen.processing import Processor
from bitgen.projection import pca
from bitgen.retrieval import firsts
from bitgen.slots import by_label, facts, mass

FIRST = 64  # images that are looked at closely
NAMED = ("colour", "background", "word")  # kinds of labels that slots are held against
FINAL = 16  # images of the batch that the end's gradients and landscape are measured on
POINTS = 9  # of the landscape
MAPPED = 500  # images in the projector, each with its first caption
TINT = np.array([[[230]], [[159]], [[0]]])  # orange, half of a caption's thumbnail


@torch.no_grad()
def validated(log: RunLog, step: int, model: BitGen, gallery: Gallery, data: Any) -> None:
    """Log what notebook pages draw, for the held-out images of `gallery` (features of N images and all M captions).

    data: the data set of the gallery; `model.tokenizer` must be set. The model and the random state are left as they
    were. Takes a few seconds of one core, most of them for drawing.
    """
    with deterministic_eval(model):
        log.figure("retrieval/answers", picture(gallery, data, model.vision_config.image_size), step)
        weights(log, step, model)
        features(log, step, gallery)
        probes(log, step, gallery, data)
        projector(log, step, gallery, data, model.vision_config.image_size)
        close, batch = _close_up(model, gallery, data)
        matching(log, step, model, close)
        log.figure("activations/layers", network_figures.activations(*zip(*activations(model, batch))), step)
        attention(log, step, model, batch)
        if model.memory is not None:
            memory(log, step, model, close, data)


def finished(log: RunLog, step: int, model: BitGen, data: Any, loss: LossConfig) -> None:
    """Log what costs more than a validation should: the gradient of each loss in each part, and the loss around the
    weights, on 16 images of `data`; nothing for fewer than 2. The model and the random state are left as they were.
    """
    if len(data) - len(data.bad) < 2:
        return
    processor = Processor(model.tokenizer, model.vision_config, model.config.max_tokens)
    batch = batch_of(data, processor, FINAL).to(next(model.parameters()).device)
    with deterministic_eval(model):
        log.figure("loss/gradients", network_figures.gradient_table(gradient_table(model, batch, loss)), step)
        lines = landscape(model, batch, loss, points=POINTS, directions=1)
        log.figure("loss/landscape", network_figures.landscape(*lines), step)


def weights(log: RunLog, step: int, model: BitGen) -> None:
    """How the weights of each part are distributed."""
    for name, part in model.named_children():
        if found := [p.detach().flatten() for p in part.parameters()]:
            log.histogram(f"weights/{name}", torch.cat(found), step)


def features(log: RunLog, step: int, gallery: Gallery) -> None:
    """Gap, alignment, uniformity; cosines of pairs and of others; the similarity matrix; the map by PCA."""
    images, texts, owner = gallery.image_features, gallery.text_features, gallery.owner
    numbers = geometry(images, texts, owner)
    log.scalars(step, {f"features/{name}": value for name, value in numbers.items() if name != "width"})
    log.histogram("cosine/belong together", (images[owner] * texts).sum(1), step)
    if len(images) < 2:
        return
    log.histogram("cosine/others", (images.roll(1, 0)[owner] * texts).sum(1), step)
    log.figure("features/similarity", feature_figures.similarity(similarity(images, texts, owner, FIRST)), step)
    some = owner < FIRST * 2
    plane = pca(torch.cat([images[: FIRST * 2], texts[some]]))
    panel = {f"step {step}": (plane.project(images[: FIRST * 2]), plane.project(texts[some]))}
    log.figure("features/map", feature_figures.embedding_map(panel, owner[some]), step)


def probes(log: RunLog, step: int, gallery: Gallery, data: Any) -> None:
    """What a linear map reads off the images' features, beside shuffled labels: each label, and means by kind.

    Nothing for too few images or labels.
    """
    labels = known_labels(data, gallery.indices)
    if not labels.names or len(gallery.indices) < 2 * FOLDS:
        return
    found = probe(gallery.image_features, labels.values)
    kinds = np.array(labels.kinds)
    means = {f"probe/{kind}": found.auc[kinds == kind].mean() for kind in dict.fromkeys(labels.kinds)}
    log.scalars(step, means | {"probe/shuffled labels": found.shuffled.mean()})
    scores = {"this step": found.auc, "shuffled labels": found.shuffled}
    log.figure("features/probes", feature_figures.probes(labels.names, labels.kinds, scores), step)


def projector(log: RunLog, step: int, gallery: Gallery, data: Any, size: int) -> None:
    """Images and their first captions for the projector; a caption's thumbnail is its image's, tinted orange."""
    count = min(MAPPED, len(gallery.indices))
    places = gallery.indices[:count]
    pictures = [data.pixels(i, size).numpy() for i in places]
    tinted = [((image.astype(np.int64) + TINT) // 2).astype(np.uint8) for image in pictures]
    said = [data.captions[i][0] for i in places]
    texts = gallery.text_features[firsts(gallery.owner, count)]
    log.embedding(f"features, step {step}", torch.cat([gallery.image_features[:count], texts]),
                  {"caption": said * 2, "what": ["image"] * count + ["caption"] * count,
                   "image": [data.image_ids[i] for i in places] * 2}, pictures + tinted)


def matching(log: RunLog, step: int, model: BitGen, close: Gallery) -> None:
    """Precision and recall of matching: each image with its caption, and with the most similar wrong one.

    The tag must not be that of a curve: TensorBoard would show only one of the two.
    """
    count = len(close.indices)
    cosines = close.text_features @ close.image_features.T                                   # (n, n)
    wrong = cosines.fill_diagonal_(float("-inf")).argmax(0)
    images, captions = torch.arange(count).repeat(2), torch.cat([torch.arange(count), wrong])
    device = next(model.parameters()).device
    logits = model.match_tokens(close.image_tokens.to(device), close.text_tokens.to(device),
                                close.attention_mask.to(device), (images.to(device), captions.to(device)))
    if count > 1:
        log.pr_curve("matching", logits.softmax(-1)[:, 1], torch.arange(2 * count) < count, step)
        log.histogram("matching/right", (logits[:count, 1] - logits[:count, 0]), step)
        log.histogram("matching/hard negative", (logits[count:, 1] - logits[count:, 0]), step)


def attention(log: RunLog, step: int, model: BitGen, batch: Batch) -> None:
    """How spread every head's attention is, and where the first caption's words look."""
    log.figure("attention/spread", network_figures.attention_entropy(attention_entropy(model, batch)), step)
    mask = batch.attention_mask[:1]
    looks = decoder_attention(model, batch.pixel_values[:1], batch.input_ids[:1], mask)
    words = [model.tokenizer.decode([i]).strip() or "·" for i in batch.input_ids[0][mask[0]].tolist()[1:]]
    words[-1] = "(end)"
    pixels = _shown(batch.pixel_values[0], model)
    log.figure("attention/words", network_figures.attention(pixels, words, looks.cpu().numpy()), step)


def memory(log: RunLog, step: int, model: BitGen, close: Gallery, data: Any) -> None:
    """Mass of each slot and what it stands for, and how peaked single addresses are."""
    address = model.memory.address(facts(model, close).key.to(model.memory.prior_mean.device)).cpu()
    log.histogram("memory/largest share of a fact", mass(address).amax(1), step)
    labels = known_labels(data, close.indices)
    kept = [i for i, kind in enumerate(labels.kinds) if kind in NAMED]
    lift = ([labels.names[i] for i in kept], by_label(address, labels.values[:, kept]).numpy()) if kept else None
    log.figure("memory/slots", memory_figures.slot_usage(mass(address).mean(0).numpy(), by_label=lift), step)


def _close_up(model: BitGen, gallery: Gallery, data: Any) -> tuple[Gallery, Batch]:
    """The first images with one caption each, encoded again with their tokens; and as the batch they are."""
    places = gallery.indices[:FIRST]
    device, vision = next(model.parameters()).device, model.vision_config
    pixels = torch.stack([data.pixels(i, vision.image_size) for i in places]).to(device)
    ids, mask = model.tokenizer.encode([data.captions[i][0] for i in places], model.config.max_tokens)
    index = torch.arange(len(places))
    batch = Batch(normalise(pixels, vision.mean, vision.std), ids.to(device), mask.bool().to(device), index.to(device),
                  index.to(device), index.to(device))
    image, text = model.image_tokens(batch.pixel_values), model.text_tokens(batch.input_ids, batch.attention_mask)
    close = Gallery(image.feature, text.feature, index, places, image.tokens, text.tokens,
                    batch.input_ids, batch.attention_mask)
    return Gallery(**{f.name: _kept(getattr(close, f.name)) for f in dataclasses.fields(close)}), batch


def _kept(value: Any) -> Any:
    return value.float().cpu() if isinstance(value, Tensor) and value.is_floating_point() else value


def _shown(pixels: Tensor, model: BitGen) -> np.ndarray:
    """Normalised pixels (3, S, S) as they were, uint8."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.vision_config.mean, model.vision_config.std))
    return ((pixels.cpu() * std + mean) * 255).round().clamp(0, 255).byte().numpy()
