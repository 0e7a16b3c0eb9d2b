"""What a stranger's checkpoint must satisfy before anything of its size is allocated, and before a library parses it.

Sizes come first, then bounded JSON, then a configuration within bounds, then the model on torch's `meta` device: names,
shapes and dtypes without a byte of weights, to which the header of the safetensors file has to agree. Pickles are never
opened here but for a run's own training state (`check_state`). Every refusal is a `ValueError`: file and reason.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bitgen.config import ModelConfig, VisionConfig, from_dict
from bitgen.model import BitGen
from bitgen.processing import FILE as PROCESSOR
from bitgen.processing import Processor
from bitgen.strict_json import brief, parse, read_json

PARAMETERS = 200_000_000
TENSORS = 2000
HEADER = 1_000_000
PICKLE = 16_000_000
"""Bytes of all that a training state holds beside its tensors' numbers."""
BYTES = {"config.json": 64_000, PROCESSOR: 64_000, "MANIFEST.json": 64_000, "metrics.json": 64_000, "run.json": 64_000,
         "tokenizer.json": 12_000_000, "model.safetensors": 4 * PARAMETERS + HEADER}
"""Files that are ever read, and the largest size of each."""
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}

# The largest value of each number; the smallest are those of training.
_MODEL = {"hidden_size": 2048, "text_layers": 64, "decoder_layers": 64, "fusion_layers": 64, "num_heads": 64,
          "intermediate_size": 8192, "max_tokens": 4096, "vocab_size": 300_000, "memory_slots": 65_536}
_PATCHES = 4096  # attention of the tower is quadratic in them
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "selu", "silu", "swish",
                "tanh")
_YES_NO = (True, False)
# All that transformers' encoders are told: its configurations take any key, some of which name code on the Hub.
_TOWER: dict[str, range | float | tuple] = {  # whole numbers in a range, numbers from 0 to a largest, or one of these
    "model_type": ("dinov2", "dinov2_with_registers", "vit", "deit"), "hidden_size": range(1, 2049),
    "num_hidden_layers": range(1, 65), "num_attention_heads": range(1, 65), "intermediate_size": range(1, 8193),
    "mlp_ratio": range(1, 9), "image_size": range(8, 2049), "patch_size": range(1, 513), "num_channels": (3,),
    "num_register_tokens": range(65), "encoder_stride": range(1, 513), "pooler_output_size": range(1, 8193),
    "hidden_act": _ACTIVATIONS, "pooler_act": _ACTIVATIONS, "hidden_dropout_prob": 1.0, "drop_path_rate": 1.0,
    "attention_probs_dropout_prob": 1.0, "initializer_range": 10.0, "layer_norm_eps": 1.0, "layerscale_value": 10.0,
    "qkv_bias": _YES_NO, "use_swiglu_ffn": _YES_NO, "apply_layernorm": _YES_NO, "reshape_hidden_states": _YES_NO,
    "use_mask_token": _YES_NO}
# Parts of a byte-level tokenizer; others carry regular expressions that take for ever.
_TOKENIZER = {"normalizer": (None, "NFC"), "pre_tokenizer": ("ByteLevel",), "decoder": ("ByteLevel",),
              "post_processor": (None, "ByteLevel"), "model": ("BPE",)}
_TOKEN = 1000  # characters
_DTYPES = {torch.float32: ("F32", "F16", "BF16"), torch.int64: ("I64",), torch.bool: ("BOOL",)}
"""How a tensor of the model may be written: numbers in half precision are made float32 when they are loaded."""
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "BOOL": 1}


# The parts of a checkpoint -------------------------------------------------------------------------------------


def read_model(folder: Path) -> BitGen:
    """The model of `config.json` and `model.safetensors` on the CPU; every tensor fits and is finite."""
    model = read_config(folder / "config.json")
    weights = read_weights(folder / "model.safetensors", model.state_dict())
    model.to_empty(device="cpu").load_state_dict(weights)  # copied: the file may change while the model lives
    return model


