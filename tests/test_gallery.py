"""What a gallery is made of: folders, files, data sets, uploads."""

import io
import os

import pytest
from layouts import csv_file, shard
from painted import PALETTE, SIDE, Painter, painted
from PIL import Image

from bitgen.gallery import Pictures, find, of_files, pictures
from bitgen.index import Index

pytest.importorskip("faiss")


def test_a_folder_with_broken_files_names_and_counts_them(tmp_path, painter):
    photos = tmp_path / "photos"
    (photos / "sea" / "night").mkdir(parents=True)
    painted("red", "blue").resize((600, 300)).save(photos / "sea" / "night" / "a.png")
    painted("green", "blue").save(photos / "b.PNG")
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "empty.png").touch()
    (photos / "notes.txt").write_text("no picture either")
    calls = []
    index = Index.build(tmp_path / "index", photos, painter, progress=lambda *call: calls.append(call))
    assert index.ids() == ["b.PNG", "sea/night/a.png"] and sorted(index.skipped) == ["broken.jpg", "empty.png"]
    assert "empty file" in index.skipped["empty.png"] and calls == [(4, 4)]
    item = index.item("sea/night/a.png")
    assert (item.width, item.height, item.tags) == (600, 300, ["sea", "night"])
    assert item.path == str(photos / "sea" / "night" / "a.png")
    assert index.search(painter.text(["red"]), where={"tag": "sea"}).ids == [["sea/night/a.png"]]
    painted("green", "green").save(photos / "empty.png")
    assert Index.build(tmp_path / "index", photos, painter).skipped.keys() == {"broken.jpg"}, "a repaired file comes in"


def test_thumbnails_are_bounded_and_stand_in_for_a_file_that_is_gone(tmp_path, painter):
    photo = tmp_path / "wide.png"
    painted("red", "blue").resize((900, 300)).save(photo)
    index = Index.build(tmp_path / "index", [photo], painter)
    assert index.thumbnail("wide.png")[:2] == b"\xff\xd8" and index.image("wide.png").size == (900, 300)
    photo.unlink()
    assert index.image("wide.png").size == (256, 85)
    assert index.image("wide.png").getpixel((10, 10)) == pytest.approx(PALETTE["red"], abs=4)


def test_sizes_are_those_that_are_seen(tmp_path, painter):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (400, 200), "red").save(tmp_path / "turned.jpg", exif=exif)
    item = Index.build(tmp_path / "index", [tmp_path / "turned.jpg"], painter).item("turned.jpg")
    assert (item.width, item.height) == (200, 400)


def test_uploads_of_one_name_stay_apart(tmp_path):
    files = [tmp_path / folder / "a.png" for folder in "xyz"]
    assert of_files(files).ids == ["a.png", "a (2).png", "a (3).png"]
    assert of_files([*files, tmp_path / "a (2).png"]).ids == ["a.png", "a (2).png", "a (3).png", "a (2) (2).png"]


def test_a_file_that_is_not_there_is_named_as_it_would_be_typed(tmp_path, painter):
    index = Index.build(tmp_path / "index", [tmp_path / "a.png"], painter)
    assert index.skipped == {"a.png": f"'{tmp_path}/a.png': No such file or directory"}


def png(colour):
    file = io.BytesIO()
    painted(colour, colour).save(file, "PNG")
    return file.getvalue()


def parquet(folder, colours):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table
    rows = [{"image": {"bytes": png(colour), "path": f"{i}.png"}, "caption": "a colour"}
            for i, colour in enumerate(colours)]
    write_table(arrow.Table.from_pylist(rows), folder / "test.parquet")


def tar(folder, colours):
    shard(folder / "test.tar", {name: data for i, colour in enumerate(colours)
                                for name, data in ((f"{i}.png", png(colour)), (f"{i}.txt", b"a colour"))})


@pytest.mark.parametrize("write", [parquet, tar])
def test_pictures_inside_a_file_are_encoded_anew_where_they_changed_and_only_those(write, tmp_path, painter):
    data = tmp_path / "data"
    data.mkdir()
    write(data, ["red", "green", "blue"])
    Index.build(tmp_path / "index", find(str(data), "test", SIDE), painter)
    write(data, ["red", "pink", "blue", "cyan"])
    counting = Painter()
    for _ in range(2):
        index = Index.build(tmp_path / "index", find(str(data), "test", SIDE), counting)
        assert len(index) == 4 and counting.encoded == 2
    for colour, score in (("red", 1), ("pink", 1), ("green", 0)):
        assert index.search(painter.text([colour]), k=1).scores[0][0] == pytest.approx(score, abs=1e-2), colour


def test_galleries_that_are_none(tmp_path):
    for gallery_, message in (([], "empty list"), (tmp_path / "none", "no such folder"), (tmp_path, "no image files")):
        with pytest.raises(ValueError, match=message):
            pictures(gallery_)
    with pytest.raises(ValueError, match="two pictures have the id 'a'"):
        Pictures("twice", ["a", "b", "a"], [b""] * 3, [[]] * 3, [[]] * 3)


def test_linked_folders_belong_to_a_gallery_once_and_names_that_are_not_utf8_do_not(tmp_path, caplog):
    gallery, elsewhere = tmp_path / "gallery", tmp_path / "elsewhere"
    for folder in (gallery, elsewhere):
        folder.mkdir()
        painted("red", "blue").save(folder / "a.png")
    for name in ("first", "second"):
        (gallery / name).symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(gallery)
    assert find(str(gallery), "test", SIDE).ids == ["a.png", "first/a.png"]
    (gallery / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    assert find(str(gallery), "test", SIDE).ids == ["a.png", "first/a.png"]
    assert "1 images are left out, for their names are not UTF-8: 'caf\\udce9.png'" in caplog.text


def test_a_data_set_with_broken_images_is_indexed_without_them(tmp_path, painter):
    csv_file(tmp_path / "data", 4)
    first, *others = find(str(tmp_path / "data"), "train", SIDE).ids
    (tmp_path / "data" / "images" / first).write_bytes(b"broken")
    index = Index.build(tmp_path / "index", find(str(tmp_path / "data"), "train", SIDE), painter)
    assert len(index) == len(others)


def test_a_folder_is_a_data_set_only_where_it_looks_like_one(tmp_path):
    for name in ("a.png", "b.png"):
        painted("red", "blue").save(tmp_path / name)
    assert find(str(tmp_path), "test", SIDE).ids == ["a.png", "b.png"]
    assert find(str(tmp_path / "a.png"), "test", SIDE).ids == ["a.png"]
    (tmp_path / "captions.csv").write_text("image,caption\na.png,a sight\nb.png,a sight\n", encoding="utf-8")
    assert list(find(str(tmp_path), "train", SIDE).captions) == [["a sight"]]
    with pytest.raises(ValueError, match="no such"):
        find(str(tmp_path / "nowhere"), "test", SIDE)
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        find(str(tmp_path), "test", SIDE)


@pytest.mark.parametrize("name, content", [("notes.txt", "a day\nby the sea\n"), ("album.json", "[]"),
                                           ("list.csv", "place,day\nsea,7\n")])
def test_photos_beside_a_file_of_something_else_are_photos(tmp_path, caplog, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError):
        find(str(tmp_path), "test", SIDE)
    (tmp_path / "sea").mkdir()
    painted("red", "blue").save(tmp_path / "sea" / "a.png")
    assert find(str(tmp_path), "test", SIDE).ids == ["sea/a.png"]
    assert "no data set" in caplog.text and name in caplog.text
