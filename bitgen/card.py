"""The model card, written from a run's files alone: every number in it stands in one of them.

    write("runs/scenes")        # runs/scenes/README.md and curves.png

What no file says is said to be unknown.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from bitgen import figures
from bitgen.checkpoint import replace_text
from bitgen.evaluate import PERPLEXITIES
from bitgen.markdown import amount, code, duration, line, number, share, table, text
from bitgen.record import Record, Report, is_hub_id, read

CARD, CURVES = "README.md", "curves.png"
KINDS = {"contrast (ITC)": "", "re-ranked by matching and words": "rerank_",
         "re-ranked by matching alone (ITM)": "rerank_itm_", "chance": "chance_"}
WAYS = {"t2i": "text to image", "i2t": "image to text"}
ATTRIBUTES = ("colour", "shape", "relation", "attributes")
OBJECTIVES = {  # title: (setting of its weight, metric, what that is held against)
    "contrast (ITC), nats": ("itc", "itc", "itc_chance"),
    "matching (ITM), nats": ("itm", "itm", None),
    "matching, accuracy": (None, "itm_acc", "itm_acc_chance"),
    "text, smoothed, nats a token": ("text", "text", "text_floor"),
    "text, nats a token": (None, "text_nll", "text_chance"),
    "memory, KL to its prior": ("memory_kl", "memory_kl", None),
    "memory, cosine of written and read": (None, "memory_quality", None),
}
COSTS = {  # title: (key of accounting.json, how it is written)
    "images seen": ("samples", number),
    "time": ("seconds", duration),
    "of it in training": ("training_seconds", duration),
    "arithmetic of training": ("flops", lambda value: amount(value, "FLOP")),
    "energy": ("energy_joules", lambda value: amount(value, "J")),
    "peak memory": ("peak_memory_bytes", lambda value: amount(value, "B")),
    "peak memory of the GPU": ("peak_device_memory_bytes", lambda value: amount(value, "B")),
}
USE = """\
import bitgen
from PIL import Image

model, processor = bitgen.load({source!r})
image = Image.new("RGB", ({size}, {size}), "white")  # or Image.open("photo.jpg")
captions = ["a red ring above a blue square", "a green star"]

pixels, words = processor(images=[image]), processor(text=captions)
print(model.encode_image(**pixels) @ model.encode_text(**words).T)  # cosines
pairs = processor(images=[image] * len(captions), text=captions)
print(model.match(**pairs))  # probabilities that they belong together
print(model.caption(**pixels))
"""
# (said when this is true of the run, what is said); fields are those of `_known`.
LIMITS = (
    (lambda run: run.generated, "It has seen drawn scenes alone: coloured shapes on quiet grounds. Of photographs it "
                                "knows nothing."),
    (lambda run: run.generated, "Its captions are English sentences of a small grammar; with other words it has no "
                                "experience."),
    (lambda run: not run.generated, "The language of its captions was not recorded: {ascii} of {captions} training "
                                    "captions are plain ASCII. Expect nothing of other languages."),
    (lambda run: run.tower is None, "All that it knows comes from {images} training images with {captions} captions."),
    (lambda run: run.tower, "Its vision tower learned from other images first, with whatever bias and licence those "
                            "have; the rest knows {images} training images with {captions} captions."),
    (lambda run: True, "Images are scaled to {size} px, captions cut after {tokens} tokens: finer detail is lost."),
    (lambda run: run.reports or run.validation(), "Recall is told for the galleries named above; among more images it "
                                                  "is lower."),
    (lambda run: True, "One run with seed {seed}: how much another would differ is unknown."),
    (lambda run: True, "Bias, safety, and images or words unlike the training data were not measured."),
)


def write(run_folder: str | Path, repo: str | None = None) -> Path:
    """Writes `README.md` and, where anything was logged, `curves.png`; returns the card's path.

    `repo`: the Hub id that its code loads, by default the run's own, else the folder. Raises `ValueError` where there
    is no run, `OSError` where nothing can be written; an older card is replaced whole.
    """
    folder, run = Path(run_folder), read(run_folder, repo)
    drawn = _draw(run, folder)
    replace_text(folder / CARD, render(run, drawn))
    return folder / CARD


def render(run: Record, drawn: bool = False) -> str:
    """The card as text; `drawn`: `curves.png` lies beside it."""
    parts = [f"---\n{front_matter(run).to_yaml()}\n---", f"# {code(run.name)}", _what(run),
             "```python\n" + USE.format(source=run.source, size=run.config.vision.image_size) + "```", _needs(run)]
    for title, section in SECTIONS.items():
        parts += [f"## {title}", *section(run)]
        if title == "Training" and drawn:
            parts.append(f"![Training curves, chance levels dashed]({CURVES})")
    return "\n\n".join(part for part in parts if part) + "\n"


def _draw(run: Record, folder: Path) -> bool:
    """The curves as a picture; false where there is nothing to draw."""
    shown = {metric for _, _, series in figures.PANELS.values() for metric in series}
    if not any(shown & row.keys() for row in run.history):
        return False
    partial = folder / f".{CURVES}.tmp"
    figures.curves(run.history).savefig(partial, format="png")
    partial.replace(folder / CURVES)
    return True


# What the Hub reads ---------------------------------------------------------------------------------------


def front_matter(run: Record) -> ModelCardData:
    """What the Hub's search and its tables read. Data sets and towers are named only where the Hub has them.

    `license` is known where all was generated or learned here; otherwise that of data and tower count too.
    """
    root = run.config.data.root
    return ModelCardData(
        language="en" if run.generated else None, license="mit" if run.generated and not run.tower else "unknown",
        library_name="bitgen", pipeline_tag="zero-shot-image-classification",
        tags=["image-text-retrieval", "image-to-text", "episodic-memory"],
        datasets=[line(run.data)] if root.startswith("hub://") else None,
        base_model=run.tower if run.tower and is_hub_id(run.tower) else None,
        model_name=line(run.name), eval_results=[one for report in run.reports for one in _entries(report)] or None)


def _entries(report: Report) -> list[EvalResult]:
    """The recalls of an evaluation, as the Hub's `model-index` takes them; none where it is not known of what."""
    return [EvalResult(task_type="image-text-retrieval", dataset_type=line(report.data), dataset_name=line(report.data),
                       dataset_split=line(report.split), metric_type=f"recall_at_{k}",
                       metric_name=f"{title} R@{k}", metric_value=round(report.values[f"{way}_r{k}"], 4))
            for way, title in WAYS.items() for k in (1, 5, 10) if report.data and f"{way}_r{k}" in report.values]


