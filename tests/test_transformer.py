"""Attention against a loop, masks, caches, and the text encoder and decoder that are made of the blocks."""

import math

import pytest
import torch

from bitgen.config import ModelConfig
from bitgen.text import TextDecoder, TextEncoder
from bitgen.transformer import Attention, Block, attend, rows_of

D, H = 16, 4
CONFIG = ModelConfig(hidden_size=D, text_layers=2, decoder_layers=2, num_heads=H, intermediate_size=32, max_tokens=12,
                     vocab_size=50)


def heads(batch=2, length=3, keys=5, width=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, H, n, width, generator=generator) for n in (length, keys, keys)]


def slow_attention(query, key, value, mask):
    mixed = torch.zeros_like(query)
    for b in range(len(query)):
        for h in range(H):
            for i, q in enumerate(query[b, h]):
                scores = [math.exp(q @ k / math.sqrt(len(q))) if mask[b, i, j] else 0.0
                          for j, k in enumerate(key[b, h])]
                mixed[b, h, i] = sum(s / sum(scores) * v for s, v in zip(scores, value[b, h]))
    return mixed


@pytest.mark.parametrize("explicit", [False, True])
def test_attention_equals_a_loop_over_the_formula(explicit):
    query, key, value = heads()
    mask = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[..., 0] = True
    weights = [] if explicit else None
    out = attend(query, key, value, mask[:, None], weights)
    torch.testing.assert_close(out, slow_attention(query, key, value, mask), atol=1e-5, rtol=1e-5)
    if explicit:
        torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, H, 3))
        assert (weights[0][~mask[:, None].expand(2, H, 3, 5)] == 0).all()


def test_bf16_attention_masks_and_stays_near_float32():
    query, key, value = heads()
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[..., 3:] = False
    out = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask)
    torch.testing.assert_close(out.float(), attend(query, key, value, mask), atol=0.05, rtol=0.05)
    moved = value.clone()
    moved[:, :, 3:] += 100
    assert torch.equal(out, attend(query.bfloat16(), key.bfloat16(), moved.bfloat16(), mask))


@pytest.mark.parametrize("given", [torch.randn(4, 2, 3), torch.randn(4, 3, 2).transpose(1, 2)], ids=["whole", "heads"])
def test_rows_named_twice_get_both_gradients(given):
    x, index = torch.randn(5, 2, 3, requires_grad=True), torch.tensor([4, 0, 0, 2])
    found, wanted = (torch.autograd.grad(y, x, given)[0] for y in (rows_of(x, index), x[index]))
    assert torch.equal(rows_of(x, index), x[index])
    torch.testing.assert_close(found, wanted)
    assert found[0].ne(0).all() and not found[[1, 3]].any()
    none, = torch.autograd.grad(rows_of(x, index[:0]), x, given[:0])
    assert none.shape == x.shape and not none.any()


def test_self_attention_is_attention_over_ones_own_keys():
    attention, x = Attention(D, H), torch.randn(2, 3, D)
    torch.testing.assert_close(attention(x), attention(x, attention.keys(x)))


def test_block_with_a_cache_equals_the_block_at_once():
    torch.manual_seed(0)
    block, x, seen = Block(D, H, 32, cross=True), torch.randn(2, 6, D), torch.randn(2, 5, D)
    context = block.cross.keys(seen)
    whole = block(x, torch.ones(6, 6, dtype=torch.bool).tril(), context)
    cache, parts = [], []
    for i in range(6):
        parts.append(block(x[:, i:i + 1], None, context, cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    assert cache[0].shape == (2, H, 6, D // H)


def tokens(count=3, length=8, seed=0):
    return torch.randint(CONFIG.vocab_size, (count, length), generator=torch.Generator().manual_seed(seed))


def encoder():
    torch.manual_seed(0)
    return TextEncoder(CONFIG).eval()


def decoder():
    torch.manual_seed(0)
    return TextDecoder(CONFIG).eval()


def test_padding_moves_no_token_of_the_encoder():
    model, ids = encoder(), tokens()
    short = model(ids[:, :5], torch.ones(3, 5, dtype=torch.bool))
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[:, 5:] = False
    torch.testing.assert_close(model(ids, mask)[:, :5], short, atol=1e-5, rtol=0)


def test_encoder_looks_both_ways():
    model, ids = encoder(), tokens(1)
    mask, other = torch.ones(1, 8, dtype=torch.bool), ids.clone()
    other[0, 4] = (other[0, 4] + 1) % CONFIG.vocab_size
    moved = (model(ids, mask) - model(other, mask)).abs().amax(-1)[0]
    assert (moved > 1e-4).all()


def test_encoder_knows_the_order_of_words():
    model, ids = encoder(), tokens(1)
    swapped = ids.clone()
    swapped[0, [2, 5]] = ids[0, [5, 2]]
    mask = torch.ones(1, 8, dtype=torch.bool)
    assert (model(ids, mask).mean(1) - model(swapped, mask).mean(1)).abs().max() > 1e-4


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("position", range(8))
def test_decoder_state_before_j_does_not_move_when_j_changes(position, ternary):
    torch.manual_seed(0)
    model = TextDecoder(ModelConfig(**{**vars(CONFIG), "ternary": ternary})).eval()
    embedded, contexts = torch.randn(2, 8, D), model.contexts(torch.randn(2, 5, D))
    other = embedded.clone()
    other[:, position] += torch.randn(2, D)
    moved = (model(embedded, contexts) - model(other, contexts)).abs().amax(-1)
    assert (moved[:, :position] == 0).all() and (moved[:, position] > 1e-3).all()


@pytest.mark.parametrize("cuts", [[1] * 8, [3, 5], [7, 1]])
def test_decoder_with_caches_equals_the_decoder_at_once(cuts):
    model = decoder()
    embedded, contexts = torch.randn(2, 8, D), model.contexts(torch.randn(2, 5, D))
    caches = [[] for _ in model.blocks]
    parts = [model(part, contexts, caches) for part in embedded.split(cuts, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(embedded, contexts), atol=1e-5, rtol=1e-5)


def test_decoder_looks_at_its_context_and_shows_where():
    model = decoder()
    embedded, context = torch.randn(2, 4, D), torch.randn(2, 5, D)
    weights = []
    states = model(embedded, model.contexts(context), weights=weights)
    assert [tuple(w.shape) for w in weights] == [(2, H, 4, 5)] * CONFIG.decoder_layers
    torch.testing.assert_close(states, model(embedded, model.contexts(context)), atol=1e-5, rtol=1e-5)
    assert (states - model(embedded, model.contexts(context.flip(0)))).abs().max() > 1e-3
