"""Each loss against a slow loop written from its formula, and at the edges: chance, floor, no negatives, bf16."""

import math

import pytest
import torch
import torch.nn.functional as F

from bitgen.losses import contrastive_chance, contrastive_loss, matching_loss, smoothing_floor, text_loss


def masks():
    """Seven captions of four images: several positives a row, equal captions, entries that are neither."""
    owner = torch.tensor([0, 0, 1, 2, 2, 3, 3])
    positive = owner[:, None] == torch.arange(4)[None]                             # (7, 4)
    neither = torch.zeros_like(positive)
    neither[1, 3] = neither[5, 0] = True
    return positive, ~positive & ~neither


def slow_contrastive(logits, positive, negative):
    terms = []
    for scores, own, others in zip(logits.tolist(), positive.tolist(), negative.tolist()):
        wrong = sum(math.exp(s) for s, other in zip(scores, others) if other)
        terms += [-math.log(math.exp(s) / (math.exp(s) + wrong)) for s, mine in zip(scores, own) if mine]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("transposed", [False, True])
def test_contrast_equals_a_loop_over_the_formula(transposed):
    positive, negative = masks()
    logits = 3 * torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    if transposed:
        logits, positive, negative = logits.T, positive.T, negative.T              # rows with two positives
    loss = contrastive_loss(logits, positive, negative)
    assert loss.item() == pytest.approx(slow_contrastive(logits, positive, negative), rel=1e-5)


def test_contrast_with_one_positive_a_row_is_cross_entropy():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    eye = torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(contrastive_loss(logits, eye, ~eye), F.cross_entropy(logits, torch.arange(6)))


def test_what_is_neither_positive_nor_negative_gets_no_gradient():
    positive, negative = masks()
    logits = torch.randn(7, 4, requires_grad=True)
    contrastive_loss(logits, positive, negative).backward()
    assert torch.equal(logits.grad != 0, positive | negative)
    assert (logits.grad[positive] < 0).all() and (logits.grad[negative] > 0).all()


def test_contrast_chance_is_the_loss_of_equal_logits():
    positive, negative = masks()
    for logits in (torch.zeros(7, 4), torch.full((7, 4), 100.0)):
        torch.testing.assert_close(contrastive_loss(logits, positive, negative), contrastive_chance(positive, negative))
    eye = torch.eye(128, dtype=torch.bool)
    assert contrastive_chance(eye, ~eye).item() == pytest.approx(math.log(128))


def test_contrast_without_any_negative_is_zero_and_finite():
    logits = torch.randn(3, 3, requires_grad=True)
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    loss = contrastive_loss(logits, torch.eye(3, dtype=torch.bool), nothing)
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_contrast_is_finite_at_the_ends_of_the_scale():
    eye = torch.eye(2, dtype=torch.bool)
    right, wrong = 100 * (2 * torch.eye(2) - 1), 100 * (1 - 2 * torch.eye(2))
    assert contrastive_loss(right, eye, ~eye).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(wrong, eye, ~eye).item() == pytest.approx(200)


def test_matching_equals_its_formula_and_saying_no_costs_what_it_should():
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(2))
    matched = torch.tensor([True, True, False, False, False, False])
    slow = sum(-math.log(math.exp(row[int(yes)]) / (math.exp(row[0]) + math.exp(row[1])))
               for row, yes in zip(logits.tolist(), matched)) / 6
    assert matching_loss(logits, matched).item() == pytest.approx(slow, rel=1e-5)
    always_a_third = torch.tensor([[math.log(2 / 3), math.log(1 / 3)]]).expand(6, 2)
    assert matching_loss(always_a_third, matched).item() == pytest.approx(0.6365, abs=1e-4)


def slow_text(hidden, weight, targets, smoothing):
    """(1 - s) * nll + s / V * sum over the vocabulary, a token at a time."""
    smoothed, plain = 0.0, 0.0
    for state, target in zip(hidden, targets):
        log_p = (weight @ state).double().log_softmax(0)
        plain -= log_p[target]
        smoothed -= (1 - smoothing) * log_p[target] + smoothing * log_p.mean()
    return smoothed / len(hidden), plain / len(hidden)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 4, 7, 512])
def test_text_loss_in_chunks_equals_a_loop_and_autograd(chunk, smoothing):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(7, 5, generator=generator, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, requires_grad=True)
    targets = torch.randint(11, (7,), generator=generator)
    loss, nll = text_loss(hidden, weight, targets, smoothing, chunk)
    slow_loss, slow_nll = slow_text(hidden, weight, targets, smoothing)
    assert loss.item() == pytest.approx(slow_loss.item(), rel=1e-5)
    assert nll.item() == pytest.approx(slow_nll.item(), rel=1e-5)

    gradients = torch.autograd.grad(3 * loss, (hidden, weight))
    plain = F.cross_entropy(hidden @ weight.T, targets, label_smoothing=smoothing)
    for mine, expected in zip(gradients, torch.autograd.grad(3 * plain, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


def test_the_reported_text_loss_carries_no_gradient():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss, nll = text_loss(hidden, weight, torch.tensor([0, 1, 2]))
    assert loss.requires_grad and not nll.requires_grad


def test_text_loss_keeps_no_logits_for_the_backward_pass():
    rows, width, vocab = 64, 4, 1000
    hidden, weight = torch.randn(rows, width, requires_grad=True), torch.randn(vocab, width, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        text_loss(hidden, weight, torch.zeros(rows, dtype=torch.int64), chunk=8)[0].backward()
    assert max(sizes) <= vocab * width < rows * vocab


def test_text_loss_of_no_token_is_zero_with_zero_gradient():
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss, nll = text_loss(hidden, weight, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == nll.item() == 0 and (weight.grad == 0).all()


@pytest.mark.parametrize("vocab, floor", [(50257, 1.40), (512, 0.95)])
def test_smoothing_floor_is_the_known_number_and_cannot_be_beaten(vocab, floor):
    assert smoothing_floor(vocab, 0.1) == pytest.approx(floor, abs=0.01)
    assert smoothing_floor(vocab, 0.0) == 0.0
    best = torch.full((vocab,), 0.1 / vocab).index_fill(0, torch.tensor(7), 0.9 + 0.1 / vocab).log()
    target, boldness = torch.tensor([7]), torch.tensor([1.0, 2.0, 0.5])            # the smoothed target, bolder, shyer
    losses = [text_loss(bold.view(1, 1), best[:, None], target)[0].item() for bold in boldness]
    assert losses[0] == pytest.approx(smoothing_floor(vocab, 0.1), rel=1e-3)
    assert min(losses[1:]) > losses[0]


def test_losses_of_bf16_logits_are_float32():
    eye = torch.eye(3, dtype=torch.bool)
    logits = torch.randn(3, 3).bfloat16()
    assert contrastive_loss(logits, eye, ~eye).dtype == torch.float32
    assert matching_loss(logits[:, :2], torch.tensor([True, False, True])).dtype == torch.float32
    assert text_loss(logits, torch.randn(5, 3), torch.tensor([0, 1, 2]))[0].dtype == torch.float32


def test_text_loss_is_finite_and_right_in_half_precision():
    """The sums over all rows and over the vocabulary have a product far beyond what fp16 holds."""
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(400, 64) + 1, 0.1 * torch.randn(5000, 64) + 0.05, torch.randint(5000, (400,))
    expected = F.cross_entropy(hidden.double() @ weight.double().T, targets, label_smoothing=0.1)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            loss, _ = text_loss(hidden, weight, targets, 0.1)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
