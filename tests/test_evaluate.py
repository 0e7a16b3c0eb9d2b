"""Evaluation: a perfect model scores one, a bad one looks bad in every number, and nothing is changed by looking."""

import re
from importlib import import_module

import pytest
import torch

from bitgen import retrieval
from bitgen.candidates import pair_evidence
from bitgen.config import ModelConfig, VisionConfig
from bitgen.encoded import encode
from bitgen.evaluate import attributes, evaluate, perplexities, picture
from bitgen.images import BadImage, normalise
from bitgen.matching import Weights
from bitgen.model import BitGen, Encoded
from bitgen.processing import Processor
from bitgen.scenes import render
from bitgen.tokenizer import Tokenizer

SIDE, IMAGES = 32, 48


class Numbers:
    """Image i is a plain grey of its own; its captions (two or three) say "picture i"."""

    def __init__(self, images=IMAGES, broken=()):
        self.broken = broken
        self.image_ids = [f"image {i}" for i in range(images)]
        self.captions = [[f"picture {i} {word}" for word in ("of grey", "plain", "seen")[: 2 + i % 2]]
                         for i in range(images)]

    def __len__(self):
        return len(self.image_ids)

    def pixels(self, i, size):
        if i in self.broken:
            raise BadImage(f"{self.image_ids[i]}: broken")
        return torch.full((3, size, size), i, dtype=torch.uint8)


class Oracle(BitGen):
    """Reads the number off pictures and captions: features and tokens are its one-hot code."""

    def image_tokens(self, pixel_values):
        scale = torch.tensor(VisionConfig().std).view(3, 1, 1) * 255
        number = (pixel_values * scale + torch.tensor(VisionConfig().mean).view(3, 1, 1) * 255).mean((1, 2, 3))
        return self.code(number.round().long())

    def text_tokens(self, input_ids, attention_mask):
        texts = [self.tokenizer.decode(row.tolist()) for row in input_ids]
        code = self.code(torch.tensor([int(re.search(r"\d+", text)[0]) for text in texts]))
        return Encoded(code.tokens.expand(-1, input_ids.shape[1], -1), code.feature)

    def code(self, number):
        code = torch.nn.functional.one_hot(number.clamp(max=63), 64).float()  # a blank image: 63
        return Encoded(code[:, None], code)

    def match_tokens(self, image, text, attention_mask, pairs):
        agree = (image[pairs[0], 0] * text[pairs[1], 0]).sum(1)
        return torch.stack([-agree, agree], 1) * 50

    def likelihood(self, image, input_ids, attention_mask, pairs):
        """Of a decoder that knows nothing: all captions are as likely under all images."""
        return torch.zeros(len(pairs[0]))


class Collapsed(Oracle):
    """Says the same of everything."""

    def code(self, number):
        return super().code(number * 0)


class Blurred(Oracle):
    """Collapsed in contrast, perfect in matching."""

    def code(self, number):
        return Encoded(super().code(number).tokens, super().code(number * 0).feature)


class Teller(Blurred):
    """Collapsed in contrast and in matching; its decoder knows which number a picture shows, and likes small ones."""

    def match_tokens(self, image, text, attention_mask, pairs):
        return torch.zeros(len(pairs[0]), 2)

    def likelihood(self, image, input_ids, attention_mask, pairs):
        said = self.text_tokens(input_ids, attention_mask).tokens[pairs[1], 0]
        shown = image.tokens[pairs[0], 0]
        return 9 * (shown * said).sum(1) - 16.0 * said.argmax(1)


class Contrary(Oracle):
    """Perfect in contrast; matching says the opposite of the truth."""

    def match_tokens(self, image, text, attention_mask, pairs):
        return -super().match_tokens(image, text, attention_mask, pairs)


@pytest.fixture(scope="module")
def tokenizer():
    numbers, scenes = Numbers(), render("val", 40, size=SIDE)
    return Tokenizer.train([text for texts in numbers.captions + scenes.captions for text in texts], 300)


