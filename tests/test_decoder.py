"""The decoder in the model: causal, in need of its image, cached as if whole; captions however they are chosen."""

import pytest
import torch
from conftest import WORDS, tiny_model
from test_model import inputs, speaking


@pytest.mark.parametrize("ternary", [False, True])
def test_changing_token_j_moves_no_logit_before_j(ternary):
    model, (pixels, ids, _) = tiny_model(ternary=ternary), inputs(length=8)
    logits = model.text_logits(pixels, ids)
    for j in range(8):
        other = ids.clone()
        other[:, j] = (other[:, j] + 7) % WORDS
        moved = (model.text_logits(pixels, other) - logits).abs().amax(-1)
        assert (moved[:, :j] == 0).all() and (moved[:, j] > 0).all()


def test_the_decoder_needs_the_image():
    model, (pixels, ids, _) = tiny_model(), inputs()
    moved = (model.text_logits(pixels.flip(0), ids) - model.text_logits(pixels, ids)).abs().amax((1, 2))
    assert (moved > 1e-5).all()


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("slots", [0, 8])
def test_cached_greedy_captions_equal_the_full_forward(ternary, slots):
    model, (pixels, _, _) = speaking(tiny_model(ternary=ternary, memory_slots=slots)), inputs()
    model.tokenizer.eos = 59
    with torch.no_grad():                                                          # or all say the same word for ever
        model.text.embedding.weight.normal_()
        model.decoder.position.weight.normal_(std=3)
        for block in model.decoder.blocks:
            block.cross.out.weight.mul_(20)
    context = model.context(model.image_tokens(pixels))
    ids = torch.zeros(6, 1, dtype=torch.int64)
    for _ in range(10):
        logits = model.decode(ids, context)[:, -1] @ model.text.embedding.weight.T
        ended = (ids[:, 1:] == 59).any(1)
        ids = torch.cat([ids, logits.argmax(1).masked_fill(ended, 59)[:, None]], 1)
    written = model.caption_ids(pixels, max_tokens=10)
    assert len(set(map(tuple, written.tolist()))) > 1
    assert torch.equal(torch.nn.functional.pad(written, (0, 10 - written.shape[1]), value=59), ids[:, 1:])


def test_captions_are_decoded_in_groups_without_padding_as_if_each_were_alone(monkeypatch):
    """States and gradients, of captions of all lengths that share contexts."""
    monkeypatch.setattr("bitgen.model.TOGETHER", 2)
    model, (pixels, *_) = tiny_model(), inputs()
    rows, lengths = torch.tensor([2, 0, 2, 1, 1, 0, 2]), torch.tensor([9, 2, 5, 12, 3, 9, 7])
    ids, mask = torch.randint(0, 60, (7, 12)), torch.arange(12) < lengths[:, None]
    grouped, targets = model.decode_real(ids, mask, model.context(model.image_tokens(pixels)), rows)
    alone = []
    for i in lengths.argsort(stable=True):
        context = model.context(model.image_tokens(pixels))[rows[i], None]
        alone.append(model.decode(ids[i, None, :lengths[i] - 1], context)[0])
    torch.testing.assert_close(grouped, torch.cat(alone))
    assert targets.tolist() == [token for i in lengths.argsort(stable=True) for token in ids[i, 1:lengths[i]].tolist()]
    weights = [model.text.embedding.weight, model.project.weight, *model.decoder.parameters()]
    pairs = zip(*(torch.autograd.grad(states.square().sum(), weights, retain_graph=True, allow_unused=True)
                  for states in (grouped, torch.cat(alone))))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_every_cached_step_gives_the_logits_of_the_full_forward():
    from bitgen.model import _DecoderState

    model, (pixels, ids, _) = tiny_model(), inputs()
    state = _DecoderState(model, model.context(model.image_tokens(pixels)))
    steps = torch.stack([state.step(ids[:, i], state, i)[0] for i in range(ids.shape[1])], 1)
    torch.testing.assert_close(steps, model.text_logits(pixels, ids), atol=1e-5, rtol=1e-5)


def mean_log_probability(model, pixels, ids):
    """Of each row's tokens up to its first end, by the full forward."""
    start = torch.zeros(len(ids), 1, dtype=torch.int64)
    logits = model.text_logits(pixels, torch.cat([start, ids[:, :-1]], 1)).log_softmax(-1)
    counted = torch.cat([torch.ones_like(start), (ids[:, :-1] != 0).cumprod(1)], 1)
    return (logits.gather(-1, ids[..., None])[..., 0] * counted).sum(1) / counted.sum(1)


def test_beam_search_finds_captions_at_least_as_likely_as_greedy_ones():
    model, (pixels, _, _) = speaking(tiny_model()), inputs()
    model.text.embedding.weight.data.mul_(10)
    greedy, beams = (model.caption_ids(pixels, num_beams=n, max_tokens=6) for n in (1, 8))
    assert (mean_log_probability(model, pixels, beams).mean() >= mean_log_probability(model, pixels, greedy).mean())


def test_captions_are_words_however_they_are_chosen():
    model, (pixels, _, _) = speaking(tiny_model()), inputs()
    for how in ({}, {"num_beams": 3}, {"top_p": 0.9, "generator": torch.Generator().manual_seed(0)}):
        captions = model.caption(pixels, **how)
        assert len(captions) == 6 and all(isinstance(caption, str) for caption in captions)
    assert model.caption_ids(pixels, max_tokens=15).shape[1] <= 15                 # as far as positions go


@pytest.mark.parametrize("wanted", [-1, 0, 16, 1000, 2.5, "3"])
def test_more_tokens_than_positions_are_refused(wanted):
    with pytest.raises(ValueError, match=f"between 1 and 15, got {wanted}"):
        speaking(tiny_model()).caption_ids(inputs()[0], max_tokens=wanted)


def test_captions_without_a_tokenizer_are_refused():
    with pytest.raises(ValueError, match="no tokenizer"):
        tiny_model().caption(inputs()[0])
