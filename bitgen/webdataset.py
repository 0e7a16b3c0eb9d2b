"""Images in WebDataset shards: tar files that are never unpacked."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from bitgen.images import MAX_BYTES, BadImage
from bitgen.listing import CAPTION_COLUMNS, Listing, Splits, as_captions, by_split, files_digest, grouped

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
MAX_TEXT_BYTES = 1_000_000


def webdataset_splits(root: Path, image_root: str | None = None) -> Splits:
    """`<split>*.tar` in a folder, or one shard; names that tell no split are training data."""
    files = [root] if root.is_file() else root.glob("*.tar")
    return {split: partial(read_webdataset, group) for split, group in by_split(files).items()}


def read_webdataset(files: Sequence[Path]) -> Listing:
    """WebDataset shards: members of one name up to its first dot are a sample, an image with .txt (a caption a line)
    or else .json (`caption` or `captions`). Where each image lies is noted once, so that any can be read at any time.
    """
    rows = [row for file in files for row in _tar_rows(file)]
    image_ids, captions, places = grouped(rows)
    return Listing(image_ids, captions, _Spans(places), files_digest(files))


def _tar_rows(file: Path) -> Iterator[tuple[str, list[str], tuple[Path, int, int]]]:
    """Image id, captions and place (file, offset, bytes) of each sample of a shard."""
    samples: dict[str, tuple[dict[str, tuple], dict[str, list[str]]]] = {}
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                if not member.isreg():
                    continue
                path = PurePosixPath(member.name)
                key, _, kind = path.name.partition(".")
                places, said = samples.setdefault(str(path.parent / key), ({}, {"txt": [], "json": []}))
                if kind.lower() in IMAGE_MEMBERS:
                    if kind.lower() in places:
                        raise ValueError(f"{file}: {member.name} is there twice: each sample needs a key of its own")
                    places[kind.lower()] = file, member.offset_data, member.size
                elif kind.lower() in said:
                    said[kind.lower()] += _member_captions(shard.extractfile(member).read(MAX_TEXT_BYTES), kind.lower(),
                                                           f"{file}: {member.name}")
            # tarfile takes a header it cannot read for the end; the true end is a block of zeros.
            if _read_span(file, shard.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"{file}: truncated or damaged at byte {shard.offset}")
    except tarfile.TarError as error:
        raise ValueError(f"{file}: not a readable tar file (compressed ones are not): {error}") from None
    for key, (places, said) in samples.items():
        captions = said["txt"] or said["json"]  # img2dataset writes the same caption into both
        yield f"{file.stem}/{key}", captions, next(iter(places.values()), (file, 0, 0))


def _member_captions(data: bytes, kind: str, where: str) -> list[str]:
    try:
        text = data.decode("utf-8-sig")
        if kind == "txt":
            return [line for line in text.splitlines() if line.strip()]
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid {kind} in UTF-8: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected an object, got {str(content)[:80]!r}")
    said = [content[name] for name in CAPTION_COLUMNS if content.get(name) is not None]  # the rest is about the image
    return as_captions(said[0], where, nulls=True) if said else []


class _Spans:
    """Image bytes of sample i from where they lie in its shard."""

    def __init__(self, places: list[tuple[Path, int, int]]):
        self._places = places

    def __call__(self, i: int) -> bytes:
        path, offset, size = self._places[i]
        if not size:
            raise BadImage(f"{path}: sample {i} has no image ({', '.join(IMAGE_MEMBERS)})")
        try:
            return _read_span(path, offset, min(size, MAX_BYTES + 1))
        except OSError as error:
            raise BadImage(f"{path}: sample {i}: {error.strerror}") from None


def _read_span(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
