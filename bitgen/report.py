"""`bitgen diagnose`: what is known of a model, its training and its memory, on one page that carries everything.

N images, M captions, K slots. A chapter is made of what is there: a Hub model without history has no curves, data
without known truth no confusions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tqdm.auto import tqdm

from bitgen import attention, diagnostics, feature_figures, figures, health, memory_figures, mistakes, network_figures
from bitgen import probes as probing
from bitgen import slots as slotting
from bitgen.case import Case, gather
from bitgen.checkpoint import replace_text
from bitgen.encoded import encode
from bitgen.evaluate import picture
from bitgen.geometry import geometry, similarity
from bitgen.hub import load
from bitgen.images import normalise
from bitgen.model import BitGen
from bitgen.page import Section, figure, page, table, tiles, verdicts
from bitgen.processing import Processor
from bitgen.projection import aligned, pca, project

MAPPED = 60  # images on the map of the course
JOINT = 120  # images on the map of the model as it is
COURSE = 2  # checkpoints that the map shows beside an untrained model


def write(source: str, out: str | Path, data: str | None = None, split: str = "val", images: int = 200,
          checkpoint: str | None = None, device: str = "cpu") -> Path:
    """Write the page of a case to `out`, whose folder is made where missing; arguments and errors as of `gather`."""
    case = gather(source, data, split, images, checkpoint, device)
    chapters: list[Callable[[Case], Section | None]] = [summary, training, retrieval, features, memory, network]
    sections = [chapter(case) for chapter in tqdm(chapters, desc="diagnose", unit="chapter", leave=False)]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = page(f"BitGen: {case.name}", f"Seen through {case.where}", [section for section in sections if section])
    replace_text(out, text)
    return out


# Chapters -------------------------------------------------------------------------------------------------


def summary(case: Case) -> Section:
    """The numbers that are read first, and the verdicts of the health checks."""
    gallery, recall = case.gallery, case.recall
    values = []
    for way, title in (("t2i", "text to image"), ("i2t", "image to text")):
        value, low, high = (recall[f"{way}_r1{end}"] for end in ("", "_low", "_high"))
        values.append((f"{title}, R@1", f"{value:.3f}",
                       f"{low:.3f} to {high:.3f}, chance {recall[f'chance_{way}_r1']:.3f}"))
    counts = case.model.parameter_counts()
    values.append(("parameters", f"{case.model.outside_tower() / 1e6:.2f} M",
                   f"and {counts['vision'] / 1e6:.2f} M in the vision tower"))
    values.append(("looked at", f"{len(gallery.indices):,}", f"images, {len(gallery.owner):,} captions"))
    blocks = [tiles(values)]
    if case.history:
        blocks.append(verdicts([_verdict(each) for each in health.diagnose(case.history, case.facts)]))
    return Section("At a glance", "How well it finds, and what the health checks say of its training. Intervals are "
                   "95 %, over images.", blocks)


def _verdict(found: health.Verdict) -> tuple[str, str, str, str]:
    value = "" if found.value is None else f"{found.value:.3g}"
    chance = "" if found.chance is None or found.value is None else f" (chance {found.chance:.3g})"
    remark = found.rule if found.verdict == "OK" else f"{found.rule}. Usually: {found.meaning}. Try: {found.remedy}."
    return found.verdict if found.judged else "later", found.check, value + chance, remark


def training(case: Case) -> Section | None:
    """Curves, gates, gradients."""
    if not case.history:
        return None
    blocks = [figure(figures.curves(case.history), "Losses should fall well below chance (dashed), accuracies rise "
                     "above it. The contrast's chance level jumps where a queue begins.")]
    if any(line.get("logit_scale", 0) > 0 for line in case.history):
        blocks.append(figure(network_figures.temperature_and_gates(case.history), "The temperature sinks as the model "
                             "grows sure; gates at 0 leave the two modalities apart."))
    if any(key.startswith("grad_norm/") for line in case.history for key in line):
        blocks.append(figure(network_figures.gradient_norms(case.history), "A part that stays dark gets little from "
                             "the losses; a jump of the whole is an unstable step."))
    return Section("Training", "What the run wrote down while it trained.", blocks)


def retrieval(case: Case) -> Section:
    """Recall, answers, and what wrong answers have in common."""
    gallery = case.gallery
    features = gallery.image_features, gallery.text_features, gallery.owner
    blocks = [figure(figures.recalls(case.recall), "Recall by contrast with its 95 % interval, beside chance."),
              figure(picture(gallery, case.data, case.processor.vision.image_size), "Best, typical and worst queries "
                     "by the place of the right answer.")]
    lines = [text for i in gallery.indices for text in case.data.captions[i]]
    worst = mistakes.worst(*features, count=8)
    if worst:
        blocks.append(table(["place", "caption", "found first instead"], [
            [each.rank, lines[each.caption], case.data.captions[gallery.indices[each.found[0]]][0]] for each in worst],
            "The captions whose image comes last, one an image"))
    if case.truth:
        found, chance = mistakes.differences(*features, case.truth)
        if found:
            blocks.append(figure(feature_figures.differences(found, chance), "What it would get wrong. An attribute "
                                 "with a short bar is told well; one that reaches its chance mark does not help to "
                                 "find the image."))
        for field in ("colour", "shape"):
            shown = mistakes.confusion(*features, case.truth, field)
            drawn = feature_figures.confusion(shown.names, shown.shares, field, shown.chance.mean().item())
            blocks.append(figure(drawn, f"Which {field}s the five wrong images nearest to a caption have. On the "
                                 "diagonal is what they share with the right one, beside it what it would get wrong."))
    return Section("Retrieval", "What it finds, what it finds instead, and what it mixes up.", blocks)


def features(case: Case) -> Section:
    """Map, similarities, geometry, probes."""
    gallery = case.gallery
    images, texts, owner = gallery.image_features, gallery.text_features, gallery.owner
    numbers = geometry(images, texts, owner)
    rows = [["gap between images and captions", numbers["gap"], f"{numbers['gap_noise']:.3g} for two halves of the "
             "images"], ["alignment: squared distance of pairs", numbers["alignment"], "0 the same, 2 unrelated"],
            ["uniformity of images", numbers["uniformity_images"], "0 all alike, about -4 spread evenly"],
            ["uniformity of captions", numbers["uniformity_texts"], "the same"],
            ["cosine of pairs", numbers["positive_cosine"], f"{numbers['negative_cosine']:.3g} of all others"],
            ["directions in use by images", numbers["rank_images"], f"of {numbers['width']:.0f}"],
            ["directions in use by captions", numbers["rank_texts"], "the same"]]
    blocks = [figure(_course(case), "The first images and captions by their two main directions, before, while and "
                     "after it learned, turned so that they compare. Lines join what belongs together: they should be "
                     "short."),
              _joint(case),
              table(["what", "value", "beside"], rows)]
    if len(images) > 1:
        blocks.append(figure(feature_figures.similarity(similarity(images, texts, owner, 64)), "Look for a dark "
                             "diagonal and two distributions that do not overlap: then pairs are told from others."))
    blocks += _probes(case)
    return Section("Features", "Where images and captions lie, and what can be read off them.", blocks)


def _course(case: Case):
    """The map of an untrained model, and at the first and the last checkpoint, or of the model alone."""
    part, device = case.data.first(MAPPED), next(case.model.parameters()).device
    shown = case.checkpoints if len(case.checkpoints) <= COURSE else [
        case.checkpoints[round(i * (len(case.checkpoints) - 1) / (COURSE - 1))] for i in range(COURSE)]
    galleries = {f"step {path.name.rpartition('-')[2]}": encode(load(path, device=device)[0], case.processor, part,
                                                                device=device) for path in shown}
    galleries = galleries or {case.name: encode(case.model, case.processor, part, device=device)}
    galleries = {"untrained": encode(case.untrained, case.processor, part, device=device), **galleries}
    panels, reference = {}, None
    for title, gallery in reversed(galleries.items()):
        both = torch.cat([gallery.image_features, gallery.text_features])
        points = pca(both).project(both)
        reference = points if reference is None else reference
        points = aligned(points, reference)
        panels[title] = points[: len(gallery.indices)], points[len(gallery.indices):]
    return feature_figures.embedding_map(dict(reversed(panels.items())), gallery.owner)


def _joint(case: Case) -> str:
    """The model's images and captions in one map: who is near whom; scenes are coloured by their background."""
    gallery, count = case.gallery, min(JOINT, len(case.gallery.indices))
    said = gallery.owner < count
    plane = project(torch.cat([gallery.image_features[:count], gallery.text_features[said]]), "umap", say=tqdm.write)
    panel = {f"{count} images with their captions": (plane.points[:count], plane.points[count:])}
    groups = [scene["background"] for scene in case.truth[:count]] if case.truth else None
    drawn = feature_figures.embedding_map(panel, gallery.owner[said], plane.method.upper(), groups)
    colours = " Where one colour keeps together, the background makes neighbours." if groups else ""
    return figure(drawn, f"{plane.note}. Captions should lie within the ring of their image.{colours}")


