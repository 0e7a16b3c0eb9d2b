"""What TensorBoard's projector opens: features, a line about each, and its thumbnail, in a run's event folder.

N rows, D width, S side of a thumbnail in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROWS = 1000  # more make the browser crawl
SIDE = 32  # pixels of a thumbnail: 1000 of them fit a texture of 1024 x 1024, which every graphics card takes
FOLDER, CONFIG = "projector", "projector_config.pbtxt"


def write(folder: str | Path, name: str, features: np.ndarray, columns: dict[str, Sequence[str]],
          thumbnails: Sequence[np.ndarray]) -> None:
    """Write the first 1000 rows of features (N, D) with their `columns` (name -> N texts) and thumbnails (3, S, S)
    uint8 into `folder`, in place of what was there. `name` is what the projector calls them.

    Raises `ValueError` where the numbers of rows differ, `OSError` where the disk refuses.
    """
    lengths = {"features": len(features), "thumbnails": len(thumbnails)} | {k: len(v) for k, v in columns.items()}
    if len(set(lengths.values())) > 1 or not len(features):
        raise ValueError(f"projector: expected as many of each, at least one, got {lengths}")
    place = Path(folder) / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    np.savetxt(place / "features.tsv", features[:ROWS], fmt="%.5g", delimiter="\t")
    titles = list(columns) if len(columns) > 1 else []  # a single column has no title, or it would be taken for a row
    lines = [titles, *zip(*(texts[:ROWS] for texts in columns.values()))]
    text = "\n".join("\t".join(" ".join(cell.split()) for cell in line) for line in lines if line)
    (place / "metadata.tsv").write_text(text + "\n", encoding="utf-8")
    sprite(thumbnails[:ROWS]).save(place / "sprite.png")
    side = f"single_image_dim: {SIDE} single_image_dim: {SIDE}"
    unfinished = place / f"{CONFIG}.tmp"
    unfinished.write_text(f'embeddings {{\n  tensor_name: "{name}"\n  tensor_path: "{FOLDER}/features.tsv"\n'
                          f'  metadata_path: "{FOLDER}/metadata.tsv"\n'
                          f'  sprite {{ image_path: "{FOLDER}/sprite.png" {side} }}\n}}\n', encoding="utf-8")
    unfinished.replace(Path(folder) / CONFIG)


def sprite(thumbnails: Sequence[np.ndarray]):
    """Images (3, S, S) uint8 in rows of a square grid, each scaled to 32 pixels; a `PIL.Image`."""
    from PIL import Image

    across = math.ceil(math.sqrt(len(thumbnails)))
    sheet = Image.new("RGB", (across * SIDE, across * SIDE), "white")
    for i, pixels in enumerate(thumbnails):
        tile = Image.fromarray(np.ascontiguousarray(np.asarray(pixels).transpose(1, 2, 0)))
        sheet.paste(tile.resize((SIDE, SIDE), Image.Resampling.BOX), (i % across * SIDE, i // across * SIDE))
    return sheet
