"""Matching, memory and text against slow loops; who teaches whom; what is written when."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import WORDS, tiny_batch
from objectives import firsts, objective, perfect, spied, tricky_batch

from bitgen import memory as M
from bitgen.losses import smoothing_floor
from bitgen.model import MAX_LOGIT_SCALE, unit

LOSSES = ("itc", "itm", "text", "memory_kl")


# Matching -------------------------------------------------------------------------------------------------


def test_matching_pairs_true_ones_first_and_hard_ones_never_of_the_same_image():
    task, batch = objective(), tricky_batch()
    calls = []
    task.model.fusion.forward = spied(task.model.fusion.forward, calls)
    first = firsts(batch)
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


def with_a_queue():
    """An objective whose queue holds another batch; one of its images, and of its captions, are in the batch too."""
    task, batch, past = objective(left_out=0.0).train(), tricky_batch(), tricky_batch(seed=1)
    past.image_ids[0], past.caption_ids[firsts(past)[1]] = batch.image_ids[0], batch.caption_ids[2]
    task.after_step((past, task(past)[2]))
    return task, batch, past


def test_with_a_queue_the_wrong_captions_are_its_own():
    task, batch, past = with_a_queue()
    calls = []
    task.model.fusion.forward = spied(task.model.fusion.forward, calls)
    of_past, drawn = firsts(past), set()
    for seed in range(40):
        torch.manual_seed(seed)
        task(batch)
        (_, tokens, mask, (images, captions)), _ = calls[-1]
        assert len(images) == 18 and captions[:12].max() < 12 and captions[12:].tolist() == list(range(12, 18))
        for i, c in zip(images[12:].tolist(), captions[12:].tolist()):
            words = int(mask[c].sum())
            place, = [b for b, f in enumerate(of_past) if int(past.attention_mask[f].sum()) == words
                      and torch.equal(task.queue.input_ids[b, :words].long(), past.input_ids[f, :words])
                      and torch.allclose(tokens[c, :words], task.model.text_tokens(
                          past.input_ids[f:f + 1, :words], past.attention_mask[f:f + 1, :words]).tokens[0], atol=1e-5)]
            drawn.add(place)
            assert past.image_ids[place] != batch.image_ids[i]
            assert past.caption_ids[of_past[place]] not in batch.caption_ids[batch.image_index == i]
    assert drawn == set(range(6)), "each is somebody's"


def test_while_the_queue_is_empty_the_wrong_captions_are_those_of_the_batch():
    task, batch, calls = objective().train(), tricky_batch(), []
    task.model.fusion.forward = spied(task.model.fusion.forward, calls)
    task(batch)
    assert calls[0][0][3][1].max() < 12


# Memory and text ------------------------------------------------------------------------------------------


def slow_episodes(task, batch, written):
    """Belief of each image's episode, from writing one pair at a time; `written`: which images are."""
    model, first = task.model, firsts(batch)
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
    batch.caption_ids[11] = batch.caption_ids[9]                             # said twice of image 5
    first, words = firsts(batch), batch.caption_ids.tolist()
    several = {i for c, i in enumerate(batch.image_index.tolist()) if words[c] != words[first[i]]}
    beliefs = slow_episodes(task, batch, [i in several and not left_out for i in range(6)])
    smoothed, plain, tokens = 0.0, 0.0, 0
    for c, i in enumerate(batch.image_index.tolist()):
        ids = batch.input_ids[c, :int(batch.attention_mask[c].sum())]
        belief = beliefs[i] if words[c] != words[first[i]] else None  # the one that is written would be read back
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


def test_the_memory_is_read_by_images_alone(monkeypatch):
    """Also where the words agree with the image, so that the key of the two is another than the image's."""
    task, batch, calls = objective(episode=24), tiny_batch(), []
    monkeypatch.setattr("bitgen.objective.read", spied(M.read, calls))
    image = task.model.image_tokens(batch.pixel_values)
    text = task.model.text_tokens(batch.input_ids, batch.attention_mask)
    near = unit(image.feature[batch.image_index] + 0.1 * torch.randn_like(text.feature))
    task.score(image, text._replace(feature=near), batch)
    [((_, address, _), _)] = calls
    torch.testing.assert_close(address, task.model.memory.address(image.feature)[None])


