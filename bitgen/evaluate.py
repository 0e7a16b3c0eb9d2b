"""What a trained model can do on held-out images: retrieval, re-ranked retrieval, and the quality of its captions.

N images, M captions (any number an image), L caption tokens, P patches, D width, T pairs, K candidates of a query.
Everything is encoded once; scores of images x captions are only ever held a chunk at a time, so that COCO's
5,000 x 25,000 fits in a few GB. Models compute in bf16 where the processor does so natively, as in training; features
and scores are float32.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bitgen import figures, retrieval
from bitgen.images import BadImage, normalise
from bitgen.matching import WEIGHTS, Evidence, Weights, blind, evidence
from bitgen.model import Encoded
from bitgen.precision import fast
from bitgen.scenes import attributes_right

FOLD, FOLDED = 1000, 5000  # COCO's 5 x 1k protocol: images a fold, and the gallery size from which it is reported
EPISODE = 24  # images written to the memory together, as in training (`loss.episode`)

PERPLEXITIES = {"with the image": "perplexity", "memory written": "perplexity_memory", "chance": "chance_perplexity",
                "another image": "perplexity_shuffled", "blank image": "perplexity_blank"}

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
def evaluate(model, processor, dataset, rerank: int = 32, batch_size: int = 64, device: str | None = None,
             weights: Weights = WEIGHTS, gallery: Gallery | None = None) -> dict[str, float]:
    """Everything measured of `model` on `dataset`, as flat keys; the model is left as it was.

    - `images`, `captions`, `unreadable` (images that were skipped)
    - `i2t_r1 … t2i_median_rank`, each with `chance_` in front; `i2t_r1_low`, `…_high`: 95 % interval over images
    - `rerank_…`: the first `rerank` candidates (0 leaves it out) put in the order of ITC logit and what matching head
      and decoder say of the pair (see matching.py); `rerank_itm_…`: by the matching head alone
    - `fold1k_…`: the mean over folds of 1,000 images, for galleries of 5,000 and more
    - the keys of `perplexities`, and on `scenes` those of `attributes`

    `gallery`: what `encode` returned, where it is at hand. Raises `ValueError` for a data set without readable
    images, captions that are missing, and non-finite features.
    """
    training, device = model.training, torch.device(device or next(model.parameters()).device)
    model.eval().to(device)
    try:
        with fast(device):
            return _evaluate(model, processor, dataset, rerank, batch_size, device, weights,
                             gallery or encode(model, processor, dataset, batch_size, device))
    finally:
        model.train(training)


def _evaluate(model, processor, dataset, rerank, batch_size, device, weights, gallery) -> dict[str, float]:
    images = len(gallery.indices)
    report = {"images": images, "captions": len(gallery.owner), "unreadable": len(dataset) - images}
    report |= _retrieval(model, gallery, rerank, weights, batch_size * 4, device)
    if images >= FOLDED:
        folds = [gallery.fold(*part) for part in retrieval.split(gallery.owner, images, FOLD)]
        means = retrieval.mean_report([_retrieval(model, fold, rerank, weights, batch_size * 4, device)
                                       for fold in folds])
        report |= {f"fold1k_{key}": means[key] for key in means if not key.endswith(("_low", "_high"))}
    report |= perplexities(model, processor, dataset, device)
    if getattr(dataset, "truth", None) is not None:
        report |= attributes(model, processor, dataset, batch_size * 4, device)
    return report


def summary(report: dict[str, float]) -> str:
    """The recalls of `evaluate` beside chance, and the captions' quality, as lines for the terminal."""
    names = [f"{way}_r{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]
    lines = [f"{report['images']} images, {report['captions']} captions"
             + (f", {report['unreadable']} unreadable" if report["unreadable"] else ""),
             f"{'':<14}" + "".join(f"{name.replace('_r', ' R@'):>10}" for name in names)]
    lines += [f"{title:<14}" + "".join(f"{report[prefix + name]:>10.3f}" for name in names)
              for title, prefix in (("contrast", ""), ("re-ranked", "rerank_"), ("by ITM alone", "rerank_itm_"),
                                    ("chance", "chance_"))
              if prefix + names[0] in report]
    lines.append("caption perplexity: " + ", ".join(
        f"{title} {report[key]:.2f}" for title, key in PERPLEXITIES.items() if key in report))
    if "caption_attributes" in report:
        lines.append("attributes right in captions: " + ", ".join(
            f"{name} {report[f'caption_{name}']:.3f} (chance {report[f'chance_caption_{name}']:.3f})"
            for name in ("colour", "shape", "relation", "attributes")))
    return "\n".join(lines)


# Retrieval ------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode(model, processor, dataset, batch_size: int = 64, device: str | torch.device = "cpu") -> Gallery:
    """The `Gallery` of a data set's readable images and all their captions. Unreadable ones are named in the log."""
    images, indices = [], []
    for rows, pixel_values in _batches(processor, dataset, batch_size, device, warn=True):
        with fast(device):
            encoded = model.image_tokens(pixel_values)
        images.append((encoded.feature.cpu(), encoded.tokens.cpu()))
        indices += rows
    if not indices:
        raise ValueError(f"nothing to evaluate: none of the {len(dataset)} images of the data set can be read")
    captions = [text for i in indices for text in dataset.captions[i]]
    owner = torch.tensor([place for place, i in enumerate(indices) for _ in dataset.captions[i]])
    ids, mask = _words(processor, captions, "cpu")
    texts = []
    for rows in torch.arange(len(captions)).split(batch_size * 4):
        with fast(device):
            encoded = model.text_tokens(ids[rows].to(device), mask[rows].to(device))
        texts.append((encoded.feature.cpu(), encoded.tokens.cpu()))
    (image_features, image_tokens), (text_features, text_tokens) = (map(torch.cat, zip(*x)) for x in (images, texts))
    return Gallery(image_features, text_features, owner, indices, image_tokens, text_tokens, ids, mask)


def _retrieval(model, gallery: Gallery, rerank: int, weights: Weights, batch_size: int, device) -> dict[str, float]:
    """Recalls, intervals and chance levels of one gallery, by ITC and re-ranked."""
    images, texts, owner = gallery.image_features, gallery.text_features, gallery.owner
    rankings = retrieval.rank_features(images, texts, owner)
    report = retrieval.chance(owner, len(images)) | _recalls("", *rankings, owner)
    if rerank:
        found, scale = candidates(model, gallery, rerank, batch_size, device), model.scale().item()
        for prefix, chosen in (("rerank_", weights), ("rerank_itm_", weights._replace(words=0.0))):
            report |= _recalls(prefix, *(side.reranked(ranking, scale, chosen)
                                         for side, ranking in zip(found, rankings)), owner)
    return report


def _recalls(prefix: str, i2t: retrieval.Ranking, t2i: retrieval.Ranking, owner: Tensor) -> dict[str, float]:
    report = i2t.report(f"{prefix}i2t") | t2i.report(f"{prefix}t2i")
    for name, ranking, cluster in (("i2t", i2t, torch.arange(len(i2t.better))), ("t2i", t2i, owner)):
        low, high = retrieval.interval(ranking.hits(1), cluster)
        report |= {f"{prefix}{name}_r1_low": low, f"{prefix}{name}_r1_high": high}
    return report


class Candidates(NamedTuple):
    """The first K candidates of each of Q queries, and what the model says of them once both are read together."""

    cosines: Tensor
    """(Q, K), best first."""
    right: Tensor
    """(Q, K) bool: candidates that belong to the query."""
    evidence: Evidence
    """Of all Q x K pairs, as (Q, K)."""

    def reranked(self, ranking: retrieval.Ranking, scale: float, weights: Weights = WEIGHTS) -> retrieval.Ranking:
        """`ranking` of the same queries after the candidates were put in the order of ITC logit and evidence."""
        return retrieval.rerank(ranking, self.evidence.weigh(scale * self.cosines, weights), self.right)


def candidates(model, gallery: Gallery, first: int = 32, batch_size: int = 256,
               device: str | torch.device = "cpu") -> tuple[Candidates, Candidates]:
    """The captions that images find first, and the images that captions find first.

    A pair that is a candidate in both directions is read once.
    """
    images, texts, owner, captions = gallery.image_features, gallery.text_features, gallery.owner, len(gallery.owner)
    i2t, found_texts = retrieval.nearest(images, texts, first)                              # (N, K)
    t2i, found_images = retrieval.nearest(texts, images, first)                             # (M, K)
    pairs = torch.cat([(torch.arange(len(images))[:, None] * captions + found_texts).flatten(),
                       (found_images * captions + torch.arange(captions)[:, None]).flatten()])
    unique, place = pairs.unique(return_inverse=True)
    known = pair_evidence(model, gallery, unique // captions, unique % captions, batch_size, device)
    sides = zip(*(x[place].split([found_texts.numel(), found_images.numel()]) for x in known))
    own = owner[found_texts] == torch.arange(len(images))[:, None], found_images == owner[:, None]
    return tuple(Candidates(cosines, right, Evidence(*(x.view_as(cosines) for x in side)))
                 for cosines, right, side in zip((i2t, t2i), own, sides))


@torch.no_grad()
def pair_evidence(model, gallery: Gallery, images: Tensor, captions: Tensor, batch_size: int = 256,
                  device: str | torch.device = "cpu") -> Evidence:
    """`Evidence` that `images (T,)` and `captions (T,)` of the gallery belong together; from encoded tokens.

    Captions of equal length go together, so that no padding is read, and among them the pairs of an image, so that
    what fusion and decoder do with the image alone is done few times. Raises `ValueError` for non-finite numbers.
    """
    ids, mask = gallery.input_ids, gallery.attention_mask
    lengths = mask.sum(1)
    unseen = torch.empty(len(ids))
    for rows in lengths.argsort().split(batch_size):
        with fast(device):
            unseen[rows] = blind(model, *(x[rows, :lengths[rows].max()].to(device) for x in (ids, mask))).cpu()
    order = (lengths[captions] * len(gallery.indices) + images).argsort()
    found = torch.empty(len(Evidence._fields), len(order))
    for rows in order.split(batch_size):
        length = int(lengths[captions[rows]].max())
        (used, image), (said, caption) = (x[rows].unique(return_inverse=True) for x in (images, captions))
        shown = Encoded(gallery.image_tokens[used].to(device), gallery.image_features[used].to(device))
        words = Encoded(gallery.text_tokens[said, :length].to(device), gallery.text_features[said].to(device))
        with fast(device):
            found[:, rows] = torch.stack(evidence(
                model, shown, words, ids[said, :length].to(device), mask[said, :length].to(device),
                (image.to(device), caption.to(device)), unseen[said].to(device)))
    return Evidence(*found)


def picture(gallery: Gallery, dataset, image_size: int, rows: int = 2, shown: int = 5):
    """Best, typical and worst retrievals of both directions by contrast, as a figure; at most `rows` of each.

    Queries are the images, and the first caption of each, in the order of the right answer's rank.
    """
    images, texts, owner = gallery.image_features, gallery.text_features, gallery.owner
    i2t, t2i = retrieval.rank_features(images, texts, owner)
    lines = [text for i in gallery.indices for text in dataset.captions[i]]
    firsts = torch.searchsorted(owner, torch.arange(len(images)))  # captions stand grouped by image

    def pixels(place: int):
        return dataset.pixels(gallery.indices[place], image_size).numpy()

    drawn = []
    for group, place, rank in _extremes("Captions to images", t2i.ranks[firsts], rows):
        query = int(firsts[place])
        found = retrieval.nearest(texts[[query]], images, shown)[1][0].tolist()
        right = [i == place for i in found]
        drawn.append(figures.Query(lines[query], [pixels(i) for i in found], right, rank, group))
    for group, place, rank in _extremes("Images to captions", i2t.ranks, rows):
        found = retrieval.nearest(images[[place]], texts, shown)[1][0]
        right = (owner[found] == place).tolist()
        drawn.append(figures.Query(pixels(place), [lines[i] for i in found], right, rank, group))
    return figures.retrievals(drawn, gallery=(len(images), len(texts)))


def _extremes(name: str, ranks: Tensor, rows: int) -> Iterator[tuple[str, int, float]]:
    """(heading, query, rank) of the best, middle and worst queries; none twice."""
    order = ranks.argsort(stable=True).tolist()
    rows = min(rows, len(order) // 3) or 1
    middle = (len(order) - rows) // 2
    parts = {"best": order[:rows], "typical": order[middle:middle + rows], "worst": order[-rows:]}
    return ((f"{name}: {kind}", place, ranks[place].item()) for kind, part in parts.items() for place in part)


# Captions -------------------------------------------------------------------------------------------------


@torch.no_grad()
def perplexities(model, processor, dataset, device="cpu") -> dict[str, float]:
    """exp of the un-smoothed cross-entropy a token, end included, of each image's last caption.

    `perplexity`: with its image and an empty memory; `perplexity_blank`: with a blank image; `perplexity_shuffled`:
    with another image; `perplexity_memory`: after the first captions of 24 images were written, read back by the
    images alone. Images with one caption do not count there: what is written would be what is asked for.
    `chance_perplexity`: all tokens alike. A model that looks is far better with the image than without.
    """
    nll, tokens = Counter(), Counter()
    for rows, pixel_values in _batches(processor, dataset, EPISODE, device):
        ids, mask = _words(processor, [dataset.captions[i][-1] for i in rows], device)
        image, real = model.image_tokens(pixel_values), mask[:, 1:]
        blank = model.context(model.image_tokens(torch.zeros_like(pixel_values[:1])))
        contexts = {"": (model.context(image), real), "_blank": (blank.expand(len(rows), -1, -1), real)}
        if len(rows) > 1:
            contexts["_shuffled"] = model.context(type(image)(*(x.roll(1, 0) for x in image))), real
        several = torch.tensor([len(dataset.captions[i]) > 1 for i in rows], device=device)
        if model.memory is not None and several.any():
            first, shown = _words(processor, [dataset.captions[i][0] for i in rows], device)
            facts = model.fact(image, model.text_tokens(first, shown), shown)
            belief = model.memory.write(model.memory.prior(), *facts)
            reading = model.memory.read(belief, image.feature)
            contexts["_memory"] = model.context(image, reading), real & several[:, None]
        for name, (context, counted) in contexts.items():
            logits = F.linear(model.decode(ids[:, :-1], context)[counted], model.text.embedding.weight).float()
            nll[name] += F.cross_entropy(logits, ids[:, 1:][counted], reduction="sum").item()
            tokens[name] += int(counted.sum())
    report = {f"perplexity{name}": torch.tensor(nll[name] / tokens[name]).exp().item() for name in nll}
    return report | {"chance_perplexity": float(len(model.text.embedding.weight))}


@torch.no_grad()
def attributes(model, processor, dataset, batch_size: int = 64, device="cpu") -> dict[str, float]:
    """Share of attributes that greedy captions get right, against `dataset.truth` (`scenes`).

    `caption_colour`, `caption_shape`, `caption_relation`, and all of them together as `caption_attributes`; with
    `chance_` in front, the same captions held against the next image: what saying the usual thing is worth.
    """
    said, truth = [], []
    for rows, pixel_values in _batches(processor, dataset, batch_size, device):
        said += model.caption(pixel_values)
        truth += [dataset.truth[i] for i in rows]
    return (_attribute_shares("caption_", said, truth)
            | _attribute_shares("chance_caption_", said, truth[1:] + truth[:1]))


def _attribute_shares(prefix: str, captions: list[str], truth: list[dict]) -> dict[str, float]:
    counts = Counter()
    for caption, scene in zip(captions, truth):
        counts.update(attributes_right(caption, scene))
    names = ("colour", "shape", "relation")
    counts["attributes_right"] = sum(counts[f"{name}_right"] for name in names)
    counts["attributes_total"] = sum(counts[f"{name}_total"] for name in names)
    return {f"{prefix}{name}": counts[f"{name}_right"] / counts[f"{name}_total"] for name in (*names, "attributes")}


def _words(processor, captions: list[str], device) -> tuple[Tensor, Tensor]:
    """input_ids (M, L) and attention_mask (M, L) bool of captions."""
    words = processor(text=captions)
    return words["input_ids"].to(device), words["attention_mask"].bool().to(device)


def _batches(processor, dataset, batch_size: int, device, warn: bool = False) -> Iterator[tuple[list[int], Tensor]]:
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
