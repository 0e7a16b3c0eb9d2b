"""The configuration tree: typed dataclasses, presets as YAML files, and one strict reader.

Every field is documented where it stands (`bitgen train --help` is made from these lines). "guide" means the
training guide whose numbers the `coco` preset carries to the letter. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

PRESETS = Path(__file__).parent / "presets"
YAML = (".yaml", ".yml")

Format = Literal["auto", "scenes", "karpathy", "coco", "parquet", "webdataset", "hub", "csv"]


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does; PyYAML asks for 1.0e-3."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+"), list("-+0123456789"))


@dataclass
class VisionConfig:
    """The vision tower: any transformers vision encoder with patch tokens."""

    name: str = "dinov2-nano"
    """Built-in tower: dinov2-nano (0.8 M, from scratch), dinov2-small (22 M) or dinov2-base (86 M)."""
    pretrained: str | None = None
    """Folder or Hub id of a transformers vision encoder to start from; replaces `name`."""
    trainable: Literal["all", "none"] | int = "all"
    """Which tower weights learn: all, none, or the last n blocks."""
    patch_dropout: float = 0.0
    """Share of the patches that each training image hides (FLIP, arXiv 2212.00794); evaluation sees all."""
    image_size: int = 64
    """Side of the square input, pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means subtracted from RGB in [0, 1] (ImageNet's)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel deviations divided by (ImageNet's)."""
    tower: dict[str, Any] = field(default_factory=dict)
    """The tower's transformers configuration, filled in when it is built; a saved model needs nothing else."""


@dataclass
class ModelConfig:
    """Everything outside the vision tower. Defaults are the guide's `tiny` model."""

    hidden_size: int = 128
    """Width D of tokens and features (guide: 128)."""
    text_layers: int = 4
    """Layers of the text encoder (guide: 4)."""
    decoder_layers: int = 2
    """Layers of the text decoder (guide: 2)."""
    num_heads: int = 4
    """Attention heads; must divide hidden_size (guide: 4)."""
    intermediate_size: int = 256
    """Width of the feed-forward layers (guide: 256)."""
    max_tokens: int = 256
    """Longest caption, tokens, special tokens included (guide: 256)."""
    vocab_size: int = 50257
    """Entries of the tokenizer; set from the tokenizer when training starts (guide: 50,257)."""
    dropout: float = 0.0
    """Dropout of the text encoder, fusion and decoder."""
    fusion_layers: int = 2
    """Gated cross-attention layers each way."""
    fusion_gates: bool = True
    """Learned gates before what one modality sees of the other; false fixes them at 1."""
    gate_start: float = 0.0
    """Where the gates begin: 0 lets pretrained towers start uni-modal; from scratch matching learns sooner from 1."""
    embedding_start: Literal["random", "captions"] = "random"
    """Where token embeddings begin: `captions` puts those that share training images near each other."""
    pooling: Literal["mean", "first"] = "mean"
    """Caption feature: mean over its tokens after self-attention; `first` is the first token alone (for ablation)."""
    memory_slots: int = 32
    """Slots K of the episodic memory; 0 leaves the memory out (guide: 32)."""
    memory_noise: float = 0.1
    """Standard deviation sigma of the memory's observation noise."""
    memory_decay: float = 0.99
    """Share of the persistent memory that survives each training step."""
    temperature: float = 0.07
    """Initial softmax temperature of the contrast; learned, logit scale clamped to <= 100 (guide: 0.07)."""
    ternary: bool = False
    """Ternary weights and 8-bit activations (BitNet b1.58) in the layers outside the vision tower."""


@dataclass
class DataConfig:
    """Images and captions."""

    root: str = "scenes"
    """`scenes`, a folder, a file (JSON, CSV, parquet), tar shards, or `hub://ORG/NAME`."""
    format: Format = "auto"
    """How `root` is laid out; `auto` recognises it by its files."""
    image_root: str | None = None
    """Folder of the image files where it is not beside the captions (karpathy, coco, csv, parquet)."""
    val_fraction: float = 0.05
    """Share of the training images held out for validation where the data has no split of its own (guide: 5 %)."""
    captions_per_image: int = 2
    """Captions of each image in a batch; all ride on one image forward."""
    augment: Literal["off", "light"] = "light"
    """`light`: random crop and small colour changes; see `flip`."""
    flip: bool = False
    """Mirror half of the training images; leave off where captions say left and right."""
    crop_scale: float = 0.6
    """Smallest share of the area that a `light` crop keeps."""
    max_bad_fraction: float = 0.01
    """Share of unreadable images above which the run stops with their list."""
    workers: int | None = None
    """Processes that make batches, so that the trainer need not; by default 4 where a GPU computes, else none."""
    cache: str | None = None
    """Folder of prepared uint8 images; by default `~/.cache/bitgen`."""
    tokenizer: str = "train"
    """`train` (byte-level BPE learned from the captions), `gpt2` (from the Hub) or a folder with a tokenizer."""
    vocab_size: int = 512
    """Largest vocabulary of a tokenizer that is trained."""
    limit: int | None = None
    """Use only the first n training images; of `hub://` the first n rows, which may be fewer images."""
    scenes_train: int = 11000
    """Training images of `scenes`."""