def test_the_contrast_may_see_fewer_captions_than_the_decoder():
    """Contrast, matching and what is written are those of the first captions; the decoder is taught all."""
    few, many, batch = objective(contrast_captions=1), objective(), tiny_batch(full=True)
    alone = batch.first_captions(1)
    assert len(alone.input_ids) == 6 < len(batch.input_ids)
    all_of_it, told, _ = many(batch)
    torch.manual_seed(0)
    firsts, seen, alone_pending = many(alone)
    torch.manual_seed(0)
    some, report, pending = few(batch)
    assert some["itc"] == firsts["itc"] != all_of_it["itc"] and some["itm"] == firsts["itm"]
    assert report["itc_chance"] == seen["itc_chance"] and len(states_of(few, batch)) == len(batch.input_ids)
    assert torch.equal(pending.written.key, alone_pending.written.key)
    assert report["text_nll"].item() == pytest.approx(told["text_nll"].item(), rel=1e-4)
    few.eval(), many.eval()
    assert few(batch)[0]["itc"] == many(batch)[0]["itc"]                              # measured by all of them


def states_of(task, batch):
    """Decoder states (N, L-1, D) of a training forward, from what it is given, padding and all."""
    calls, decode_real = [], task.model.decode_real
    task.model.decode_real = spied(decode_real, calls)
    torch.manual_seed(0)
    task(batch)
    task.model.decode_real = decode_real
    (input_ids, _, context, rows), _ = calls[0]
    return task.model.decode(input_ids[:, :-1], context[rows])


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
    task.after_step((batch, pending))


# State ----------------------------------------------------------------------------------------------------


def test_evaluation_gives_the_same_numbers_twice_and_changes_no_state():
    task, batch = objective(left_out=0.5), tiny_batch()
    task.train()
    task.after_step((batch, task(batch)[2]))
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
    task.after_step((batch, pending))
    expected = sum(M.Belief(b.precision - task.model.memory.prior().precision, b.information).precision
                   for b in {id(b): b for b in slow_episodes(objective(), batch, [True] * 6)}.values())
    torch.testing.assert_close(task.model.memory.written_precision, expected, atol=1e-2, rtol=1e-3)
    assert torch.equal(task.momentum.model.memory.written_precision, task.model.memory.written_precision)
    assert M.utilization(task.model.memory.usage) > 0 and task.model.memory.usage.sum().item() == pytest.approx(1)
    moved = task.momentum.model.project.weight - objective().model.project.weight
    torch.testing.assert_close(moved, torch.full_like(moved, 0.9))


def test_accumulated_batches_are_forgotten_by_once():
    task, batches = objective(), [tiny_batch(), tiny_batch(seed=2)]
    pendings = [task(batch)[2] for batch in batches]
    before = objective().model.memory.written_precision + 1
    task.model.memory.written_precision.copy_(before)
    task.after_step(*zip(batches, pendings))
    added = sum(pending.written.added.precision for pending in pendings)
    torch.testing.assert_close(task.model.memory.written_precision, task.model.memory.decay * before + added)
    assert int(task.steps) == 2 and int(task.momentum.updates) == 1


def test_a_memory_that_nothing_is_written_to_has_no_utilization():
    """With one caption an image there is no other caption to write."""
    task, batch = objective(), tiny_batch(captions=1)
    _, report, pending = task(batch)
    task.after_step((batch, pending))
    assert task.model.memory.written_precision.abs().max() == 0
    assert M.utilization(task.model.memory.usage) == 0 and report["memory_quality"] == 0


def test_a_saved_objective_goes_on_with_the_same_numbers():
    task, batch = objective().train(), tiny_batch()
    task.after_step((batch, task(batch)[2]))
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
    task.after_step((batch, task(batch)[2]))
    assert task.model.scale().item() == pytest.approx(MAX_LOGIT_SCALE, rel=1e-4)
    assert task.model.scale() <= MAX_LOGIT_SCALE
    task(batch)[0]["itc"].backward()
    assert task.model.logit_scale.grad.abs() > 0
