"""Small data sets in every layout, for the tests of data: image i has one colour and the captions of `texts(i)`."""

import csv
import io
import json
import tarfile

import pytest
from PIL import Image

from bitgen.config import DataConfig
from bitgen.data import Dataset
from bitgen.images import BadImage
from bitgen.listing import Listing

SIZE = 8


def colour(i):
    return (i * 5 % 256, i * 11 % 256, i * 3 % 256)


def jpeg(i):
    file = io.BytesIO()
    Image.new("RGB", (12, 10), colour(i)).save(file, "PNG")
    return file.getvalue()


def texts(i):
    return [f"photo {i}", f"a picture of number {i}"]


def write_images(folder, count, broken=()):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(b"broken" if i in broken else jpeg(i))


def karpathy(root, count=12, **images):
    splits = ["train", "restval", "val", "test"]
    write_images(root / "images" / "sub", count, **images)
    records = [{"filename": f"{i}.png", "filepath": "sub", "split": splits[i % 4],
                "sentences": [{"raw": text} for text in texts(i)]} for i in range(count)]
    (root / "dataset_small.json").write_text(json.dumps({"images": records}))


def coco(root, count=12, split="train2017", annotations=None, images=None):
    write_images(root / split, count)
    (root / "annotations").mkdir(exist_ok=True)
    images = images if images is not None else [{"id": i, "file_name": f"{i}.png"} for i in range(count)]
    if annotations is None:
        annotations = [{"id": 10 * i + j, "image_id": i, "caption": text} for i in range(count)
                       for j, text in enumerate(texts(i))]
    path = root / "annotations" / f"captions_{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def csv_file(root, count=12, name="captions.csv", header=("image", "caption")):
    write_images(root / "images", count)
    with open(root / name, "w", newline="") as file:
        csv.writer(file).writerows([header, *([f"{i}.png", text] for i in range(count) for text in texts(i))])


def tar(root, count=12, name="train-000.tar", kind="txt"):
    members = {}
    for i in range(count):
        text = "\n".join(texts(i)) if kind == "txt" else json.dumps({"captions": texts(i)})
        members |= {f"dir/{i}.png": jpeg(i), f"dir/{i}.{kind}": text.encode()}
    shard(root / name, members)


def shard(path, members):
    """A tar file of members by name, or of (name, bytes)."""
    with tarfile.open(path, "w") as file:
        for member, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def parquet(root, count=12, names=("train.parquet",), with_path=True, start=0):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table
    for n, name in enumerate(names):
        rows = range(start + n * count, start + (n + 1) * count)
        images = [{"bytes": jpeg(i), "path": f"{i}.png"} if with_path else jpeg(i) for i in rows]
        write_table(arrow.table({"image": images, "captions": [texts(i) for i in rows]}), root / name, row_group_size=5)


def parquet_rows(path, rows, **columns):
    """Parquet with a row for each (image, path, caption), and further columns."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table
    images = [{"bytes": None if i is None else jpeg(i), "path": name} for i, name, _ in rows]
    write_table(arrow.table({"image": images, "caption": [text for *_, text in rows], **columns}), path)


def config(root, tmp_path, **settings):
    return DataConfig(root=str(root), cache=str(tmp_path / "cache"), **settings)


def memory(count=10, bad=(), captions=5, **settings):
    """A data set in memory, of which some images cannot be read."""

    def read(i):
        if i in bad:
            raise BadImage(f"{i}.png: broken")
        return jpeg(i)

    return Dataset(Listing([f"{i}.png" for i in range(count)], [[f"caption {i} {j}" for j in range(captions)]
                                                               for i in range(count)], read, ""), **settings)
