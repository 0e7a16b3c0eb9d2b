"""What a trained model can do on held-out images: retrieval, re-ranked retrieval, and the quality of its captions.

N images, M captions (any number an image), L caption tokens, P patches, D width.
Everything is encoded once; scores of images x captions are only ever held a chunk at a time, so that COCO's
5,000 x 25,000 fits in a few GB. Models compute in bf16 where the processor does so natively, as in training; features
and scores are float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bitgen import figures, retrieval
from bitgen.candidates import candidates
from bitgen.encoded import Gallery, batches, encode, words
from bitgen.matching import Weights
from bitgen.precision import inference_autocast
from bitgen.scenes import attributes_right
from bitgen.tokenizer import plain

FOLD, FOLDED = 1000, 5000  # COCO's 5 x 1k protocol: images a fold, and the gallery size from which it is reported
EPISODE = 24  # images written to the memory together, as in training (`loss.episode`)

PERPLEXITIES = {"with the image": "perplexity", "memory written": "perplexity_memory", "chance": "chance_perplexity",
                "another image": "perplexity_shuffled", "blank image": "perplexity_blank"}


@torch.no_grad()
def evaluate(model, processor, dataset, rerank: int = 32, batch_size: int = 64, device: str | None = None,
             weights: Weights | None = None, gallery: Gallery | None = None) -> dict[str, float]:
    """Everything measured of `model` on `dataset`, as flat keys; the model is left as it was.

    - `images`, `captions`, `unreadable` (images that were skipped)
    - `i2t_r1 … t2i_median_rank`, each with `chance_` in front; `i2t_r1_low`, `…_high`: 95 % interval over images
    - `rerank_…`: the first `rerank` candidates (0 leaves it out) put in the order of ITC logit and what matching head
      and decoder say of the pair (see matching.py), each direction with its `weights` unless some are given;
      `rerank_itm_…`: the matching head alone, with the same weight
    - `fold1k_…`: the mean over folds of 1,000 images, for galleries of 5,000 and more
    - the keys of `perplexities`, and on `scenes` those of `attributes`

    `gallery`: what `encode` returned, where it is at hand. Raises `ValueError` for a data set without readable
    images, captions that are missing, and non-finite features.
    """
    training, device = model.training, torch.device(device or next(model.parameters()).device)
    model.eval().to(device)
    try:
        with inference_autocast(device):
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


def _retrieval(model, gallery: Gallery, rerank: int, weights: Weights | None, batch_size: int,
               device) -> dict[str, float]:
    """Recalls, intervals and chance levels of one gallery, by ITC and re-ranked."""
    images, texts, owner = gallery.image_features, gallery.text_features, gallery.owner
    rankings = retrieval.rank_features(images, texts, owner)
    report = retrieval.chance(owner, len(images)) | retrieval.recalls(*rankings, owner, intervals=(1,))
    if rerank:
        found, scale = candidates(model, gallery, rerank, batch_size, device), model.scale().item()
        for prefix, change in (("rerank_", {}), ("rerank_itm_", {"words": 0.0})):
            new = (side.reranked(ranking, scale, (weights or side.weights)._replace(**change))
                   for side, ranking in zip(found, rankings))
            report |= {prefix + key: value for key, value in retrieval.recalls(*new, owner, intervals=(1,)).items()}
    return report


def picture(gallery: Gallery, dataset, image_size: int, rows: int = 2, shown: int = 5):
    """Best, typical and worst retrievals of both directions by contrast, as a figure; at most `rows` of each.

    Queries are the images, and the first caption of each, in the order of the right answer's rank.
    """
    images, texts, owner = gallery.image_features, gallery.text_features, gallery.owner
    i2t, t2i = retrieval.rank_features(images, texts, owner)
    lines = [text for i in gallery.indices for text in dataset.captions[i]]
    first = retrieval.firsts(owner, len(images))

    def pixels(place: int):
        return dataset.pixels(gallery.indices[place], image_size).numpy()

    drawn = []
    for group, place, rank in _extremes("Captions to images", t2i.ranks[first], rows):
        query = int(first[place])
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
    images alone. Images whose first and last captions are the same do not count there: what is written would be what
    is asked for. `chance_perplexity`: all tokens alike. A model that looks is far better with the image than without.
    """
    nll, tokens = Counter(), Counter()
    for rows, pixel_values in batches(processor, dataset, EPISODE, device):
        firsts, lasts = zip(*((dataset.captions[i][0], dataset.captions[i][-1]) for i in rows))
        ids, mask = words(processor, lasts, device)
        image, real = model.image_tokens(pixel_values), mask[:, 1:]
        blank = model.context(model.image_tokens(torch.zeros_like(pixel_values[:1])))
        contexts = {"": (model.context(image), real), "_blank": (blank.expand(len(rows), -1, -1), real)}
        if len(rows) > 1:
            contexts["_shuffled"] = model.context(type(image)(*(x.roll(1, 0) for x in image))), real
        several = torch.tensor([plain(one) != plain(other) for one, other in zip(firsts, lasts)], device=device)
        if model.memory is not None and several.any():
            first, shown = words(processor, firsts, device)
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
    for rows, pixel_values in batches(processor, dataset, batch_size, device):
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