def build(kind, tokenizer, **model):
    """A small untrained model of class `kind`, and its processor."""
    torch.manual_seed(0)
    vision = VisionConfig(image_size=SIDE)
    config = ModelConfig(hidden_size=64, text_layers=1, decoder_layers=1, max_tokens=48, intermediate_size=64,
                         fusion_layers=1, vocab_size=tokenizer.vocab_size, **model)
    made = kind(config, vision)
    made.tokenizer = tokenizer
    return made, Processor(tokenizer, vision, config.max_tokens)


def test_a_perfect_model_scores_one(tokenizer):
    report = evaluate(*build(Oracle, tokenizer), Numbers())
    assert report["images"] == IMAGES and report["captions"] == IMAGES * 5 // 2 and report["unreadable"] == 0
    for key in ("i2t_r1", "t2i_r1", "i2t_median_rank", "rerank_i2t_r1", "rerank_t2i_r10", "i2t_r1_low", "t2i_r1_high"):
        assert report[key] == 1.0, key
    assert report["chance_t2i_r1"] == pytest.approx(1 / IMAGES)
    assert all(isinstance(value, (int, float)) for value in report.values())


@pytest.mark.parametrize("way", ["i2t", "t2i"])
def test_a_collapsed_model_scores_chance(tokenizer, way):
    report = evaluate(*build(Collapsed, tokenizer), Numbers(), rerank=16)
    for k in (1, 5, 10):
        assert report[f"{way}_r{k}"] == pytest.approx(report[f"chance_{way}_r{k}"])
        assert report[f"rerank_{way}_r{k}"] == pytest.approx(report[f"chance_{way}_r{k}"], rel=0.35)


def test_a_random_model_is_near_chance(tokenizer):
    report = evaluate(*build(BitGen, tokenizer), Numbers())
    for way in ("i2t", "t2i", "rerank_i2t", "rerank_t2i"):
        assert report[f"{way}_r10"] < 0.5, way  # chance: 0.21 and 0.42


def test_reranking_is_the_matching_head_at_work(tokenizer):
    blurred = evaluate(*build(Blurred, tokenizer), Numbers(), rerank=IMAGES * 3)
    assert blurred["t2i_r1"] == pytest.approx(blurred["chance_t2i_r1"])
    assert blurred["rerank_t2i_r1"] == blurred["rerank_itm_t2i_r1"] == 1.0
    contrary = evaluate(*build(Contrary, tokenizer), Numbers(), rerank=8)
    assert contrary["t2i_r1"] == 1.0 and contrary["rerank_t2i_r1"] == 0.0 and contrary["rerank_i2t_r1"] == 0.0
    trusted = evaluate(*build(Contrary, tokenizer), Numbers(), rerank=8, weights=Weights(match=0.01))
    assert trusted["rerank_t2i_r1"] == 1.0  # 0.01 x 100 nats weigh less than a cosine of 1 at temperature 0.07
    assert not any("rerank" in key for key in evaluate(*build(Oracle, tokenizer), Numbers(), rerank=0))


def test_reranking_is_the_decoder_at_work(tokenizer, monkeypatch):
    """A caption that is likely under any image must not be every image's: its likelihood under none is taken away."""
    monkeypatch.setattr("bitgen.matching.TAUGHT", 99.0)  # what Teller says are no probabilities
    told = evaluate(*build(Teller, tokenizer), Numbers(), rerank=IMAGES * 3, weights=Weights(prior=1.0))
    assert told["rerank_t2i_r1"] == told["rerank_i2t_r1"] == 1.0
    assert told["rerank_itm_t2i_r1"] == pytest.approx(told["chance_t2i_r1"])
    unasked = evaluate(*build(Teller, tokenizer), Numbers(), rerank=IMAGES * 3)
    assert unasked["rerank_t2i_r1"] == unasked["rerank_i2t_r1"] == 1.0       # so it is unless told otherwise
    liked = evaluate(*build(Teller, tokenizer), Numbers(), rerank=IMAGES * 3, weights=Weights(prior=0.0))
    assert liked["rerank_t2i_r1"] == 1.0 and liked["rerank_i2t_r1"] < 0.1


