"""How fast images and captions become features, and how much of that building an index keeps.

    python benchmarks/encode.py                    # the `scenes` model as it is before training: speed is the same
    python benchmarks/encode.py --run runs/scenes --images 500

By batch size and precision, with arithmetic against the measured ceiling; then `Index.build` over prepared images with
their captions beside the encoder alone on the same batches (thumbnails, catalogue and files are what it adds).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import measure
import torch
from measure import DEVICE, DTYPE, PRECISION

import bitgen
from bitgen.config import DataConfig, load_preset
from bitgen.data import open_data
from bitgen.gallery import loaded, of_data
from bitgen.index import Index
from bitgen.model import BitGen
from bitgen.processing import Processor
from bitgen.query import Encoder
from bitgen.tokenizer import Tokenizer


def untrained(data) -> Encoder:
    """The model of `--config scenes`, its weights as they begin."""
    config = load_preset("scenes")
    tokenizer = Tokenizer.train([text for some in data.captions for text in some], config.data.vocab_size)
    config.model.vocab_size = tokenizer.vocab_size
    model = BitGen(config.model, config.vision).eval().to(DEVICE)
    return Encoder(model, Processor(tokenizer, model.vision_config, config.model.max_tokens))


def throughput(encoder: Encoder, data, batches: list[int], rounds: int) -> list[list[object]]:
    """Images and captions a second by batch size, in float32 and in the device's own precision."""
    pixels = torch.stack([data.pixels(i, encoder.image_size) for i in range(max(batches))])
    texts = [data.captions[i % len(data)][0] for i in range(max(batches))]
    calls, work, counts = {}, {}, {}
    for count in batches:
        for precision in dict.fromkeys(["float32", PRECISION]):
            for side, call in (("images", lambda n=count: encoder.pixels(pixels[:n])),
                               ("captions", lambda n=count: encoder.text(texts[:n]))):
                def run(call=call, precision=precision):
                    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
                        call()
                key = (side, count, precision)
                calls[key], work[key], counts[key] = run, measure.flops(run), count
    most = {"float32": measure.ceiling(torch.float32), PRECISION: measure.ceiling(DTYPE)}
    medians = measure.medians(measure.in_turn(calls, rounds))
    return [[*key, counts[key] / taken, 1e3 * taken, work[key] / counts[key] / 1e6, work[key] / taken / most[key[2]]]
            for key, taken in medians.items()]


def building(encoder: Encoder, data, rounds: int) -> dict[str, float]:
    """Images a second with their captions: the encoder alone, and `Index.build`."""
    source, turn = of_data(data), iter(range(10**6))
    quiet = {"progress": lambda done, total: None}
    batches = list(loaded(source, encoder.image_size, 64, lambda done, total: None))

    def alone() -> None:
        for batch in batches:
            encoder.pixels(batch.pixels)
            encoder.text([text for item in batch.items for text in item.captions])

    with tempfile.TemporaryDirectory() as folder:
        times = measure.in_turn({"encoder alone": alone, "index": lambda: Index.build(
            Path(folder) / str(next(turn)), source, encoder, **quiet)}, rounds)
    rates = {name: len(data) / taken for name, taken in measure.medians(times).items()}
    return rates | {"kept": measure.ratio(times, "encoder alone", "index")}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--run", help="run folder, checkpoint folder or Hub id")
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    where = measure.begin()
    run = bitgen.load(options.run) if options.run else None
    size = run[1].vision.image_size if run else load_preset("scenes").vision.image_size
    data = open_data(DataConfig(root=options.data), "val", size).first(max(options.images, *options.batches))
    encoder = Encoder(run[0].to(DEVICE), run[1]) if run else untrained(data)
    rows = throughput(encoder, data, options.batches, options.rounds)
    print(measure.table(["what", "batch", "precision", "a second", "ms a batch", "MFLOP each", "MFU"], rows))
    images = min(options.images, len(data))
    rates = building(encoder, data.first(images), options.rounds)
    print(f"building an index of {images} images with their captions: {rates['index']:.0f} images/s; the "
          f"encoder alone {rates['encoder alone']:.0f}; {rates['kept']:.2f} of it kept")
    measure.write(options.json, {"environment": where, "throughput": rows, "building": rates})


if __name__ == "__main__":
    main()
