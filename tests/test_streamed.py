"""Data sets of the Hub, streamed once."""

import sys
import types

import pytest
from layouts import SIZE, colour, config, jpeg, texts

from bitgen.data import open_data
from bitgen.dataset import sources
from bitgen.images import BadImage


class FakeStream:
    """What the code uses of `datasets.IterableDataset`."""

    column_names = ["image", "caption"]

    def __init__(self, count):
        self.count = count

    def cast_column(self, name, feature):
        assert name == "image" and feature == "undecoded"
        return self

    def __iter__(self):
        for i in range(self.count):
            for text in texts(i):  # one row a caption
                yield {"image": {"bytes": b"broken" if i == 3 else jpeg(i), "path": f"{i}.png"}, "caption": text}


def test_hub_data_are_streamed_once(tmp_path, monkeypatch):
    asked = []
    fake = types.SimpleNamespace(
        get_dataset_split_names=lambda repo: ["train", "testing"],
        load_dataset=lambda repo, split, streaming: asked.append((repo, split, streaming)) or FakeStream(20),
        Image=lambda decode: "undecoded")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    settings = config("hub://someone/photos", tmp_path, val_fraction=0.1, max_bad_fraction=0.1)
    train, val, test = (open_data(settings, split, SIZE) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (18, 2, 20)
    assert sorted(asked) == [("someone/photos", "testing", True), ("someone/photos", "train", True)]
    assert not set(train.image_ids) & set(val.image_ids) and all(len(some) == 2 for some in train.captions)
    assert tuple(test.pixels(5, SIZE)[:, 0, 0].tolist()) == test[5].image.getpixel((0, 0)) == colour(5)
    with pytest.raises(BadImage):
        test.pixels(3, SIZE)
    monkeypatch.setitem(sys.modules, "datasets", None)  # from now on offline
    assert open_data(settings, "train", SIZE).image_ids == train.image_ids


def test_limit_is_of_training_images_alone(tmp_path, monkeypatch):
    fake = types.SimpleNamespace(get_dataset_split_names=lambda repo: ["train", "val", "test"],
                                 load_dataset=lambda repo, split, streaming: FakeStream(20),
                                 Image=lambda decode: "undecoded")
    monkeypatch.setitem(sys.modules, "datasets", fake)
    settings = config("hub://someone/photos", tmp_path, limit=6, max_bad_fraction=0.1)
    assert [len(open_data(settings, split, SIZE)) for split in ("train", "val", "test")] == [3, 20, 20]  # of six rows


def hub(monkeypatch, rows, names=("train",), columns=("image", "caption")):
    """Lets `datasets` stream these rows of each split; an exception among them is raised."""

    class Stream(FakeStream):
        column_names = list(columns)

        def cast_column(self, name, feature):
            return self

        def __iter__(self):
            for row in rows:
                if isinstance(row, Exception):
                    raise row
                yield dict(zip(columns, row))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(
        get_dataset_split_names=lambda repo: list(names), load_dataset=lambda repo, split, streaming: Stream(0),
        Image=lambda decode: "undecoded"))


def picture(i, path):
    return {"bytes": jpeg(i), "path": path}


def test_rows_of_one_path_are_one_image_only_where_their_bytes_are(tmp_path, monkeypatch):
    hub(monkeypatch, [(picture(1, "image.png"), "a cat"), (picture(2, "image.png"), "a dog"),
                      (picture(3, "other.png"), "a cup"), (picture(1, "image.png"), "a pet")])
    listing = sources(config("hub://someone/photos", tmp_path), SIZE)["train"]()
    assert listing.captions == [["a cat", "a pet"], ["a dog"], ["a cup"]] and len(set(listing.image_ids)) == 3
    assert [listing.read(i).getpixel((0, 0)) for i in range(3)] == [colour(1), colour(2), colour(3)]


@pytest.mark.parametrize("image", ["jpg", "jpeg", "png", "webp"])
def test_columns_of_webdataset(tmp_path, monkeypatch, image):
    hub(monkeypatch, [(f"{i}", picture(i, f"{i}.{image}"), f"photo {i}") for i in range(3)],
        columns=("__key__", image, "txt"))
    listing = sources(config("hub://someone/photos", tmp_path), SIZE)["train"]()
    assert listing.captions == [[f"photo {i}"] for i in range(3)] and listing.image_ids[1] == f"1.{image}"


def test_captions_that_are_missing_are_left_out(tmp_path, monkeypatch):
    hub(monkeypatch, [(picture(1, "1.png"), "a cat"), (picture(2, "2.png"), None), (picture(3, "3.png"), float("nan")),
                      (picture(4, "4.png"), "a dog")])
    dataset = open_data(config("hub://someone/photos", tmp_path, val_fraction=0.5), "train", SIZE)
    assert dataset.captions in ([["a cat"]], [["a dog"]])


def test_a_stream_that_breaks_off_names_the_data_set_and_not_the_cache(tmp_path, monkeypatch):
    hub(monkeypatch, [(picture(1, "1.png"), "a cat"), ConnectionError("read timed out")])
    with pytest.raises(ValueError, match="hub://someone/photos: could not be streamed: ConnectionError: read timed out"
                       ) as caught:
        open_data(config("hub://someone/photos", tmp_path), "train", SIZE)
    assert "data.cache" not in str(caught.value) and not list((tmp_path / "cache").glob("*.part"))


def test_a_row_that_is_wrong_is_no_broken_stream(tmp_path, monkeypatch):
    hub(monkeypatch, [(picture(1, "1.png"), 3)])
    with pytest.raises(ValueError, match="^hub://someone/photos: row 0: expected a caption"):
        open_data(config("hub://someone/photos", tmp_path), "train", SIZE)


def test_without_the_datasets_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install"):
        open_data(config("hub://someone/photos", tmp_path), "train", SIZE)