@pytest.mark.parametrize("slots, held", [(32, 2**24), (0, 2**24), (32, 700)])
def test_the_evidence_of_a_pair_is_what_the_model_says_of_it(tokenizer, monkeypatch, slots, held):
    monkeypatch.setattr("bitgen.model.LOGITS", held)
    monkeypatch.setattr("bitgen.matching.TAUGHT", 9.0)  # its decoder is asked although it was never taught
    for name in ("encoded", "candidates"):
        monkeypatch.setattr(f"bitgen.{name}.inference_autocast", lambda device: torch.autocast("cpu", enabled=False))
    model, processor = build(BitGen, tokenizer, memory_slots=slots)
    model.eval()
    data = Numbers(6)
    gallery = encode(model, processor, data, batch_size=4)
    images, captions = torch.tensor([0, 5, 2, 2, 3]), torch.tensor([14, 0, 3, 9, 7])
    found = pair_evidence(model, gallery, images, captions, batch_size=2)
    texts = [text for each in data.captions for text in each]
    pixels = torch.stack([data.pixels(int(i), SIDE) for i in images])
    shown = normalise(pixels, processor.vision.mean, processor.vision.std)
    words = processor(text=[texts[i] for i in captions])
    with torch.no_grad():
        assert torch.allclose(found.match, model.match(shown, **words), atol=1e-5)
        for pictures, said in ((shown, found.seen), (torch.zeros_like(shown), found.blind)):
            assert torch.allclose(said, slow_likelihood(model, pictures, **words), atol=1e-3)
    assert torch.equal(found.gain, found.seen - found.blind)


def test_a_decoder_that_was_never_taught_is_not_asked(tokenizer):
    """Its likelihood is the caption's length, and short captions would be every image's."""
    model, processor = build(BitGen, tokenizer)
    gallery = encode(model.eval(), processor, Numbers(6))
    found = pair_evidence(model, gallery, torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert not found.seen.any() and not found.blind.any() and found.odds.all()


def slow_likelihood(model, pictures, input_ids, attention_mask):
    """Word by word, each caption alone, by the formula."""
    total = torch.zeros(len(pictures))
    for i, (row, length) in enumerate(zip(input_ids, attention_mask.sum(1).tolist())):
        for end in range(1, length):
            logits = model.text_logits(pictures[i: i + 1], row[None, :end])[0, -1]
            total[i] += logits.log_softmax(0)[row[end]]
    return total


def test_evidence_that_is_no_number_is_refused(tokenizer):
    model, processor = build(BitGen, tokenizer)
    gallery = encode(model.eval(), processor, Numbers(6))
    model.match_head[0].weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="2 of 6 numbers are NaN"):
        pair_evidence(model, gallery, torch.tensor([0, 1]), torch.tensor([0, 1]))


def test_unreadable_images_are_skipped_counted_and_named(tokenizer, caplog):
    report = evaluate(*build(Oracle, tokenizer), Numbers(broken=(3, 10)))
    assert report["unreadable"] == 2 and report["images"] == IMAGES - 2 and report["t2i_r1"] == 1.0
    assert "image 10: broken" in caplog.text
    with pytest.raises(ValueError, match="none of the 2 images"):
        evaluate(*build(Oracle, tokenizer), Numbers(2, broken=(0, 1)))


def test_features_that_are_not_finite_are_refused(tokenizer):
    model, processor = build(BitGen, tokenizer)
    with torch.no_grad():
        model.itc_text.weight[0, 0] = float("nan")
    model.train()
    with pytest.raises(ValueError, match="text_features: .*NaN"):
        evaluate(model, processor, Numbers(4))
    assert model.training