# What people read -----------------------------------------------------------------------------------------


def _what(run: Record) -> str:
    slots = run.config.model.memory_slots
    memory = f", and keeps what it is told in an episodic memory of {slots} slots" if slots else ""
    bad = [text(verdict["check"]) for verdict in run.health if verdict["verdict"] == "BAD"]
    return " ".join([
        f"Finds images by words and words by images, re-ranks what it found, writes captions{memory}.",
        f"{number(run.fact('parameters', 'total'))} parameters, {number(run.fact('parameters', 'outside_tower'))} of "
        f"them outside the vision tower, which began as {code(run.tower) if run.tower else 'random numbers'}.",
        f"Trained for {number(run.step)} steps on {number(run.fact('data', 'train', 'images'))} images of "
        f"{code(run.data)}.", *([f"**Not healthy: {', '.join(bad)}** (see Health)."] if bad else [])])


def _needs(run: Record) -> str:
    git = run.fact("git")
    commit = "unknown" if not git else code(git["revision"]) + (" with uncommitted changes" if git["changed"] else "")
    return (f"Needs the Python package `bitgen`. Trained with its version "
            f"{text(run.fact('software', 'bitgen') or 'unknown')}, commit {commit}.")


def _results(run: Record) -> list[str]:
    parts = []
    for report in run.reports:
        parts += [_recalls(_named(report), report.values), _interval(report),
                  _perplexities(report.values), _attributes(report.values)]
    if validation := run.validation():
        captions = {"captions": run.fact("data", "val", "captions")}
        parts.append(_recalls(f"validation at step {number(validation['step'])}", captions | validation))
    if not run.reports:
        parts.append("Test images: unknown, no report of `bitgen evaluate --json` is in the run.")
    if run.stale:
        parts.append(f"Left out, because it is of other weights: {', '.join(map(code, run.stale))}.")
    return parts


def _named(report: Report) -> str:
    return f"{code(report.data)}, {text(report.split)}" if report.data else f"{code(report.file)}, data unknown"


def _recalls(title: str, values: dict[str, float]) -> str:
    """Recall in both directions beside chance."""
    keys = [f"{way}_r{k}" for way in WAYS for k in (1, 5, 10)]
    head = f"{title}: {number(values.get('images'))} images, {number(values.get('captions'))} captions"
    return table([head, *(key.replace("_r", " R@") for key in keys)],
                 [[kind, *(share(values.get(prefix + key)) for key in keys)]
                  for kind, prefix in KINDS.items() if prefix + keys[0] in values])


def _interval(report: Report) -> str:
    """Of R@1, where it was measured and its level is known."""
    if report.level is None or "t2i_r1_low" not in report.values:
        return ""
    spans = [f"{title} {share(report.values[f'{way}_r1_low'])} to {share(report.values[f'{way}_r1_high'])}"
             for way, title in WAYS.items()]
    return f"R@1 by contrast, {number(100 * report.level)} % interval over images: {', '.join(spans)}."


