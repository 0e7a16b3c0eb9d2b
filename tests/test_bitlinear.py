"""Ternary layers: the paper's formula, token by token; one function in training and evaluation; straight-through."""

import pytest
import torch
from torch import nn

from bitgen.bitlinear import BitLinear, linear


def layer(in_features=24, out_features=10, bias=True):
    torch.manual_seed(0)
    return linear(in_features, out_features, bias, ternary=True)


def slow(x, weight, bias):
    """BitNet b1.58 with plain loops: one token and one output at a time."""
    gamma = sum(abs(w) for row in weight.tolist() for w in row) / weight.numel()
    out = torch.zeros(len(x), len(weight))
    for t, token in enumerate(x.tolist()):
        peak = max(abs(v) for v in token)
        for o, row in enumerate(weight.tolist()):
            levels = (round(v * 127 / peak) * max(-1, min(1, round(w / gamma))) for v, w in zip(token, row))
            out[t, o] = sum(levels) * peak / 127 * gamma + bias[o].item()
    return out


def test_linear_chooses_by_one_setting():
    assert type(linear(3, 2)) is nn.Linear
    assert type(linear(3, 2, ternary=True)) is BitLinear
    assert linear(3, 2, bias=False, ternary=True).bias is None


def test_output_is_the_papers_formula():
    bit, x = layer(), torch.randn(7, 24)
    torch.testing.assert_close(bit(x), slow(x, bit.weight, bit.bias), atol=1e-5, rtol=1e-5)


def test_weights_take_three_values_and_one_scale():
    bit = layer()
    values, scale = bit.ternary_weights()
    assert values.dtype == torch.int8 and set(values.unique().tolist()) == {-1, 0, 1}
    torch.testing.assert_close(scale, bit.weight.abs().mean())


def test_training_and_evaluation_compute_the_same():
    bit, x = layer(), torch.randn(3, 5, 24)
    trained = bit.train()(x.requires_grad_())
    with torch.no_grad():
        assert torch.equal(bit.eval()(x), trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_does_not_depend_on_its_batch_mates(dtype):
    bit, x = layer(), torch.randn(6, 4, 24)
    mates = torch.cat([x[:1], 1000 * torch.randn(5, 4, 24)])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        alone, batched = bit(x[:1]), bit(mates)[:1]
        token = bit(x[0, 2])
    assert alone.dtype == dtype
    assert torch.equal(alone, batched) and torch.equal(alone[0, 2], token)


def test_gradients_go_straight_through():
    """They are those of a plain linear layer whose input and weight hold the quantised numbers."""
    bit, x = layer(), torch.randn(3, 5, 24, requires_grad=True)
    upstream = torch.randn(3, 5, 10)
    bit(x).backward(upstream)
    values, scale = bit.ternary_weights()
    peak = x.detach().abs().amax(-1, keepdim=True)
    quantised = ((x.detach() * 127 / peak).round() * peak / 127).requires_grad_()
    weight = (values * scale).requires_grad_()
    bias = torch.zeros(10, requires_grad=True)
    nn.functional.linear(quantised, weight, bias).backward(upstream)
    for found, expected in ((x, quantised), (bit.weight, weight), (bit.bias, bias)):
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-4, rtol=1e-4)


def test_gradients_under_autocast_are_close_and_in_the_parameters_precision():
    bit, x, upstream = layer(), torch.randn(50, 24, requires_grad=True), torch.randn(50, 10)
    bit(x).backward(upstream)
    exact = x.grad.clone(), bit.weight.grad.clone()
    x.grad = bit.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        out = bit(x)
    out.backward(upstream.bfloat16())
    for found, expected in zip((x.grad, bit.weight.grad), exact):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_zero_tokens_and_zero_weights_stay_finite():
    bit = layer()
    assert torch.equal(bit(torch.zeros(2, 24)), bit.bias.expand(2, -1))
    nn.init.zeros_(bit.weight)
    out = bit(torch.randn(2, 24))
    assert torch.equal(out, bit.bias.expand(2, -1))


def test_half_precision_does_not_overflow_on_wide_layers():
    bit = linear(2048, 4, bias=False, ternary=True).half()
    nn.init.ones_(bit.weight)
    x = torch.full((1, 2048), 0.5, dtype=torch.half)
    torch.testing.assert_close(bit(x), torch.full((1, 4), 1024.0, dtype=torch.half))


def test_it_learns_what_a_ternary_matrix_computes():
    torch.manual_seed(0)
    target, x = torch.randint(-1, 2, (16, 8)).float(), torch.randn(256, 16)
    bit = linear(16, 8, ternary=True)
    optimizer = torch.optim.Adam(bit.parameters(), 1e-2)
    for _ in range(200):
        loss = (bit(x) - x @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * (x @ target).var()
