"""Generation against brute force on a small Markov model, whose next token depends on the last two."""

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch

from bitgen.generation import generate, nucleus

V, BOS, EOS = 4, 0, 3
MAX = 4


@dataclass
class Chain:
    """The cache: for each row, its image's table of logits (R, V, V, V) and the token before the last (R,)."""

    tables: torch.Tensor
    previous: torch.Tensor

    def reorder(self, rows):
        return replace(self, tables=self.tables[rows], previous=self.previous[rows])


def model(tables):
    """A `step` over one table (V, V, V) an image: logits of the next token given the last two."""
    def step(tokens, cache, position):
        cache = cache or Chain(tables, torch.full_like(tokens, BOS))
        assert len(tokens) == len(cache.tables) and 0 <= position < MAX
        return cache.tables[torch.arange(len(tokens)), cache.previous, tokens], replace(cache, previous=tokens)
    return step


def tables(batch=6, seed=0):
    return 2 * torch.randn(batch, V, V, V, generator=torch.Generator().manual_seed(seed))


def score(table, sequence):
    """Mean log-probability a token, from the definition."""
    last, total = (BOS, BOS), 0.0
    for token in sequence:
        total += table[last].log_softmax(-1)[token].item()
        last = (last[1], token)
    return total / len(sequence)


def everything():
    """All sequences that end with EOS or are MAX long."""
    for length in range(1, MAX + 1):
        for body in product(range(V - 1), repeat=length - 1):
            yield (*body, EOS)
    yield from product(range(V - 1), repeat=MAX)


def until_eos(row):
    row = row.tolist()
    return tuple(row[: row.index(EOS) + 1] if EOS in row else row)


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_of_all_sequences(seed):
    chains = tables(seed=seed)
    found = generate(model(chains), len(chains), BOS, EOS, MAX, num_beams=V**MAX)
    for table, row in zip(chains, found):
        assert until_eos(row) == max(everything(), key=lambda sequence: score(table, sequence))


def test_wider_beams_are_no_worse_on_average_and_differ_from_greedy():
    chains = tables(batch=50)
    mean = []
    for beams in (1, 2, 8):
        found = generate(model(chains), len(chains), BOS, EOS, MAX, num_beams=beams)
        mean.append(sum(score(table, until_eos(row)) for table, row in zip(chains, found)))
    assert mean[0] < mean[1] <= mean[2]


def test_beam_search_of_an_image_does_not_depend_on_its_batch_mates():
    chains = tables()
    together = generate(model(chains), len(chains), BOS, EOS, MAX, num_beams=3)
    for i, row in enumerate(together):
        alone = generate(model(chains[i: i + 1]), 1, BOS, EOS, MAX, num_beams=3)
        assert until_eos(alone[0]) == until_eos(row)


def test_a_finished_beam_is_kept_while_others_go_on():
    """Ending at once scores ln 0.5 a token; going on starts likelier than any but ends worse."""
    table = torch.full((V, V, V), -20.0)
    table[BOS, BOS] = torch.tensor([-20.0, 0.55, -20.0, 0.45]).clamp(min=1e-9).log()
    table[BOS, 1] = table[1, 1] = table[1, 2] = torch.zeros(V)
    found = generate(model(table[None]), 1, BOS, EOS, MAX, num_beams=1 + 1)
    assert until_eos(found[0]) == (EOS,)
    assert until_eos(generate(model(table[None]), 1, BOS, EOS, MAX)[0])[0] == 1


def test_greedy_takes_the_likeliest_token_each_time():
    chains = tables()
    for table, row in zip(chains, generate(model(chains), len(chains), BOS, EOS, MAX)):
        last, expected = (BOS, BOS), []
        while len(expected) < MAX and EOS not in expected:
            expected.append(table[last].argmax().item())
            last = (last[1], expected[-1])
        assert until_eos(row) == tuple(expected)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"top_p": 1.0}])
def test_rows_that_ended_are_filled_with_eos_and_generation_stops_early(how):
    chains = torch.zeros(2, V, V, V)
    chains[0, :, :, EOS] = chains[1, :, 1, EOS] = chains[1, BOS, BOS, 1] = 100
    calls, step = [], model(chains)
    found = generate(lambda *a: calls.append(1) or step(*a), 2, BOS, EOS, MAX, **how)
    assert found.tolist() == [[EOS, EOS], [1, EOS]]
    assert found.dtype == torch.int64 and len(calls) == 2


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"top_p": 0.9}])
def test_max_tokens_bounds_a_model_that_never_ends(how):
    chains = torch.zeros(2, V, V, V)
    chains[..., EOS] = -100
    found = generate(model(chains), 2, BOS, EOS, MAX, **how)
    assert found.shape == (2, MAX) and (found != EOS).all()


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.95, 1.0])
def test_nucleus_draws_only_from_the_nucleus_in_the_right_shares(top_p):
    probability = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1])
    nucleus_size = {0.3: 1, 0.6: 2, 0.95: 4, 1.0: 5}[top_p]
    inside = probability.argsort(descending=True)[:nucleus_size]
    draws = nucleus(probability.log().expand(20_000, -1), top_p, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(draws, minlength=5) / len(draws)
    expected = torch.zeros(5)
    expected[inside] = probability[inside] / probability[inside].sum()
    assert (share[expected == 0] == 0).all()
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


def test_temperature_sharpens_and_the_smallest_is_greedy():
    logits = torch.tensor([[1.0, 2.0, 0.0]]).expand(4000, -1)
    def share(temperature):
        return (nucleus(logits, 1.0, temperature, torch.Generator().manual_seed(0)) == 1).float().mean()
    assert share(1e-30) == 1 > share(0.5) > share(1.0) > share(5.0)


def test_sampling_repeats_with_its_generator_and_only_then():
    def sample(seed):
        chains = torch.zeros(40, V, V, V)
        return generate(model(chains), 40, BOS, EOS, MAX, top_p=0.9, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


@pytest.mark.parametrize("how, named", [
    ({"num_beams": 0}, "num_beams 0"),
    ({"num_beams": 2.5}, "num_beams 2.5: expected a whole number"),
    ({"top_p": 0.0}, "top_p 0.0"),
    ({"top_p": 1.5}, "top_p 1.5"),
    ({"top_p": float("nan")}, "top_p nan"),
    ({"top_p": 0.9, "temperature": 0.0}, "temperature 0.0"),
    ({"top_p": 0.9, "temperature": float("nan")}, "temperature nan"),
    ({"temperature": 0.5}, "give top_p"),
    ({"num_beams": 2, "top_p": 0.9}, "beam search or sampling"),
    ({"max_tokens": 0}, "max_tokens 0"),
    ({"num_beams": 2.0}, "num_beams 2.0: expected a whole number"),
    ({"num_beams": "3"}, "num_beams '3': expected a whole number"),
    ({"max_tokens": 2.5}, "max_tokens 2.5: expected a whole number"),
])
def test_bad_settings_are_named(how, named):
    with pytest.raises(ValueError, match=named):
        generate(model(tables(1)), 1, BOS, EOS, **{"max_tokens": MAX} | how)


def test_no_images_give_no_captions():
    for beams in (1, 2):
        assert len(generate(model(tables(0)), 0, BOS, EOS, MAX, num_beams=beams)) == 0
