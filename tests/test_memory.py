"""The memory against dense Gaussian algebra, the laws its sums must obey, and metrics that can be bad."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import MultivariateNormal, kl_divergence

from bitgen import memory as M

K, C, D = 4, 3, 6
NOISE = 0.3


def pairs(count, seed=0, slots=K, width=C):
    """Addresses (n, K) of unit length and values (n, C)."""
    generator = torch.Generator().manual_seed(seed)
    address = torch.nn.functional.normalize(torch.randn(count, slots, generator=generator), dim=-1)
    return address, torch.randn(count, width, generator=generator)


def prior(seed=1, slots=K, width=C):
    generator = torch.Generator().manual_seed(seed)
    precision = (torch.rand(slots, generator=generator) + 0.5).diag()
    return M.Belief(precision, precision @ torch.randn(slots, width, generator=generator))


def module(slots=16, width=C, noise=0.1, decay=0.9):
    torch.manual_seed(0)
    return M.EpisodicMemory(D, width, slots, noise, decay)


def close(a, b, relative=1e-3):
    for mine, other in zip(a, b, strict=True):
        assert ((mine - other).norm() / other.norm()).item() < relative


def test_posterior_is_that_of_brute_force_bayesian_regression():
    """Conditioning the joint normal of memory and values, in covariance form: no precision matrix anywhere."""
    belief, (address, value) = prior(), pairs(5)
    covariance, mean = belief.precision.inverse(), belief.mean()
    gain = covariance @ address.T @ (address @ covariance @ address.T + NOISE**2 * torch.eye(5)).inverse()
    posterior = belief + M.evidence(address, value, NOISE)
    torch.testing.assert_close(posterior.mean(), mean + gain @ (value - address @ mean), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(posterior.precision.inverse(), covariance - gain @ address @ covariance,
                               atol=1e-5, rtol=1e-4)

    probe = pairs(7, seed=2)[0]
    reading = M.read(posterior, probe, NOISE)
    torch.testing.assert_close(reading.mean, probe @ posterior.mean(), atol=1e-5, rtol=1e-5)
    expected = (probe @ posterior.precision.inverse() @ probe.T).diagonal() + NOISE**2
    torch.testing.assert_close(reading.variance, expected, atol=1e-5, rtol=1e-5)


def test_writing_equals_a_loop_over_the_pairs():
    address, value = pairs(6)
    precision, information = torch.zeros(K, K), torch.zeros(K, C)
    for w, v in zip(address, value):
        precision += torch.outer(w, w) / NOISE**2
        information += torch.outer(w, v) / NOISE**2
    close(M.evidence(address, value, NOISE), (precision, information), 1e-6)


def test_kl_is_that_of_the_dense_kronecker_normals():
    before = prior()
    after = before + M.evidence(*pairs(5), NOISE)

    def dense(belief):
        covariance = torch.kron(torch.eye(C, dtype=torch.float64), belief.precision.double().inverse().contiguous())
        return MultivariateNormal(belief.mean().double().T.flatten().contiguous(), covariance)

    expected = kl_divergence(dense(after), dense(before)) / (K * C)
    assert M.kl_divergence(after, before).item() == pytest.approx(expected.item(), rel=1e-4)
    assert M.kl_divergence(before, before).item() == pytest.approx(0, abs=1e-6)


def test_kl_depends_on_what_was_written():
    before, (address, value) = prior(), pairs(5)
    kl = [M.kl_divergence(before + M.evidence(address, v, NOISE), before) for v in (value, 3 * value)]
    assert 0 < kl[0] < kl[1]


def test_episodes_are_read_each_on_its_own():
    (address, value), probe = pairs(8), pairs(6, seed=3)[0]
    batched = prior() + M.evidence(address.unflatten(0, (2, 4)), value.unflatten(0, (2, 4)), NOISE)
    reading, kl = M.read(batched, probe.unflatten(0, (2, 3)), NOISE), M.kl_divergence(batched, prior())
    for i in range(2):
        alone = prior() + M.evidence(address[4 * i:4 * i + 4], value[4 * i:4 * i + 4], NOISE)
        expected = M.read(alone, probe[3 * i:3 * i + 3], NOISE)
        torch.testing.assert_close(reading.mean[i], expected.mean)
        torch.testing.assert_close(reading.variance[i], expected.variance)
        torch.testing.assert_close(kl[i], M.kl_divergence(alone, prior()))


def test_writing_order_does_not_matter():
    memory, key, value = module(), torch.randn(24, D), torch.randn(24, C)
    shuffle = torch.randperm(24)
    at_once = memory.write(memory.prior(), key, value)
    close(memory.write(memory.prior(), key[shuffle], value[shuffle]), at_once, 1e-5)
    one_by_one = memory.prior()
    for i in shuffle.tolist():
        one_by_one = memory.write(one_by_one, key[i:i + 1], value[i:i + 1])
    close(one_by_one, at_once, 1e-5)
    probe = torch.randn(5, D)
    torch.testing.assert_close(memory.read(one_by_one, probe).mean, memory.read(at_once, probe).mean,
                               atol=1e-3, rtol=1e-3)


def test_forgetting_restores_what_the_memory_was():
    memory, key, value = module(), torch.randn(24, D), torch.randn(24, C)
    kept = memory.write(memory.prior(), key[:23], value[:23])
    forgotten = memory.forget(memory.write(memory.prior(), key, value), key[23:], value[23:])
    close(forgotten, kept)
    close(memory.read(forgotten, key[:23]), memory.read(kept, key[:23]))
    emptied = memory.forget(memory.write(memory.prior(), key, value), key, value)
    close(emptied, memory.prior())


def test_forgetting_what_was_never_written_is_refused():
    memory, key, value = module(), torch.randn(4, D), torch.randn(4, C)
    with pytest.raises(ValueError, match="more is taken away than was written"):
        memory.forget(memory.write(memory.prior(), key[:3], value[:3]), key, value)


def test_numbers_that_are_not_finite_are_read_as_such_and_stop_nothing():
    memory, key, value = module(), torch.randn(2, 4, D), torch.randn(2, 4, C)
    key[0, 1, 0] = torch.nan
    belief = memory.write(memory.prior(), key, value)
    reading, kl = memory.read(belief, torch.randn(2, 3, D)), M.kl_divergence(belief, memory.prior())
    assert reading.mean[0].isnan().all() and kl[0].isnan()                         # the other episode is as it was
    assert reading.mean[1].isfinite().all() and kl[1].isfinite()


def test_merging_the_writes_of_two_halves_is_writing_all():
    memory, (address, value) = module(), pairs(24, slots=16)
    halves = M.evidence(address[:12], value[:12], 0.1) + M.evidence(address[12:], value[12:], 0.1)
    close(memory.prior() + halves, memory.prior() + M.evidence(address, value, 0.1), 1e-5)


def test_a_pair_of_weight_zero_is_not_written_and_of_weight_two_written_twice():
    address, value = pairs(3)
    weight = torch.tensor([1.0, 0.0, 2.0])
    chosen = [0, 2, 2]
    close(M.evidence(address, value, NOISE, weight), M.evidence(address[chosen], value[chosen], NOISE), 1e-6)


def test_what_was_written_is_read_back_by_a_noised_key():
    torch.manual_seed(0)
    memory = M.EpisodicMemory(64, 32, 32, 0.1, 0.9)
    key = torch.nn.functional.normalize(torch.randn(24, 64), dim=-1)
    value = torch.nn.functional.normalize(torch.randn(24, 32), dim=-1)
    belief = memory.write(memory.prior(), key, value)
    noised = torch.nn.functional.normalize(key + 0.02 * torch.randn_like(key), dim=-1)
    found = (memory.read(belief, noised).mean @ value.T).argmax(1)
    assert (found == torch.arange(24)).float().mean() >= 0.95


def test_an_empty_reading_is_the_prior_and_says_that_it_is_unsure():
    memory, key = module(), torch.randn(4, D)
    empty = memory.read(memory.prior(), key)
    torch.testing.assert_close(empty.mean, memory.address(key) @ memory.prior_mean)
    written = memory.read(memory.write(memory.prior(), key, torch.randn(4, C)), key)
    assert (written.variance < 0.1 * empty.variance).all()


def test_gradients_reach_addressing_prior_and_values():
    memory, value = module(), torch.randn(5, C, requires_grad=True)
    belief = memory.write(memory.prior(), torch.randn(5, D), value)
    (memory.read(belief, torch.randn(5, D)).mean.square().sum() + M.kl_divergence(belief, memory.prior())).backward()
    for tensor in (value, *memory.parameters()):
        assert tensor.grad.norm() > 0


def test_addresses_have_unit_length_even_of_a_zero_key():
    memory = module()
    norms = memory.address(torch.cat([torch.randn(3, D), torch.zeros(1, D)])).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(4))


def test_arithmetic_is_float32_under_autocast():
    memory, key, value = module(), torch.randn(8, D), torch.randn(8, C)
    expected_belief = memory.write(memory.prior(), key, value)
    expected = memory.read(expected_belief, key)
    with torch.autocast("cpu", torch.bfloat16):
        belief = memory.write(memory.prior(), key, value)
        reading = memory.read(belief, key)
        kl = M.kl_divergence(belief, memory.prior())
    close(belief, expected_belief, 1e-6)
    close(reading, expected, 1e-5)
    assert kl.item() == pytest.approx(M.kl_divergence(expected_belief, memory.prior()).item(), rel=1e-5)


KEYS = torch.ones(1, D)


def test_the_mean_key_is_taken_at_once_and_then_followed():
    memory = module(slots=K, decay=0.75)
    nothing = torch.zeros(2, K), M.evidence(torch.zeros(2, K), torch.zeros(2, C), 0.1)
    memory.remember(torch.full((2, D), 4.0), *nothing)
    torch.testing.assert_close(memory.key_mean, torch.full((D,), 4.0))
    memory.remember(torch.zeros(2, D), *nothing)
    torch.testing.assert_close(memory.key_mean, torch.full((D,), 3.0))


def test_addresses_tell_keys_apart_that_share_a_mean_and_vary_in_few_directions():
    """As contrastive features do. A linear address cannot: 24 keys in 10 directions are linearly dependent."""
    torch.manual_seed(0)
    memory = M.EpisodicMemory(64, 32, 32, 0.1, 0.9)
    keys = F.normalize(5 * torch.ones(64) + torch.randn(24, 10) @ torch.randn(10, 64), dim=-1)
    memory.remember(keys, torch.zeros(24, 32), M.evidence(torch.zeros(24, 32), torch.zeros(24, 32), 0.1))
    values = torch.randn(24, 32)
    returned = memory.read(memory.write(memory.prior(), keys, values), keys).mean
    nearest = (F.normalize(returned, dim=-1) @ F.normalize(values, dim=-1).T).argmax(1)
    assert (nearest == torch.arange(24)).float().mean() >= 0.95


def test_persistent_memory_decays_and_adds():
    memory = module(slots=K, decay=0.5)
    (address, value), (later, other) = pairs(4), pairs(4, seed=5)
    first, second = M.evidence(address, value, 0.1), M.evidence(later, other, 0.1)
    memory.remember(KEYS, address, first)
    memory.remember(KEYS, later, second)
    close(memory.persistent(), memory.prior() + first.scaled(0.5) + second, 1e-5)
    assert {"written_precision", "written_information", "usage"} <= set(memory.state_dict())


def test_usage_is_the_running_mean_of_address_mass():
    memory = module(slots=K, decay=0.75)
    one_slot = torch.tensor([[1.0, 0, 0, 0]])
    memory.remember(KEYS, one_slot, M.evidence(one_slot, torch.zeros(1, C), 0.1))
    torch.testing.assert_close(memory.usage, torch.tensor([1.0, 0, 0, 0]))
    spread = torch.tensor([[0.0, 0.6, 0, -0.8]])
    memory.remember(KEYS, spread, M.evidence(spread, torch.zeros(1, C), 0.1))
    torch.testing.assert_close(memory.usage, torch.tensor([0.75, 0.25 * 0.6 / 1.4, 0, 0.25 * 0.8 / 1.4]))
    assert memory.usage.sum().item() == pytest.approx(1)
    before = memory.usage.clone()
    memory.remember(KEYS, torch.zeros(3, K), M.evidence(torch.zeros(3, K), torch.zeros(3, C), 0.1))
    assert torch.equal(memory.usage, before)                                       # nothing was written


def test_a_memory_that_addresses_one_slot_has_low_utilization():
    collapsed, even = torch.zeros(32), torch.full((32,), 1 / 32)
    collapsed[3] = 1
    assert M.utilization(collapsed).item() == pytest.approx(1 / 32)
    assert M.utilization(even).item() == 1
    assert M.utilization(torch.zeros(32)).item() == 0                              # nothing was ever written
    touched = torch.tensor([0.09, 0.11]).repeat(16) / 32                           # once in a while, by little
    touched[-1] += 1 - touched.sum()
    assert M.utilization(touched).item() == 1 / 2 and M.used(touched.numpy()).sum() == 16
    assert M.address_perplexity(collapsed).item() == pytest.approx(1)
    assert M.address_perplexity(even).item() == pytest.approx(32, rel=1e-5)


def test_a_memory_that_returns_the_same_for_every_key_has_low_quality():
    common = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    written = 5 * common + torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    assert M.quality(written, written).item() == pytest.approx(1)
    assert abs(M.quality(written, common.expand(20, 16)).item()) < 0.05
    assert abs(M.quality(written, written[torch.randperm(20, generator=torch.Generator().manual_seed(2))])) < 0.3


def test_a_memory_with_too_few_slots_has_low_quality():
    torch.manual_seed(0)
    key, value = torch.randn(24, D), torch.randn(24, 8)
    qualities = [M.quality(value, memory.read(memory.write(memory.prior(), key, value), key).mean).item()
                 for memory in (module(slots=1, width=8), module(slots=6, width=8))]
    assert qualities[0] < qualities[1] < 0.7
    few = [x[:5] for x in (key, value)]
    memory = module(slots=6, width=8)
    assert M.quality(few[1], memory.read(memory.write(memory.prior(), *few), few[0]).mean).item() > 0.9


@pytest.mark.parametrize("count", [0, 1])
def test_quality_of_nothing_to_compare_is_zero(count):
    assert M.quality(torch.ones(count, 4), torch.ones(count, 4)).item() == 0


@pytest.mark.parametrize("slots, noise, named", [(0, 0.1, "slots=0"), (4, 0.0, "noise=0.0"), (4, -1.0, "noise=-1.0")])
def test_impossible_memories_are_refused(slots, noise, named):
    with pytest.raises(ValueError, match=named):
        M.EpisodicMemory(D, C, slots, noise, 0.9)
