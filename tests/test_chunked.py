"""Encoding in chunks gives the gradients of the whole batch; what the benchmarks build on the objective fits it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_batch, tiny_model

from bitgen.chunked import encode_in_chunks
from bitgen.config import LossConfig
from bitgen.objective import Objective


def step(task, batch):
    """Losses and gradients of a training forward."""
    torch.manual_seed(0)
    task.zero_grad()
    losses, _, pending = task.train()(batch)
    losses["total"].backward()
    return losses, {name: p.grad.clone() for name, p in task.model.named_parameters()}, pending


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_gradients_in_chunks_are_those_of_the_whole_batch(chunk):
    batch, results = tiny_batch(), []
    for size in (None, chunk):
        task = Objective(tiny_model(gates=0.5), LossConfig(queue=32, queue_start=0, episode=4, chunk=size))
        task.after_step((batch, step(task, batch)[2]))
        losses, grads, pending = step(task, tiny_batch(seed=1))
        results.append(({**losses}, grads, pending.keys._asdict()))
    for whole, parts in zip(*results):
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def test_activations_of_one_chunk_at_a_time():
    """Nothing of a chunk but its inputs is kept until the backward pass comes to it."""
    model, batch = tiny_model(), tiny_batch(images=8)

    def kept(size):
        numbers = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: numbers.append(x.numel()) or x, lambda x: x):
            encoded = encode_in_chunks(model.image_tokens, size, batch.pixel_values)
        assert encoded.tokens.shape == (8, 17, 32) and encoded.feature.requires_grad
        return sum(numbers)

    assert kept(2) < kept(None) / 4


def test_the_plain_way_of_writing_it_gives_the_same_losses_and_gradients(monkeypatch):
    """So that the benchmark compares like with like."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from plain import PlainObjective

    model, batch = tiny_model(gates=0.5), tiny_batch()
    config = LossConfig(queue=32, queue_start=0, episode=4, left_out=0.3)
    results = [step(kind(model, config), batch)[:2] for kind in (Objective, PlainObjective)]
    (ours, our_gradients), (plain, plain_gradients) = results
    torch.testing.assert_close(plain, ours, atol=1e-5, rtol=1e-5)
    for name in ("project.weight", "text.embedding.weight", "memory.addressing.weight", "value.0.weight"):
        torch.testing.assert_close(plain_gradients[name], our_gradients[name], atol=1e-5, rtol=1e-3)


def test_each_part_of_a_step_can_be_timed_alone(monkeypatch):
    """`benchmarks/train_step.py parts` calls the objective's parts by themselves: they are to fit together."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import train_step

    bench = train_step.Bench(SimpleNamespace(data="scenes", tower="nano", image_size=32, batch=4, captions=2, rounds=1))
    calls = train_step.part_calls(bench, bench.step())
    assert {"contrast with queue", "fusion and matching", "memory", "decoder"} < calls.keys()
    for call in calls.values():
        call()
