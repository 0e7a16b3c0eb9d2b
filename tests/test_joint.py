"""A batch in parts, on one process or on two, teaches what the whole one does."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from conftest import WORDS, tiny_batch
from objectives import objective

from bitgen.losses import smoothing_floor


def test_it_learns_one_batch_by_heart():
    task = objective(gates=0.0, left_out=0.5).train()
    batch = tiny_batch()
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    start = task(batch)[0]
    for _ in range(60):
        optimizer.zero_grad()
        losses, report, pending = task(batch)
        losses["total"].backward()
        optimizer.step()
        task.after_step((batch, pending))
    assert report["t2i"] == report["i2t"] == 1 and report["itm_acc"] > report["itm_acc_chance"]
    assert losses["itc"] < 0.3 * start["itc"] and losses["text"] < 0.8 * start["text"]
    assert losses["text"] > smoothing_floor(WORDS, 0.1)
    assert all(layer.word_gate.abs() > 1e-3 for layer in task.model.fusion.layers)


def part(batch, number, parts=2):
    """One of the equal parts of a batch with equally many captions an image."""
    images, captions = len(batch.image_ids) // parts, len(batch.caption_ids) // parts
    some, texts = slice(number * images, (number + 1) * images), slice(number * captions, (number + 1) * captions)
    return replace(batch, pixel_values=batch.pixel_values[some], image_ids=batch.image_ids[some],
                   input_ids=batch.input_ids[texts], attention_mask=batch.attention_mask[texts],
                   caption_ids=batch.caption_ids[texts], image_index=batch.image_index[texts] - number * images)


def gradients(task):
    return {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["text", "memory_kl"])
def test_accumulated_halves_give_the_gradient_of_the_whole(name):
    """For losses that are means over images. Contrast and matching differ: each half has only its own negatives."""
    batch = tiny_batch(images=8, full=True)
    whole, halves = objective(), objective()
    whole(batch)[0][name].backward()
    for number in range(2):
        (halves(part(batch, number))[0][name] / 2).backward()
    for name, grad in gradients(whole).items():
        torch.testing.assert_close(gradients(halves)[name], grad, atol=1e-5, rtol=1e-3)


def test_accumulated_halves_contrast_with_fewer_candidates():
    batch = tiny_batch(images=8)
    chance = [objective(queue=0)(b)[1]["itc_chance"].item() for b in (batch, part(batch, 0))]
    assert chance == pytest.approx([(math.log(8) + math.log(15)) / 2, (math.log(4) + math.log(7)) / 2], rel=1e-4)


def joint_batches():
    """Two batches that share images and captions between their halves and with each other."""
    batches = []
    for seed in range(2):
        batch = tiny_batch(images=8, seed=seed, full=True)
        ids, captions = batch.image_ids.clone(), batch.caption_ids.clone()
        ids[6], captions[9], ids[1] = ids[0], captions[2], 77
        batches.append(replace(batch, image_ids=ids, caption_ids=captions))
    return batches


def two_steps(batches):
    """Losses and gradients of the second batch, with the first in the queue; state after both.

    Matching is off: each process draws its hard negatives from its own images. Every episode is one process's share.
    """
    task = objective(itm=0.0)
    for batch in batches:
        task.zero_grad()
        losses, _, pending = task(batch)
        losses["total"].backward()
        grads = gradients(task)
        task.after_step((batch, pending))
    return {"losses": {name: loss.detach() for name, loss in losses.items()}, "gradients": grads,
            "state": task.state_dict()}


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    result = two_steps([part(batch, rank) for batch in joint_batches()])
    for mean in (result["losses"], result["gradients"]):
        for value in mean.values():
            dist.all_reduce(value)
            value /= 2
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_two_processes_equal_one_on_the_joint_batch(tmp_path):
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    one, results = two_steps(joint_batches()), [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for result in results:
        for name, loss in one["losses"].items():
            torch.testing.assert_close(result["losses"][name], loss, atol=1e-5, rtol=1e-5, msg=name)
        assert result["gradients"].keys() == one["gradients"].keys()
        for name, grad in one["gradients"].items():
            torch.testing.assert_close(result["gradients"][name], grad, atol=1e-5, rtol=1e-3, msg=name)
    states = [result["state"] for result in results]
    assert states[0]["queue.size"] == 16
    for name, value in one["state"].items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], value, atol=1e-4, rtol=1e-4, msg=name)