def _perplexities(values: dict[str, float]) -> str:
    known = {title: values[key] for title, key in PERPLEXITIES.items() if key in values}
    return table(["captions", *known], [["perplexity", *map(number, known.values())]]) if known else ""


def _attributes(values: dict[str, float]) -> str:
    names = [name for name in ATTRIBUTES if f"caption_{name}" in values]
    rows = {"written for the image": "caption_", "written for another (chance)": "chance_caption_"}
    return table(["right in greedy captions", *names],
                 [[title, *(share(values.get(prefix + name)) for name in names)]
                  for title, prefix in rows.items()]) if names else ""


def _training(run: Record) -> list[str]:
    config, optim = run.config, run.config.optim
    rows = [[title, ", ".join(f"{number(run.fact('data', split, key))} {name}" for key, name in {
        "images": "images", "captions": "captions", "unreadable": "unreadable"}.items())]
        for title, split in {"training data": "train", "validation data": "val"}.items()]
    rows += [
        ["image size", f"{config.vision.image_size} px, augmentation {config.data.augment}"],
        ["vision tower", f"{code(run.tower or config.vision.name)}, trainable: {config.vision.trainable}"],
        ["steps", f"{number(run.step)} of {number(run.fact('steps'))}"],
        ["images a step", f"{number(optim.batch_size)} x {number(optim.accumulation)} batches x "
                          f"{number(run.fact('machine', 'processes'))} processes"],
        ["Muon and AdamW" if optim.muon else "AdamW",
         f"learning rate {number(optim.lr)}, weight decay {number(optim.weight_decay)}, "
         f"{number(optim.warmup_steps)} steps of warm-up"],
        ["seed", str(config.seed)]]
    return [table([f"of {code(run.data)}", ""], rows), _objectives(run)]


def _objectives(run: Record) -> str:
    """The losses with their weights, and what they came to on validation images (in training, where there are none)."""
    seen = run.validation()

    def last(key: str | None) -> str:
        return number(seen.get(key, run.latest(key))) if key else ""
    return table(["objective", "weight", "on validation" if seen else "in training", "chance or floor"],
                 [[title, number(getattr(run.config.loss, weight)) if weight else "", last(metric), last(against)]
                  for title, (weight, metric, against) in OBJECTIVES.items() if run.latest(metric) is not None])


def _parameters(run: Record) -> list[str]:
    rows = [(text(part.replace("_", " ")), count) for part, count in (run.fact("parameters", "by_part") or {}).items()]
    rows += [(f"**{title}**", run.fact("parameters", key)) for title, key in {
        "all": "total", "outside the vision tower": "outside_tower", "that learn": "learning"}.items()]
    return [table(["part", "parameters"], [[part, number(count)] for part, count in rows])]


def _cost(run: Record) -> list[str]:
    machine = run.fact("machine") or {}
    cores = {"cpu_cores": "CPU cores", "threads": "threads"}
    rows = [["machine", ", ".join([text(machine[key]) for key in ("device", "name", "system") if machine.get(key)]
                                  + [f"{number(machine.get(key))} {name}" for key, name in cores.items()])],
            ["precision", text(run.fact("precision") or "unknown")]]
    rows += [[title, written(run.costs.get(key))] for title, (key, written) in COSTS.items()
             if key in run.costs or "GPU" not in title]
    rows += [[f"arithmetic an image, {text(kind)}", amount(value, "FLOP")]
             for kind, value in run.costs.get("flops_per_sample", {}).items()]
    if sources := run.costs.get("energy_sources"):
        rows.append(["energy counted by", text(", ".join(sources))])
    versions = ", ".join(f"{text(name)} {text(version)}" for name, version in (run.fact("software") or {}).items())
    return [table(["", ""], [*rows, ["software", versions or "unknown"]])]


def _health(run: Record) -> list[str]:
    if not run.health:
        return ["Unknown: the run has no `health.json`."]
    return [table(["check", "value", "chance", "verdict", "rule, or what a bad sign means"], [
        [text(verdict["check"]), number(verdict["value"]), number(verdict["chance"]) if verdict["chance"] else "",
         text(verdict["verdict"]) if verdict["judged"] else "not judged",
         text(verdict["rule"] if verdict["verdict"] == "OK" else verdict["meaning"])] for verdict in run.health])]


def _limits(run: Record) -> list[str]:
    counts = run.fact("data", "train") or {}
    known = {"images": number(counts.get("images")), "captions": number(counts.get("captions")),
             "ascii": number(counts.get("ascii_captions")), "size": run.config.vision.image_size,
             "tokens": run.config.model.max_tokens, "seed": run.config.seed}
    return ["\n".join(f"- {said.format(**known)}" for applies, said in LIMITS if applies(run))]


SECTIONS = {"Results": _results, "Training": _training, "Parameters": _parameters, "Cost": _cost, "Health": _health,
            "Limits": _limits}