def _probes(case: Case) -> list[str]:
    """The probes' figure, beside an untrained model; nothing for too few images or labels."""
    labels, images = case.labels, case.gallery.image_features
    if not labels.names or len(images) < 2 * probing.FOLDS:
        return []
    found = probing.probe(images, labels.values)
    pixels = case.processor.vision.image_size
    stack = torch.stack([case.data.pixels(i, pixels) for i in case.gallery.indices])
    blank = probing.probe(_encoded(case.untrained, stack, case.processor), labels.values)
    scores = {"this model": found.auc, "untrained model": blank.auc, "shuffled labels": found.shuffled}
    return [figure(feature_figures.probes(labels.names, labels.kinds, scores), "What a linear map reads off the "
                   "features of images that it was not fitted on. What lies at chance is not there in this form, "
                   "though retrieval may still use it in combinations.")]


@torch.no_grad()
def _encoded(model: BitGen, pixels: torch.Tensor, processor: Processor) -> torch.Tensor:
    """Features (N, D) of uint8 pixels (N, 3, S, S)."""
    vision = processor.vision
    device = next(model.parameters()).device
    return torch.cat([model.encode_image(normalise(part.to(device), vision.mean, vision.std)).cpu()
                      for part in pixels.split(64)])


def memory(case: Case) -> Section | None:
    """Usage, similarity, capacity, certainty."""
    if case.model.memory is None:
        return None
    unit, held = case.model.memory, slotting.facts(case.model, case.gallery)
    address = unit.address(held.key.to(unit.prior_mean.device)).detach().cpu()
    numbers, labels = slotting.usage(address), case.labels
    course = slotting.usage_over_time(case.checkpoints) if len(case.checkpoints) > 1 else None
    lift = None
    if labels.names:
        kept = [i for i, kind in enumerate(labels.kinds) if kind in ("colour", "shape", "background", "word")]
        lift = [labels.names[i] for i in kept], slotting.by_label(address, labels.values[:, kept]).numpy()
    counts = [n for n in (4, 8, 16, 24, 32, 48, 64, 96, 128) if n <= len(held.key) and n <= 4 * unit.slots]
    rows = [["slots in use", numbers["utilization"], "share; a healthy memory uses more than half"],
            ["slots not in use", numbers["dead"], f"of {unit.slots}"],
            ["perplexity of the mean address", numbers["perplexity"], f"1 one slot, {unit.slots} all alike"],
            ["slots that one fact lies on", numbers["slots_a_fact"], f"1 to {unit.slots}"]]
    if labels.names:
        bits, shuffled = slotting.information(address, labels.values)
        best = int(bits.argmax())
        rows.append([f"bits a slot tells about '{labels.names[best]}'", bits[best].item(),
                     f"{shuffled[best].item():.3g} for shuffled labels"])
    blocks = [table(["what", "value", "beside"], rows),
              figure(memory_figures.slot_usage(slotting.mass(address).mean(0).numpy(), course, lift), "A dead slot "
                     "holds nothing. Colours tell for which attributes a slot is used more or less than for "
                     "others; how much that says is the bits in the table."),
              figure(memory_figures.slot_similarity(*(x.numpy() for x in slotting.similarity(unit, address))), "Dark "
                     "off the diagonal are slots that do the same work, or the opposite.")]
    if counts:
        curves = slotting.capacity(unit, held, counts, episodes=10)
        blocks.append(figure(memory_figures.capacity(counts, curves, unit.slots), "Facts written in one shot and read "
                             "back. The memory should stand far above one that was never written."))
    slots, readings = slotting.certainty(unit, held, min(24, len(held.key)))
    blocks.append(figure(memory_figures.certainty(slots.numpy(), readings.numpy(), unit.noise), "Each write makes some "
                         "slots sure; facts that were written are read with some noise beside the memory's own."))
    return Section("Memory", "Which slots are used, for what, how much they hold, and how sure they are.", blocks)


