"""The contrast and its queue against slow loops; what perfect and collapsed models score."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_batch
from objectives import firsts, objective, perfect, tricky_batch

from bitgen.model import MAX_LOGIT_SCALE, unit
from bitgen.objective import Keys


def info_nce(rows):
    """rows of (scores of own candidates, scores of wrong candidates), one term for each own candidate."""
    terms = [-math.log(math.exp(s) / (math.exp(s) + sum(map(math.exp, wrong)))) for own, wrong in rows for s in own]
    return sum(terms) / len(terms)


def slow_contrast(model, batch, encoder=None, history=()):
    """Averages of caption-to-image and image-to-caption over the batch, and with an encoder over keys and queue.

    history: (image feature, text feature, image id, caption id) of what is queued, features less their batch's mean.
    """
    image, text = model.encode_image(batch.pixel_values), model.encode_text(batch.input_ids, batch.attention_mask)
    owner, pictures, words = (x.tolist() for x in (batch.image_index, batch.image_ids, batch.caption_ids))
    standing = [{w for w, o in zip(words, owner) if o == b} for b in range(len(pictures))]
    score = lambda a, b: (model.scale() * a @ b).item()  # noqa: E731

    def negative(n, b):
        return pictures[owner[n]] != pictures[b] and words[n] not in standing[b]

    images, captions = range(len(pictures)), range(len(words))
    t2i = [([score(text[n], image[owner[n]])], [score(text[n], image[b]) for b in images if negative(n, b)])
           for n in captions]
    i2t = [([score(image[b], text[n]) for n in captions if owner[n] == b],
            [score(image[b], text[n]) for n in captions if negative(n, b)]) for b in images]
    terms = [info_nce(t2i), info_nce(i2t)]
    if encoder is not None:
        first = firsts(batch)
        key_image = encoder.encode_image(batch.pixel_values)
        key_text = encoder.encode_text(batch.input_ids[first], batch.attention_mask[first])
        t2i = [([score(text[n], key_image[owner[n]])],
                [score(text[n], key_image[b]) for b in images if negative(n, b)]
                + [score(text[n], old + key_image.mean(0)) for old, _, picture, word in history
                   if picture != pictures[owner[n]] and word != words[n]]) for n in captions]
        i2t = [([score(image[b], key_text[b])],
                [score(image[b], key_text[c]) for c in images if negative(first[c], b)]
                + [score(image[b], old + key_text.mean(0)) for _, old, picture, word in history
                   if picture != pictures[b] and word not in standing[b]]) for b in images]
        terms += [info_nce(t2i), info_nce(i2t)]
    return sum(terms) / len(terms)


def test_contrast_of_the_batch_equals_a_loop():
    task, batch = objective(queue=0), tricky_batch()
    assert task(batch)[0]["itc"].item() == pytest.approx(slow_contrast(task.model, batch), rel=1e-4)


def test_contrast_is_reckoned_in_float32_under_autocast():
    """In bf16 logits near 100 lie half a unit apart."""
    task, batch = objective(queue=0), tiny_batch()
    image, text = task.model.image_tokens(batch.pixel_values), task.model.text_tokens(batch.input_ids,
                                                                                     batch.attention_mask)
    exact = task.score(image, text, batch)[0]["itc"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.score(image, text, batch)[0]["itc"], exact)


@pytest.mark.parametrize("momentum, keys", [(0.0, "momentum"), (0.995, "momentum"), (0.995, "online")])
def test_contrast_with_queue_equals_a_loop(momentum, keys):
    """Same images and equal captions stand in the batch and in the queue."""
    task, batch, history = objective(momentum=momentum, queue_keys=keys), tricky_batch(), []
    averaged = momentum and keys == "momentum"
    encoder = task.momentum.model if averaged else task.model
    with torch.no_grad():
        for parameter in encoder.parameters() if averaged else ():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    other = tricky_batch(seed=1)
    other = replace(other, image_ids=torch.cat([batch.image_ids[:2], other.image_ids[2:]]),
                    caption_ids=torch.cat([other.caption_ids[:6], batch.caption_ids[6:]]))
    for past in (other, batch, other):
        losses, report, pending = task(past)
        assert losses["itc"].item() == pytest.approx(slow_contrast(task.model, past, encoder, history), rel=1e-4)
        assert report["itc_batch"].item() == pytest.approx(slow_contrast(task.model, past), rel=1e-4)
        first = firsts(past)
        seen = encoder.encode_image(past.pixel_values)
        said = encoder.encode_text(past.input_ids[first], past.attention_mask[first])
        history += list(zip(seen - seen.mean(0), said - said.mean(0), past.image_ids.tolist(),
                            past.caption_ids[first].tolist()))
        weights = {name: p.clone() for name, p in encoder.named_parameters()}
        task.after_step((past, pending))
        encoder.load_state_dict(weights, strict=False)


def test_online_keys_cost_no_second_forward_and_have_no_gradient(monkeypatch):
    task, batch = objective(queue_keys="online").train(), tiny_batch()
    monkeypatch.setattr(task.momentum.model, "image_tokens", None)
    keys = task(batch)[2].keys
    assert torch.equal(keys.image, task.model.encode_image(batch.pixel_values)) and not keys.image.requires_grad


def test_the_batch_is_enqueued_after_its_loss():
    task, batch = objective(), tiny_batch()
    pending = task(batch)[2]
    assert task.queue.size == 0
    task.after_step((batch, pending))
    assert task.queue.size == 6 and torch.equal(task.queue.held()[2], batch.image_ids)
    task.after_step((tiny_batch(seed=1), task(tiny_batch(seed=1))[2]))
    assert task.queue.size == 12


def test_a_queued_key_does_not_tell_its_age():
    """Features that all moved by the same step since they were queued are the same negatives: no drift to be seen."""
    batch, drift = tiny_batch(), 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    queues = []
    for moved in (torch.zeros(32), drift):
        task = objective()
        _, _, pending = task(batch)
        keys = Keys(*(x + moved for x in pending.keys))
        task.after_step((batch, pending._replace(keys=keys)))
        queues.append(task.queue.image[:6].clone())
    torch.testing.assert_close(*queues)
    assert queues[0].mean(0).abs().max() < 1e-6


def test_the_queue_takes_part_from_its_first_step_on():
    task, batch = objective(queue_start=2), tiny_batch()
    for keys_expected in (False, False, True):
        _, _, pending = task(batch)
        assert (pending.keys is not None) == keys_expected
        task.after_step((batch, pending))
    assert task.eval()(batch)[2].keys is None


def test_a_perfect_model_reaches_loss_zero_with_a_queue_full_of_its_own_images():
    task = objective()
    task.model.logit_scale.data.fill_(math.log(MAX_LOGIT_SCALE))
    batch, image, text = perfect(task)
    keys = Keys(image.feature, text.feature[::2])
    for _ in range(6):
        losses, report, pending = task.score(image, text, batch, keys)
        task.after_step((batch, pending))
    assert task.queue.size == 32 and losses["itc"] < 1e-4
    assert report["t2i"] == report["i2t"] == 1


def test_a_collapsed_model_scores_chance():
    task = objective()
    batch, image, text = perfect(task)
    image, text = image._replace(feature=unit(torch.ones(6, 32))), text._replace(feature=unit(torch.ones(12, 32)))
    for _queue in ("empty", "filled"):
        losses, report, pending = task.score(image, text, batch, Keys(image.feature, text.feature[::2]))
        assert losses["itc"].item() == pytest.approx(report["itc_chance"].item(), rel=1e-4)
        batch = replace(batch, image_ids=batch.image_ids + 10, caption_ids=batch.caption_ids + 20)
        task.after_step((batch, pending))
    assert report["t2i"].item() == report["t2i_chance"].item() == pytest.approx(1 / 6)
    assert report["itm_acc_chance"].item() == pytest.approx(2 / 3)
    plain = objective(queue=0).score(image, text, batch)[1]["itc_chance"].item()
    assert plain == pytest.approx((math.log(6) + math.log(11)) / 2, rel=1e-4)
