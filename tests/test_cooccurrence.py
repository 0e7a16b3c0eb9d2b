"""Token embeddings that begin near their company, against the formula written as loops."""

import math

import pytest
import torch

from bitgen.cli import main
from bitgen.cooccurrence import positive_pmi, presence, token_embedding
from bitgen.hub import load
from bitgen.tokenizer import Tokenizer

CAPTIONS = [["a dog runs", "the puppy runs"], ["a dog sleeps", "the puppy naps"], ["a boat sails", "the ship sails"],
            ["a boat lies there", "the ship is moored"]] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for texts in CAPTIONS for text in texts], 320)


def token(tokenizer, word):
    """The token of a word inside a caption."""
    ids, mask = tokenizer.encode([f"a {word}"], 16)
    [found] = ids[0, 2:mask.sum() - 1].tolist()
    return found


def test_presence_says_which_tokens_stand_under_an_image(tokenizer):
    found = presence(CAPTIONS, tokenizer, 16).to_dense()
    for row, texts in zip(found, CAPTIONS, strict=True):
        ids, mask = tokenizer.encode(texts, 16)
        assert set(row.nonzero()[:, 0].tolist()) == set(ids[mask].tolist()) and row.max() == 1


def test_positive_pmi_is_its_formula():
    torch.manual_seed(0)
    here = (torch.rand(30, 6) < 0.4).float()
    together = here.T @ here
    total, found = together.sum(), positive_pmi(together.to_sparse()).to_dense()
    for a in range(6):
        for b in range(6):
            joint = (together[a, b] / total).item()
            apart = (together[a].sum() / total * together[b].sum() / total).item()
            assert found[a, b].item() == pytest.approx(max(0.0, math.log(joint / apart)) if joint else 0.0, abs=1e-5)


def test_words_of_the_same_pictures_are_close_and_others_are_not(tokenizer):
    torch.manual_seed(0)
    vectors = token_embedding(CAPTIONS, tokenizer, 16, 16)
    assert vectors.shape == (tokenizer.vocab_size, 16)
    known = vectors.any(1)
    assert vectors[known].square().mean().item() == pytest.approx(1.0, abs=1e-3)
    ids, mask = tokenizer.encode([text for texts in CAPTIONS for text in texts], 16)
    assert set(known.nonzero()[:, 0].tolist()) <= set(ids[mask].tolist()) and known[token(tokenizer, "dog")]
    unit = torch.nn.functional.normalize(vectors, dim=1)
    dog, puppy, boat, ship = (unit[token(tokenizer, word)] for word in ("dog", "puppy", "boat", "ship"))
    assert min(dog @ puppy, boat @ ship) > 0.6 > 0.3 > max(dog @ boat, puppy @ ship, dog @ ship)


def test_a_width_beyond_the_vocabulary_and_a_single_image_are_no_trouble(tokenizer):
    torch.manual_seed(0)
    assert token_embedding(CAPTIONS[:1], tokenizer, 512, 16).isfinite().all()


def test_a_run_begins_with_them_and_repeats(tmp_path, quick_runs):
    still = ["train", "--config", "scenes", "--config", "nano", "--data.scenes-train", "64", "--optim.batch-size", "32",
             "--vision.image-size", "32", "--optim.lr", "0", "--optim.decoder-lr", "0", "--optim.max-steps", "1",
             "--loss.momentum", "0"]
    starts = {}
    for name, start in (("one", "captions"), ("two", "captions"), ("other", "random")):
        assert main([*still, "--output-dir", str(tmp_path / name), "--model.embedding-start", start]) == 0
        starts[name] = load(tmp_path / name)[0].text.embedding.weight
        assert starts[name].std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(starts["one"], starts["two"])
    changed = (starts["one"] != starts["other"]).all(1).float().mean().item()
    assert 0.1 < changed < 1, "tokens that never occur begin at random"
