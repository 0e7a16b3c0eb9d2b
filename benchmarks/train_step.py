"""What a training step takes, part by part, and beside others that do the same.

    python benchmarks/train_step.py                        # where the time goes: `parts`
    python benchmarks/train_step.py objective              # full objective: ours, contrast alone, the plain way
    python benchmarks/train_step.py ternary captions chunks
    python benchmarks/train_step.py peer --batch 64        # contrast alone beside open_clip, where that is installed

The towers: a DINOv2 encoder of ViT-Ti's size, 12 x 192 over 112-pixel images (`--tower small`: 12 x 384), and text
of 4 x 128. `--data` takes what `bitgen train --data.root` takes. Times are medians of steps taken in turn (see
measure.py). MFU is arithmetic a second over that of the product of two square matrices, measured in the same process;
the momentum copy's forward counts, since the objective asks for it.

open_clip needs torchvision, which this project never installs; measure it from an environment of its own:

    python -m venv peer && peer/bin/pip install open-clip-torch -e .
    peer/bin/python benchmarks/train_step.py peer --batch 64
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

import measure
import torch
from measure import DEVICE, PRECISION
from plain import PlainObjective
from torch import Tensor

from bitgen import vision
from bitgen.batches import Feed
from bitgen.config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig, VisionConfig
from bitgen.data import Batch, Collator, open_data
from bitgen.losses import text_loss
from bitgen.model import BitGen
from bitgen.objective import Objective
from bitgen.setup import make_optimizer
from bitgen.tokenizer import Tokenizer

TINY = vision.DINOV2 | {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3}
TOWERS = {"nano": vision.TOWERS["dinov2-nano"], "tiny": TINY, "small": vision.TOWERS["dinov2-small"]}
VOCAB, GPT2 = 8192, 50257
CONTRAST = {"itm": 0.0, "text": 0.0, "queue": 0, "momentum": 0.0}


class Bench:
    """The data, and steps on one batch of them."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.batch_size, self.rounds, self.tower = options.batch, options.rounds, TOWERS[options.tower]
        some = max(512, options.batch)
        data = DataConfig(root=options.data, scenes_train=some, limit=some)
        self.data = open_data(data, "train", options.image_size)
        self.tokenizer = Tokenizer.train([text for some in self.data.captions for text in some], VOCAB)
        self.config = Config(
            data=dataclasses.replace(data, captions_per_image=options.captions),
            vision=VisionConfig(tower=self.tower, image_size=options.image_size),
            model=ModelConfig(vocab_size=VOCAB, max_tokens=64), loss=LossConfig(queue_start=0),
            optim=OptimConfig(batch_size=self.batch_size))
        self.feed = Feed(self.data, self.tokenizer, self.config, DEVICE)
        self.batches = self.feed.batches(0, 10**9)
        self.batch = next(self.batches)

    def some(self, images: int, captions: int) -> Batch:
        """The first images with this many captions each, on the device."""
        size = None if self.feed.pixels is not None else self.config.vision.image_size
        collator = Collator(self.data, self.tokenizer, size, captions, 0, self.config.model.max_tokens)
        return self.feed.prepare(collator(range(images)), 0)

    def step(self, kind: type[Objective] = Objective, vocab: int = VOCAB, precision: str = PRECISION,
             loss: dict | None = None, batch: Batch | None = None, compiled: bool = False, **model) -> Step:
        """A step of a new model with changed settings of loss and model; images as large as those of `batch`."""
        batch = self.batch if batch is None else batch
        size = batch.pixel_values.shape[-1]
        config = dataclasses.replace(
            self.config, model=dataclasses.replace(self.config.model, vocab_size=vocab, **model),
            loss=dataclasses.replace(self.config.loss, **(loss or {})),
            vision=dataclasses.replace(self.config.vision, image_size=size))
        torch.manual_seed(0)
        built = BitGen(config.model, config.vision).to(DEVICE)
        for layer in built.fusion.layers:  # as after some training: closed gates would be as costly, but not alike
            layer.word_gate.data.fill_(0.5), layer.patch_gate.data.fill_(0.5)
        task = kind(built, config.loss).to(DEVICE)
        if kind is Objective:
            for model in task.models():
                model.vision.set_attention(precision, DEVICE)
            if compiled:
                task.compile_encoders()
        if task.queue is not None:  # full, as it is all the time but at the start
            task.queue.image.normal_(), task.queue.text.normal_(), task.queue.size.fill_(task.queue.capacity)
            task.queue.image_ids.random_(), task.queue.caption_ids.random_()
        optimizer = make_optimizer(task.model, config)
        if kind is PlainObjective:
            optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-4, foreach=False)
        return Step(task.train(), optimizer, batch, precision)