def read_config(path: Path) -> BitGen:
    """The model that `config.json` describes, on the `meta` device: it has shapes and no memory."""
    values = read_json(path, BYTES[path.name])
    try:
        if not isinstance(values, dict) or values.keys() != {"model", "vision"}:
            raise ValueError("expected the two sections model and vision")
        model, vision = from_dict(ModelConfig, values["model"], where="model"), values["vision"]
        vision = from_dict(VisionConfig, vision, where="vision")
        check_sizes(model, vision)
        with torch.device("meta"):
            skeleton = BitGen(model, vision)
        check_extent(skeleton)
    except (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{path}: not the configuration of a BitGen model: {brief(error)}") from None
    return skeleton


def check_extent(model: BitGen) -> None:
    """Raises `ValueError` for a model, on any device, of more parameters or patches than are loaded."""
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    if count > PARAMETERS:
        raise ValueError(f"the model has {count:,} parameters; at most {PARAMETERS:,} are loaded")
    if model.vision.patches > _PATCHES:
        raise ValueError(f"the tower cuts an image into {model.vision.patches:,} patches; at most {_PATCHES:,} are "
                         "taken: a smaller vision.image_size would be right")


def check_sizes(model: ModelConfig, vision: VisionConfig) -> None:
    """Raises `ValueError` for a setting that no loadable model has, before anything is built of it."""
    for name, most in _MODEL.items():
        if getattr(model, name) > most:
            raise ValueError(f"model.{name} must be at most {most:,}, got {getattr(model, name)}")
    tower = {"image_size": vision.image_size, **vision.tower}
    for name, value in tower.items():
        allowed = _TOWER.get(name)
        if allowed is None:
            raise ValueError(f"vision.tower.{name!r:.80} is no setting of a vision encoder")
        if not _within(value, allowed):
            raise ValueError(f"vision.tower.{name}: {brief(value)} is not {_described(allowed)}")


def read_weights(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names and shapes are `expected`'s (of any device).

    So are their dtypes, but that float32 may have been written in half precision.
    """
    _check_header(path, expected)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: {brief(error)}") from None
    broken = [name for name, tensor in weights.items() if not _finite(tensor)]
    if broken:
        raise ValueError(f"{path}: {len(broken)} tensors hold NaN or infinity, such as {broken[0]}")
    return weights


def read_processor(folder: Path, model: BitGen) -> Processor:
    """The processor of a folder, if it makes what `model` takes."""
    path = folder / PROCESSOR
    read_json(path, BYTES[path.name])
    check_tokenizer(folder / "tokenizer.json", model.config.vocab_size)
    processor = Processor.load(folder)
    for name, found, right in (("image_size", processor.vision.image_size, model.vision_config.image_size),
                               ("image_mean", processor.vision.mean, model.vision_config.mean),
                               ("image_std", processor.vision.std, model.vision_config.std),
                               ("max_tokens", processor.max_tokens, model.config.max_tokens)):
        if found != right:
            raise ValueError(f"{path}: {name} is {found}, but {right} in config.json beside it")
    return processor


def check_tokenizer(path: Path, entries: int) -> None:
    """Raises `ValueError` unless `tokenizer.json` is a byte-level BPE whose ids are 0 .. entries - 1."""
    values = read_json(path, BYTES[path.name])
    parts = values if isinstance(values, dict) else {}
    for part, allowed in _TOKENIZER.items():
        kind = _member(parts, part, "type")
        if kind not in allowed:
            raise ValueError(f"{path}: {part} is {brief(kind)}; a byte-level BPE has {' or '.join(map(str, allowed))}")
    vocabulary, merges = _member(parts, "model", "vocab"), _member(parts, "model", "merges")
    added = parts.get("added_tokens")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list) or not isinstance(added, list):
        raise ValueError(f"{path}: expected model.vocab, model.merges and added_tokens")
    tokens = [*vocabulary.items(), *((_member(one, "content"), _member(one, "id")) for one in added)]
    if not all(isinstance(token, str) and 0 < len(token) <= _TOKEN and type(number) is int for token, number in tokens):
        raise ValueError(f"{path}: an entry is no text of 1 to {_TOKEN} characters with a whole number")
    if {number for _, number in tokens} != set(range(entries)) or len(dict(tokens)) != entries:
        raise ValueError(f"{path}: its ids are not the 0 to {entries - 1} of config.json's model.vocab_size {entries}")
    if _member(parts, "model", "dropout") is not None:
        raise ValueError(f"{path}: model.dropout would make a text different tokens each time; null would be right")


def check_state(path: Path) -> None:
    """Raises `ValueError` unless a training state `checkpoint-N.pt` holds tensors and plain containers alone.

    Read by `torch.load(weights_only=True)` after a look at the archive, for runs that one trusts enough to resume them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{packed[0]!r:.80} is compressed, which torch.save never does")
        for entry in entries:
            if entry.filename.lower().endswith(".pkl") and entry.file_size > PICKLE:  # torch finds it in any case
                raise ValueError(f"{entry.filename!r:.80} has {entry.file_size:,} bytes; at most {PICKLE:,} are "
                                 "unpickled")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if sum(tensor.numel() * tensor.itemsize for _, tensor in tensors(state)) > path.stat().st_size:
            raise ValueError("its tensors are larger than the file")
    except Exception as error:  # unpicklers raise whatever a damaged stream leads them to
        raise ValueError(f"{path}: not a training state: {brief(error)}") from None


# How they are checked ------------------------------------------------------------------------------------------


def _within(value: Any, allowed: range | float | tuple) -> bool:
    if isinstance(allowed, float):
        return type(value) in (int, float) and 0 <= value <= allowed
    if isinstance(allowed, range):
        return type(value) is int and value in allowed
    return any(value is one or (type(value) is type(one) and value == one) for one in allowed)


def _described(allowed: range | float | tuple) -> str:
    if isinstance(allowed, float):
        return f"from 0 to {allowed:g}"
    if isinstance(allowed, range):
        return f"a whole number from {allowed.start} to {allowed.stop - 1}"
    return f"one of {', '.join(map(str, allowed))}"


def _check_header(path: Path, expected: dict[str, Tensor]) -> None:
    """Raises `ValueError` unless the file is `expected` to the byte: 8 bytes of length, a header, tensors end to end.

    The format: https://github.com/huggingface/safetensors#format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
            if length > HEADER or 8 + length > size:
                raise ValueError(f"its first 8 bytes announce a header of {length:,} bytes in a file of {size:,}; at "
                                 f"most {HEADER:,} are read. Not a safetensors file")
            header = parse(file.read(length))
        if not isinstance(header, dict) or len(header) > TENSORS + 1:
            raise ValueError(f"its header is no list of at most {TENSORS:,} tensors")
        header.pop("__metadata__", None)
        _check_names(header, expected)
        place = 0
        for name, entry in sorted(header.items(), key=lambda item: _begin(item[1])):
            tensor, dtype = expected[name], _member(entry, "dtype")
            if dtype not in _DTYPES[tensor.dtype]:
                raise ValueError(f"{name} is {brief(dtype)}; a model's are {' or '.join(_DTYPES[tensor.dtype])}")
            right = {"dtype": dtype, "shape": list(tensor.shape),
                     "data_offsets": [place, place + tensor.numel() * _ITEM_BYTES[dtype]]}
            if entry != right:
                raise ValueError(f"{name} is {brief(entry)}; config.json beside it says {right}")
            place = right["data_offsets"][1]
        if 8 + length + place != size:
            raise ValueError(f"{size:,} bytes, but its header describes {8 + length + place:,}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {brief(error)}") from None


def _check_names(header: dict, expected: dict[str, Tensor]) -> None:
    for names, problem in ((expected.keys() - header.keys(), "lacks"), (header.keys() - expected.keys(), "has")):
        if names:
            raise ValueError(f"does not fit config.json beside it: {problem} {len(names)} tensors that the model "
                             f"{'has' if problem == 'lacks' else 'lacks'}, such as {min(names)!r:.80}")


def _begin(entry: Any) -> int:
    """Where a tensor's bytes begin, to put a header in order; what is no number comes first and is refused there."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return offsets[0] if isinstance(offsets, list) and offsets and type(offsets[0]) is int else -1


def _member(value: Any, *path: str) -> Any:
    """value[path[0]][path[1]]…, or None where one of these is missing or no mapping."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _finite(tensor: Tensor) -> bool:
    """Whether all elements are, in pieces: `isfinite` of a whole tensor takes several times its memory."""
    return all(bool(part.isfinite().all()) for part in tensor.flatten().split(1 << 20))


def tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of those in nested containers, each of which is entered once: the ways through them may be past
    counting."""
    todo, seen = [("", value)], set()
    while todo:
        path, value = todo.pop()
        if isinstance(value, Tensor):
            yield path.removeprefix("/"), value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            todo += [(f"{path}/{key}", part) for key, part in parts]
