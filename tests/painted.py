"""Pictures of two colours and an encoder that sees colours, so that right answers are known without a model."""

import zlib

import numpy as np
import torch
from PIL import Image

from bitgen.gallery import Pictures
from bitgen.matching import Evidence
from bitgen.query import Encoder

PALETTE = {"black": (0, 0, 0), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
           "pink": (255, 0, 255), "cyan": (0, 255, 255), "white": (255, 255, 255)}
COLOURS = list(PALETTE)
COLOUR_PAIRS = [(a, "red") for a in COLOURS]
SIDE, WIDTH = 16, 8


class Painter(Encoder):
    """Sees which colours a picture has, and in matching which is left and which is right; words are colours too."""

    def __init__(self, name="painter"):
        self.fingerprint, self.width, self.image_size = f"{zlib.crc32(name.encode()):032x}", WIDTH, SIDE
        self.encoded = 0

    scale = 10.0

    def text(self, texts):
        return unit(np.array([[text.split().count(colour) for colour in COLOURS] for text in texts], np.float32))

    def pixels(self, pixels):
        self.encoded += len(pixels)
        return unit(np.stack([sides(image).sum(0) for image in pixels.numpy()]))

    def images(self, images):
        return self.pixels(torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
                                        for image in images]))

    def evidence(self, images, texts):
        count = max(len(images), len(texts))
        pairs = zip(images * (count // len(images)), texts * (count // len(texts)))
        odds = torch.tensor([8.0 * sum(sides(np.asarray(image).transpose(2, 0, 1))[i, COLOURS.index(word)] > 0.5
                                       for i, word in enumerate(text.split())) - 12 for image, text in pairs])
        return Evidence(odds, *torch.zeros(2, count))


def unit(features):
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)


def sides(pixels):
    """(2, 8): the share of each colour in the left and the right half of uint8 (3, S, S)."""
    palette = np.array(list(PALETTE.values()), np.float32)[:, :, None, None]
    nearest = ((pixels[None] - palette) ** 2).sum(1).argmin(0)  # (S, S)
    halves = np.split(nearest, [nearest.shape[1] // 2], axis=1)
    return np.stack([np.bincount(half.ravel(), minlength=WIDTH) / half.size for half in halves])


def painted(left, right):
    image = Image.new("RGB", (SIDE, SIDE), PALETTE[left])
    image.paste(PALETTE[right], (SIDE // 2, 0, SIDE, SIDE))
    return image


def gallery(pairs=None, captions=True):
    """A picture `left right` for all pairs of colours, with the captions "left right" and "left"."""
    pairs = pairs or [(a, b) for a in COLOURS for b in COLOURS]
    names = [f"{a} {b}" for a, b in pairs]
    return Pictures("painted", names, [painted(a, b) for a, b in pairs],
                    [[f"{a} {b}", a] if captions else [] for a, b in pairs], [sorted({a, b}) for a, b in pairs])


def noise(count, width=32, seed=0, clusters=40):
    """Unit rows in clusters, as features of real pictures lie."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((clusters, width))
    rows = centres[generator.integers(clusters, size=count)] + 0.5 * generator.standard_normal((count, width))
    return unit(rows.astype(np.float32))
