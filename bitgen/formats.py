"""Which layout a data set on disk has, and the splits it holds."""

from __future__ import annotations

from pathlib import Path

from bitgen.annotations import coco_splits, csv_splits, karpathy_splits
from bitgen.config import DataConfig
from bitgen.listing import Splits
from bitgen.parquet import parquet_splits
from bitgen.webdataset import webdataset_splits

# A file is of the first layout whose pattern it matches, a folder of the first that it holds files of. Shards come
# before parquet: img2dataset writes 00000.parquet, with addresses and no images, beside 00000.tar.
LAYOUTS = {
    "webdataset": (webdataset_splits, ("*.tar",)),
    "parquet": (parquet_splits, ("*.parquet", "data/*.parquet")),
    "coco": (coco_splits, ("captions_*.json", "annotations/captions_*.json")),
    "karpathy": (karpathy_splits, ("*.json",)),
    "csv": (csv_splits, ("*.csv", "*.txt")),
}


def find_splits(config: DataConfig) -> Splits:
    """The splits that `config.root` holds, as calls that read them.

    Raises `ValueError` for a root that does not exist, is of no known layout, or is not of `config.format`.
    """
    root = Path(config.root).expanduser()
    if not root.exists():
        raise ValueError(f"data.root: no such file or folder: {root}; expected `scenes`, data on disk or hub://ORG/NAME")
    layout = config.format if config.format != "auto" else recognise(root)
    reader, patterns = LAYOUTS[layout]
    splits = reader(root, config.image_root)
    if not splits:
        raise ValueError(f"{root}: no data of format {layout!r} there: expected {' or '.join(patterns)}")
    return splits


def recognise(root: Path) -> str:
    """The layout of a file by its name, of a folder by what it holds."""
    for layout, (_, patterns) in LAYOUTS.items():
        if any(root.match(pattern) if root.is_file() else any(root.glob(pattern)) for pattern in patterns):
            return layout
    held = sorted(path.name for path in root.iterdir())[:5] if root.is_dir() else [root.name]
    known = "; ".join(f"{layout}: {' or '.join(patterns)}" for layout, (_, patterns) in LAYOUTS.items())
    raise ValueError(f"{root}: not a data set that is known ({known}); it holds {', '.join(held) or 'nothing'}")
