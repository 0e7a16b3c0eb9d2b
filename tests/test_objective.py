"""The objective against slow loops over its formulas, who teaches whom, leaks, degenerate batches, two processes."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from conftest import WORDS, tiny_batch, tiny_model

from bitgen import memory as M
from bitgen.config import LossConfig
from bitgen.losses import smoothing_floor
from bitgen.model import MAX_LOGIT_SCALE, Encoded, unit
from bitgen.objective import Keys, Objective

LOSSES = ("itc", "itm", "text", "memory_kl")


def objective(gates=0.5, model=None, seed=0, **loss):
    settings = {"queue": 32, "queue_start": 0, "episode": 4, "left_out": 0.0, **loss}
    return Objective(tiny_model(seed, gates, **(model or {})), LossConfig(**settings))


def tricky_batch(seed=0):
    """Twelve captions, one to three an image; images 0 and 3 are the same, captions 2 (of 1) and 9 (of 5) are equal."""
    batch = tiny_batch(seed=seed)
    ids, captions = batch.image_ids.clone(), batch.caption_ids.clone()
    ids[3], captions[9] = ids[0], captions[2]
    return replace(batch, image_index=torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5]), image_ids=ids,
                   caption_ids=captions)


def firsts_and_lasts(batch):
    owner = batch.image_index.tolist()
    return ([owner.index(i) for i in range(len(batch.image_ids))],
            [len(owner) - 1 - owner[::-1].index(i) for i in range(len(batch.image_ids))])


def spied(function, calls):
    """`function`, noting arguments and result of each call."""
    def call(*args):
        calls.append((args, function(*args)))
        return calls[-1][1]
    return call


# Contrast -------------------------------------------------------------------------------------------------


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
        first, _ = firsts_and_lasts(batch)
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


@pytest.mark.parametrize("momentum", [0.0, 0.995])
def test_contrast_with_queue_equals_a_loop(momentum):
    """Same images and equal captions stand in the batch and in the queue."""
    task, batch, history = objective(momentum=momentum), tricky_batch(), []
    encoder = task.momentum.model if momentum else task.model
    with torch.no_grad():
        for parameter in encoder.parameters() if momentum else ():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    other = tricky_batch(seed=1)
    other = replace(other, image_ids=torch.cat([batch.image_ids[:2], other.image_ids[2:]]),
                    caption_ids=torch.cat([other.caption_ids[:6], batch.caption_ids[6:]]))
    for past in (other, batch, other):
        losses, _, pending = task(past)
        assert losses["itc"].item() == pytest.approx(slow_contrast(task.model, past, encoder, history), rel=1e-4)
        first, _ = firsts_and_lasts(past)
        seen = encoder.encode_image(past.pixel_values)
        said = encoder.encode_text(past.input_ids[first], past.attention_mask[first])
        history += list(zip(seen - seen.mean(0), said - said.mean(0), past.image_ids.tolist(),
                            past.caption_ids[first].tolist()))
        weights = {name: p.clone() for name, p in encoder.named_parameters()}
        task.after_step(past, pending)
        encoder.load_state_dict(weights, strict=False)


def test_the_batch_is_enqueued_after_its_loss():
    task, batch = objective(), tiny_batch()
    pending = task(batch)[2]
    assert task.queue.size == 0
    task.after_step(batch, pending)
    assert task.queue.size == 6 and torch.equal(task.queue.held()[2], batch.image_ids)
    task.after_step(tiny_batch(seed=1), task(tiny_batch(seed=1))[2])
    assert task.queue.size == 12


def test_a_queued_key_does_not_tell_its_age():
    """Features that all moved by the same step since they were queued are the same negatives: no drift to be seen."""
    batch, drift = tiny_batch(), 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    queues = []
    for moved in (torch.zeros(32), drift):
        task = objective()
        _, _, pending = task(batch)
        keys = Keys(*(x + moved for x in pending.keys))
        task.after_step(batch, pending._replace(keys=keys))
        queues.append(task.queue.image[:6].clone())
    torch.testing.assert_close(*queues)
    assert queues[0].mean(0).abs().max() < 1e-6


def test_the_queue_takes_part_from_its_first_step_on():
    task, batch = objective(queue_start=2), tiny_batch()
    for keys_expected in (False, False, True):
        _, _, pending = task(batch)
        assert (pending.keys is not None) == keys_expected
        task.after_step(batch, pending)
    assert task.eval()(batch)[2].keys is None


def perfect(task, images=6):
    """Each image and its captions at one place, different images orthogonal."""
    batch = tiny_batch(images=images)
    features = torch.eye(32)[:images]
    tokens = task.model.image_tokens(batch.pixel_values).tokens, task.model.text_tokens(
        batch.input_ids, batch.attention_mask).tokens
    return batch, Encoded(tokens[0], features), Encoded(tokens[1], features[batch.image_index])


def test_a_perfect_model_reaches_loss_zero_with_a_queue_full_of_its_own_images():
    task = objective()
    task.model.logit_scale.data.fill_(math.log(MAX_LOGIT_SCALE))
    batch, image, text = perfect(task)
    keys = Keys(image.feature, text.feature[::2])
    for _ in range(6):
        losses, report, pending = task.score(image, text, batch, keys)
        task.after_step(batch, pending)
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
        task.after_step(batch, pending)
    assert report["t2i"].item() == report["t2i_chance"].item() == pytest.approx(1 / 6)
    assert report["itm_acc_chance"].item() == pytest.approx(2 / 3)
    plain = objective(queue=0).score(image, text, batch)[1]["itc_chance"].item()
    assert plain == pytest.approx((math.log(6) + math.log(11)) / 2, rel=1e-4)


# Matching -------------------------------------------------------------------------------------------------


def test_matching_pairs_true_ones_first_and_hard_ones_never_of_the_same_image():
    task, batch = objective(), tricky_batch()
    calls = []
    task.model.fusion.forward = spied(task.model.fusion.forward, calls)
    first, _ = firsts_and_lasts(batch)
    standing = [{w for w, o in zip(batch.caption_ids.tolist(), batch.image_index) if o == b} for b in range(6)]
    for seed in range(30):
        torch.manual_seed(seed)
        task(batch)
        images, captions = calls[-1][0][3]
        assert images[:6].tolist() == list(range(6)) and captions[:6].tolist() == first
        assert len(images) == 18
        for i, c in zip(images[6:].tolist(), captions[6:].tolist()):
            assert batch.image_ids[i] != batch.image_ids[batch.image_index[c]]
            assert batch.caption_ids[c].item() not in standing[i]


def test_matching_loss_equals_a_loop_over_its_pairs():
    task, batch = objective(), tricky_batch()
    calls = []
    task.model.fusion.forward = spied(task.model.fusion.forward, calls)
    losses, report, _ = task(batch)
    pairs = calls[0][0][3]
    model, nll, right = task.model, 0.0, 0
    for place, (i, c) in enumerate(zip(*(x.tolist() for x in pairs))):
        yes = model.match(batch.pixel_values[i:i + 1], batch.input_ids[c:c + 1], batch.attention_mask[c:c + 1]).item()
        nll -= math.log(yes if place < 6 else 1 - yes)
        right += (yes > 0.5) == (place < 6)
    assert losses["itm"].item() == pytest.approx(nll / len(pairs[0]), rel=1e-4)
    assert report["itm_acc"].item() == pytest.approx(right / len(pairs[0]))


def test_hard_negatives_are_the_similar_ones():
    task = objective()
    task.model.logit_scale.data.fill_(math.log(MAX_LOGIT_SCALE))
    batch, image, text = perfect(task)
    image = image._replace(feature=unit(image.feature + 0.5 * image.feature[[1, 0, 3, 2, 5, 4]]))  # twins
    calls = []
    task.model.fusion.forward = spied(task.model.fusion.forward, calls)
    task.score(image, text, batch)
    images, captions = calls[0][0][3]
    twin = batch.image_index[captions[6:]] ^ 1
    assert torch.equal(images[6:], twin)


# Memory and text ------------------------------------------------------------------------------------------


def slow_episodes(task, batch, written):
    """Belief of each image's episode, from writing one pair at a time; `written`: which images are."""
    model, (first, _) = task.model, firsts_and_lasts(batch)
    beliefs, count = [], -(-len(batch.image_ids) // task.config.episode)
    length = -(-len(batch.image_ids) // count)
    for start in range(0, len(batch.image_ids), length):
        members, belief = range(start, min(start + length, len(batch.image_ids))), model.memory.prior()
        for i in members:
            if written[i]:
                c = first[i]
                belief = model.remember(batch.pixel_values[i:i + 1], batch.input_ids[c:c + 1],
                                        batch.attention_mask[c:c + 1], belief)
        beliefs += [belief] * len(members)
    return beliefs


@pytest.mark.parametrize("left_out", [0.0, 1.0])
@pytest.mark.parametrize("episode", [2, 4, 24])
def test_text_and_memory_losses_equal_a_loop_over_images_and_tokens(episode, left_out):
    task, batch = objective(episode=episode, left_out=left_out, queue=0), tricky_batch()
    first, last = firsts_and_lasts(batch)
    beliefs = slow_episodes(task, batch, [one != other and not left_out for one, other in zip(first, last)])
    smoothed, plain, tokens = 0.0, 0.0, 0
    for c, i in enumerate(batch.image_index.tolist()):
        ids = batch.input_ids[c, :int(batch.attention_mask[c].sum())]
        belief = beliefs[i] if c == last[i] else None  # the other captions are decoded with an empty reading
        logits = task.model.text_logits(batch.pixel_values[i:i + 1], ids[None], belief)[0]
        for j in range(len(ids) - 1):
            log_p = logits[j].log_softmax(0)
            plain -= log_p[ids[j + 1]].item()
            smoothed -= 0.9 * log_p[ids[j + 1]].item() + 0.1 * log_p.mean().item()
            tokens += 1
    losses, report, _ = task(batch)
    assert report["text_nll"].item() == pytest.approx(plain / tokens, rel=1e-4)
    assert losses["text"].item() == pytest.approx(smoothed / tokens, rel=1e-4)
    assert losses["text"] > smoothing_floor(WORDS, 0.1)
    episodes = {id(b): b for b in beliefs}.values()
    kl = [M.kl_divergence(belief, task.model.memory.prior()).item() for belief in episodes]
    assert losses["memory_kl"].item() == pytest.approx(sum(kl) / len(kl), rel=1e-3, abs=1e-6)


def states_of(task, batch):
    """Decoder states (N, L-1, D) of a training forward."""
    calls, decode = [], task.model.decode
    task.model.decode = spied(decode, calls)
    torch.manual_seed(0)
    task(batch)
    task.model.decode = decode
    return calls[0][1]


def with_token(batch, caption, place):
    ids = batch.input_ids.clone()
    ids[caption, place] = (ids[caption, place] + 7) % WORDS
    return replace(batch, input_ids=ids)


def test_the_caption_to_be_decoded_comes_in_through_no_other_door():
    """Features, fusion, hard negatives and memory included: no state before token j moves when it changes."""
    task, batch = objective(), tiny_batch(full=True)
    states = states_of(task, batch)
    for j in range(1, 9):
        moved = (states_of(task, with_token(batch, 5, j)) - states).abs().amax(-1)  # the last caption of image 2
        others = [c for c in range(len(moved)) if c != 5]
        assert moved[:, :j].max() == 0 and moved[others].max() == 0
        assert moved[5, j:].max() > 1e-4


@pytest.mark.parametrize("left_out", [0.0, 1.0])
def test_the_other_caption_comes_in_through_the_memory_alone(left_out):
    task, batch = objective(left_out=left_out), tiny_batch(full=True)
    moved = (states_of(task, with_token(batch, 4, 3)) - states_of(task, batch)).abs()
    assert (moved[5].max() > 1e-5) == (left_out == 0.0)
    assert moved[4, :3].max() == 0 and moved[4, 3:].max() > 1e-4  # the written caption itself: from its own past alone


def test_an_image_whose_two_captions_are_equal_is_not_written():
    """The memory would hand its decoder the very caption."""
    task, batch = objective(), tiny_batch(full=True)
    ids, captions = batch.input_ids.clone(), batch.caption_ids.clone()
    ids[5], captions[5] = ids[4], captions[4]
    batch = replace(batch, input_ids=ids, caption_ids=captions)
    both = with_token(with_token(batch, 4, 3), 5, 3)
    assert (states_of(task, both) - states_of(task, batch))[[4, 5], :3].abs().max() == 0


# Who teaches whom -----------------------------------------------------------------------------------------

ENCODERS = {"vision", "project", "norm_image", "text"}
CONTRAST = {"itc_image", "itc_text", "logit_scale"}
FUSED = {"fusion_image", "fusion_text", "fusion", "patch_position"}
READ = {"memory.addressing", "memory.prior_mean", "memory.log_prior_precision"}
TAUGHT = {
    "itc": ENCODERS | CONTRAST,
    "itm": ENCODERS | FUSED | {"match_head"},
    "text": ENCODERS | FUSED | READ | {"value", "reading_token", "decoder"},
    "memory_kl": ENCODERS | FUSED | READ | {"value"},
}


def gradient_norms(task, loss):
    """Norm by part; zero where the loss does not reach."""
    parameters = dict(task.model.named_parameters())
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    norms = {}
    for name, grad in zip(parameters, grads):
        part = ".".join(name.split(".")[:2]) if name.startswith("memory.") else name.split(".")[0]
        norms[part] = norms.get(part, 0.0) + (0.0 if grad is None else grad.norm().item())
    return norms


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_teaches_what_it_should_and_nothing_else(name):
    task = objective().train()
    norms = gradient_norms(task, task(tiny_batch())[0][name])
    assert set().union(*TAUGHT.values()) == set(norms)
    wrong = {part: norm for part, norm in norms.items() if (norm > 1e-7) != (part in TAUGHT[name])}
    assert not wrong, f"{name}: {wrong}"


def test_together_the_losses_leave_no_parameter_without_a_gradient():
    task = objective().train()
    task(tiny_batch())[0]["total"].backward()
    assert [n for n, p in task.model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_at_the_start_the_gates_are_closed_and_matching_opens_them():
    task = objective(gates=0.0).train()
    task(tiny_batch())[0]["itm"].backward()
    for layer in task.model.fusion.layers:
        assert layer.word_gate.grad.abs() > 1e-6 and layer.patch_gate.grad.abs() > 1e-6


def test_total_is_the_weighted_sum():
    task = objective(itc=0.7, itm=0.3, text=0.2, memory_kl=0.9)
    losses = task(tiny_batch())[0]
    expected = sum(weight * losses[name] for name, weight in zip(LOSSES, (0.7, 0.3, 0.2, 0.9)))
    torch.testing.assert_close(losses["total"], expected)


def test_parts_can_be_left_out():
    task = objective(itm=0.0, text=0.0, queue=0, momentum=0.0, model={"memory_slots": 0})
    batch = tiny_batch()
    losses, report, pending = task(batch)
    assert set(losses) == {"itc", "total"} and not any(value.requires_grad for value in report.values())
    task.after_step(batch, pending)


# State ----------------------------------------------------------------------------------------------------


def test_evaluation_gives_the_same_numbers_twice_and_changes_no_state():
    task, batch = objective(left_out=0.5), tiny_batch()
    task.train()
    task.after_step(batch, task(batch)[2])
    task.eval()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    numbers = []
    for _ in range(2):
        torch.manual_seed(0)
        with torch.no_grad():
            losses, report, _ = task(batch)
        numbers.append({name: value.item() for name, value in {**losses, **report}.items()})
    assert numbers[0] == numbers[1]
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())


def test_a_training_forward_changes_no_state_before_the_step():
    task, batch = objective().train(), tiny_batch()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task(batch)[0]["total"].backward()
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())


def test_after_the_step_memory_queue_and_momentum_have_moved():
    task, batch = objective(), tiny_batch()
    pending = task(batch)[2]
    with torch.no_grad():
        task.model.project.weight += 1
    task.after_step(batch, pending)
    first, _ = firsts_and_lasts(batch)
    expected = sum(M.Belief(b.precision - task.model.memory.prior().precision, b.information).precision
                   for b in {id(b): b for b in slow_episodes(objective(), batch, [True] * 6)}.values())
    torch.testing.assert_close(task.model.memory.written_precision, expected, atol=1e-2, rtol=1e-3)
    assert torch.equal(task.momentum.model.memory.written_precision, task.model.memory.written_precision)
    assert M.utilization(task.model.memory.usage) > 0 and task.model.memory.usage.sum().item() == pytest.approx(1)
    moved = task.momentum.model.project.weight - objective().model.project.weight
    torch.testing.assert_close(moved, torch.full_like(moved, 0.9))


def test_a_memory_that_nothing_is_written_to_has_no_utilization():
    """With one caption an image there is no other caption to write."""
    task, batch = objective(), tiny_batch(captions=1)
    _, report, pending = task(batch)
    task.after_step(batch, pending)
    assert task.model.memory.written_precision.abs().max() == 0
    assert M.utilization(task.model.memory.usage) == 0 and report["memory_quality"] == 0


def test_a_saved_objective_goes_on_with_the_same_numbers():
    task, batch = objective().train(), tiny_batch()
    task.after_step(batch, task(batch)[2])
    copy = objective(seed=1).train()
    copy.load_state_dict(task.state_dict())
    results = []
    for each in (task, copy):
        torch.manual_seed(3)
        results.append(each(tiny_batch(seed=2))[0])
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_logit_scale_is_clamped_at_100_and_can_come_down_again():
    task, batch = objective(), tiny_batch()
    task.model.logit_scale.data.fill_(9.0)
    task.after_step(batch, task(batch)[2])
    assert task.model.scale().item() == pytest.approx(MAX_LOGIT_SCALE, rel=1e-4)
    assert task.model.scale() <= MAX_LOGIT_SCALE
    task(batch)[0]["itc"].backward()
    assert task.model.logit_scale.grad.abs() > 0


# Degenerate batches ---------------------------------------------------------------------------------------


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
        task.after_step(batch, pending)
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


# Learning, accumulating, two processes --------------------------------------------------------------------


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
        task.after_step(batch, pending)
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
        task.after_step(batch, pending)
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
