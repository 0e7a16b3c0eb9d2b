"""The vision tower: a transformers vision encoder that gives one token for the image and one for each patch.

`resolve_tower` is the only function that reads weights, from a folder or the Hub. Building never does: a resolved
configuration holds all that is needed. Shapes: B images, S pixels a side, P patches, D' the tower's own width.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitgen.config import VisionConfig
from bitgen.lean import PatchProduct, are_apart, is_lean, lean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DINOV2 = {"model_type": "dinov2", "patch_size": 14}
TOWERS = {  # 0.8 M, 22 M and 86 M parameters; the last two have the sizes of the published DINOv2
    "dinov2-nano": DINOV2 | {"patch_size": 8, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
                             "mlp_ratio": 4, "initializer_range": 0.12},
    "dinov2-small": DINOV2 | {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "dinov2-base": DINOV2 | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
CLASSES = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel", "vit": "ViTModel",
           "deit": "DeiTModel"}
OPTIONS = {"vit": {"add_pooling_layer": False}, "deit": {"add_pooling_layer": False}}
# Entries of a transformers configuration that say nothing about the encoder.
NOISE = {"transformers_version", "architectures", "dtype", "_name_or_path", "id2label", "label2id", "problem_type",
         "stage_names", "out_features", "out_indices"}


def resolve_tower(config: VisionConfig) -> tuple[VisionConfig, dict[str, Tensor] | None]:
    """The configuration with `tower` filled in, and the weights of `config.pretrained` for `VisionTower` (or None).

    Positions learned at another image size are interpolated here, once, as transformers does it at each forward.
    Where `mean` and `std` are left as they usually are, they become those that the encoder was trained with.
    Raises `ValueError` where `pretrained` cannot be read or is no supported encoder, or the image size does not fit.
    """
    if config.pretrained is None:
        return replace(config, tower=_fields(_encoder_config(config))), None
    model = _read(config.pretrained)
    fields = _fields(_encoder_config(replace(config, tower=_fields(model.config))))
    weights = model.state_dict()
    weights["embeddings.position_embeddings"] = _positions(model, config.image_size)
    unused = ("pooler.", "embeddings.mask_token")
    weights = {f"model.{key}": value for key, value in weights.items() if not key.startswith(unused)}
    if (config.mean, config.std) == (VisionConfig.mean, VisionConfig.std):
        config = replace(config, **_normalisation(config.pretrained))
    return replace(config, tower=fields), weights


def build_tower(config: VisionConfig) -> PreTrainedModel:
    """The transformers encoder that `config.tower` describes, or the built-in one called `config.name`.

    Weights are random. Raises `ValueError` for an unknown name or encoder, an image size that is no multiple of the
    patch size, and a `pretrained` that was not resolved.
    """
    if config.pretrained is not None and not config.tower:
        raise ValueError(f"vision.pretrained {config.pretrained!r} is not resolved: call resolve_tower first")
    encoder_config = _encoder_config(config)
    model_class, options = _class(encoder_config.model_type, "vision.tower"), OPTIONS.get(encoder_config.model_type, {})
    model = model_class(encoder_config, **options)
    model.embeddings.mask_token = None  # for masked pre-training; here it would be a parameter without a gradient
    return model


class VisionTower(nn.Module):
    """A transformers encoder as `(B, 3, S, S)` pixels -> `(B, 1 + P, D')` tokens: the image's own, then the patches.

    `config.trainable` says which weights learn: all, none, or the last n blocks and the final norm. What does not
    learn stays in evaluation mode. Raises `ValueError` as `build_tower` does, and for more blocks than there are.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.model = build_tower(config)
        self.width: int = self.model.config.hidden_size
        self.image_size: int = self.model.config.image_size
        self.patches: int = (self.image_size // self.model.config.patch_size) ** 2
        self.patch_dropout: float = config.patch_dropout
        self.lean = False
        stages = self.stages()
        learning = _learning_stages(config.trainable, len(stages))
        for stage in stages[:len(stages) - learning]:
            stage.requires_grad_(False)

    def stages(self) -> list[nn.Module]:
        """From pixels to tokens: the embeddings, each block, the final norm."""
        model = self.model
        blocks = model.layers if hasattr(model, "layers") else model.encoder.layer
        return [model.embeddings, *blocks, model.layernorm]

    def train(self, mode: bool = True) -> VisionTower:
        """Training mode for the stages that learn; evaluation mode for the others."""
        super().train(mode)
        for stage in self.stages():
            stage.train(mode and any(p.requires_grad for p in stage.parameters()))
        return self

    def set_attention(self, precision: str, device: torch.device | str) -> None:
        """Choose the attention kernel: plain products in bf16 on a CPU (SDPA's backward is slow there), else SDPA.

        precision: `float32`, `bf16` or `fp16`, as it will be run.
        """
        plain = precision == "bf16" and torch.device(device).type == "cpu"
        self.model.set_attn_implementation("eager" if plain else "sdpa")

    def make_lean(self) -> None:
        """Compute as `bitgen.lean` does, as far as it knows the tower's layers: what a compiler makes most of."""
        self.lean = all(map(is_lean, self.stages()[1:-1]))
        projection = self.model.embeddings.patch_embeddings.projection
        if are_apart(projection):
            projection.__class__ = PatchProduct  # the same weights under the same names

    def draw_patches(self, images: int, device: torch.device | str) -> Tensor | None:
        """Which patches each of B images shows in this training step, `(B, P')` ascending; None: all of them.

        P' is (1 - `config.patch_dropout`) P, at least one (Li et al. 2023, arXiv 2212.00794).
        """
        shown = max(1, round(self.patches * (1 - self.patch_dropout)))
        if not self.training or shown == self.patches:
            return None
        return torch.rand(images, self.patches, device=device).topk(shown).indices.sort().values

    def forward(self, pixel_values: Tensor, shown: Tensor | None = None) -> Tensor:
        """Tokens `(B, 1 + P, D')` after the final norm, of normalised `pixel_values` `(B, 3, S, S)`.

        shown: `(B, P')`, of `draw_patches`: the tower reads these patches alone, and returns P' of them.
        """
        if pixel_values.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"pixel_values of shape {tuple(pixel_values.shape)}: "
                             f"expected (images, 3, {self.image_size}, {self.image_size})")
        if not pixel_values.shape[0]:  # transformers cannot tell the heads of no image apart
            return pixel_values.new_empty(0, 1 + self.patches, self.width)
        embeddings, *blocks, norm = self.stages()
        tokens, patches = embeddings(pixel_values), self.patches
        if shown is not None:
            before, after = tokens.split([tokens.shape[1] - patches, patches], 1)
            tokens, patches = torch.cat([before, _rows(after, shown)], 1), shown.shape[1]
        if self.lean and torch.is_autocast_enabled(tokens.device.type):
            tokens = tokens.to(torch.get_autocast_dtype(tokens.device.type))
        for block in blocks:
            tokens = lean(block, tokens) if self.lean else block(tokens)
        tokens = norm(tokens)
        if tokens.shape[1] == 1 + patches:
            return tokens
        # Registers and distillation tokens stand between the image's token and the patches.
        return torch.cat([tokens[:, :1], tokens[:, -patches:]], dim=1)


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows index (B, P') of each of tokens (B, P, D')."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def _encoder_config(config: VisionConfig) -> PreTrainedConfig:
    """The transformers configuration of `config.tower`, else of the built-in of that name, at `image_size`."""
    if not config.tower and config.name not in TOWERS:
        raise ValueError(f"vision.name {config.name!r}: built-in towers are {', '.join(TOWERS)}; "
                         "any other goes into vision.pretrained")
    fields = (config.tower or TOWERS[config.name]) | {"image_size": config.image_size}
    encoder_config = _class(fields.get("model_type"), "vision.tower").config_class(**fields)
    size, patch = config.image_size, encoder_config.patch_size
    if size < patch or size % patch:
        below = max(size // patch * patch, patch)
        raise ValueError(f"vision.image_size {size} is no multiple of the tower's patch size {patch}; "
                         f"the nearest are {below} and {below + patch}")
    return encoder_config


def _fields(encoder_config: PreTrainedConfig) -> dict[str, Any]:
    """What `vision.tower` keeps of a transformers configuration: what its class knows and says of the encoder."""
    known = {"model_type", *type(encoder_config)().to_dict()} - NOISE
    return {key: value for key, value in encoder_config.to_diff_dict().items() if key in known}


def _class(model_type: str | None, where: str) -> type[PreTrainedModel]:
    """The transformers class of a `model_type`; `where` begins the message of the error for any other."""
    if model_type not in CLASSES:
        raise ValueError(f"{where}: model_type {model_type!r} is no supported vision encoder; "
                         f"supported: {', '.join(CLASSES)}")
    import transformers  # takes seconds, so only when a tower is built

    return getattr(transformers, CLASSES[model_type])


def _location(source: str) -> str:
    """The folder of an encoder, or its Hub id as it is."""
    path = Path(source).expanduser()
    return str(path) if path.is_dir() else source


def _read(source: str) -> PreTrainedModel:
    """The encoder in a folder or Hub repository, in float32, every weight of it loaded."""
    from safetensors import SafetensorError
    from transformers import AutoConfig

    where = f"vision.pretrained {source!r}"
    location = _location(source)
    if not Path(location).is_dir() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        raise ValueError(f"{where}: no such folder, and no Hub id such as facebook/dinov2-small")
    try:
        model_type = AutoConfig.from_pretrained(location).model_type
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: no readable config.json of a transformers model: {error}") from error
    model_class = _class(model_type, where)
    try:
        model, report = model_class.from_pretrained(
            location, dtype=torch.float32, output_loading_info=True, **OPTIONS.get(model_type, {}))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{where}: weights not readable: {error}") from error
    missing = set(report["missing_keys"]) - {"embeddings.mask_token"}
    if missing:
        raise ValueError(f"{where}: {len(missing)} weights are missing, such as {min(missing)}")
    return model


def _normalisation(source: str) -> dict[str, tuple]:
    """`mean` and `std` of the encoder's own preprocessor_config.json; empty where it has none."""
    from transformers.utils import cached_file

    where = f"vision.pretrained {source!r}"
    try:
        file = cached_file(_location(source), "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        values = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
        found = {name: tuple(map(float, values[key])) for name, key in (("mean", "image_mean"), ("std", "image_std"))
                 if key in values}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{where}: preprocessor_config.json not readable: {error}") from error
    if any(len(numbers) != 3 for numbers in found.values()):
        raise ValueError(f"{where}: preprocessor_config.json: expected three numbers in image_mean and image_std")
    return found


def _positions(model: PreTrainedModel, image_size: int) -> Tensor:
    """The encoder's position embeddings `(1, extra + P, D')` for square images of `image_size` pixels."""
    learned = model.embeddings.position_embeddings
    extra = learned.shape[1] - model.embeddings.patch_embeddings.num_patches
    patches = (image_size // model.config.patch_size) ** 2
    tokens = learned.new_empty(1, extra + patches, learned.shape[2])  # only its shape is read
    with torch.no_grad():
        return model.embeddings.interpolate_pos_encoding(tokens, image_size, image_size).detach()


def _learning_stages(trainable: str | int, stages: int) -> int:
    """How many of the last stages learn: all of them, none, or n blocks and the norm behind them."""
    if trainable in ("all", "none"):
        return stages if trainable == "all" else 0
    if isinstance(trainable, str) or not 0 < trainable <= stages - 2:
        raise ValueError(f"vision.trainable {trainable!r}: expected all, none, or 1 to {stages - 2} last blocks")
    return trainable + 1