class Step:
    """One call is a training step as `Trainer` takes it."""

    def __init__(self, task: Objective, optimizer: torch.optim.Optimizer, batch: Batch, precision: str):
        self.task, self.optimizer, self.batch, self.precision = task, optimizer, batch, precision

    def autocast(self) -> torch.autocast:
        """bf16 where the step is taken in it."""
        return torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bf16")

    def __call__(self) -> None:
        with self.autocast():
            losses, _, pending = self.task(self.batch)
        losses["total"].backward()
        self.update(pending)

    def update(self, pending) -> None:
        """What follows the backward pass."""
        norm = torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.task.after_step((self.batch, pending))
        self.optimizer.zero_grad(set_to_none=True)


# Where the time goes --------------------------------------------------------------------------------------


def parts(bench: Bench) -> dict:
    """Each part alone, forward and backward, beside the whole step."""
    step = bench.step()
    calls = {"whole step": step} | part_calls(bench, step)
    for call in calls.values():
        call()
    work = {name: measure.flops(call) for name, call in calls.items()}
    times, most = measure.in_turn(calls, bench.rounds), measure.ceiling()
    medians = measure.medians(times)
    whole, rows = medians["whole step"], []
    rest = whole - sum(some for name, some in medians.items() if name not in ("whole step", "data"))
    for name, taken in medians.items():
        rows.append([name, 1e3 * taken, taken / whole, work[name] / 1e9, work[name] / taken / most])
    rows.append(["not told apart", 1e3 * rest, rest / whole, "", ""])
    images, captions = len(bench.batch.image_ids), len(bench.batch.caption_ids)
    print(f"{images} images, {captions} captions of {bench.batch.input_ids.shape[1]} tokens at most "
          f"({int(bench.batch.attention_mask.sum())} real ones), vocabulary 8,192, queue full; "
          f"{images / whole:.1f} images/s; ceiling {most / 1e9:.0f} GFLOP/s\n")
    print(measure.table(["part", "ms", "of the step", "GFLOP", "MFU"], rows))
    return {"rows": rows, "ceiling": most, "images_per_second": images / whole}


