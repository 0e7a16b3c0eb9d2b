"""Any text has tokens, none is unknown, and decoding gives the text back."""

import json
import random
import time
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers

from bitgen.admission import check_tokenizer
from bitgen.config import Config, DataConfig
from bitgen.setup import make_tokenizer
from bitgen.tokenizer import END, MAX_CHARACTERS, Tokenizer, clean

GPT2 = Path(__file__).resolve().parents[2] / "shared" / "data" / "gpt2"
CAPTIONS = ["a small red ring above a large blue square", "two dogs run on the beach", "a man in a red shirt"] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, 300)


def test_special_tokens_frame_a_caption(tokenizer):
    ids, mask = tokenizer.encode(["a red ring", "a small red ring above a large blue square"], 64)
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool and ids.shape == mask.shape
    for row, real in zip(ids, mask, strict=True):
        length = int(real.sum())
        assert row[0] == tokenizer.bos and row[length - 1] == tokenizer.eos
        assert real[:length].all() and not real[length:].any()
        assert (row[length:] == tokenizer.pad).all()
        assert END not in tokenizer.decode(row) and tokenizer.bos not in row[1:length - 1]


@pytest.mark.parametrize("count", [1, 5, 6, 7, 14, 15])
def test_lengths_are_few(tokenizer, count):
    ids, mask = tokenizer.encode(["~" * count], 64)
    assert mask.sum() == count + 2
    assert ids.shape[1] % 8 == 0 and 0 <= ids.shape[1] - (count + 2) < 8


def test_long_captions_are_cut_before_their_end(tokenizer):
    ids, mask = tokenizer.encode(["~" * 100, "a"], 20)
    assert ids.shape == (2, 20) and mask[0].all()
    assert ids[0, 0] == tokenizer.bos and ids[0, -1] == tokenizer.eos and tokenizer.decode(ids[0]) == "~" * 18


@pytest.mark.parametrize("text", [
    "A dog runs.", "two  spaces", "naïve café", "日本語の猫", "🐈‍⬛ and 👩🏽‍🚀", "مرحبا", "tabs", "ﬁ ligature",
    "<|endoftext|> inside <|endoftext|>", "quote \" and \\ backslash", "1,234.5", "a" * 60, "\N{ZERO WIDTH JOINER}x",
])
def test_any_caption_round_trips(tokenizer, text):
    ids, _ = tokenizer.encode([text], 512)
    assert tokenizer.decode(ids[0]) == text


def test_random_unicode_round_trips(tokenizer):
    draw = random.Random(0)
    for _ in range(200):
        text = clean("".join(chr(draw.choice((draw.randrange(1, 0x250), draw.randrange(1, 0x11_0000))))
                             for _ in range(20)))
        assert tokenizer.decode(tokenizer.encode([text], 512)[0][0]) == text


def test_special_tokens_in_a_caption_are_text(tokenizer):
    ids, mask = tokenizer.encode([f"a {END} b"], 64)
    assert (ids[0][mask[0]] == tokenizer.bos).sum() == 2  # only the frame
    assert tokenizer.decode(ids[0]) == f"a {END} b"


@pytest.mark.parametrize("text, expected", [
    ("a\0b\x07c", "abc"), ("a\tb\nc", "a b c"), ("\u202eabc\u202c", "abc"), ("\u2066x\u2069", "x"),
    ("e\u0301", "\u00e9"), ("\ud83d\ude00", "\U0001f600"), ("x\ud800y", "x\ufffdy"), ("  a  ", "a"), ("\x9d", ""),
    ("", ""), ("\ufeffa", "\ufeffa"),
])
def test_cleaning(text, expected):
    assert clean(text) == expected
    assert clean(clean(text)) == clean(text)


def test_ten_megabytes_take_no_time(tokenizer):
    start = time.process_time()
    ids, mask = tokenizer.encode(["ab" * 5_000_000, " ".join(["word"] * 2_000_000)], 64)
    assert time.process_time() - start < 1
    assert ids.shape == (2, 64) and mask.all()
    assert len(clean("x" * 10_000)) == MAX_CHARACTERS


def test_an_empty_caption_has_no_empty_row(tokenizer):
    ids, mask = tokenizer.encode(["", "\0\u202e"], 64)
    assert mask.sum(dim=1).tolist() == [2, 2] and tokenizer.decode(ids[0]) == ""


