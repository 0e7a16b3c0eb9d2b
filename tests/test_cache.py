"""Images are decoded once: what is kept, and when it is not believed."""

import io

import pytest
import torch
from layouts import SIZE, config, csv_file, jpeg

from bitgen.cache import PixelCache
from bitgen.config import DataConfig
from bitgen.data import open_data
from bitgen.prepare import prepare


def test_images_are_decoded_once(tmp_path, monkeypatch):
    csv_file(tmp_path)
    settings = config(tmp_path, tmp_path)
    first = open_data(settings, "train", SIZE)
    expected = [first.pixels(i, SIZE) for i in range(len(first))]
    monkeypatch.setattr("bitgen.cache.safe_open_image", lambda *_, **__: pytest.fail("decoded again"))
    monkeypatch.setattr("bitgen.dataset.safe_open_image", lambda *_, **__: pytest.fail("decoded again"))
    again = open_data(settings, "train", SIZE)
    assert all(torch.equal(again.pixels(i, SIZE), pixels) for i, pixels in enumerate(expected))


def test_changed_images_are_decoded_again(tmp_path):
    csv_file(tmp_path)
    before = open_data(config(tmp_path, tmp_path), "train", SIZE).pixels(0, SIZE)
    for i in range(12):
        (tmp_path / "images" / f"{i}.png").write_bytes(jpeg(i + 100))
    assert not torch.equal(before, open_data(config(tmp_path, tmp_path), "train", SIZE).pixels(0, SIZE))


def test_a_torn_cache_is_not_used(tmp_path):
    csv_file(tmp_path)
    expected = open_data(config(tmp_path, tmp_path), "train", SIZE).pixels(0, SIZE)
    for file in (tmp_path / "cache").glob("*.u8"):
        file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(open_data(config(tmp_path, tmp_path), "train", SIZE).pixels(0, SIZE), expected)
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"count": 12, "bad": 3}'])
def test_a_cache_whose_index_a_crash_cut_off_is_not_used(tmp_path, content):
    csv_file(tmp_path)
    expected = open_data(config(tmp_path, tmp_path), "train", SIZE).pixels(0, SIZE)
    for file in (tmp_path / "cache").glob("*.json"):
        file.write_text(content)
    assert torch.equal(open_data(config(tmp_path, tmp_path), "train", SIZE).pixels(0, SIZE), expected)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    csv_file(tmp_path)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match="data.cache"):
        open_data(config(tmp_path, tmp_path), "train", SIZE)


def test_folders_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    csv_file(tmp_path)
    (tmp_path / "images").rename(tmp_path / "pictures")
    dataset = open_data(DataConfig(root="~/captions.csv", image_root="~/pictures", cache="~/pixels"), "train", SIZE)
    assert len(dataset) == 11 and list((tmp_path / "pixels").glob("*.u8")) and not (tmp_path / "~").exists()


def test_a_source_that_fails_does_not_blame_the_cache(tmp_path):
    def source():
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError, match="no network"):
        PixelCache(tmp_path, "x", SIZE).write([source], 1, "images")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_named_and_nothing_stays(tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")

    class Full(io.BytesIO):
        def write(self, data):
            raise full

    monkeypatch.setattr("bitgen.cache.open", lambda *_: Full(), raising=False)
    with pytest.raises(ValueError, match=f"{tmp_path}: cannot hold the prepared images: .*No space left"):
        PixelCache(tmp_path, "x", SIZE).write([jpeg(1)], 1, "images")
    assert not list(tmp_path.iterdir())


def test_large_data_are_read_without_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("bitgen.dataset.PREPARE_BYTES", 0)
    csv_file(tmp_path)
    dataset = open_data(config(tmp_path, tmp_path), "train", SIZE)
    assert not (tmp_path / "cache").exists() and dataset.pixels(0, SIZE).shape == (3, SIZE, SIZE)
    assert prepare(config(tmp_path, tmp_path), SIZE) == {"train": {"images": 11, "unreadable": 0},
                                                        "val": {"images": 1, "unreadable": 0}}
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 2
