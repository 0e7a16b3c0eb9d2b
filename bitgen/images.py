"""Images: any bytes to an RGB picture or a reason why not; resizing, normalisation and augmentation.

Shapes: B images in a batch, S side of the square in pixels. Pixels stay uint8 until `normalise`, the one place where
they become floats; it takes nothing but uint8, so nothing can be normalised twice.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_BYTES = 20_000_000
MAX_PIXELS = 24_000_000
MAX_SIDE = 12_000
MAX_ASPECT = 50
TOGETHER = {"cpu": 16, "cuda": 1024}
"""Images that are augmented at a time: what that needs stays in a processor's cache, or fills a GPU."""

# EXIF orientation -> what turns the stored picture upright (EXIF 2.32, tag 0x0112; 1 is upright already).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# 16-bit grey -> 8-bit: 65535 is white. As a table it needs a tenth of the memory that arithmetic would.
_EIGHT_BITS = np.rint(np.arange(65536) / 257).astype(np.uint8)


class BadImage(ValueError):
    """An image that cannot be used; the message names the file, where there is one, and the reason."""


def safe_open_image(source: str | Path | bytes | BinaryIO | Image.Image, at_least: int | None = None) -> Image.Image:
    """`source` (path, bytes, open file or PIL image) as an upright RGB image, at a bounded cost.

    First frame of an animation, transparency over white, 16-bit grey scaled to 8. `at_least` lets a JPEG be decoded
    at a half, quarter or eighth of its size as long as both sides keep that many pixels; a PIL image is its owner's,
    and keeps its size. Raises `BadImage` for whatever is no complete JPEG, PNG, WebP, GIF or BMP, and for more than
    20 MB, 24 megapixels, 12,000 pixels a side or 50:1; sizes are checked from the header, before any pixel is decoded.
    """
    ours = not isinstance(source, Image.Image)
    name, data = _read(source) if ours else ("image", b"")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS) if ours else source
        _check_size(*image.size)
        if ours and at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
        return _rgb(_upright(image))
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on hostile bytes
        reason = str(error) if isinstance(error, BadImage) else f"{type(error).__name__}: {error}"
        if isinstance(error, UnidentifiedImageError):  # Pillow would name our buffer and its address
            reason = f"no {', '.join(FORMATS)} picture"
        raise BadImage(f"{name}: {reason}") from error


def _read(source: str | Path | bytes | BinaryIO) -> tuple[str, bytes]:
    """Name and content of a source, at most `MAX_BYTES` of it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, data = "image", bytes(source)
    elif isinstance(source, (str, Path)):
        name, data = str(source), _read_file(source)
    elif hasattr(source, "read"):
        name, data = str(getattr(source, "name", "image")), source.read(MAX_BYTES + 1)
    else:
        raise BadImage(f"expected a path, bytes, an open file or a PIL image, got {type(source).__name__}")
    if not data:
        raise BadImage(f"{name}: empty file")
    if len(data) > MAX_BYTES:
        raise BadImage(f"{name}: larger than {MAX_BYTES // 10**6} MB")
    return name, data


def _read_file(path: str | Path) -> bytes:
    """At most `MAX_BYTES` + 1 bytes of a regular file; a pipe or a device would block or never end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadImage(f"{path}: not a regular file")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage(f"{os.fspath(path)!r}: {getattr(error, 'strerror', None) or error}") from None


def _check_size(width: int, height: int) -> None:
    """Refuse a picture whose decoding would be out of proportion to what it shows."""
    if min(width, height) < 1:
        raise BadImage(f"no area ({width} x {height})")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise BadImage(f"too large ({width} x {height}; at most {MAX_SIDE} a side, {MAX_PIXELS // 10**6} megapixels)")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(f"too long and thin ({width} x {height}; at most {MAX_ASPECT}:1)")


