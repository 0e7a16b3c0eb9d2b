"""How fast is search, what does it find, what does it need? Index against bare faiss, in one process, on one thread.

    python benchmarks/search.py features runs/scenes --count 1000000    # once: the real features that `speed` needs
    python benchmarks/search.py speed runs/scenes      # exact, two-stage and lists against IndexFlatIP
    python benchmarks/search.py latency runs/scenes    # words typed -> results (building: encode.py)
    python benchmarks/search.py worth runs/scenes      # filters, mixed queries, re-ranking, where the truth is known

`features` encodes distinct generated scenes (or the training pictures of `--data`, over and over), each as it is and in
three random views (crops of half the area or more, other brightness, contrast and saturation), in bf16; killed, it goes
on. With `--parts 19`, the default, a view gives
nineteen features: the picture's own, and those of nine windows of half its side and nine of three quarters, which the
contrastive head makes of the picture's token and the mean of the patch tokens in the window; `--parts 1` gives pictures
alone, and takes nineteen times as long. Queries are held out: half of them pictures, half captions.

Times are CPU time of one thread, our call and faiss's in turn, medians; ratios hold on a busy computer too. "Resident"
is what opening an index and asking adds to the anonymous memory of a fresh process; pages of the feature file that the
operating system keeps are not in it, as it takes them back when it needs room.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import numpy as np
import torch

import bitgen
from bitgen.cache import cache_folder
from bitgen.catalogue import Item
from bitgen.config import DataConfig
from bitgen.data import open_data
from bitgen.engine import ENGINES
from bitgen.gallery import of_data
from bitgen.images import augment, normalise
from bitgen.index import Index
from bitgen.model import unit
from bitgen.query import Encoder, mix, rerank
from bitgen.scene_words import COLOURS
from bitgen.scenes import render
from bitgen.store import Store

BLOCK, VIEWS = 5000, 4  # features of one view that are written at a time; views of a scene
QUERIES = 400


def features_file(encoder: Encoder, root: str, parts: int) -> Path:
    what = hashlib.sha256(f"{encoder.fingerprint} {root}".encode()).hexdigest()[:16]
    return cache_folder(None) / f"features-{what}-{parts}.f32"


def features(encoder: Encoder, options: argparse.Namespace) -> dict[str, int]:
    """Append real features to the cache until there are `count`."""
    root, count, parts = options.data, options.count, options.parts
    path, pictures = features_file(encoder, root, parts), BLOCK // parts
    block = pictures * VIEWS * parts
    path.parent.mkdir(parents=True, exist_ok=True)
    done = path.stat().st_size // (block * encoder.width * 4) if path.exists() else 0
    with open(path, "r+b" if done else "wb") as file:
        file.truncate(done * block * encoder.width * 4)
        file.seek(0, os.SEEK_END)
        for number in range(done, -(-count // block)):
            begin = time.perf_counter()
            pixels, new = pictures_of(root, number, pictures, encoder.image_size)
            generator = torch.Generator().manual_seed(number)
            views = [augment(pixels, 0.5, False, generator) for _ in range(VIEWS)]
            views[0] = pixels if new else views[0]
            with torch.autocast("cpu", torch.bfloat16):
                rows = [encode(encoder, some, parts) for view in views for some in view.split(250)]
            file.write(torch.cat(rows).numpy().tobytes())
            file.flush()
            print(f"{(number + 1) * block:,} features, {time.perf_counter() - begin:.0f} s", flush=True)
    return {"features": path.stat().st_size // (encoder.width * 4)}


def pictures_of(root: str, number: int, count: int, size: int) -> tuple[torch.Tensor, bool]:
    """uint8 (count, 3, S, S): new scenes, or the next pictures of a data set, again from the first after the last; and
    whether they come for the first time."""
    if root == "scenes":
        with tempfile.TemporaryDirectory() as folder:
            scenes = render("train", count, seed=1000 + number, size=size, cache=folder)
            return torch.from_numpy(np.array(scenes.pixels)), True
    data = open_data(DataConfig(root=root), "train", size)
    places = range(number * count, (number + 1) * count)
    return torch.stack([data.pixels(i % len(data), size) for i in places]), places[-1] < len(data)


def encode(encoder: Encoder, pixels: torch.Tensor, parts: int) -> torch.Tensor:
    """float32 (B x parts, D): features of pictures uint8 (B, 3, S, S), and of windows in them."""
    model, vision = encoder.model, encoder.processor.vision
    tokens = model.norm_image(model.project(model.vision(normalise(pixels, vision.mean, vision.std))))
    side = math.isqrt(tokens.shape[1] - 1)
    grid = tokens[:, 1:].unflatten(1, (side, side))  # (B, side, side, D)
    windows = [(0, 0, side), *((top * (side - size) // 2, left * (side - size) // 2, size)
                               for size in (side // 2, side * 3 // 4) for top in range(3) for left in range(3))][:parts]
    means = torch.stack([grid[:, top:top + size, left:left + size].mean((1, 2)) for top, left, size in windows], 1)
    return unit(model.itc_image(torch.cat([tokens[:, :1].expand_as(means), means], -1))).flatten(0, 1)


def held_out(encoder: Encoder, root: str) -> np.ndarray:
    """QUERIES features (Q, D) that are in no index: pictures and captions in turn."""
    data = open_data(DataConfig(root=root), "test" if root == "scenes" else "val", encoder.image_size)
    half = range(QUERIES // 2)
    pictures = encoder.pixels(torch.stack([data.pixels(i, encoder.image_size) for i in half]))
    return np.stack([pictures, encoder.text([data.captions[i][0] for i in half])], 1).reshape(QUERIES, -1)


# Speed ----------------------------------------------------------------------------------------------------


SPEED = ["rows", "engine", "ms", "IndexFlatIP ms", "ratio", "recall@10, rows as stored", "as made", "resident MB",
         "of float16", "of float32", "prepared in s"]


def speed(encoder: Encoder, options: argparse.Namespace) -> dict[str, list]:
    """Exact search, two-stage search and lists beside IndexFlatIP on the same rows and queries."""
    import faiss

    root, parts, found = options.data, options.parts, []
    rows = np.memmap(features_file(encoder, root, parts), np.float32, "r").reshape(-1, encoder.width)
    queries = held_out(encoder, root)
    print(f"{len(rows):,} features of views of {root}, {parts} a view, {encoder.width} wide; {QUERIES} held-out "
          f"queries, half pictures and half captions; k = 10; faiss {faiss.__version__}\n")
    if max(options.sizes) > len(rows):
        raise SystemExit(f"there are {len(rows):,} features only: `features --count {max(options.sizes)}` makes more")
    for size in options.sizes:
        # The views of a scene stand far apart in the file: a part of it is a smaller gallery of the same kind.
        with tempfile.TemporaryDirectory(dir=cache_folder(None)) as folder:
            fill(Path(folder), encoder, rows[:size])
            truths = []
            for some in (rows[:size], Store(Path(folder)).rows("images")):
                flat = faiss.IndexFlatIP(encoder.width)
                flat.add(np.asarray(some, np.float32))
                truths.append(np.concatenate([flat.search(query[None], 10)[1] for query in queries]))
            for engine in ENGINES[1:]:
                found.append([size, engine, *row(Path(folder), engine, flat, queries, truths, encoder.width)])
    print(measure.table(SPEED, found))
    return {"speed": found}


def fill(folder: Path, encoder: Encoder, rows: np.ndarray) -> None:
    """An index of these rows: everything but pictures to look at."""
    store = Store.create(folder, encoder.fingerprint, encoder.width, "float16", False, "benchmark")
    for start in range(0, len(rows), 50_000):
        part = rows[start:start + 50_000]
        store.append([Item(f"view {start + i}", 64, 64) for i in range(len(part))], [b""] * len(part), part)
    store.catalogue.close()


def row(folder: Path, engine: str, flat, queries: np.ndarray, truths: list[np.ndarray],
        width: int) -> list[float]:
    """One engine's numbers. truths (Q, 10): what IndexFlatIP finds in the rows as they were made, in float32,
    and as they are stored, in float16."""
    begin = time.process_time()
    index = Index.open(folder, engine=engine)
    index.search(queries[:1], 10)
    prepared = time.process_time() - begin
    found = [[int(name.split()[1]) for name in index.search(query, 10).ids[0]] for query in queries]
    made, stored = (np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth)]) for truth in truths)
    ours, theirs = in_turn([lambda query: index.search(query, 10), lambda query: flat.search(query[None], 10)], queries)
    held, size = resident(folder, engine, width), flat.ntotal
    return [ours, theirs, ours / theirs, float(stored), float(made), held / 1e6, held / size / width / 2,
            held / size / width / 4, prepared]


def in_turn(calls: list, queries: np.ndarray, rounds: int = 100) -> list[float]:
    """Median CPU milliseconds of each call, A B A B, after a warm-up."""
    times = [[] for _ in calls]
    for i in range(rounds + 10):
        for call, some in zip(calls, times):
            begin = time.process_time()
            call(queries[i % len(queries)])
            some.append((time.process_time() - begin) * 1e3)
    return [float(np.median(some[10:])) for some in times]


def resident(folder: Path, engine: str, width: int) -> int:
    """Bytes of anonymous memory that opening the index and asking 20 times add, in a fresh process."""
    code = f"""
