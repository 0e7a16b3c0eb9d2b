"""Byte-level BPE over captions: every text has tokens, none is unknown, and decoding gives the text back.

Shapes: N captions in a batch, L tokens (a multiple of 8, so that a run sees few distinct lengths).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
MAX_CHARACTERS = 2000
MAX_FILE_BYTES = 32_000_000
LONGEST = 100  # bytes of a learned token; captions of one repeated letter would become one that loading refuses
BUCKET = 8

# Controls go, white space among them becomes a space; so do the marks that re-order how text is displayed.
_UNWANTED = {**dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]),
             **dict.fromkeys(map(ord, "\t\n\v\f\r\x85"), " ")}


def clean(text: str) -> str:
    """The first 2,000 characters of `text` in NFC, without controls, bidi overrides, lone surrogates and outer spaces.

    Characters are capped before anything else: a BPE needs minutes for what it then truncates.
    """
    if not isinstance(text, str):
        raise ValueError(f"text: expected a string, got {type(text).__name__} {str(text)[:80]!r}")
    text = text[:MAX_CHARACTERS]
    if text.isascii() and text.isprintable():
        return text.strip()
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unicodedata.normalize("NFC", text.translate(_UNWANTED)).strip()


def plain(text: str) -> str:
    """What captions say whatever their case and spacing: where this is equal, they are the same."""
    return " ".join(text.casefold().split())


class Tokenizer:
    """A `tokenizers.Tokenizer` whose one special token begins and ends a caption and pads a batch."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        """Raises `ValueError` where the vocabulary lacks `<|endoftext|>` or one of the 256 bytes."""
        missing = {END, *pre_tokenizers.ByteLevel.alphabet()} - tokenizer.get_vocab().keys()
        if missing:
            raise ValueError(f"not a byte-level tokenizer with {END!r}: lacks {sorted(missing)[:3]}; "
                             "GPT-2's, or one that `bitgen` trained, would be right")
        tokenizer.add_special_tokens([END])  # not new: keeps its id
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # inside a caption "<|endoftext|>" is text like any other
        self._tokenizer = tokenizer
        self.bos = self.eos = self.pad = tokenizer.token_to_id(END)

    @property
    def vocab_size(self) -> int:
        """Entries, the special token included: ids are 0 .. vocab_size - 1."""
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (N, L) int64 and mask of real ones (N, L) bool: `[bos] tokens [eos] [pad]...`.

        L is the longest of the batch rounded up to a multiple of 8, at most `max_tokens`; what is longer is cut before
        its eos. Raises `ValueError` for a string in place of a list and for `max_tokens` < 3.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts: expected a list of captions, got the string {texts[:80]!r}")
        if max_tokens < 3:
            raise ValueError(f"max_tokens: expected at least 3 (begin, one token, end), got {max_tokens}")
        encoded = self._tokenizer.encode_batch_fast([clean(text) for text in texts], add_special_tokens=False)
        rows = [[self.bos, *one.ids[:max_tokens - 2], self.eos] for one in encoded]
        longest = max(map(len, rows), default=2)
        length = min(-(-longest // BUCKET) * BUCKET, max_tokens)
        input_ids = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows], dtype=torch.int64)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return input_ids.view(-1, length), torch.arange(length) < lengths[:, None]

    def decode(self, ids: Iterable[int] | torch.Tensor) -> str:
        """The text of one row of ids, from after a leading bos up to the first eos."""
        ids = [int(i) for i in ids]
        start = 1 if ids[:1] == [self.bos] else 0
        end = ids.index(self.eos, start) if self.eos in ids[start:] else len(ids)
        return self._tokenizer.decode(ids[start:end], skip_special_tokens=False)

    def tokens(self, ids: Iterable[int] | torch.Tensor) -> list[str]:
        """Each id as the piece of text it stands for, to label a picture with."""
        return [self._tokenizer.decode([int(i)], skip_special_tokens=False) for i in ids]

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into `folder`; gives its path."""
        path = Path(folder) / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(path), pretty=False)
        return path

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from `captions`, up to `vocab_size` entries (256 bytes and the special token among them)."""
        if vocab_size < 257:
            raise ValueError(f"vocab_size: expected at least 257 (256 bytes and {END}), got {vocab_size}")
        tokenizer = tokenizers.Tokenizer(models.BPE())
        _byte_level(tokenizer)
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END], show_progress=False,
                                      max_token_length=LONGEST,
                                      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
        tokenizer.train_from_iterator(map(clean, captions), trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read `tokenizer.json` from a folder. Raises `ValueError` naming the file where it is missing or unfit."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected a folder with tokenizer.json")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path}: larger than {MAX_FILE_BYTES // 10**6} MB, not a tokenizer")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the tokenizers library raises plain Exception
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def gpt2(cls, source: str | Path = "openai-community/gpt2") -> Tokenizer:
        """GPT-2's vocabulary of 50,257 from a folder (tokenizer.json, vocab.json + merges.txt or encoder.json +
        vocab.bpe) or from a Hub id. Raises `ValueError` naming the folder where it holds none of them.
        """
        folder = Path(source)
        if not folder.is_dir():
            from huggingface_hub import hf_hub_download
            return cls.load(Path(hf_hub_download(str(source), "tokenizer.json")).parent)
        if (folder / "tokenizer.json").is_file():
            return cls.load(folder)
        for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            if (folder / vocabulary).is_file() and (folder / merges).is_file():
                try:
                    model = models.BPE.from_file(str(folder / vocabulary), str(folder / merges))
                except Exception as error:  # the tokenizers library raises plain Exception
                    raise ValueError(f"{folder / vocabulary}, {merges}: {error}") from None
                tokenizer = tokenizers.Tokenizer(model)
                _byte_level(tokenizer)
                return cls(tokenizer)
        raise ValueError(f"{folder}: expected tokenizer.json, vocab.json + merges.txt or encoder.json + vocab.bpe")


def _byte_level(tokenizer: tokenizers.Tokenizer) -> None:
    """GPT-2's way from text to pieces and back: no space is added, so that a text comes back as it was."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
