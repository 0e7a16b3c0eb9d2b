"""`bitgen index` and `bitgen search`: galleries from the command line."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from bitgen.arguments import parse, positional
from bitgen.export import export
from bitgen.gallery import find
from bitgen.hub import load
from bitgen.index import Index
from bitgen.processes import launched
from bitgen.query import Encoder, mix, rerank
from bitgen.tokenizer import clean

GALLERY, INDEX, FILE = positional(str, "GALLERY"), positional(str, "INDEX"), positional(str, "FILE")
IDS, WORDS = positional(list[str], "ID …"), positional(list[str], "[WORDS …]")


@dataclass
class Build:
    """Encode a gallery once, to search in. Called again it goes on where it stopped, takes in what is new or changed,
    and leaves out what is gone from the folder; what was removed stays out."""

    gallery: GALLERY
    """Folder of images, one image, or a data set as `data.root` of training takes it."""
    checkpoint: str
    """Run folder, checkpoint folder or Hub id of the model."""
    out: str
    """Folder that receives the index."""
    split: Literal["train", "val", "test"] = "test"
    """Which part of a data set."""
    captions: bool = True
    """Encode the captions of a data set too, so that pictures find them."""
    dtype: Literal["float16", "float32"] = "float16"
    """How features are stored."""
    batch_size: int = 64
    """Pictures encoded together."""
    device: str = "cpu"
    """Device to compute on."""


@dataclass
class Remove:
    """Take pictures out of an index. They stay out when it is built again, until `bitgen index restore`."""

    index: INDEX
    """Folder of the index."""
    ids: IDS
    """Ids of the pictures."""


@dataclass
class Restore:
    """Let pictures that were removed come in again, when the index is next built."""

    index: INDEX
    """Folder of the index."""
    ids: IDS
    """Ids of the pictures."""


@dataclass
class Duplicates:
    """List groups of pictures that look the same to the model."""

    index: INDEX
    """Folder of the index."""
    closer: float = 0.99
    """Lowest cosine between the features of duplicates."""


@dataclass
class Export:
    """Write ids, features and what else is known to a parquet file, for a vector database."""

    index: INDEX
    """Folder of the index."""
    path: FILE
    """The parquet file."""
    captions: bool = False
    """Export the captions instead of the pictures."""


@dataclass
class Search:
    """Find pictures, or captions, by words, by a picture, or by a mixture: beach + this picture - people."""

    index: INDEX
    """Folder of the index."""
    words: WORDS = field(default_factory=list)
    """What to look for, each in quotes."""
    image: list[str] = field(default_factory=list)
    """Image files to look for."""
    minus: list[str] = field(default_factory=list)
    """Words for what should not be there."""
    weights: list[float] = field(default_factory=list)
    """Weight of each of the words, images and minus words, in this order; 1 where not given."""
    checkpoint: str | None = None
    """Model that asks; by default the one that the index was built with, where it stood then."""
    k: int = 10
    """Results."""
    captions: bool = False
    """Find captions instead of pictures."""
    where: list[str] = field(default_factory=list)
    """Filters such as tag=beach, caption=dog, min_width=200, path='*/2024/*'."""
    threshold: float | None = None
    """Lowest cosine of a result."""
    distinct: float | None = None
    """Show only the best of results that are closer to each other than this cosine, such as 0.95."""
    rerank: bool = False
    """Put the results in a new order by what matching head and decoder say of each; both are printed beside the score.
    For a query of words alone, or one image and captions."""
    engine: Literal["auto", "exact", "two-stage", "lists"] = "auto"
    """How to search; auto goes by the number of pictures."""
    device: str = "cpu"
    """Device to compute on."""


CHANGES = {"remove": Remove, "restore": Restore, "duplicates": Duplicates, "export": Export}


def index(argv: list[str]) -> int:
    """`bitgen index GALLERY …`, and `bitgen index remove`, `restore`, `duplicates` and `export`."""
    if argv and argv[0] in CHANGES:
        return _change(parse(CHANGES, "bitgen index", argv))
    options = parse(Build, "bitgen index", argv,
                    description=f"{Build.__doc__}\n\nLater: bitgen index {'|'.join(CHANGES)} DIR …")
    if Path(options.out).is_file():
        raise ValueError(f"--out {options.out}: a file; expected a folder, which is made where it is missing")
    encoder = Encoder(*load(options.checkpoint, device=options.device))
    gallery = find(options.gallery, options.split, encoder.image_size)
    built = Index.build(options.out, gallery, encoder, captions=options.captions, dtype=options.dtype,
                        batch_size=options.batch_size)
    if launched()[0]:
        return 0
    local = Path(options.checkpoint).expanduser()
    built.made_by(str(local.resolve()) if local.is_dir() else options.checkpoint)
    for name, reason in built.skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if removed := built.removed.intersection(gallery.ids):
        print(f"{len(removed)} stay out, as they were removed: `bitgen index restore` lets them in", file=sys.stderr)
    print(f"{options.out}: {len(built)} images, {built.catalogue.count('captions')} captions, "
          f"{len(built.skipped)} unreadable")
    return 0


def _change(options: Remove | Restore | Duplicates | Export) -> int:
    found = Index.open(options.index)
    if isinstance(options, Remove):
        found.remove(options.ids)
        print(f"{options.index}: {len(found)} images")
    elif isinstance(options, Restore):
        found.restore(options.ids)
        print(f"{options.index}: {len(options.ids)} come in when it is next built")
    elif isinstance(options, Duplicates):
        for group in found.duplicates(options.closer):
            print("\t".join(group))
    else:
        print(f"{options.path}: {export(found.store, options.path, options.captions)} rows")
    return 0


def search(argv: list[str]) -> int:
    """`bitgen search DIR "a red ring" …`."""
    options = parse(Search, "bitgen search", argv)
    gallery = Index.open(options.index, engine=options.engine)
    checkpoint = options.checkpoint or gallery.checkpoint
    if checkpoint is None:
        raise ValueError(f"{options.index}: does not say which model built it: name it with --checkpoint")
    encoder = Encoder(*load(checkpoint, device=options.device))
    gallery.require(encoder)
    if options.captions and not gallery.catalogue.count("captions"):
        raise ValueError(f"{options.index}: this index has no captions")
    hits = gallery.search(_query(options, encoder), options.k, captions=options.captions, where=_filters(options.where),
                          threshold=options.threshold, distinct=options.distinct)
    if options.rerank:
        hits = rerank(encoder, gallery, _single(options), hits)
    columns = [[f"{score:.3f}" for score in hits.scores[0]], hits.ids[0], *(hits.texts or [])]
    if options.rerank:
        columns[1:1] = [[f"{match:.3f}" for match in hits.matches[0]], [f"{gain:+.1f}" for gain in hits.gains[0]]]
    for row in zip(*columns):
        print("\t".join(row))
    if not hits.ids[0]:
        print("nothing found", file=sys.stderr)
    return 0


def _query(options: Search, encoder: Encoder) -> np.ndarray:
    """The one query (1, D) that words, images and minus words make together."""
    if not all(map(clean, options.words + options.minus)):
        raise ValueError("words: a blank says nothing to look for")
    features = [*(encoder.text([words]) for words in options.words), *(encoder.images([f]) for f in options.image),
                *(encoder.text([words]) for words in options.minus)]
    weights = options.weights or [1.0] * len(features)
    if not features:
        raise ValueError("nothing to look for: give words in quotes, or --image FILE")
    if len(weights) != len(features):
        raise ValueError(f"weights: {len(weights)} for {len(features)} words, images and minus words")
    less = len(features) - len(options.minus)
    return mix(np.concatenate(features), [*weights[:less], *(-weight for weight in weights[less:])])


def _single(options: Search) -> list[str]:
    """The query that can be read together with results: words for pictures, a picture for captions."""
    asked = (options.words, options.image)[options.captions]
    if len(asked) != 1 or len(options.words + options.image + options.minus) != 1:
        raise ValueError("rerank: one sentence is read with pictures, or one image with captions; "
                         "the query is a mixture")
    return asked


def _filters(given: list[str]) -> dict[str, list]:
    """`key=value` arguments as `where` of a search; a key that comes again takes any of its values."""
    where: dict[str, list] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"where: expected KEY=VALUE, got {text!r}")
        if key.startswith(("min_", "max_")) and not value.isdigit():
            raise ValueError(f"where: {key} takes whole pixels, got {value!r}")
        where.setdefault(key, []).append(int(value) if value.isdigit() and key.startswith(("min_", "max_")) else value)
    return where
