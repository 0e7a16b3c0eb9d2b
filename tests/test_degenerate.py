"""Batches, numbers and settings at the edge of what can be trained on."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_batch
from objectives import objective, perfect

from bitgen.model import MAX_LOGIT_SCALE, unit


def one_text(batch):
    return replace(batch, input_ids=batch.input_ids[:1].expand_as(batch.input_ids).clone(),
                   attention_mask=batch.attention_mask[:1].expand_as(batch.attention_mask).clone(),
                   caption_ids=batch.caption_ids[:1].expand_as(batch.caption_ids).clone())


DEGENERATE = {
    "one image": tiny_batch(images=1),
    "one image with one caption": tiny_batch(images=1, captions=1),
    "one caption an image": tiny_batch(captions=1),
    "all captions equal": one_text(tiny_batch()),
    "all images equal": replace(tiny_batch(), pixel_values=torch.zeros(6, 3, 32, 32)),
    "all images the same one": replace(tiny_batch(), image_ids=torch.zeros(6, dtype=torch.int64)),
    "captions of nothing but begin and end": replace(
        tiny_batch(), input_ids=torch.zeros(12, 2, dtype=torch.int64), attention_mask=torch.ones(12, 2).bool()),
}


@pytest.mark.parametrize("left_out", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_batches_give_finite_numbers_and_gradients(kind, left_out):
    task, batch = objective(left_out=left_out).train(), DEGENERATE[kind]
    for _ in range(2):                                                             # with an empty and a filled queue
        losses, report, pending = task(batch)
        losses["total"].backward()
        task.after_step((batch, pending))
        assert {name: value.item() for name, value in {**losses, **report}.items() if not value.isfinite()} == {}
        assert all(p.grad.isfinite().all() for p in task.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["pixels", "weights"])
def test_numbers_that_are_not_finite_are_told_and_do_not_stop_the_forward(kind):
    """Who trains skips such a step; it must get that far."""
    task, batch = objective().train(), tiny_batch()
    if kind == "pixels":
        batch.pixel_values[2, 0, 0, 0] = torch.nan
    else:
        task.model.text.norm.weight.data[0] = torch.inf
    assert not task(batch)[0]["total"].isfinite()


def test_under_bf16_autocast_losses_are_float32_and_near():
    task, batch = objective(queue=0).train(), tiny_batch()
    exact = task(batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        losses, report, _ = task(batch)
    assert {value.dtype for value in (*losses.values(), *report.values())} == {torch.float32}
    for name in ("itc", "text", "memory_kl"):
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.03)
    losses["total"].backward()
    assert all(p.grad.isfinite().all() for p in task.model.parameters())


def test_at_scale_100_similarities_keep_float32_steps_under_autocast():
    """Two candidates 0.1 nat apart at logits near 100: one number in bf16."""
    task = objective(queue=0)
    task.model.logit_scale.data.fill_(math.log(MAX_LOGIT_SCALE))
    batch, image, text = perfect(task, images=2)
    image = image._replace(feature=unit(torch.tensor([[1.0, 0.0], [1.0, 0.045]]).repeat(1, 16)))
    text = text._replace(feature=image.feature[batch.image_index])
    losses, report, _ = task.score(image, text, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert task.score(image, text, batch)[0]["itc"].item() == pytest.approx(losses["itc"].item(), rel=1e-6)
    assert losses["itc"] < 0.95 * report["itc_chance"]


@pytest.mark.parametrize("name, value", [
    ("itc", -1.0), ("itm", -0.1), ("text", float("nan")), ("memory_kl", -1.0), ("label_smoothing", 1.0),
    ("label_smoothing", -0.1), ("queue", -1), ("momentum", 1.1), ("momentum", -0.1), ("episode", 0),
    ("left_out", 1.5), ("left_out", -0.5)])
def test_a_setting_out_of_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=rf"loss\.{name} must be .*got {value}"):
        objective(**{name: value})
