"""A small valid checkpoint, and how a stranger's may be made to harm; for tests and `benchmarks/hostile.py`.

`CASES`: name -> (what spoils a valid folder, a part of the reason it must be refused with).
"""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from conftest import TOWER, tiny_model
from safetensors.torch import save_model

from bitgen.config import VisionConfig, to_dict
from bitgen.processing import Processor
from bitgen.tokenizer import Tokenizer

CANARY = "canary"
TOWER_FILLED = {**TOWER, "image_size": 32}


def write(folder: Path) -> Path:
    """A checkpoint that loads: 257 tokens, 32-pixel images."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.train(["a red ring"], 257)
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    Processor(tokenizer, VisionConfig(image_size=32), model.config.max_tokens).save(folder)
    config = {"model": to_dict(model.config), "vision": to_dict(model.vision_config)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def memory():
    """Yields a function: by how many bytes this process was larger, at its peak since, than at the beginning."""
    def held(line):
        return int(re.search(rf"{line}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = held("VmRSS")
    yield lambda: held("VmHWM") - before


class Payload:
    """Unpickled, it writes the canary file beside the process."""

    def __init__(self, folder: Path):
        self.path = str(folder / CANARY)

    def __reduce__(self):
        return open, (self.path, "w")


# Ways to spoil ---------------------------------------------------------------------------------------------------


def weights(change):
    """Change the header and data of model.safetensors: `change(header, data)` -> (header, data) or bytes of a file."""
    def spoil(folder):
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        made = change(json.loads(raw[8: 8 + length]), raw[8 + length:])
        if isinstance(made, tuple):
            header = made[0] if isinstance(made[0], bytes) else json.dumps(made[0]).encode()
            made = struct.pack("<Q", len(header)) + header + made[1]
        path.write_bytes(made)
    return spoil


def entry(**change):
    """Change the first tensor's line in the header."""
    return weights(lambda header, data: (header | {FIRST: header[FIRST] | change}, data))


def announced(length):
    """A file whose first 8 bytes announce a header of `length` bytes, and which has no more than 99 MB of zeros."""
    def spoil(folder):
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", length) + b'{"')
            file.truncate(99_000_000)
    return spoil


def number(value):
    """Put one odd number into the weights."""
    def change(header, data):
        start = header[FIRST]["data_offsets"][0]
        return header, data[:start] + struct.pack("<f", value) + data[start + 4:]
    return weights(change)


def edit(name, change):
    """Change a JSON file: `change(values)` -> values, or text."""
    def spoil(folder):
        made = change(json.loads((folder / name).read_text()))
        (folder / name).write_text(made if isinstance(made, str) else json.dumps(made))
    return spoil


def config(**change):
    return edit("config.json", lambda c: c | {"model": c["model"] | change})


def tower(**change):
    return edit("config.json", lambda c: c | {"vision": c["vision"] | {"tower": c["vision"]["tower"] | change}})


def text(name, old, new):
    """Replace a piece of a JSON file's text, which need not stay JSON."""
    def spoil(folder):
        held = (folder / name).read_text()
        assert old in held
        (folder / name).write_text(held.replace(old, new, 1))
    return spoil


def instead(name, data):
    """Another content of a file: bytes, or a function of the folder that makes them."""
    return lambda folder: (folder / name).write_bytes(data(folder) if callable(data) else data)


def grown(name, size):
    """A file of `size` bytes, zeros after its own."""
    def spoil(folder):
        with (folder / name).open("r+b") as file:
            file.truncate(size)
    return spoil


def pickles_only(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder)))
    (folder / "model.safetensors").unlink()


def pickled(folder):
    return pickle.dumps(Payload(folder))