@dataclass
class LossConfig:
    """Weights and constants of the objective."""

    itc: float = 1.0
    """Weight of the image-text contrast (guide: 1.0)."""
    itm: float = 0.5
    """Weight of image-text matching (guide: 0.5)."""
    text: float = 0.5
    """Weight of text reconstruction (guide: 0.5)."""
    memory_kl: float = 0.1
    """Weight of the memory's KL divergence (guide: 0.1)."""
    label_smoothing: float = 0.1
    """Label smoothing of the text loss (guide: 0.1)."""
    queue: int = 4096
    """Pairs of features kept as further negatives; 0 leaves the queue out (guide: 4096)."""
    queue_start: int = 1000
    """Batches before the queue begins: while features move fast, old keys only tell their age."""
    queue_keys: Literal["momentum", "online"] = "momentum"
    """Encoders of the queue's keys: the moving average (guide), or the online ones, which costs no second forward."""
    momentum: float = 0.995
    """Decay of the moving average of the weights, which is what a run evaluates and saves; 0 does without."""
    contrast_captions: int | None = None
    """Captions of an image in the batch that contrast and matching see (None: all); the decoder is taught all."""
    episode: int = 24
    """Images written to the memory together; below the number of slots, or they cannot be told apart."""
    left_out: float = 0.5
    """Share of an episode's images that are decoded without having been written."""
    chunk: int | None = None
    """Images, and captions, encoded at a time, for batches larger than memory: the same gradients, one forward more."""


@dataclass
class OptimConfig:
    """Optimizer and schedule."""

    lr: float = 2e-4
    """Peak learning rate of everything but the vision tower (guide: 2e-4)."""
    vision_lr: float | None = None
    """Peak learning rate of the vision tower; `lr` where not given."""
    decoder_lr: float | None = None
    """Peak learning rate of the text decoder, which takes a higher one than the contrast; `lr` where not given."""
    embedding_lr: float | None = None
    """Peak learning rate of the embeddings of tokens and patch positions; `lr` where not given."""
    weight_decay: float = 0.02
    """AdamW weight decay; none on norms, biases, gates and embeddings (guide: 0.02)."""
    muon: bool = False
    """Move matrices whose weights begin at random by Muon, everything else by AdamW (guide: AdamW alone)."""
    muon_momentum: float = 0.95
    """Share of Muon's running gradient that a step keeps; less where a run has hundreds of steps, not thousands."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's betas."""
    warmup_steps: int = 1000
    """Steps of linear warm-up, then cosine to a tenth (guide: 1000)."""
    clip: float = 1.0
    """Largest gradient norm (guide: 1.0)."""
    batch_size: int = 128
    """Images a step and process (guide: 128)."""
    accumulation: int = 2
    """Batches whose gradients are summed before a step (guide: 2)."""
    epochs: int = 50
    """Passes over the training images (guide: 50)."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    patience: int = 5
    """Validations without improvement before the run stops (guide: 5)."""
    min_delta: float = 0.001
    """Smallest fall of the validation loss that counts as improvement (guide: 0.001)."""
    max_skipped: int = 10
    """Steps in a row with a non-finite loss or gradient before the run stops."""


@dataclass
class HubConfig:
    """The Hugging Face Hub."""

    repo: str | None = None
    """`ORG/NAME` to push checkpoints to; made where it is missing."""
    push_every: int = 1000
    """Steps between pushes (guide: 1000)."""
    keep: int = 5
    """Checkpoints kept on the Hub, beside the best; only those that this run pushed are ever deleted (guide: 5)."""
    private: bool = False
    """Make the repository private where it is made."""


@dataclass
class Config:
    """One run: `bitgen train --config scenes --optim.lr 1e-3`."""

    output_dir: str = "runs/bitgen"
    """Run folder: checkpoints, metrics, TensorBoard events."""
    seed: int = 0
    """Seed of weights, data order, augmentation and negatives."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the processor multiplies it natively, else float32; losses are always float32."""
    compile: bool = False
    """Compile the encoders (torch.compile): on a GPU, for half a minute at the start, more images a second."""
    resume: str | None = None
    """`auto`: the newest checkpoint of the run folder; a checkpoint folder; or `hub://ORG/NAME`, the newest there."""
    save_every: int = 1000
    """Steps between checkpoints (guide: 1000)."""
    keep: int = 5
    """Checkpoints kept, beside the best (guide: 5)."""
    log_every: int = 10
    """Steps between lines of `metrics.jsonl` and TensorBoard."""
    validate_every: int | None = None
    """Steps between validations; once an epoch where not given."""
    stop_on: Literal["bad"] | None = None
    """`bad` ends a run, with a checkpoint, once a check of its health has been BAD several times in a row."""
    data: DataConfig = field(default_factory=DataConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    hub: HubConfig = field(default_factory=HubConfig)


def from_dict(cls: type, values: dict, base: Any = None, where: str = "") -> Any:
    """`values` (nested dict, e.g. parsed YAML or JSON) laid over `base` (default: the class's defaults).

    Raises `ValueError` naming the full key: for an unknown one with the nearest valid one, for a wrong type with
    the value received and the type expected.
    """
    base = cls() if base is None else base
    if not isinstance(values, dict):
        raise ValueError(f"{where or cls.__name__}: expected a mapping of settings, got {values!r}")
    hints = typing.get_type_hints(cls)
    changes = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in hints:
            near = nearest(path, [*(path.removesuffix(str(key)) + hint for hint in hints), *settings(cls, where)])
            raise ValueError(f"unknown setting {path!r}; did you mean {near!r}? Known: {', '.join(hints)}")
        if dataclasses.is_dataclass(hints[key]):
            changes[key] = from_dict(hints[key], value, getattr(base, key), path)
        else:
            changes[key] = _convert(value, hints[key], path)
    return dataclasses.replace(base, **changes)


def settings(cls: type = Config, where: str = "") -> dict[str, Any]:
    """Full names of all settings under `cls`, such as `optim.lr`, with their types."""
    found = {}
    for key, hint in typing.get_type_hints(cls).items():
        path = f"{where}.{key}" if where else key
        found |= settings(hint, path) if dataclasses.is_dataclass(hint) else {path: hint}
    return found


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """The known setting most like `name`; those of the same last part come first, and those that are its initials."""
    last = name.rpartition(".")[2]
    initials = "".join(word[:1] for word in last.split("_"))
    same = [each for each in known if each.rpartition(".")[2] in (last, initials)]
    return difflib.get_close_matches(name, same or known, n=1, cutoff=0.0)[0]


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as `hint`, or a `ValueError` naming `path`. An int passes as float; nothing else is coerced."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _convert(value, option, path)
            except ValueError:
                continue
    elif origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
        hint = (f"one of {', '.join(map(repr, args))}" + (f" (did you mean {near[0]!r}?)" if near else "")
                + (" in quotes: bare, YAML reads on and off as truth values" if isinstance(value, bool) else ""))
    elif origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) == len(args):
            return tuple(_convert(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, args)))
    elif origin is dict:
        if isinstance(value, dict):
            return dict(value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is type(None):
        if value is None:
            return None
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    name = hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
    raise ValueError(f"setting {path!r}: expected {name}, got {value!r}")


def to_dict(config: Any) -> dict:
    """The plain nested dict of a configuration, as JSON and YAML store it (tuples as lists)."""
    return {k: list(v) if isinstance(v, tuple) else v if not isinstance(v, dict) else dict(v)
            for k, v in ((f.name, to_dict(getattr(config, f.name))
                          if dataclasses.is_dataclass(getattr(config, f.name)) else getattr(config, f.name))
                         for f in dataclasses.fields(config))}


def portable(value: Any) -> Any:
    """Settings for others to read: a path of this computer, which may name its user, is cut to `.../` and its end."""
    if isinstance(value, dict):
        return {key: portable(inner) for key, inner in value.items()}
    here = isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute())
    return f".../{Path(value).name}" if here else value


