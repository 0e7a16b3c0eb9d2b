"""Images that lie beside the file that names them: in which folder, and that none outside of it is ever opened."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

NAMES = ("images", "Images", "Flicker8k_Dataset", "flickr30k-images", "flickr30k_images")
"""Names of the folder of images, as data sets come; Flickr8k's own is spelled so."""


def usual_folders(beside: Path) -> list[Path]:
    """Where images lie that a file in the folder `beside` names: in one of the usual `NAMES`, or in itself."""
    return [*(beside / name for name in NAMES), beside]


def image_folder(setting: str | None, usual: Iterable[Path], first: str, part: str = "") -> Path:
    """The folder of the images: the first one that holds `first`, an image of the data set, or else the first there is.

    Looked for in `setting` (before that, in the folder `part` of it) or, where it is None, in the `usual` ones. Raises
    `ValueError` for a setting that is no folder.
    """
    if setting is not None:
        root = Path(setting).expanduser()
        if not root.is_dir():
            raise ValueError(f"data.image_root: no such folder: {setting}")
        usual = [root / part, root]
    folders = [folder for folder in usual if folder.is_dir()]
    return next((folder for folder in folders if os.path.isfile(os.path.join(folder, first))), folders[0]).resolve()


def inside(folder: Path, name: str, where: str) -> str:
    """The path of an image by its name in a file, which must lie in `folder` when all links are followed.

    Raises `ValueError` where it does not. Strings, not `Path`s: a large data set asks this a million times.
    """
    if not name.strip("/.") or name.startswith("/") or "\0" in name or "\\" in name or ".." in name.split("/"):
        raise ValueError(f"{where}: expected the name of a file in {folder}, got {name[:80]!r}")
    if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
        raise ValueError(f"{where}: {name[:80]!a} is not Unicode")
    path = os.path.join(folder, name)
    real = os.path.realpath(path) if os.path.islink(path) else _real_folder(os.path.dirname(path))
    if not f"{real}/".startswith(f"{folder}/"):
        raise ValueError(f"{where}: {name[:80]!r} is a link that leads out of {folder}")
    return path


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
