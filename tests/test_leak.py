"""The measured leak: words in random order."""

import math

import pytest
import torch
from conftest import WORDS, tiny_batch, tiny_model

from bitgen import objective as module
from bitgen.config import LossConfig
from bitgen.leak import leak, shuffle_words
from bitgen.objective import Objective


def measured(model, **changes):
    batch = tiny_batch(images=24, length=12)
    objective = Objective(model, LossConfig(queue=0, momentum=0.0, **changes)).eval()
    return leak(objective, model.image_tokens(batch.pixel_values), batch)


def test_dealing_keeps_lengths_ends_and_the_words_themselves():
    batch = tiny_batch()
    mixed, floor = shuffle_words(batch)
    assert torch.equal(mixed.attention_mask, batch.attention_mask) and torch.equal(mixed.pixel_values,
                                                                                  batch.pixel_values)
    assert not torch.equal(mixed.input_ids, batch.input_ids)
    assert torch.equal(mixed.input_ids.flatten().sort()[0], batch.input_ids.flatten().sort()[0])
    ends = batch.attention_mask.sum(1) - 1
    rows = torch.arange(len(ends))
    assert not mixed.input_ids[:, 0].any() and not mixed.input_ids[rows, ends].any()
    assert not mixed.input_ids[~batch.attention_mask].any()
    assert 0 < floor < math.log(WORDS) and shuffle_words(batch)[1] == floor
    assert torch.equal(shuffle_words(batch)[0].input_ids, mixed.input_ids)


def test_the_floor_is_the_entropy_of_the_words_spread_over_all_predicted_tokens():
    batch = tiny_batch(images=2, captions=1, length=4, full=True)
    batch.input_ids[:] = torch.tensor([[0, 7, 7, 0], [0, 8, 9, 0]])
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert shuffle_words(batch)[1] == pytest.approx(entropy * 4 / 6)


def test_an_honest_decoder_stays_above_the_floor_and_one_that_sees_its_targets_does_not(monkeypatch):
    model = tiny_model()
    honest = measured(model)
    assert honest["text_dealt"] > honest["text_dealt_chance"]
    loss = module.text_loss
    monkeypatch.setattr(module, "text_loss", lambda states, weight, targets, smoothing: loss(
        states + 1e4 * weight[targets], weight, targets, smoothing))
    leaking = measured(model)
    assert leaking["text_dealt"] < 0.1 * leaking["text_dealt_chance"] == 0.1 * honest["text_dealt_chance"]


def test_without_a_text_loss_there_is_nothing_to_measure():
    assert measured(tiny_model(), text=0.0) == {}
