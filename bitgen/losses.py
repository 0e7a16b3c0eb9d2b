"""The losses, as pure functions of tensors.

B images, N captions, M fused pairs, L tokens, D width, V vocabulary. Similarities and losses are float32 or
wider: at a logit scale of 100 neighbouring bf16 numbers are half a nat apart. Only the products that make the words'
logits are in autocast's precision where training is: in float32 they would be a large part of the step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS = 2**26
"""Logits of words that a GPU holds at once: 256 MB in float32."""


def contrastive_loss(logits: Tensor, positive: Tensor, negative: Tensor, count: int | None = None) -> Tensor:
    """InfoNCE where a row may own several positives, none of which is a negative of another.

    For each positive (r, c): `-log(exp(s_rc) / (exp(s_rc) + sum over the row's negatives of exp(s_rn)))`, averaged
    over all positives (van den Oord et al. 2018, arXiv 1807.03748, eq. 4, one term per positive). Entries that are
    neither positive nor negative (another caption of the same image, an equal caption) are left out.

    Shape: logits (R, C) float; positive, negative (R, C) bool, disjoint; `count`: of the positives, where it is known,
    so that a GPU need not be waited for; returns a scalar in nats.
    """
    logits = logits.float()
    others = logits.masked_fill(~negative, torch.finfo(torch.float32).min).logsumexp(1)
    places = positive.nonzero() if count is None else torch.nonzero_static(positive, size=count)
    rows, columns = places.unbind(1)  # few of many: nothing else is done for every entry
    return F.softplus(others[rows] - logits[rows, columns]).mean()


def contrastive_chance(positive: Tensor, negative: Tensor) -> Tensor:
    """What `contrastive_loss` gives when all logits are equal: mean of ln(1 + negatives of the row), in nats."""
    positives = positive.sum(1)
    return (torch.log1p(negative.sum(1).float()) * positives).sum() / positives.sum()


def matching_loss(logits: Tensor, matched: Tensor) -> Tensor:
    """Cross-entropy of the two-way matching head. logits (M, 2), matched (M,) bool; a scalar in nats."""
    return F.cross_entropy(logits.float(), matched.long())


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradient of `hidden @ weight.T` against targets, a few hundred rows at a time.

    The (rows, V) logits of the whole batch never exist: each chunk's gradient is made while its logits are there, and
    with as few passes over them as there can be. A row is divided by its sum before or after it meets the other
    matrix, never as V numbers; what smoothing adds is the same for all rows, and for all entries of the vocabulary.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, smoothing, chunk):
        rows, vocab = len(hidden), len(weight)
        grad_hidden, grad_weight = (torch.zeros_like(x, dtype=torch.float32) for x in (hidden, weight))
        nll, total = hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros((), dtype=torch.float32)
        matrix = weight.to(hidden.dtype)
        for start in range(0, rows, chunk):
            part, target = hidden[start:start + chunk], targets[start:start + chunk, None]
            logits = part @ matrix.T                                              # (chunk, V)
            peak, right = logits.amax(1, keepdim=True).float(), logits.gather(1, target).float()
            mass = logits.float().sub_(peak).exp_()                               # a row's probabilities times `whole`
            whole = mass.sum(1, keepdim=True)
            log_whole = peak + whole.log()
            nll += (log_whole - right).sum()
            total += log_whole.sum()
            mass.scatter_add_(1, target, whole * (smoothing - 1.0))
            mass = mass.to(hidden.dtype)
            grad_hidden[start:start + chunk] = (mass @ matrix) / whole
            grad_weight += mass.T @ (part / whole).to(hidden.dtype)
        entries, states = weight.float().sum(0), hidden.float().sum(0)
        grad_hidden.sub_(entries, alpha=smoothing / vocab).div_(rows)
        grad_weight.sub_(states, alpha=smoothing / vocab).div_(rows)
        ctx.save_for_backward(grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype))
        smooth = total - states.dot(entries) / vocab  # `@` would be in autocast's precision, and past what fp16 holds
        loss, nll = ((1 - smoothing) * nll + smoothing * smooth) / rows, nll / rows
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx, grad_loss, _):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss.to(grad_hidden.dtype), grad_weight * grad_loss, None, None, None


def text_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.1,
              chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy over a tied embedding: (label-smoothed loss, un-smoothed loss without gradient).

    Smoothing follows Szegedy et al. 2016 (arXiv 1512.00567, section 7): `(1 - s) nll + s / V * sum(-log p)`.
    Hand in real tokens only, never padding. `chunk`: rows whose logits are there at once; by default what suits the
    device.

    Shape: hidden (R, D), weight (V, D), targets (R,) int64; two scalars in nats a token.
    """
    if not len(hidden):
        zero = hidden.sum().float() + weight.sum() * 0.0
        return zero, zero.detach()
    if chunk is None:  # a CPU's cache holds few; a GPU waits for each call, and has room
        chunk = 256 if hidden.device.type == "cpu" else max(256, LOGITS // len(weight))
    return _LinearCrossEntropy.apply(hidden, weight, targets, smoothing, chunk)


def smoothing_floor(vocab: int, smoothing: float) -> float:
    """The smallest label-smoothed loss there is, in nats: the entropy of the smoothed target."""
    if smoothing == 0:
        return 0.0
    right, wrong = 1 - smoothing + smoothing / vocab, smoothing / vocab
    return -right * math.log(right) - (vocab - 1) * wrong * math.log(wrong)