import faiss, numpy as np
from pathlib import Path
from bitgen.index import Index
from bitgen.model import unit
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
warm, few = faiss.IndexFlatIP({width}), np.eye({width}, dtype=np.float32)
warm.add(few)
warm.search(few, 3)
before = anonymous()
index = Index.open({str(folder)!r}, engine={engine!r})
for _ in range(20):
    index.search(np.random.randn(1, {width}), 10)
print(anonymous() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


# Latency and throughput -----------------------------------------------------------------------------------


def latency(encoder: Encoder, options: argparse.Namespace) -> dict[str, list]:
    """From words to results."""
    root, images = options.data, options.images
    data = open_data(DataConfig(root=root, limit=images, scenes_train=images), "train", encoder.image_size)
    source = of_data(data)
    source = source.select(range(min(images, len(source))))
    with tempfile.TemporaryDirectory() as folder:
        index = Index.build(Path(folder) / "whole", source, encoder)
        captions = [texts[0] for texts in source.captions][:500]
        index.search(encoder.text(captions[:1]), captions=True)
        times = {"encoding the words": [], "search": [], "together": []}
        for caption in captions:
            begin = time.process_time()
            query = encoder.text([caption])
            encoded = time.process_time()
            index.search(query, 10, captions=True)
            end = time.process_time()
            for name, seconds in zip(times, (encoded - begin, end - encoded, end - begin)):
                times[name].append(seconds * 1e3)
        print(f"{root}: {len(index):,} pictures, {index.catalogue.count('captions'):,} captions; words typed, ten "
              "captions found, ms of CPU time\n")
        found = [[name, *(float(np.percentile(some, share)) for share in (50, 95))] for name, some in times.items()]
        print(measure.table(["", "p50", "p95"], found))
        return {"latency": found}


# What it is worth -----------------------------------------------------------------------------------------


def worth(encoder: Encoder, options: argparse.Namespace) -> dict[str, list]:
    """Filters, re-ranking and mixed queries on the thousand test scenes, where the truth is known."""
    data = open_data(DataConfig(root="scenes"), "test", encoder.image_size)
    shown = [{thing["colour"] for thing in scene["objects"]} for scene in data.truth]
    source = dataclasses.replace(of_data(data), tags=[[f"background: {scene['background']}"] for scene in data.truth])
    place = {name: i for i, name in enumerate(source.ids)}
    with tempfile.TemporaryDirectory() as folder:
        index = Index.build(folder, source, encoder, captions=False)
        asked = range(len(data))
        captions = [texts[i % len(texts)] for i, texts in enumerate(data.captions)]
        queries = encoder.text(captions)
        plain = index.search(queries, 16)
        ranked = rerank(encoder, index, captions, plain)
        narrow = [index.search(query, 1, where={"tag": source.tags[i]}) for i, query in zip(asked, queries)]
        first = {"contrast": plain.ids, "first 16 re-ranked (from thumbnails)": ranked.ids,
                 "filtered by the right background": [hits.ids[0] for hits in narrow]}
        right = [[name, float(np.mean([place[some[0]] == i for some, i in zip(ids, asked)]))]
                 for name, ids in first.items()]
        print(f"right picture first, {len(asked)} captions, 1,000 test scenes\n")
        print(measure.table(["", "R@1"], right))
        cases = [(i, min(colours), other) for i, colours in enumerate(shown) if i % 3 == 0
                 for other in [sorted(set(COLOURS) - colours)[i % (len(COLOURS) - len(colours))]] if len(colours) > 1]
        words = {colour: encoder.text([f"a {colour}"])[0] for colour in COLOURS}
        mixed = []
        for weight in (0.0, 0.25, 0.5, 1.0, 2.0):
            found = []
            for i, less, more in cases:
                parts = np.stack([index.features([source.ids[i]])[0], words[more], words[less]])
                ids = index.search(mix(parts, [1, weight, -weight]), 6).ids[0]
                near = [shown[place[name]] for name in ids if place[name] != i][:5]
                found.append([np.mean([bool(some & colours) for colours in near])
                              for some in ({more}, {less}, shown[i] - {less})])
            mixed.append([weight, *map(float, np.mean(found, 0))])
        print("a picture that shows colour A but not B, 'a B' added and 'a A' taken away: share of the first five that "
              "show\n")
        print(measure.table(["weight of the words", "B", "A", "a third colour of the picture"], mixed))
        return {"right": right, "mixed": mixed}


WHAT = {"features": features, "speed": speed, "latency": latency, "worth": worth}


@torch.inference_mode()
def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("run", help="run folder, checkpoint folder or Hub id")
    parser.add_argument("--count", type=int, default=1_000_000, help="features to make")
    parser.add_argument("--parts", type=int, choices=(1, 19), default=19, help="features a view")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="rows of an index")
    parser.add_argument("--data", default="scenes", help="data set whose pictures are taken")
    parser.add_argument("--images", type=int, default=5000, help="pictures of `latency`")
    options = parser.parse_args()
    where = measure.begin()
    found = WHAT[options.what](Encoder(*bitgen.load(options.run)), options)
    measure.write(options.json, {"environment": where} | found)


if __name__ == "__main__":
    main()
