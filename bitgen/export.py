"""An index as a parquet file, the way it goes into a vector database that somebody already runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bitgen.store import Store


def export(store: Store, path: str | Path, captions: bool = False) -> int:
    """Write the pictures of an index (or their `captions`) to `path`, whole or not at all; returns how many rows.

    Columns of pictures: `id`, `width`, `height`, `path`, `captions`, `tags`, `feature`; of captions: `id` (the
    picture's), `number` (from 0), `caption`, `feature`. A feature is a list of D float32 of unit length; the file's
    metadata names the model. Raises `ValueError` where pyarrow is missing, and for captions that were not encoded.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError("exporting an index needs pyarrow: pip install 'bitgen[data]'") from None
    if captions and not store.with_captions:
        raise ValueError(f"{store.folder}: its captions were not encoded; build it with captions")
    described = ({"id": pa.string(), "number": pa.int32(), "caption": pa.string()} if captions else
                 {"id": pa.string(), "width": pa.int32(), "height": pa.int32(), "path": pa.string(),
                  "captions": pa.list_(pa.string()), "tags": pa.list_(pa.string())})
    schema = pa.schema({**described, "feature": pa.list_(pa.float32(), store.width)},
                       metadata={"model": store.fingerprint, "metric": "cosine"})
    path, count = Path(path), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for records, features in (_captions if captions else _pictures)(store):
                table = pa.Table.from_pylist(records, schema.remove(len(described)))
                flat = pa.array(features.astype(np.float32).ravel())
                feature = pa.FixedSizeListArray.from_arrays(flat, store.width)
                writer.write_table(table.append_column(schema.field("feature"), feature).cast(schema))
                count += len(records)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _pictures(store: Store) -> Iterator[tuple[list[dict], np.ndarray]]:
    rows = store.rows("images")
    for entries in store.chunks():
        yield ([{"id": item.id, "width": item.width, "height": item.height, "path": item.path,
                 "captions": item.captions, "tags": item.tags} for _, item, _ in entries],
               rows[[row for row, _, _ in entries]])


def _captions(store: Store) -> Iterator[tuple[list[dict], np.ndarray]]:
    rows = store.rows("captions")
    for entries in store.chunks():
        yield ([{"id": item.id, "number": number, "caption": text}
                for _, item, _ in entries for number, text in enumerate(item.captions)],
               rows[[row for _, _, said in entries for row in said]])