def test_no_captions_are_no_rows(tokenizer):
    ids, mask = tokenizer.encode([], 64)
    assert ids.shape == mask.shape and len(ids) == 0


@pytest.mark.parametrize("texts, match", [("a dog", "list of captions"), ([b"a"], "bytes"), ([None], "NoneType")])
def test_bad_texts_are_named(tokenizer, texts, match):
    with pytest.raises(ValueError, match=match):
        tokenizer.encode(texts, 64)


def test_max_tokens_leaves_room_for_a_token(tokenizer):
    with pytest.raises(ValueError, match="max_tokens"):
        tokenizer.encode(["a"], 2)


def test_decoding_stops_at_the_end(tokenizer):
    ids = tokenizer.encode(["a red ring"], 64)[0][0].tolist()
    assert tokenizer.decode(ids + ids) == "a red ring"
    assert tokenizer.decode(ids[1:]) == "a red ring"
    assert tokenizer.decode([]) == tokenizer.decode([tokenizer.bos]) == ""
    assert "".join(tokenizer.tokens(ids[1:4])) in "a red ring"


def test_training_repeats_itself(tokenizer, tmp_path):
    again = Tokenizer.train(CAPTIONS, 300)
    assert tokenizer.save(tmp_path / "a").read_bytes() == again.save(tmp_path / "b").read_bytes()
    assert tokenizer.vocab_size <= 300
    assert tokenizer.encode(CAPTIONS[:1], 64)[1].sum() < len(CAPTIONS[0])  # merges were learned


def test_what_is_learned_from_any_captions_is_admitted_when_it_is_loaded(tmp_path):
    Tokenizer.train(["x" * MAX_CHARACTERS, "a dog"] * 3, 320).save(tmp_path)  # would merge into one long token
    entries = Tokenizer.load(tmp_path).vocab_size
    check_tokenizer(tmp_path / "tokenizer.json", entries)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ValueError, match="257"):
        Tokenizer.train(CAPTIONS, 256)


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    texts = [*CAPTIONS, f"a {END} b", "日本語"]
    for found, expected in zip(loaded.encode(texts, 64), tokenizer.encode(texts, 64), strict=True):
        assert torch.equal(found, expected)
    assert (loaded.bos, loaded.eos, loaded.pad, loaded.vocab_size) == (
        tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.vocab_size)


def test_truncation_in_the_file_is_not_ours(tokenizer, tmp_path):
    path = tokenizer.save(tmp_path)
    content = json.loads(path.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).decode(Tokenizer.load(tmp_path).encode(CAPTIONS, 64)[0][0]) == CAPTIONS[0]


def test_unfit_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)
    words = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match="byte-level"):
        Tokenizer.load(tmp_path)


def test_a_folder_without_a_vocabulary_is_named(tmp_path):
    with pytest.raises(ValueError, match="vocab.bpe"):
        Tokenizer.gpt2(tmp_path)
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(ValueError, match="encoder.json"):
        Tokenizer.gpt2(tmp_path)


@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's vocabulary is not here")
def test_gpt2(tmp_path):
    tokenizer = Tokenizer.gpt2(GPT2)
    assert tokenizer.vocab_size == 50257 and tokenizer.bos == 50256
    ids, mask = tokenizer.encode(["Hello world"], 256)
    assert ids[0][mask[0]].tolist() == [50256, 15496, 995, 50256]
    tokenizer.save(tmp_path)
    for names in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / names[1]).write_bytes((GPT2 / names[0]).read_bytes())
    for folder in (tmp_path, tmp_path / "other"):
        assert torch.equal(Tokenizer.gpt2(folder).encode(["Hello world"], 256)[0], ids)
        named = Config(data=DataConfig(tokenizer=str(folder)))
        assert torch.equal(make_tokenizer(named, None, None).encode(["Hello world"], 256)[0], ids)


def test_a_tokenizer_that_cannot_be_used_is_known_before_training(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="data.tokenizer 'gone': no such folder; expected `train`"):
        make_tokenizer(Config(data=DataConfig(tokenizer="gone")), None, None)
    tokenizer._tokenizer.normalizer = normalizers.Lowercase()       # one that loading does not admit
    tokenizer.save(tmp_path)
    with pytest.raises(ValueError, match="cannot be used: .*normalizer is 'Lowercase'"):
        make_tokenizer(Config(data=DataConfig(tokenizer=str(tmp_path))), None, None)
    tokenizer._tokenizer.normalizer = None