def saved(value):
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def deflated(data):
    """A zip archive with its members compressed: a little file that unpacks to a lot."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    return buffer.getvalue()


def added_tokens(tokenizer):
    token = tokenizer["added_tokens"][0]
    extra = [token | {"id": 257 + i, "content": f"<{i}>"} for i in range(60_000)]
    return tokenizer | {"added_tokens": [token, *extra]}


FIRST = "decoder.blocks.0.cross.key_value.bias"
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
SIZE_0 = {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}
METADATA = b'{"__metadata__": {"a": "%s"}}'
LINE = b'"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},'
WEIGHTS, CONFIG, TOKENS, PIXELS = "model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"

CASES = {
    "pickles alone": (pickles_only, "pytorch_model.bin is a pickle"),
    "a pickle for weights": (instead(WEIGHTS, pickled), "safetensors"),
    "torch.save for weights": (instead(WEIGHTS, lambda folder: saved(Payload(folder))), "safetensors"),
    "a pickle for the tokenizer": (instead(TOKENS, pickled), "tokenizer.json"),
    "a pickle for the configuration": (instead(CONFIG, pickled), "config.json"),
    "stride 0": (instead(WEIGHTS, saved(torch.zeros(1).expand(2**40))), "safetensors"),
    "deflated archive": (instead(WEIGHTS, deflated(saved(torch.zeros(10_000_000)))), "safetensors"),
    "empty weights": (instead(WEIGHTS, b""), "Not a safetensors file"),
    "header of 2^63 bytes": (announced(2**63), "header of 9,223,372,036,854,775,808"),
    "header of 99 MB": (announced(98_999_992), "at most 1,000,000"),
    "60 MB of metadata": (weights(lambda header, data: (METADATA % (b"x" * 60_000_000), data)), "at most 1,000,000"),
    "10^6 tensors": (weights(lambda header, data: (b"{" + LINE * 10**6 + b'"b": {}}', data)), "at most 1,000,000"),
    "2,002 tensors": (weights(lambda header, data: ({str(i): SIZE_0 for i in range(2002)}, data)), "at most 2,000"),
    "10^6 lists in a header": (weights(lambda header, data: (b"[" * 999_999, data)), "500,000 lists"),
    "a missing tensor": (weights(lambda header, data: ({k: v for k, v in header.items() if k != FIRST}, data)),
                         f"lacks 1 tensors.*{FIRST}"),
    "offsets that overflow": (entry(data_offsets=[2**64 - 4, 2**64]), "data_offsets"),
    "offsets that overlap": (entry(data_offsets=[4, 260]), "data_offsets"),
    "shape [0, 2^40]": (weights(lambda header, data: (header | {"extra": SIZE_0}, data)), "has 1 tensors"),
    "a shape of 2^40": (entry(shape=[2**40]), FIRST),
    "another dtype": (entry(dtype="F64"), FIRST),
    "trailing bytes": (weights(lambda header, data: (header, data + b"PK")), "its header describes"),
    "truncated": (weights(lambda header, data: (header, data[:-1])), "its header describes"),
    "a tensor given twice": (weights(lambda header, data: (
        json.dumps(header)[:-1].encode() + b', "' + FIRST.encode() + b'": {}}', data)), "given twice"),
    "a name that is a path": (weights(lambda header, data: (header | {"../../etc": SIZE_0}, data)), r"\.\./\.\./etc"),
    "a name that moves the cursor": (weights(lambda header, data: (header | {"\x1b[2J": SIZE_0}, data)), r"\\x1b"),
    "NaN": (number(float("nan")), "NaN or infinity"),
    "infinity": (number(float("inf")), "NaN or infinity"),
    "huge dimension": (config(hidden_size=10**9), "at most 2,048"),
    "negative dimension": (config(hidden_size=-32), "hidden_size"),
    "zero heads": (config(num_heads=0), "num_heads"),
    "10^5 layers": (config(text_layers=10**5), "at most 64"),
    "10^5 layers in the tower": (tower(num_hidden_layers=10**5), "from 1 to 64"),
    "6 billion parameters": (config(hidden_size=2048, text_layers=64, vocab_size=300_000, memory_slots=65_536),
                              "at most 200,000,000"),
    "a million patches": (edit(CONFIG, lambda c: c | {"vision": c["vision"] | {
        "image_size": 1024, "tower": TOWER_FILLED | {"image_size": 1024, "patch_size": 1}}}), "1,048,576 patches"),
    "code from the Hub": (tower(_attn_implementation="someone/kernels"), "no setting of a vision encoder"),
    "an odd activation": (tower(hidden_act="os.system"), "hidden_act"),
    "heads that do not divide": (tower(num_attention_heads=7), "config.json beside it says"),
    "patches of 0 pixels": (tower(patch_size=0), "from 1 to 512"),
    "a string for a number": (config(hidden_size="32"), "expected int"),
    "a list for the configuration": (instead(CONFIG, b"[]"), "two sections"),
    "nested 10,000 deep": (instead(CONFIG, b"[" * 10_000 + b"]" * 10_000), "deep"),
    "nested 10 deep": (edit(CONFIG, lambda c: c | {"vision": c["vision"] | {"tower": [[[[[[[[[]]]]]]]]]}}), "deep"),
    "configuration of 50 MB": (grown(CONFIG, 50_000_000), "at most 64,000"),
    "NaN in the configuration": (config(dropout=float("nan")), "finite"),
    "1e999 in the configuration": (text(CONFIG, '"memory_noise": 0.1', '"memory_noise": 1e999'), "finite"),
    "5,000 digits": (text(CONFIG, '"hidden_size": 32', '"hidden_size": ' + "9" * 5000), "config.json"),
    "a setting given twice": (text(CONFIG, '"hidden_size": 32', '"hidden_size": 32, "hidden_size": 64'), "given twice"),
    "tokenizer of 100 MB": (grown(TOKENS, 100_000_000), "at most 12,000,000"),
    "tokenizer with a regular expression": (edit(TOKENS, lambda t: t | {"pre_tokenizer": SPLIT}), "ByteLevel"),
    "tokenizer of lists": (instead(TOKENS, b"[" + b"[]," * 3_999_990 + b"[]]"), "500,000 lists"),
    "tokenizer of strings": (instead(TOKENS, b"[" + b'"ab",' * 2_399_998 + b'"ab"]'), "tokenizer.json"),
    "token number 10^9": (text(TOKENS, '"!":1', '"!":1000000000'), "its ids are not"),
    "60,000 added tokens": (edit(TOKENS, added_tokens), "its ids are not"),
    "tokenizer of another vocabulary": (config(vocab_size=300), "its ids are not|shape"),
    "a token of a million letters": (text(TOKENS, '"!":1', f'"{"a" * 10**6}":1'), "1 to 1000 characters"),
    "tokens that change": (text(TOKENS, '"dropout":null', '"dropout":0.5'), "dropout"),
    "pixels of another size": (edit(PIXELS, lambda p: p | {"image_size": 2048}), "image_size"),
    "captions of another length": (edit(PIXELS, lambda p: p | {"max_tokens": 4096}), "max_tokens"),
}
