"""Writing captions token by token: greedy, beam search and nucleus sampling, as pure functions over one `step`.

    step(tokens (R,) int64, cache, position) -> logits (R, V), cache

reads one token for each of R rows at `position` (0 for the first) and gives the logits of the next. The first call
has cache None and one row an image. Beam search then rearranges rows: `cache.reorder(rows)` must return a cache whose
row r is row rows[r] of the present one; there may be more rows afterwards than before, so whatever belongs to an image
(its tokens, the memory's reading) lives in the cache too. B images, W live beams an image, V vocabulary.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Step = Callable[[Tensor, Any, int], tuple[Tensor, Any]]


@torch.no_grad()
def generate(step: Step, batch: int, bos: int, eos: int, max_tokens: int, num_beams: int = 1,
             top_p: float | None = None, temperature: float = 1.0, generator: torch.Generator | None = None,
             device: torch.device | str = "cpu") -> Tensor:
    """Token ids `(B, <= max_tokens)` int64 on `device`, without `bos`; each row ends with `eos` and is filled with it.

    Greedy by default; `num_beams` > 1 is beam search; `top_p` is nucleus sampling at `temperature`, repeatable given
    a `generator` on `device`. Raises `ValueError` for a setting out of range, or two methods at once.
    """
    _check(num_beams, top_p, temperature, max_tokens)
    start = torch.full((batch,), bos, device=device)
    if num_beams > 1:
        return _beam_search(step, start, eos, max_tokens, num_beams)
    choose = partial(torch.argmax, dim=-1) if top_p is None else partial(
        nucleus, top_p=top_p, temperature=temperature, generator=generator)
    return _one_by_one(step, start, eos, max_tokens, choose)


def nucleus(logits: Tensor, top_p: float, temperature: float = 1.0,
            generator: torch.Generator | None = None) -> Tensor:
    """A token for each row of `(R, V)`, drawn from the fewest likeliest tokens that hold `top_p` of the probability.

    Holtzman et al. 2019, arXiv 1904.09751, section 3.1. Returns `(R,)` int64.
    """
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the largest is 0: no temperature overflows
    probability, tokens = logits.softmax(-1).sort(-1, descending=True)
    mass_before = probability.cumsum(-1) - probability
    inside = probability.masked_fill(mass_before >= top_p, 0)
    return tokens.gather(-1, torch.multinomial(inside, 1, generator=generator)).squeeze(-1)


def _one_by_one(step: Step, tokens: Tensor, eos: int, max_tokens: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """The tokens that `choose` takes from each step's logits, until all rows have ended."""
    cache, written, ended = None, [], torch.zeros_like(tokens, dtype=torch.bool)
    for position in range(max_tokens):
        logits, cache = step(tokens, cache, position)
        tokens = choose(logits).masked_fill(ended, eos)
        written.append(tokens)
        ended |= tokens == eos
        if ended.all():
            break
    return torch.stack(written, dim=1)


def _beam_search(step: Step, tokens: Tensor, eos: int, max_tokens: int, num_beams: int) -> Tensor:
    """The sequence of highest mean log-probability a token (`eos` counted) among all that the beams came past.

    A beam that ends is kept aside and frees its place; one still alive at `max_tokens` counts as it stands. The search
    stops when no live beam can overtake, for even certain tokens from here on leave it at most score / max_tokens.
    """
    images = torch.arange(len(tokens), device=tokens.device)
    scores = torch.zeros(len(tokens), 1, device=tokens.device)                    # (B, W) summed log-probabilities
    live = tokens.new_empty(len(tokens), 1, 0)                                    # (B, W, tokens so far)
    best = scores.new_full((len(tokens),), -torch.inf)                            # (B,)
    kept = tokens.new_full((len(tokens), max_tokens), eos)                        # (B, max_tokens)
    cache = None
    for position in range(max_tokens):
        logits, cache = step(tokens, cache, position)
        width, vocabulary = live.shape[1], logits.shape[-1]
        totals = scores[..., None] + logits.float().log_softmax(-1).view(-1, width, vocabulary)  # (B, W, V)
        best, kept = _better(best, kept, totals[..., eos] / (position + 1), live, eos)
        totals[..., eos] = -torch.inf
        scores, choice = totals.flatten(1).topk(min(num_beams, width * vocabulary))
        parent, token = choice // vocabulary, choice % vocabulary
        live = torch.cat([live[images[:, None], parent], token[..., None]], dim=-1)
        if (best >= scores[:, 0] / max_tokens).all():
            break
        cache = cache.reorder((images[:, None] * width + parent).flatten())
        tokens = token.flatten()
    _, kept = _better(best, kept, scores / max_tokens, live, eos)
    longest = int((kept != eos).sum(1).max()) + 1 if len(kept) else 1
    return kept[:, :longest]


def _better(best: Tensor, kept: Tensor, scores: Tensor, live: Tensor, eos: int) -> tuple[Tensor, Tensor]:
    """`best` (B,) and `kept` (B, max_tokens), replaced where one of the live beams has a higher score (B, W)."""
    score, beam = scores.max(dim=1)
    sequence = live[torch.arange(len(live), device=live.device), beam]
    sequence = F.pad(sequence, (0, kept.shape[1] - live.shape[2]), value=eos)
    return torch.maximum(score, best), torch.where((score > best)[:, None], sequence, kept)


def _check(num_beams: int, top_p: float | None, temperature: float, max_tokens: int) -> None:
    _check_count("max_tokens", max_tokens)
    _check_count("num_beams", num_beams)
    if top_p is not None and num_beams > 1:
        raise ValueError(f"num_beams {num_beams} and top_p {top_p}: choose beam search or sampling")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p}: expected a share in (0, 1]")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature {temperature}: expected a finite number above 0")
    if top_p is None and temperature != 1:
        raise ValueError(f"temperature {temperature}: only sampling has one; give top_p as well (1.0 samples from all)")


def _check_count(name: str, value: int) -> None:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"{name} {value!r}: expected a whole number of at least 1")