def located(value: Any, here: Any) -> Any:
    """Undoes `portable` as far as `here`, settings of this computer, hold what was cut."""
    if isinstance(value, dict):
        return {key: located(inner, here.get(key) if isinstance(here, dict) else None) for key, inner in value.items()}
    return here if portable(here) == value else value


def cache_folder(setting: str | Path | None) -> Path:
    """The folder of what is made once: the setting, else `bitgen` under XDG_CACHE_HOME or `~/.cache`."""
    if setting:
        return Path(setting).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitgen"


def preset_names() -> list[str]:
    """Names that `--config` takes beside paths."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name: str, base: Config | None = None, _seen: tuple[Path, ...] = ()) -> Config:
    """A preset by name, or a YAML file by path, laid over `base`; its `extends:` presets are laid first.

    A file that `extends` names lies relative to the one that names it. Raises `ValueError` for an unknown name (with
    the nearest), files that extend one another in a circle, a file that is no YAML mapping, or a bad setting.
    """
    path = _preset_path(name)
    if path.resolve() in _seen:
        raise ValueError(f"{path}: extends itself, by way of {', '.join(map(str, _seen))}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader) or {}  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    config, parents = base or Config(), values.pop("extends", [])
    for parent in [parents] if isinstance(parents, str) else parents or []:
        if not isinstance(parent, str):
            raise ValueError(f"{path}: extends: expected names of presets, got {parent!r}")
        named = str(path.parent / parent) if parent.endswith(YAML) else parent
        config = load_preset(named, config, (*_seen, path.resolve()))
    try:
        return from_dict(Config, values, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _preset_path(name: str) -> Path:
    """The file of a preset, or the YAML file of that path. Raises `ValueError` where there is none."""
    path = Path(name).expanduser() if name.endswith(YAML) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, preset_names(), n=1, cutoff=0.0)
        what = f"no such file: {name}" if name.endswith(YAML) else f"no preset {name!r}; did you mean {near[0]!r}?"
        raise ValueError(f"{what}{'' if what.endswith('?') else '.'} Known: {', '.join(preset_names())}, "
                         "or the path of a .yaml file")
    return path
