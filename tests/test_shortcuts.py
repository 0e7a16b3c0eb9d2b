"""Matching has no short-cut: whether a pair belongs together cannot be told from its text, or its image, alone.

Each image's first caption makes one true pair and one with a hard negative image; each image makes one true pair and
one with a hard negative caption. So nothing is right more often than wrong, and always saying 'no' is the best that can
be said of one side: two thirds.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model

from bitgen.config import DataConfig, LossConfig
from bitgen.data import Collator, open_data
from bitgen.images import normalise
from bitgen.objective import Objective
from bitgen.tokenizer import Tokenizer

SIZE, BATCH, BATCHES = 32, 32, 24


@pytest.fixture(scope="module")
def pairs():
    """The objective's own pairs of many batches: image and text feature (M, D), matched (M,), image and caption (M,).

    Batches of different images: what is learned on some is tested on others.
    """
    torch.manual_seed(0)
    data = open_data(DataConfig(scenes_train=BATCH * BATCHES), "train", SIZE)
    tokenizer = Tokenizer.train([text for texts in data.captions for text in texts], 400)
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_tokens=48)
    objective = Objective(model, LossConfig(queue=0, momentum=0.0)).train()
    collate, made, drawn = Collator(data, tokenizer, SIZE, 2, seed=0, max_tokens=48), [], []
    model.fusion.register_forward_hook(lambda module, inputs, output: drawn.append(inputs[3]))
    with torch.no_grad():
        for number in range(BATCHES):
            batch = collate(range(number * BATCH, (number + 1) * BATCH))
            batch = dataclasses.replace(batch, pixel_values=normalise(batch.pixel_values, (0.5,) * 3, (0.25,) * 3))
            image = model.image_tokens(batch.pixel_values)
            text = model.text_tokens(batch.input_ids, batch.attention_mask)
            objective.score(image, text, batch)
            images, captions = drawn.pop()
            matched = batch.image_index[captions] == images
            assert matched.tolist() == [True] * BATCH + [False] * 2 * BATCH     # as the objective labels them
            made.append((image.feature[images], text.feature[captions], matched, images + number * BATCH,
                         captions + number * 2 * BATCH))
    return [torch.cat(part) for part in zip(*made)]


def best_accuracy(identity, matched):
    """Of whoever knows, for each thing there is, whether it is more often matched than not: no classifier is better."""
    _, place = identity.unique(return_inverse=True)
    true = torch.bincount(place, matched.double())
    return torch.maximum(true, torch.bincount(place) - true).sum() / len(matched)


def probe(features, matched, steps=150):
    """Accuracy on held-out batches of a two-layer network trained on the others."""
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    train = torch.arange(len(features)) < len(features) * 2 // 3
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(features.shape[1], 32), torch.nn.GELU(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(network(features[train])[:, 0], matched[train].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return ((network(features[~train])[:, 0] > 0) == matched[~train]).float().mean().item()


def test_nothing_is_right_more_often_than_wrong(pairs):
    """Every image, and every caption, is in at least as many false pairs as true ones; every image is in both."""
    *_, matched, image, caption = pairs
    for identity, both in ((image, True), (caption, False)):
        count = int(identity.max()) + 1
        true, false = (torch.bincount(identity[chosen], minlength=count) for chosen in (matched, ~matched))
        assert (true <= 1).all() and (false >= true).all()
        assert not both or (true == 1).all()
        assert best_accuracy(identity, matched) == pytest.approx(2 / 3)


def test_the_oracle_of_one_side_would_see_an_imbalance(pairs):
    """Without the hard negative images a caption that is asked about as a first one would be true."""
    *_, matched, _, caption = pairs
    firsts = torch.isin(caption, caption[matched])
    chosen = matched | ~firsts                                                # a caption is first, or in a false pair
    assert best_accuracy(caption[chosen], matched[chosen]) == 1.0


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_probe_of_one_side_learns_nothing(pairs, side):
    image, text, matched, *_ = pairs
    features = image if side == "image" else text
    majority = 1 - matched.float().mean().item()
    assert majority == pytest.approx(2 / 3)
    assert probe(features, matched) < majority + 0.03
    # The same probe on pairs that do leak: the true ones are seen from one side of a plane through the features.
    direction = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(1))
    leaking = (features - features.mean(0)) @ direction > 0
    assert probe(features, leaking) > majority + 0.2