def network(case: Case) -> Section:
    """Gradients by loss, updates, activations, attention, landscape."""
    model, batch = case.model, case.batch
    blocks = [figure(network_figures.gradient_table(diagnostics.gradient_table(model, batch, case.loss)), "Which loss "
                     "teaches which part. A part that no loss reaches does not learn.")]
    ratios = {int(path.name.rpartition("-")[2]): diagnostics.checkpoint_update_ratios(load(path)[0], path)
              for path in case.checkpoints}
    if any(ratios.values()):
        blocks.append(figure(network_figures.update_ratios(ratios), "About a thousandth is usual; a tenth is unstable, "
                             "and a millionth stands still."))
    layers = diagnostics.activations(model, batch)
    blocks.append(figure(network_figures.activations(*zip(*layers)), "Layers in the order they run. Dead units say the "
                         "same whatever comes in; large outliers do not survive low precision."))
    blocks.append(figure(network_figures.attention_entropy(attention.attention_entropy(model, batch)), "A head near 1 "
                         "averages over everything, one near 0 looks at a single token."))
    blocks += _looks(case)
    lines = diagnostics.landscape(model, batch, case.loss, points=9, directions=1)
    blocks.append(figure(network_figures.landscape(*lines), "A wide bowl forgives rounding and pruning; a narrow one "
                         "does not."))
    return Section("Inside the network", f"Measured on {len(batch.image_ids)} images with up to two captions each.",
                   blocks)


def _looks(case: Case) -> list[str]:
    """The first image under the words of its first caption, and under occlusion."""
    place = case.gallery.indices[0]
    image = case.data.pixels(place, case.processor.vision.image_size)
    pixels = normalise(image[None], case.processor.vision.mean, case.processor.vision.std)
    pixels = pixels.to(case.batch.pixel_values.device)
    words = {name: value.to(pixels.device) for name, value in
             case.processor(text=[case.data.captions[place][0]]).items()}
    seen = attention.decoder_attention(case.model, pixels, **words)[:-1].cpu().numpy()
    needed, blank = (attention.occlusion(model, pixels, **words)[None].cpu().numpy()
                     for model in (case.model, case.untrained))
    ids = words["input_ids"][0, 1: 1 + len(seen)].tolist()
    said = [case.processor.tokenizer.decode([i]).strip() or "·" for i in ids]
    image = image.numpy()
    return [figure(network_figures.attention(image, said, seen), "Where the decoder looks when it says each word of "
                   "the first caption."),
            figure(network_figures.attention(image, ["the whole caption"], needed, title="What the contrast needs"),
                   "How far the cosine of image and caption falls when a patch is painted over: by at most "
                   f"{needed.max():.3f}, in an untrained model {blank.max():.3f}.")]