def part_calls(bench: Bench, step: Step) -> dict[str, Callable[[], None]]:
    """Each part of the step by itself, on inputs that are leaves, with backward where it has one."""
    task, model, batch = step.task, step.task.model, step.batch
    first = batch.firsts()
    with torch.no_grad(), step.autocast():
        image, text = model.image_tokens(batch.pixel_values), model.text_tokens(batch.input_ids, batch.attention_mask)
        keys = task._keys(batch, image, text)
    image, text = (type(x)(*(leaf(y) for y in x)) for x in (image, text))
    with step.autocast():
        candidates = task._contrast(image.feature, text.feature, keys, batch, first, {})[1]
        code = leaf(task._match(image, text, batch, first, candidates, {}, {}))
        reading, _ = task._episode(image.feature, text.feature[first], code, first >= 0, {}, {})
        states, targets = model.decode_real(batch.input_ids, batch.attention_mask, model.context(image, reading),
                                            batch.image_index)
        states = leaf(states)
    reading = type(reading)(*map(leaf, reading))
    pending = task(batch)[2]

    def contrast() -> Tensor:
        with torch.autocast(DEVICE.type, enabled=False):
            return task._contrast(image.feature, text.feature, keys, batch, first, {})[0]

    def matching(losses: dict) -> Tensor:
        task._match(image, text, batch, first, candidates, losses, {})
        return losses["itm"]

    def memory(losses: dict) -> Tensor:
        read, _ = task._episode(image.feature, text.feature[first], code, first >= 0, losses, {})
        return losses["memory_kl"] + read.mean.sum()

    def decoder() -> Tensor:
        context = model.context(image, reading)
        return model.decode_real(batch.input_ids, batch.attention_mask, context, batch.image_index)[0].float().sum()

    def update() -> None:
        for parameter in model.parameters():
            parameter.grad = gradients[parameter]
        step.update(pending)

    def learn(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            with step.autocast():
                loss = forward()
            loss.backward()
            model.zero_grad(set_to_none=True)
        return call

    def momentum() -> None:
        with step.autocast():
            task._keys(batch, image, text)

    gradients = {p: torch.randn_like(p) * 1e-4 for p in model.parameters()}
    embedding = model.text.embedding.weight
    return {
        "data": lambda: next(bench.batches),
        "vision": learn(lambda: summed(model.image_tokens(batch.pixel_values))),
        "text": learn(lambda: summed(model.text_tokens(batch.input_ids, batch.attention_mask))),
        "momentum keys": momentum,
        "contrast with queue": learn(contrast),
        "fusion and matching": learn(lambda: matching({})),
        "memory": learn(lambda: memory({})),
        "decoder": learn(decoder),
        "text loss": learn(lambda: text_loss(states, embedding, targets)[0]),
        "optimizer, averages, queue": update,
    }


def leaf(x: Tensor) -> Tensor:
    """The same numbers, with a gradient of their own."""
    return x.detach().clone().requires_grad_(x.is_floating_point())


def summed(encoded) -> Tensor:
    return encoded.tokens.float().sum() + encoded.feature.sum()


# Beside others --------------------------------------------------------------------------------------------


def objective(bench: Bench) -> dict:
    """The full objective with two vocabularies, contrast alone, and the plain way of writing the same."""
    steps = {
        "full, GPT-2's vocabulary": bench.step(vocab=GPT2),
        "full, vocabulary 8,192": bench.step(),
        "full without the text loss, 8,192": bench.step(loss={"text": 0.0}),
        "contrast alone, 8,192": bench.step(loss=CONTRAST, memory_slots=0),
        "plain, GPT-2's vocabulary, " + PRECISION: bench.step(PlainObjective, GPT2),
    }
    if PRECISION != "float32":
        steps["plain, GPT-2's vocabulary, float32"] = bench.step(PlainObjective, GPT2, "float32")
    return compared(bench, steps, "full, GPT-2's vocabulary")


def ternary(bench: Bench) -> dict:
    """What ternary weights and 8-bit activations cost, everywhere outside the vision tower."""
    return compared(bench, {"full precision": bench.step(), "ternary": bench.step(ternary=True)}, "full precision")


def captions(bench: Bench) -> dict:
    """Five captions an image on one image forward, and each with an image forward of its own."""
    together = bench.some(bench.batch_size, 5)
    apart = dataclasses.replace(
        together, pixel_values=together.pixel_values[together.image_index],
        image_ids=together.image_ids[together.image_index],
        image_index=torch.arange(len(together.image_index), device=DEVICE))
    steps = {f"{name}, {how}": bench.step(loss=loss, batch=batch, **model)
             for name, loss, model in (("contrast alone", CONTRAST, {"memory_slots": 0}), ("full", {}, {}))
             for how, batch in (("five together", together), ("one by one", apart))}
    return compared(bench, steps, "contrast alone, five together")


def chunks(bench: Bench) -> dict:
    """Contrast alone: an eighth of the batch, the whole, and the whole in chunks of an eighth (`loss.chunk`)."""
    small = max(bench.batch_size // 8, 1)
    few = bench.some(small, bench.options.captions)
    return compared(bench, {
        f"{small} images": bench.step(loss=CONTRAST, batch=few, memory_slots=0),
        f"{bench.batch_size} images": bench.step(loss=CONTRAST, memory_slots=0),
        f"{bench.batch_size} images in chunks of {small}": bench.step(loss=CONTRAST | {"chunk": small},
                                                                      memory_slots=0),
    }, f"{bench.batch_size} images")


def contrast(bench: Bench) -> dict:
    """Contrast alone, the encoders as they are and compiled (`--compile True` of `bitgen train`)."""
    return compared(bench, {name: bench.step(loss=CONTRAST, memory_slots=0, compiled=compiled)
                            for name, compiled in (("eager", False), ("compiled", True))}, "eager")


def peer(bench: Bench) -> dict:
    """Contrast alone beside open_clip: the same towers, vocabulary, images and captions."""
    steps = {f"bitgen, {name}": bench.step(loss=CONTRAST, precision=name, memory_slots=0)
             for name in dict.fromkeys([PRECISION, "float32"])}
    if DEVICE.type == "cuda":
        steps[f"bitgen, {PRECISION}, compiled"] = bench.step(loss=CONTRAST, memory_slots=0, compiled=True)
    length = bench.batch.input_ids.shape[1]
    for name in dict.fromkeys([PRECISION, "float32"]):
        steps[f"open_clip, {name}, {length} tokens"] = OpenClip(bench, name, length)
    steps[f"open_clip, {PRECISION}, 77 tokens (its default)"] = OpenClip(bench, PRECISION, 77)
    if DEVICE.type == "cuda":
        steps[f"open_clip, {PRECISION}, {length} tokens, compiled"] = OpenClip(bench, PRECISION, length, compiled=True)
    return compared(bench, steps, f"bitgen, {PRECISION}")


class OpenClip:
    """A step as open_clip's `train_one_epoch` takes it: forward, loss, backward, clip, AdamW, clamp of the scale."""

    def __init__(self, bench: Bench, precision: str, length: int, compiled: bool = False):
        try:
            from open_clip import CLIP, ClipLoss
        except ImportError as error:
            raise SystemExit(f"open_clip cannot be imported ({error}); how to measure it: --help") from None
        torch.manual_seed(0)
        tower, model = bench.tower, bench.config.model
        self.model = CLIP(
            model.hidden_size, {"layers": tower["num_hidden_layers"], "width": tower["hidden_size"], "head_width": 64,
                                "patch_size": tower["patch_size"], "image_size": bench.config.vision.image_size},
            {"context_length": length, "vocab_size": model.vocab_size, "width": model.hidden_size,
             "heads": model.num_heads, "layers": model.text_layers}).to(DEVICE).train()
        self.loss, self.precision = ClipLoss(), precision
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        self.optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.2}, {
            "params": [p for p in self.model.parameters() if p.ndim < 2], "weight_decay": 0.0}], lr=1e-4)
        ids = bench.batch.input_ids * bench.batch.attention_mask
        self.images = bench.batch.pixel_values[bench.batch.image_index]
        self.ids = torch.nn.functional.pad(ids, (0, length - ids.shape[1]))
        self.batch = bench.batch
        self.forward = torch.compile(self.model) if compiled else self.model

    def __call__(self) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss(*self.forward(self.images, self.ids)[:3])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, 4.6052)