def test_evaluation_changes_nothing_and_repeats(tokenizer):
    model, processor = build(BitGen, tokenizer, dropout=0.5)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (evaluate(model, processor, Numbers(30), batch_size=size) for size in (7, 7))
    assert first == second and model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_folds_are_reported_for_large_galleries(tokenizer, monkeypatch):
    module = import_module("bitgen.evaluate")
    monkeypatch.setattr(module, "FOLD", 10)
    monkeypatch.setattr(module, "FOLDED", 25)
    model, processor = build(Collapsed, tokenizer)
    report = evaluate(model, processor, Numbers(25))
    gallery = encode(model, processor, Numbers(25))
    expected = retrieval.folds(gallery.image_features, gallery.text_features, gallery.owner, size=10)
    assert report["fold1k_t2i_r1"] == pytest.approx(expected["t2i_r1"]) == pytest.approx(0.1)
    assert report["fold1k_chance_i2t_r5"] == pytest.approx(expected["chance_i2t_r5"])
    assert "fold1k_rerank_i2t_r1" in report and "fold1k_t2i_r1" not in evaluate(model, processor, Numbers(24))
    assert "t2i_r1_low" in report and "fold1k_t2i_r1_low" not in report, "the mean of intervals is none"


def test_picture_marks_every_right_answer(tokenizer, monkeypatch):
    drawn = []
    monkeypatch.setattr(import_module("bitgen.evaluate").figures, "retrievals", lambda queries, gallery: drawn.extend(
        queries))
    data = Numbers(12)
    picture(encode(*build(Oracle, tokenizer), data), data, SIDE, rows=1)
    found = [(isinstance(query.query, str), sum(query.right), query.right[0]) for query in drawn]
    assert len(found) == 6 and all(first for *_, first in found)
    assert [count for said, count, _ in found if said] == [1] * 3, "a caption has one image"
    assert all(count in (2, 3) for said, count, _ in found if not said), "an image has two captions, or three"


def test_picture_shows_best_typical_and_worst(tokenizer):
    data = Numbers(broken=(0,))
    good, bad = (encode(*build(kind, tokenizer), data) for kind in (Oracle, Collapsed))
    texts = [text.get_text() for text in picture(good, data, SIDE, rows=1).texts]
    assert "Captions to images: worst" in texts and "Images to captions: best" in texts
    assert sum("place 1" in text.replace("\n", " ") for text in texts) == 6
    texts = [text.get_text() for text in picture(bad, data, SIDE, rows=1).texts]
    assert sum("place 24" in text for text in texts) == 3  # halfway among 47 images
    one = Numbers(1)
    assert picture(encode(*build(Oracle, tokenizer), one), one, SIDE).texts


def test_perplexity_of_an_untrained_model_is_that_of_guessing(tokenizer):
    report = perplexities(*build(BitGen, tokenizer), Numbers(30))
    assert set(report) == {"perplexity", "perplexity_blank", "perplexity_shuffled", "perplexity_memory",
                           "chance_perplexity"}
    for key in report:
        assert report[key] == pytest.approx(tokenizer.vocab_size, rel=0.1), key
    assert report["perplexity_memory"] != report["perplexity"], "the same words, but with a reading"


def test_perplexity_with_the_memory_asks_for_no_text_that_was_written(tokenizer):
    data = Numbers(3)
    data.captions = [["picture 0 plain", "picture  0 Plain"], ["picture 1"], ["picture 2", "picture 2 seen"]]
    made = build(BitGen, tokenizer)
    assert perplexities(*made, data)["perplexity_memory"] > 0
    data.captions[2][1] = "picture 2"
    assert "perplexity_memory" not in perplexities(*made, data)


