"""From what users have (pictures, captions) to what the model takes (normalised pixels, token ids)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image

from bitgen.config import VisionConfig
from bitgen.images import normalise, safe_open_image, to_uint8
from bitgen.tokenizer import Tokenizer

FILE = "preprocessor_config.json"


class Processor:
    """Makes model inputs from images and captions exactly as training did.

    Shapes: B images, S side in pixels, N captions, L tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vision: VisionConfig, max_tokens: int,
                 device: str | torch.device = "cpu"):
        self.tokenizer, self.vision, self.max_tokens, self.device = tokenizer, vision, max_tokens, device

    def __call__(self, images: Iterable[Image.Image | str | Path | bytes] | None = None,
                 text: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """`pixel_values` (B, 3, S, S) float32 of `images`; `input_ids` (N, L) int64 and `attention_mask` (N, L) bool
        of `text`; of either or both, on `device`.

        Raises `BadImage` for an unreadable image and `ValueError` for what is no list.
        """
        if images is None and text is None:
            raise ValueError("processor: expected images=[...], text=[...] or both, got neither")
        inputs = {}
        if images is not None:
            inputs["pixel_values"] = self._pixel_values(images)
        if text is not None:
            inputs["input_ids"], inputs["attention_mask"] = self.tokenizer.encode(text, self.max_tokens)
        return {name: values.to(self.device) for name, values in inputs.items()}

    def _pixel_values(self, images: Iterable[Image.Image | str | Path | bytes]) -> torch.Tensor:
        if isinstance(images, (Image.Image, str, Path, bytes)):
            raise ValueError(f"images: expected a list of at least one, got {type(images).__name__}; write [image]")
        size = self.vision.image_size
        pixels = [to_uint8(safe_open_image(image, at_least=2 * size), size) for image in images]
        if not pixels:
            raise ValueError("images: an empty list; expected at least one")
        return normalise(torch.stack(pixels), self.vision.mean, self.vision.std)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and preprocessor_config.json into `folder`."""
        self.tokenizer.save(folder)
        values = {"image_size": self.vision.image_size, "image_mean": list(self.vision.mean),
                  "image_std": list(self.vision.std), "max_tokens": self.max_tokens}
        (Path(folder) / FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Processor:
        """Read what `save` wrote. Raises `ValueError` naming the file and the value that is wrong."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected a folder with {FILE} and tokenizer.json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from None
        for key, valid, expected in _FIELDS:
            if not isinstance(values, dict) or not valid(values.get(key)):
                found = values.get(key) if isinstance(values, dict) else values
                raise ValueError(f"{path}: {key}: expected {expected}, got {found!r}")
        vision = VisionConfig(image_size=values["image_size"], mean=tuple(values["image_mean"]),
                              std=tuple(values["image_std"]))
        return cls(Tokenizer.load(folder), vision, values["max_tokens"])


def _triple(value: object, low: float, high: float) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and low < x < high for x in value)


_FIELDS = (
    ("image_size", lambda v: type(v) is int and 8 <= v <= 2048, "whole pixels from 8 to 2048"),
    ("max_tokens", lambda v: type(v) is int and 3 <= v <= 4096, "a whole number from 3 to 4096"),
    ("image_mean", lambda v: _triple(v, -10, 10), "three numbers"),
    ("image_std", lambda v: _triple(v, 0, 10), "three positive numbers"),
)
