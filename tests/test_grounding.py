"""Grounding: words and places that hang together are found, others are not; nothing of the model changes."""

import copy

import pytest
import torch
from conftest import tiny_batch, tiny_model

from bitgen.grounding import CELLS, attended, cover, ground, words_of
from bitgen.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["a red ring above a blue square"] * 9, 300)


class Reader(torch.nn.Module):
    """A model of one colour a feature: `red` is seen in the first channel, `blue` in the third."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def encode_image(self, pixel_values):
        return pixel_values.mean((2, 3))

    def encode_text(self, input_ids, attention_mask):
        texts = [self.tokenizer.decode(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask)]
        return torch.tensor([[text.count("red"), 0, text.count("blue")] for text in texts]).float()


def inputs(text):
    ids, mask = TOKENIZER.encode([text], 64)
    return {"input_ids": ids, "attention_mask": mask}


def scene():
    """A red block at the top left, a blue one at the bottom right."""
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[0, 0, 4:12, 4:12] = 1
    pixels[0, 2, 20:28, 20:28] = 1
    return pixels


def test_words_point_at_their_colours():
    words, maps = ground(Reader(TOKENIZER), TOKENIZER, scene(), **inputs("a red ring, above a blue square."))
    assert words == ["a", "red", "ring", "above", "a", "blue", "square"] and maps.shape == (7, CELLS, CELLS)
    red, blue = maps[1], maps[5]
    assert (red == red.max()).nonzero().tolist() == [[y, x] for y in (1, 2) for x in (1, 2)]
    assert (blue == blue.max()).nonzero().tolist() == [[y, x] for y in (5, 6) for x in (5, 6)]
    assert not maps[[0, 2, 3, 4, 6]].any()


def test_the_map_is_the_interaction_by_definition():
    model, text = tiny_model(vocab_size=TOKENIZER.vocab_size, max_tokens=48), inputs("red ring")
    pixels = tiny_batch(images=1).pixel_values
    words, maps = ground(model, TOKENIZER, pixels, **text)
    spans, covered = words_of(TOKENIZER, text["input_ids"][0][text["attention_mask"][0]].tolist()), cover(pixels)
    masks = text["attention_mask"].repeat(3, 1)
    for mask, (_, places) in zip(masks[1:], spans):
        mask[places] = False
    with torch.no_grad():
        score = model.encode_image(torch.cat([pixels, covered])) @ model.encode_text(
            text["input_ids"].expand(3, -1), masks).T                  # image, then covered, by caption, then without
    seen, counts = torch.zeros(2, CELLS, CELLS), torch.zeros(CELLS, CELLS)
    for window in range(len(covered)):
        row, column = divmod(window, CELLS - 1)
        counts[row:row + 2, column:column + 2] += 1
        for word in range(2):
            seen[word, row:row + 2, column:column + 2] += (
                score[0, 0] - score[0, 1 + word] - score[1 + window, 0] + score[1 + window, 1 + word])
    assert torch.allclose(maps, seen / counts, atol=1e-5)


def test_a_word_is_all_its_tokens_and_marks_are_none():
    words = words_of(TOKENIZER, TOKENIZER.encode(["a zebra-like ring; caf\u00e9!"], 64)[0][0].tolist())
    assert [word for word, _ in words] == ["a", "zebra", "like", "ring", "caf\u00e9"]
    places = [place for _, group in words for place in group]
    assert places == sorted(set(places)) and all(places)


def test_attention_has_the_fusions_shape_and_leaves_no_gradient():
    model = tiny_model(gates=0.5, vocab_size=TOKENIZER.vocab_size, max_tokens=48)
    before = copy.deepcopy(model.state_dict())
    text, pixels = inputs("a red ring"), tiny_batch(images=1).pixel_values
    forth, back = attended(model, pixels, **text)
    length = text["input_ids"].shape[1]
    assert forth.shape == (length, 16) and back.shape == (16, length)
    assert forth.min() >= 0 and forth.max() > 0 and back.min() >= 0 and back.max() > 0
    assert not back[:, ~text["attention_mask"][0]].any()  # nobody looks at padding
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    frozen = attended(model.requires_grad_(False), pixels, **text)
    assert torch.allclose(frozen[0], forth) and torch.allclose(frozen[1], back)


def test_attention_is_zero_where_matching_does_not_ask_for_it():
    model = tiny_model(vocab_size=TOKENIZER.vocab_size, max_tokens=48)  # gates closed
    forth, back = attended(model, tiny_batch(images=1).pixel_values, **inputs("a red ring"))
    assert not forth.any() and not back.any()


def test_one_image_and_one_caption_with_a_word():
    model = tiny_model(vocab_size=TOKENIZER.vocab_size, max_tokens=48)
    pixels = tiny_batch(images=2).pixel_values
    with pytest.raises(ValueError, match="got 2 and 1"):
        ground(model, TOKENIZER, pixels, **inputs("a ring"))
    with pytest.raises(ValueError, match="no word"):
        ground(model, TOKENIZER, pixels[:1], **inputs(" ... "))