def test_perplexity_sees_whether_the_image_helps(tokenizer):
    class Looking(BitGen):
        """Knows the caption where it sees the right picture (its mean is the number), and guesses elsewhere."""

        def image_tokens(self, pixel_values):
            seen = (pixel_values.mean((1, 2, 3)) * 1000).round()
            return Encoded(seen.view(-1, 1, 1).expand(-1, 1, 64), torch.eye(64)[: len(seen)])

        def decode(self, input_ids, context):
            right = self.known.get(tuple(context[:, 0, 0].tolist()))
            return self.answer if right else torch.zeros(*input_ids.shape, 64)

    model, processor = build(Looking, tokenizer, memory_slots=0)
    data = Numbers(4)
    ids = processor(text=[texts[-1] for texts in data.captions])["input_ids"]
    weight = torch.nn.functional.normalize(torch.randn(tokenizer.vocab_size, 64), dim=1)
    model.text.embedding.weight.data = weight
    model.answer = weight[ids[:, 1:]] * 100
    pixels = torch.stack([data.pixels(i, SIDE) for i in range(4)])
    seen = model.image_tokens(normalise(pixels, processor.vision.mean, processor.vision.std)).tokens[:, 0, 0]
    model.known = {tuple(seen.tolist()): True}
    report = perplexities(model, processor, data)
    assert report["perplexity"] == pytest.approx(1, abs=0.01) and "perplexity_memory" not in report
    assert report["perplexity_blank"] == report["perplexity_shuffled"] == pytest.approx(tokenizer.vocab_size)


class Drawn:
    """A few scenes as a data set with its truth."""

    def __init__(self, count=30):
        scenes = render("val", count, size=SIDE)
        self.images, self.captions, self.truth, self.image_ids = (
            scenes.pixels, scenes.captions, scenes.truth, scenes.image_ids)

    def __len__(self):
        return len(self.image_ids)

    def pixels(self, i, size):
        return torch.from_numpy(self.images[i].copy())


def test_attributes_of_right_constant_and_empty_captions(tokenizer):
    model, processor = build(BitGen, tokenizer)
    data = Drawn()
    told = iter([texts[0] for texts in data.captions])
    model.caption = lambda pixel_values: [next(told) for _ in pixel_values]
    right = attributes(model, processor, data, batch_size=8)
    assert all(right[f"caption_{name}"] == 1.0 for name in ("colour", "shape", "relation", "attributes"))
    assert right["chance_caption_attributes"] < 0.5
    model.caption = lambda pixel_values: [data.captions[0][0]] * len(pixel_values)
    constant = attributes(model, processor, data)
    assert constant["caption_attributes"] < 0.5
    assert constant["caption_attributes"] == pytest.approx(constant["chance_caption_attributes"])
    model.caption = lambda pixel_values: [""] * len(pixel_values)
    assert attributes(model, processor, data)["caption_attributes"] == 0


def test_an_untrained_model_on_scenes_looks_untrained(tokenizer):
    report = evaluate(*build(BitGen, tokenizer), Drawn(), rerank=8)
    assert report["caption_attributes"] < 0.3 and report["t2i_r1"] < 0.3 and report["rerank_t2i_r1"] < 0.3
    assert report["perplexity"] > 0.8 * tokenizer.vocab_size


def test_bf16_moves_scores_by_no_more_than_its_rounding(tokenizer, monkeypatch):
    model, processor = build(BitGen, tokenizer)
    exact, rounded = (evaluated(monkeypatch, enabled, model, processor) for enabled in (False, True))
    for key in ("perplexity", "perplexity_memory", "perplexity_blank"):
        assert rounded[key] == pytest.approx(exact[key], rel=0.01) and rounded[key] != exact[key]
    for key in ("t2i_r10", "i2t_r10", "rerank_t2i_r10"):
        assert rounded[key] == pytest.approx(exact[key], abs=0.1)


def evaluated(monkeypatch, enabled, model, processor):
    for name in ("encoded", "candidates", "evaluate"):
        monkeypatch.setattr(import_module(f"bitgen.{name}"), "inference_autocast",
                            lambda device: torch.autocast("cpu", torch.bfloat16, enabled=enabled))
    return evaluate(model, processor, Numbers(30), rerank=4)
