"""Is the memory honest? One-shot writing, reading by noised keys, forgetting, order; and what it tells the decoder.

    python benchmarks/memory.py runs/scenes --data scenes --split test

Writes 24 pairs (image, first caption) to an empty memory, reads with a key and asks whose written value is nearest
to what came back, by cosine less the episode's mean: chance is 1/24. "Noise 0.5" is Gaussian noise of half the key's
own length. Prints a table of means over the episodes.

"On the page" are the app's own functions: 24 facts of a session, written one by one, each a picture with its own words,
with those of a picture that no fact has, which no model can know, or, to confuse it, with those of the next fact's
picture; all are read back by the picture alone. Then the model is saved with the memory of the last such session and
opened again: what has become of the gallery's recall?
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import measure
import torch
import torch.nn.functional as F

import bitgen
from app import memory as page
from app import saved
from app.bench import Bench
from app.memory import Edits
from app.models import Choice, View
from bitgen.config import DataConfig
from bitgen.data import open_data
from bitgen.evaluate import EPISODE, evaluate, perplexities
from bitgen.images import normalise, picture
from bitgen.model import unit


@torch.no_grad()
def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("run", help="run folder, checkpoint folder or Hub id")
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--episodes", type=int, default=40)
    options = parser.parse_args()
    where = measure.begin(None)
    model, processor = bitgen.load(options.run)
    if model.memory is None:
        parser.error(f"{options.run}: has no memory (model.memory_slots 0)")
    data = open_data(DataConfig(root=options.data), options.split, processor.vision.image_size)
    episodes = [one_episode(model, processor, data, range(start * EPISODE, (start + 1) * EPISODE), options.noise)
                for start in range(min(options.episodes, len(data) // EPISODE))]
    rows = [[name, sum(each[name] for each in episodes) / len(episodes), "" if "error" in name else 1 / EPISODE]
            for name in episodes[0]]
    report = perplexities(model, processor, data)
    rows += [["caption perplexity, empty memory", report["perplexity"], report["chance_perplexity"]],
             ["caption perplexity, memory written", report["perplexity_memory"], report["chance_perplexity"]],
             *on_the_page(options.run, data, processor.vision.image_size, len(episodes))]
    print(f"{options.run} on {options.data}/{options.split}: {len(episodes)} episodes of {EPISODE} pairs, "
          f"{model.memory.slots} slots\n\n" + measure.table(["what", "measured", "chance"], rows))
    measure.write(options.json, {"environment": where, "episodes": len(episodes), "rows": rows})


def on_the_page(run: str, data, size: int, episodes: int) -> list[list]:
    """Lines of the table: facts written and read back by the app, and the gallery's recall before and after."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench, view = Bench(run, save_to=Path(folder)), View(Choice(run), "")
        for words, shift in (("words of the next fact's picture", 1), ("its own words", 0),
                             ("words of another picture", len(data) // 2)):
            shares = []
            for episode in range(episodes):
                edits = Edits()
                for i in range(episode * EPISODE, (episode + 1) * EPISODE):
                    said = data.captions[(i + shift) % len(data)][0]
                    edits = page.write(bench, view, edits, picture(data.pixels(i, size).numpy()[None], 0), said)
                found = page.read_back(bench, view, edits)
                shares.append(sum(rank == 1 for _, rank, *_ in found) / EPISODE)
            rows += [[f"on the page, {words}: right fact first", sum(shares) / episodes, 1 / EPISODE],
                     [f"on the page, {words}: the same in the worst session", min(shares), 1 / EPISODE]]
        written = bitgen.load(saved.save(bench, view, edits, "written"))
        reports = [evaluate(*loaded, data) for loaded in (bench.model(view)[:2], written)]
    return rows + [[f"{name} of the gallery, {when}", report[name], report[f"chance_{name.removeprefix('rerank_')}"]]
                   for name in ("t2i_r1", "i2t_r1", "rerank_t2i_r1", "rerank_i2t_r1")
                   for when, report in zip(("before", "with the memory written"), reports)]


def one_episode(model, processor, data, indices, noises) -> dict[str, float]:
    pixels = torch.stack([data.pixels(i, processor.vision.image_size) for i in indices])
    pixels = normalise(pixels, processor.vision.mean, processor.vision.std)
    words = processor(text=[data.captions[i][0] for i in indices])
    image, text = model.image_tokens(pixels), model.text_tokens(**words)
    key, value = model.fact(image, text, words["attention_mask"])
    memory, prior = model.memory, model.memory.prior()
    belief = memory.write(prior, key, value)
    found = {f"right caption first, pair key with noise {noise}": top1(memory, belief, noised(key, noise), value)
             for noise in noises}
    found["right caption first, image alone"] = top1(memory, belief, image.feature, value)
    found["right caption first, words alone"] = top1(memory, belief, text.feature, value)
    found["right caption first, image of a memory never written"] = top1(memory, prior, image.feature, value)
    rest = memory.forget(belief, key[:1], value[:1])
    without = memory.write(prior, key[1:], value[1:])
    found["error of the rest after forgetting one"] = relative(rest.mean(), without.mean())
    order = torch.randperm(EPISODE)
    one_by_one = prior
    for i in order:
        one_by_one = memory.write(one_by_one, key[i:i + 1], value[i:i + 1])
    found["error of another order"] = relative(one_by_one.mean(), belief.mean())
    return found


def noised(key, noise):
    return unit(key + noise * unit(torch.randn_like(key)))


def top1(memory, belief, key, value) -> float:
    """Share of keys whose own value is the nearest to what is read."""
    centre = value.mean(0)
    read = memory.read(belief, key).mean - centre
    nearest = F.normalize(read, dim=-1) @ F.normalize(value - centre, dim=-1).T
    return (nearest.argmax(1) == torch.arange(len(key))).float().mean().item()


def relative(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


if __name__ == "__main__":
    main()
