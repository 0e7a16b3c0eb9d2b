"""How the cost of a training step grows, and what two processes make of the same batch.

    python benchmarks/scaling.py                          # batch, image size, vocabulary, queue, captions
    python benchmarks/scaling.py processes                # two gloo processes against one
    python benchmarks/scaling.py batch --sizes 16 64 256

Growth: steps of all sizes take turns; the last column is what a unit costs against the first line, 1 where the cost is
linear in it. Processes: losses and gradients of the joint batch, averaged over both, against one process with all of
it, in float32, matching left out (each process draws its hard negatives from its own images); state after the step;
and CPU seconds of a process with a batch of its own, alone and as one of two. That study is for the CPU: hide a GPU
with CUDA_VISIBLE_DEVICES= before it.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import measure
import torch
import torch.distributed as dist
from measure import DEVICE
from train_step import Bench, Step, command_line, parsed

from bitgen.data import Batch, Collator

WORLD = 2


def growing(bench: Bench, steps: dict[int, Step], units: dict[int, float], unit: str) -> dict:
    """The table of steps by size; `units` says how much of what should cost the same each does."""
    times = measure.in_turn(steps, bench.rounds)
    medians = measure.medians(times)
    first = next(iter(steps))
    rows = [[size, 1e3 * taken, measure.flops(steps[size]) / 1e9, measure.peak_bytes(steps[size]) / 1e6,
             1e3 * taken / units[size], taken / units[size] / (medians[first] / units[first])]
            for size, taken in medians.items()]
    print(measure.table(["size", "step ms", "GFLOP", "peak MB", f"ms {unit}", "against the first"], rows))
    return {"rows": rows, "times": times}


def batch(bench: Bench, sizes: list[int]) -> dict:
    """Images a step."""
    batches = {size: bench.feed.prepare(bench.feed.collator(range(size)), 0) for size in sizes or [8, 16, 32, 64]}
    return growing(bench, {size: bench.step(batch=some) for size, some in batches.items()},
                   {size: size for size in batches}, "an image")


def image_size(bench: Bench, sizes: list[int]) -> dict:
    """Side of the images, in pixels; unit of cost is a patch."""
    patch = bench.tower["patch_size"]
    steps = {size: bench.step(batch=dataclasses.replace(bench.batch, pixel_values=torch.randn(
        bench.batch_size, 3, size, size, device=DEVICE))) for size in sizes or [4 * patch, 8 * patch, 16 * patch]}
    return growing(bench, steps, {size: (size // patch) ** 2 for size in steps}, "a patch of each image")


def vocabulary(bench: Bench, sizes: list[int]) -> dict:
    """Entries of the vocabulary; the text loss and the optimizer pay for them, 1 would mean that nothing else costs."""
    steps = {size: bench.step(vocab=size) for size in sizes or [8192, 16384, 32768, 50257]}
    return growing(bench, steps, {size: size / 1000 for size in steps}, "a thousand entries")


def queue(bench: Bench, sizes: list[int]) -> dict:
    """Pairs in the queue, the momentum encoders running at every size; unit of cost is the step."""
    steps = {size: bench.step(loss={"queue": size}) for size in sizes or [1, 1024, 4096, 16384]}
    return growing(bench, steps, {size: 1 for size in steps}, "a step")


def captions(bench: Bench, sizes: list[int]) -> dict:
    """Captions of each image that ride on its one forward; unit of cost is a caption."""
    def made(count: int) -> Batch:
        collator = Collator(bench.data, bench.tokenizer, bench.batch.pixel_values.shape[-1], count, 0)
        return bench.feed.prepare(collator(range(bench.batch_size)), 0)
    batches = {size: made(size) for size in sizes or [1, 2, 5]}
    return growing(bench, {size: bench.step(batch=some) for size, some in batches.items()},
                   {size: len(some.caption_ids) for size, some in batches.items()}, "a caption")


# Processes ------------------------------------------------------------------------------------------------


def processes(bench: Bench, sizes: list[int]) -> dict:
    """Two processes against one on the joint batch."""
    options = bench.options
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(one_of, (folder, options), nprocs=WORLD)
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]
    alone = measured(bench, whole(bench))
    far = {what: max(distance(alone[what], some[what]) for some in found) for what in ("losses", "gradients")}
    unlike = [name for name, value in found[0]["state"].items() if not torch.equal(value, found[1]["state"][name])]
    slowest = max(some["seconds"] for some in found)
    rows = [["losses, norm of the difference", far["losses"]],
            ["gradients, norm of the difference", far["gradients"]],
            ["queue, memory, averages that differ between processes", len(unlike)],
            [f"CPU ms of a step of {bench.batch_size} images, one process alone", 1e3 * alone["seconds"]],
            [f"CPU ms of a step of {bench.batch_size} images in each of {WORLD}", 1e3 * slowest],
            ["efficiency", alone["seconds"] / slowest],
            ["MB of gradients that each process sends a step", alone["bytes"] * 2 * (WORLD - 1) / WORLD / 1e6]]
    print(measure.table([f"{bench.batch_size} images, float32", ""], rows))
    return {"rows": rows, "unlike": unlike}


def one_of(rank: int, folder: str, options: argparse.Namespace) -> None:
    """What process `rank` does: its half of the batch, its gradients averaged with the others'."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    bench = Bench(options)
    torch.save(measured(bench, half(whole(bench), rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def whole(bench: Bench) -> Batch:
    """The batch on the CPU, every token of it real: a mean over two halves is then that of all."""
    batch = bench.batch.to("cpu")
    return dataclasses.replace(batch, attention_mask=torch.ones_like(batch.attention_mask))


def half(batch: Batch, rank: int) -> Batch:
    images, texts = len(batch.image_ids) // WORLD, len(batch.caption_ids) // WORLD
    some, words = slice(rank * images, (rank + 1) * images), slice(rank * texts, (rank + 1) * texts)
    return dataclasses.replace(
        batch, pixel_values=batch.pixel_values[some], image_ids=batch.image_ids[some],
        input_ids=batch.input_ids[words], attention_mask=batch.attention_mask[words],
        caption_ids=batch.caption_ids[words], image_index=batch.image_index[words] - rank * images)


def measured(bench: Bench, batch: Batch) -> dict:
    """Losses, gradients and state of a step on this batch; CPU seconds of further ones on a whole one."""
    loss = {"itm": 0.0, "left_out": 0.0, "queue": 256, "episode": max(bench.batch_size // WORLD, 1)}
    step = bench.step(precision="float32", loss=loss, batch=batch)
    task, parameters = step.task, [p for p in step.task.model.parameters()]
    task.queue.size.zero_()

    def forward_backward(batch: Batch):
        losses, _, pending = task(batch)
        losses["total"].backward()
        grads = [p.grad for p in parameters if p.grad is not None]
        together = averaged(torch.cat([grad.flatten() for grad in grads]))
        for grad, mean in zip(grads, together.split([grad.numel() for grad in grads])):
            grad.copy_(mean.view_as(grad))
        return {name: averaged(value.detach().clone()) for name, value in losses.items()}, pending

    losses, pending = forward_backward(batch)
    gradients = {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}
    step.update(pending)
    state = {name: value.clone() for name, value in task.state_dict().items()}

    step.batch = whole(bench)

    def again() -> None:
        step.update(forward_backward(step.batch)[1])

    seconds = measure.medians(measure.in_turn({"step": again}, bench.rounds))["step"]
    return {"losses": losses, "gradients": gradients, "state": state, "seconds": seconds,
            "bytes": sum(4 * p.numel() for p in parameters)}


def averaged(x: torch.Tensor) -> torch.Tensor:
    """The mean over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all numbers, by their norm."""
    one, other = (torch.cat([x[name].flatten() for name in a]) for x in (a, b))
    return float((one - other).norm() / one.norm())


STUDIES = {study.__name__.replace("_", "-"): study
           for study in (batch, image_size, vocabulary, queue, captions, processes)}


def main() -> None:
    line = command_line(__doc__, STUDIES, studies=[name for name in STUDIES if name != "processes"], tower="nano",
                        image_size=64, batch=16)
    line.add_argument("--sizes", type=int, nargs="+", default=[], help="of one study")
    options = parsed(line, STUDIES)
    if options.sizes and len(options.studies) != 1:
        line.error("--sizes are of one study: name it")
    where = measure.begin()
    bench, found = Bench(options), {}
    for name in options.studies:
        print(f"## {name}: {STUDIES[name].__doc__}\n", flush=True)
        found[name] = STUDIES[name](bench, options.sizes)
    measure.write(options.json, {"environment": where, **found})


if __name__ == "__main__":
    main()