def _upright(image: Image.Image) -> Image.Image:
    """The picture as it was seen, by the orientation in its EXIF data."""
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # broken EXIF data says nothing about the pixels: the picture is used as it is stored
        orientation = None
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB. Pillow itself clips 16-bit grey at 255 and drops alpha to whatever lies under it."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray(_EIGHT_BITS[np.asarray(image).clip(0, 65535)])
    elif image.mode == "F":
        raise BadImage("floating-point pixels have no defined range; convert to 8 bits first")
    elif image.has_transparency_data:
        shown = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(shown, mask=shown.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")


def to_uint8(image: Image.Image, size: int) -> torch.Tensor:
    """An RGB image as uint8 (3, S, S): squashed, not cropped, to the square; bicubic with antialiasing."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def picture(pixels: np.ndarray, i: int) -> Image.Image:
    """Image i of uint8 (N, 3, S, S), the way back from `to_uint8`."""
    return Image.fromarray(np.ascontiguousarray(pixels[i].transpose(1, 2, 0)))


def normalise(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 (B, 3, S, S) to float32 of the same shape, (pixels / 255 - mean) / std for each channel.

    Raises `ValueError` for anything but uint8: floats have been normalised already.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels: expected uint8 in 0..255, got {pixels.dtype}; are they normalised already?")
    mean = torch.tensor(mean, device=pixels.device).view(3, 1, 1) * 255
    std = torch.tensor(std, device=pixels.device).view(3, 1, 1) * 255
    return pixels.float().sub_(mean).div_(std)


def augment(pixels: torch.Tensor, crop_scale: float, flip: bool, generator: torch.Generator) -> torch.Tensor:
    """Light augmentation of uint8 (B, 3, S, S), each image by its own draw: crop, colour, and a mirror if `flip`.

    The crop keeps `crop_scale` to 1 of the area at a ratio between 3:4 and 4:3 (Szegedy et al. 2015, arXiv 1409.4842);
    brightness, contrast and saturation change by up to a fifth. A pure function of its arguments and the generator's
    state; the number of draws depends on B alone, so that a resumed run sees the same crops.
    """
    if not 0 < crop_scale <= 1:
        raise ValueError(f"crop_scale: expected a share of the area in (0, 1], got {crop_scale}")
    draws = torch.rand(8, len(pixels), generator=generator, device=generator.device).to(pixels.device)
    area, ratio, left, top, mirror, *colours = draws
    rectangles = (crop_scale + (1 - crop_scale) * area, (4 / 3) ** (2 * ratio - 1), left, top,
                  mirror < (0.5 if flip else 0.0))
    together = TOGETHER.get(pixels.device.type, len(pixels))
    parts = zip(*(x.split(together) for x in (pixels, *rectangles, *colours)))
    return torch.cat([_coloured(_crop(some.float(), *draws[:5]), *draws[5:]).round_().clamp_(0, 255).to(torch.uint8)
                      for some, *draws in parts])


def _coloured(images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
    """What a weak photographer would change in (B, 3, S, S), in place: the factors lie in 0.8 .. 1.2 for draws (B,)."""
    brightness, contrast, saturation = (0.8 + 0.4 * x.view(-1, 1, 1, 1) for x in draws)
    level = images.mean(dim=(1, 2, 3), keepdim=True) * brightness
    images.mul_(brightness * contrast).add_(level * (1 - contrast))
    return images.lerp_(images.mean(dim=1, keepdim=True), 1 - saturation)


def _crop(images: torch.Tensor, area: torch.Tensor, ratio: torch.Tensor, left: torch.Tensor, top: torch.Tensor,
          mirror: torch.Tensor) -> torch.Tensor:
    """Cut one rectangle out of each of (B, 3, S, S) and stretch it to the whole square.

    area (B,) and width to height ratio (B,) of the rectangle, its position left, top (B,) in [0, 1], mirror (B,) bool.
    """
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = torch.where(mirror, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (2 * left - 1) * (1 - width)
    theta[:, 1, 2] = (2 * top - 1) * (1 - height)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