def compared(bench: Bench, steps: dict[str, Step], base: str) -> dict:
    """Steps in turn: time, arithmetic, peak memory, and how many times as long as `base` each takes."""
    times = measure.in_turn(steps, bench.rounds)
    work, most = {name: measure.flops(step) for name, step in steps.items()}, measure.ceiling()
    rows, medians = [], measure.medians(times)
    for name, step in steps.items():
        memory, taken = measure.peak_bytes(step), medians[name]
        rows.append([name, 1e3 * taken, len(step.batch.image_ids) / taken, len(step.batch.caption_ids) / taken,
                     measure.ratio(times, name, base), work[name] / 1e9, work[name] / taken / most, memory / 1e6])
    print(measure.table(["step", "ms", "images/s", "captions/s", "times as long", "GFLOP", "MFU", "peak MB"], rows))
    return {"rows": rows, "ceiling": most, "times": times}


STUDIES = {study.__name__: study for study in (parts, objective, contrast, ternary, captions, chunks, peer)}


def command_line(doc: str, known: dict[str, Callable], **usual) -> argparse.ArgumentParser:
    """The command line of a benchmark of studies: which ones, and what a `Bench` reads; `usual`: other defaults."""
    parser = measure.parser(doc)
    parser.add_argument("studies", nargs="*", metavar="STUDY",
                        help=f"{', '.join(known)}; by default {', '.join(usual['studies'])}")
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--tower", choices=TOWERS, default="tiny")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--captions", type=int, default=2, help="captions an image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.set_defaults(**usual)
    return parser


def parsed(parser: argparse.ArgumentParser, known: dict[str, Callable]) -> argparse.Namespace:
    """What was typed; ends with a message where a study does not exist."""
    options = parser.parse_args()
    if unknown := set(options.studies) - set(known):
        parser.error(f"no study {', '.join(unknown)}; there are {', '.join(known)}")
    return options


def main() -> None:
    options = parsed(command_line(__doc__, STUDIES, studies=["parts"]), STUDIES)
    where = measure.begin()
    bench = Bench(options)
    found = {}
    for name in options.studies:
        print(f"## {name}: {STUDIES[name].__doc__}\n")
        found[name] = STUDIES[name](bench)
    measure.write(options.json, {"environment": where, "settings": vars(options) | {"json": None}, **found})


if __name__ == "__main__":
    main()
