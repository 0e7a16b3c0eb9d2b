"""Parquet: whose rows are one image, where images lie, what is damaged."""

import pytest
from layouts import (
    SIZE,
    colour,
    config,
    jpeg,
    parquet,
    parquet_rows,
    texts,
    write_images,
)

from bitgen.data import open_data
from bitgen.images import BadImage
from bitgen.parquet import read_parquet
from bitgen.prepare import check


def path_rows(path, names, alone):
    """Parquet whose images are paths: `alone`, or with bytes that are null."""
    if not alone:
        return parquet_rows(path, [(None, name, f"photo {name}") for name in names])
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table
    write_table(arrow.table({"image": names, "caption": [f"photo {name}" for name in names]}), path)


def test_paths_may_be_categories_and_captions_lists_in_a_string(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table
    write_images(tmp_path, 12)
    images = arrow.array([f"{i}.png" for i in range(12)]).dictionary_encode()
    said = ['["one", "two"]', "['three', 'four']", "[sic] one"] * 4
    write_table(arrow.table({"image": images, "caption": said}), tmp_path / "train.parquet")
    dataset = open_data(config(tmp_path, tmp_path), "train", SIZE)
    assert not dataset.bad
    assert set(map(tuple, dataset.captions)) == {("one", "two"), ("three", "four"), ("[sic] one",)}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("folder", [".", "images", "elsewhere"])
def test_parquet_may_name_images_that_lie_beside_it(tmp_path, alone, folder):
    write_images(tmp_path / folder, 4)
    path_rows(tmp_path / "train.parquet", [f"{i}.png" for i in range(4)], alone)
    image_root = str(tmp_path / folder) if folder == "elsewhere" else None
    settings = config(tmp_path, tmp_path, val_fraction=0.25, image_root=image_root)
    data = [open_data(settings, split, SIZE) for split in ("train", "val")]
    assert {name: tuple(some.pixels(i, SIZE)[:, 0, 0].tolist()) for some in data
            for i, name in enumerate(some.image_ids)} == {f"{i}.png": colour(i) for i in range(4)}
    before = data[0].listing.fingerprint
    write_images(tmp_path / folder, 4, broken=range(4))
    assert open_data(config(tmp_path, tmp_path, val_fraction=0.25, image_root=image_root, max_bad_fraction=1), "train",
                     SIZE).listing.fingerprint != before


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("name, match", [
    ("0.png", "images must be embedded, or their folder given with data.image_root"),
    ("/etc/hostname", "expected the name of a file in"),
    ("../layouts.py", "expected the name of a file in"),
])
def test_parquet_that_names_images_that_are_not_there(tmp_path, alone, name, match):
    path_rows(tmp_path / "train.parquet", [name] * 3, alone)
    with pytest.raises(ValueError, match=f"train.parquet: .*{match}"):
        open_data(config(tmp_path, tmp_path), "train", SIZE)


def test_parquet_rows_of_one_path_are_one_image_only_where_their_bytes_are(tmp_path):
    rows = [(1, "image.png", "a cat"), (2, "image.png", "a dog"), (3, "other.png", "a cup"), (1, "image.png", "a pet"),
            (2, "image.png", "a puppy")]
    parquet_rows(tmp_path / "train.parquet", rows)
    listing = read_parquet([tmp_path / "train.parquet"])
    assert listing.captions == [["a cat", "a pet"], ["a dog", "a puppy"], ["a cup"]]
    assert [listing.read(i) for i in range(3)] == [jpeg(1), jpeg(2), jpeg(3)]
    assert listing.image_ids[0] == "image.png" and listing.image_ids[1].startswith("image.png#")


@pytest.mark.parametrize("captions, kept", [
    (["a dog", None, "a cat"], [["a dog"], [], ["a cat"]]),
    ([["a dog", None], [None], None], [["a dog"], [], []]),
    ([float("nan"), None, float("nan")], [[], [], []]),
])
def test_captions_that_are_missing_in_parquet_are_left_out(tmp_path, captions, kept):
    parquet_rows(tmp_path / "train.parquet", [(i, f"{i}.png", text) for i, text in enumerate(captions)])
    assert read_parquet([tmp_path / "train.parquet"]).captions == kept


def test_a_row_of_parquet_without_an_image_is_one_unreadable_image(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table
    images = [{"bytes": jpeg(0), "path": "0.png"}, None]
    write_table(arrow.table({"image": images, "captions": [texts(0), texts(1)]}), tmp_path / "train.parquet")
    listing = read_parquet([tmp_path / "train.parquet"])
    assert listing.captions == [texts(0), texts(1)] and listing.read(0) == jpeg(0)
    with pytest.raises(BadImage, match="row 1: no image bytes"):
        listing.read(1)


def test_bad_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ValueError, match="train.parquet: not a readable parquet file"):
        open_data(config(tmp_path, tmp_path), "train", SIZE)


def damaged_parquet(root):
    """Twelve images in row groups of five, of which the first cannot be read."""
    parquet(root)
    from pyarrow.parquet import ParquetFile
    group = ParquetFile(root / "train.parquet").metadata.row_group(0)
    at = {group.column(i).path_in_schema: group.column(i).data_page_offset for i in range(group.num_columns)}
    content = bytearray((root / "train.parquet").read_bytes())
    content[at["image.bytes"]:at["image.bytes"] + 40] = b"\xff" * 40
    (root / "train.parquet").write_bytes(content)


def test_a_damaged_page_of_parquet_is_the_images_in_it(tmp_path):
    damaged_parquet(tmp_path)
    with pytest.raises(ValueError, match=r"images are unreadable(.|\n)*train.parquet: .*\(row group 0\)"):
        open_data(config(tmp_path, tmp_path), "train", SIZE)
    listing = read_parquet([tmp_path / "train.parquet"])
    assert listing.read(5) == jpeg(5)
    with pytest.raises(BadImage, match=r"train.parquet: not a readable parquet file.*\(row group 0\)"):
        listing.read(4)
    report = check(config(tmp_path, tmp_path))
    assert list(report["splits"]["train"]["unreadable"]) == [f"{i}.png" for i in range(5)]
