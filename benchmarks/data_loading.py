"""How fast files become batches, and whether a training step ever waits for them.

    python benchmarks/data_loading.py

Decodes JPEGs of 640 x 480 (noise with the spectrum of photographs, quality 90) into uint8 squares: by Pillow alone, by
the library (which lets the JPEG decoder shrink to no less than twice the side), by decoders that would shrink to no
less than the side (Pillow's, and simplejpeg's where it is installed), and copied from prepared pixels, as `bitgen data
prepare` writes them. Then the share of a training step that making its batch takes, with prepared pixels
and no worker: the worst case, since with `data.workers` batches are made while the step runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import tempfile
from pathlib import Path

import measure
import numpy as np
from measure import DEVICE
from PIL import Image
from train_step import TOWERS, Bench

from bitgen.batches import Feed
from bitgen.cache import PixelCache
from bitgen.dataset import Dataset
from bitgen.images import safe_open_image, to_uint8
from bitgen.listing import Listing


def photo(seed: int, width: int = 640, height: int = 480) -> bytes:
    """A JPEG whose spectrum falls with frequency as that of photographs (Field 1987), in colours that go together."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    waves = np.fft.rfft2(draw.standard_normal((3, height, width))) / frequency
    shown = np.fft.irfft2(waves, (height, width))
    shown = np.einsum("ij,jhw->hwi", draw.uniform(0.2, 1.0, (3, 3)), shown)
    file = io.BytesIO()
    Image.fromarray(np.clip(128 + 50 * shown / shown.std(), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def bicubic(data: bytes, size: int) -> np.ndarray:
    """What one would write with Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def simplejpeg_way() -> dict[str, object]:
    """The decoder of simplejpeg, where it is installed."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return {}

    def decode(data: bytes, size: int) -> np.ndarray:
        pixels = decode_jpeg(data, fastdct=True, fastupsample=True, min_height=size, min_width=size)
        return to_uint8(Image.fromarray(pixels), size).numpy()
    return {"simplejpeg, at least the side": decode}


WAYS = {"Pillow, bicubic": bicubic,
        "bitgen, at least twice the side": lambda file, size: to_uint8(safe_open_image(file, 2 * size), size),
        "Pillow, at least the side": lambda file, size: to_uint8(safe_open_image(file, size), size)} | simplejpeg_way()


def decoding(files: list[bytes], sizes: list[int], rounds: int) -> list[list[object]]:
    """Images a second of each way at each size."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            names = [f"{i}" for i in range(len(files))]
            prepared, _ = PixelCache(Path(folder), "photos", size).write(files, len(files), "photos")
            data = Dataset(Listing(names, [["a photo"]] * len(files), files.__getitem__, ""), prepared)
            ways = {name: lambda way=way, size=size: [way(file, size) for file in files] for name, way in WAYS.items()}
            ways["bitgen, prepared"] = lambda size=size, data=data: [data.pixels(i, size) for i in range(len(files))]
            times = measure.in_turn(ways, rounds)
            for name, taken in measure.medians(times).items():
                rows.append([size, name, len(files) / taken, measure.ratio(times, "Pillow, bicubic", name)])
    return rows


def waiting(bench: Bench) -> list[float]:
    """ms of a step, and ms and share of it of making a batch, as it is and augmented."""
    plain = dataclasses.replace(bench.config, data=dataclasses.replace(bench.config.data, augment="off"))
    batches = {"as it is": Feed(bench.data, bench.tokenizer, plain, DEVICE).batches(1, 10**6),
               "augmented": bench.feed.batches(1, 10**6)}
    calls = {name: lambda some=some: next(some) for name, some in batches.items()}
    medians = measure.medians(measure.in_turn({"step": bench.step()} | calls, bench.rounds))
    step = medians.pop("step")
    return [1e3 * step, *(number for taken in medians.values() for number in (1e3 * taken, taken / step))]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--towers", nargs="*", default=["tiny"], choices=TOWERS)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    where = measure.begin()
    files = [photo(i) for i in range(options.files)]
    print(f"{len(files)} JPEGs of 640 x 480, {sum(map(len, files)) / len(files) / 1e3:.0f} kB each\n")
    decoded = decoding(files, options.sizes, options.rounds)
    print(measure.table(["side", "way", "images/s and core", "times Pillow's"], decoded))
    print(f"batches of {options.batch}, {options.image_size} pixels, one thread, no worker\n")
    waited = [[tower, *waiting(Bench(argparse.Namespace(**vars(options) | {"tower": tower, "captions": 2})))]
              for tower in options.towers]
    print(measure.table(["tower", "step ms", "batch ms", "of the step", "augmented ms", "of the step"], waited))
    measure.write(options.json, {"environment": where, "decoding": decoded, "waiting": waited})


if __name__ == "__main__":
    main()
