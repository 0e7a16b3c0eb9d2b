"""Every layout gives the same items; what is wrong in one is named."""

import csv
import json
import os

import pytest
import torch
from layouts import (
    SIZE,
    coco,
    colour,
    config,
    csv_file,
    jpeg,
    karpathy,
    parquet,
    shard,
    tar,
    texts,
    write_images,
)

from bitgen.annotations import read_coco, read_csv
from bitgen.cache import check_bad
from bitgen.config import DataConfig
from bitgen.data import open_data
from bitgen.folders import NAMES
from bitgen.images import BadImage, to_uint8
from bitgen.listing import as_captions
from bitgen.webdataset import read_webdataset

LAYOUTS = {"coco": coco, "csv": csv_file, "webdataset": tar, "parquet": parquet,
           "webdataset json": lambda root: tar(root, kind="json"),
           "captions.txt": lambda root: csv_file(root, name="captions.txt"),
           "captions.csv": lambda root: csv_file(root, header=("filename", "captions")),
           "parquet bytes": lambda root: parquet(root, with_path=False)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_items(tmp_path, layout):
    root = tmp_path / "data"
    root.mkdir()
    LAYOUTS[layout](root)
    settings = config(root, tmp_path, val_fraction=0.25)
    train, val = (open_data(settings, split, SIZE) for split in ("train", "val"))
    assert (len(train), len(val)) == (9, 3)
    assert len({*train.image_ids, *val.image_ids}) == 12  # by image, never by caption
    seen = set()
    for dataset in (train, val):
        for i in range(len(dataset)):
            item = dataset[i]
            number = int(item.captions[0].split()[-1])
            seen.add(number)
            assert item.captions == dataset.captions[i] == texts(number)
            assert item.image.mode == "RGB" and item.image.getpixel((0, 0)) == colour(number)
            assert dataset.pixels(i, SIZE).shape == (3, SIZE, SIZE)
            assert tuple(dataset.pixels(i, SIZE)[:, 4, 4].tolist()) == colour(number)
    assert seen == set(range(12))
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        open_data(settings, "test", SIZE)


def test_rows_of_one_image_are_one_image(tmp_path):
    csv_file(tmp_path)
    with open(tmp_path / "captions.csv", "a") as file:
        file.write('3.png,"once more, with a comma"\n')
    dataset = open_data(config(tmp_path, tmp_path, val_fraction=0.1), "train", SIZE)
    val = open_data(config(tmp_path, tmp_path, val_fraction=0.1), "val", SIZE)
    captions = dict(zip([*dataset.image_ids, *val.image_ids], [*dataset.captions, *val.captions], strict=True))
    assert captions["3.png"] == [*texts(3), "once more, with a comma"]


def test_image_root_is_where_the_images_are(tmp_path):
    csv_file(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    settings = config(tmp_path / "captions.csv", tmp_path, image_root=str(tmp_path / "elsewhere"))
    assert len(open_data(settings, "train", SIZE)) == 11
    with pytest.raises(ValueError, match="image_root"):
        open_data(config(tmp_path, tmp_path, image_root=str(tmp_path / "nowhere")), "train", SIZE)


def test_images_are_looked_for_where_the_first_of_them_is(tmp_path):
    csv_file(tmp_path)
    rows = (tmp_path / "captions.csv").read_text().splitlines()
    (tmp_path / "captions.csv").write_text("\n".join([rows[0], *(f"images/{row}" for row in rows[1:])]))
    for settings in (config(tmp_path, tmp_path), config(tmp_path, tmp_path, image_root=str(tmp_path))):
        dataset = open_data(settings, "train", SIZE)
        assert len(dataset) == 11 and dataset[0].image.getpixel((0, 0)) == colour(0)


def test_image_root_of_coco_may_hold_a_folder_for_each_split(tmp_path):
    for split, count in (("train2017", 4), ("val2017", 3)):
        coco(tmp_path, count=count, split=split)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / split).rename(tmp_path / "pictures" / split)
    for split, name, count in (("train", "train2017", 4), ("val", "val2017", 3)):
        for image_root in (tmp_path / "pictures", tmp_path / "pictures" / name):
            dataset = open_data(config(tmp_path, tmp_path, image_root=str(image_root)), split, SIZE)
            assert len(dataset) == count and dataset.listing.read(2) == str(tmp_path / "pictures" / name / "2.png")


def test_captions_without_words_and_images_without_captions_are_left_out(tmp_path):
    captions = [{"id": 1, "image_id": 0, "caption": " \0 "}, {"id": 2, "image_id": 0, "caption": "a dog"},
                {"id": 3, "image_id": 1, "caption": ""}, {"id": 4, "image_id": 2, "caption": "a cat"}]
    coco(tmp_path, count=4, annotations=captions)
    settings = config(tmp_path, tmp_path)
    both = [open_data(settings, split, SIZE) for split in ("train", "val")]
    assert sorted(text for dataset in both for some in dataset.captions for text in some) == ["a cat", "a dog"]


def test_captions_come_as_they_can_be_drawn_and_logged(tmp_path):
    karpathy(tmp_path, count=4)
    content = json.loads((tmp_path / "dataset_small.json").read_text())
    content["images"][0]["sentences"] = [{"raw": text} for text in ("x" * 100_000, " a\ud800\nb\0 ", "\u202e")]
    (tmp_path / "dataset_small.json").write_text(json.dumps(content))
    dataset = open_data(config(tmp_path, tmp_path), "train", SIZE)
    assert dataset.captions[0] == ["x" * 2000, "a\ufffd b"]


@pytest.mark.parametrize("value", [3, [3], {"raw": "a dog"}, [{"text": "a dog"}], 0.5])
def test_what_is_no_caption_is_refused_and_so_are_missing_ones_where_none_may_be(value):
    for nulls in (True, False):
        with pytest.raises(ValueError, match="here: expected a caption"):
            as_captions(value, "here", nulls)
    for missing in (None, [None], float("nan")):
        with pytest.raises(ValueError, match="here: expected a caption"):
            as_captions(missing, "here")
        assert as_captions(missing, "here", nulls=True) == []


def test_other_files_of_the_same_name_size_and_time_are_other_images(tmp_path):
    """As of two folders copied with their times: the pixels prepared of one are not the other's."""
    seen = []
    for i, root in enumerate((tmp_path / "one", tmp_path / "other")):
        root.mkdir()
        shard(root / "train.tar", {f"{j}.{kind}": data for j in range(2) for kind, data in (
            ("png", jpeg(2 * i + j)), ("txt", f"photo {2 * i + j}".encode()))})
        os.utime(root / "train.tar", ns=(10**18, 10**18))
        dataset = open_data(config(root, tmp_path, val_fraction=0.5), "train", SIZE)
        seen.append((dataset.captions[0][0], tuple(dataset.pixels(0, SIZE)[:, 0, 0].tolist())))
    assert (tmp_path / "one" / "train.tar").stat().st_size == (tmp_path / "other" / "train.tar").stat().st_size
    assert seen == [(text, colour(int(text[-1]))) for text, _ in seen] and seen[0] != seen[1]


def test_a_caption_that_an_image_has_twice_is_trained_on_once(tmp_path):
    shard(tmp_path / "train-0.tar", {"0.png": jpeg(0), "0.txt": b"A dog\na cat\na  Dog "})
    shard(tmp_path / "val-0.tar", {"1.png": jpeg(1), "1.txt": b"a dog\na dog"})
    settings = config(tmp_path, tmp_path)
    assert open_data(settings, "train", SIZE).captions == [["A dog", "a cat"]]
    assert open_data(settings, "val", SIZE).captions == [["a dog", "a dog"]]  # what is evaluated counts as it stands


@pytest.mark.parametrize("said, captions", [
    ({"0.txt": b"A dog", "0.json": b'{"caption": "A dog", "key": "0"}'}, ["A dog"]),
    ({"0.json": b'{"caption": "A dog"}', "0.txt": b"A dog\na cat\n\n"}, ["A dog", "a cat"]),
    ({"0.txt": b" \n", "0.json": b'{"caption": "A dog"}'}, ["A dog"]),
])
def test_what_txt_and_json_of_a_sample_both_say_counts_once(tmp_path, said, captions):
    """img2dataset writes the same caption into both: validation and test would see it twice."""
    shard(tmp_path / "val-0.tar", {"0.png": jpeg(0), **said})
    assert read_webdataset([tmp_path / "val-0.tar"]).captions == [captions]


def test_parquet_beside_shards_is_what_img2dataset_noted_of_them(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table
    tar(tmp_path, name="00000.tar")
    write_table(arrow.table({"url": ["http://x"], "caption": ["a dog"], "key": ["0"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert len(open_data(config(tmp_path, tmp_path), "train", SIZE)) == 11


@pytest.mark.parametrize("folder", NAMES)
@pytest.mark.parametrize("write", [karpathy, csv_file])
def test_images_lie_in_a_folder_of_a_usual_name(tmp_path, write, folder):
    write(tmp_path, count=8)
    (tmp_path / "images").rename(tmp_path / folder)
    assert open_data(config(tmp_path, tmp_path), "train", SIZE).bad == {}


def test_a_json_member_that_says_nothing_of_captions_adds_none(tmp_path):
    shard(tmp_path / "train-0.tar", {"0.png": jpeg(0), "0.txt": b"a dog", "0.json": b'{"url": "http://x", "width": 12}',
                                     "1.png": jpeg(1), "1.json": b'{"caption": null}'})
    listing = read_webdataset([tmp_path / "train-0.tar"])
    assert listing.captions == [["a dog"], []]


@pytest.mark.parametrize("said, captions", [
    ('["a dog", "a cat"]', ["a dog", "a cat"]), ('[{"raw": "a dog"}]', ["a dog"]), ("[3]", ["[3]"]),
    ("['a dog', \"a dog's cup\"]", ["a dog", "a dog's cup"]), ("['a' 'b']", ["['a' 'b']"]), ("['a', 3]", ["['a', 3]"]),
    ("['a'] + ['b']", ["['a'] + ['b']"]), ("[]", []),
    ("[a dog]", ["[a dog]"]), ("[" * 100_000, ["[" * 100_000]), ('["a", null]', ['["a", null]']),
])
def test_a_caption_in_brackets_is_a_list_only_where_it_is_one(tmp_path, said, captions):
    write_images(tmp_path, 1)
    with open(tmp_path / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), ("0.png", said)])
    assert read_csv(tmp_path / "train.csv").captions == [captions]


def test_two_images_of_one_key_in_a_shard_are_refused(tmp_path):
    """Else the captions of both would be those of the first."""
    twice = [("same.jpg", jpeg(0)), ("same.txt", b"one"), ("same.jpg", jpeg(1)), ("same.txt", b"two")]
    shard(tmp_path / "train.tar", twice)
    with pytest.raises(ValueError, match=r"train\.tar: same\.jpg is there twice: each sample needs a key of its own"):
        read_webdataset([tmp_path / "train.tar"])


def test_a_quoted_caption_may_have_lines_commas_and_quotes(tmp_path):
    write_images(tmp_path, 1)
    said = 'a "stop" sign,\nleft of it a dog, and\r\nphoto.png below'
    with open(tmp_path / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), ("0.png", said)])
    assert read_csv(tmp_path / "train.csv").captions == [[said]]


def test_scenes():
    train, val = (open_data(DataConfig(scenes_train=20), split, 64) for split in ("train", "val"))
    assert len(train) == len(train.truth) == 20 and train.pixels(3, 64).shape == (3, 64, 64)
    assert all(len(some) == 5 for some in train.captions) and not set(train.image_ids) & set(val.image_ids)
    assert torch.equal(train.pixels(3, 64), to_uint8(train[3].image, 64))


# Bad input ------------------------------------------------------------------------------------------------


def test_a_root_that_is_nothing_known(tmp_path):
    (tmp_path / "notes.md").write_text("hello")
    for root, match in (("nowhere", "no such file"), (".", "notes.md"), ("notes.md", "not a data set that is known")):
        with pytest.raises(ValueError, match=match):
            open_data(config(tmp_path / root, tmp_path), "train", SIZE)
    with pytest.raises(ValueError, match="format 'parquet'"):
        open_data(config(tmp_path, tmp_path, format="parquet"), "train", SIZE)
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'dev'"):
        open_data(config(tmp_path, tmp_path), "dev", SIZE)


IMAGE, ANNOTATION = {"id": 1, "file_name": "0.png"}, {"id": 1, "image_id": 1, "caption": "a dog"}
HOSTILE = {
    "truncated": ('{"images": [', "not valid JSON"),
    "utf-16": ('{"images": []}'.encode("utf-16"), "not valid JSON"),
    "top-level list": ("[]", "expected an object"),
    "no images": ('{"annotations": []}', "images: expected a list"),
    "no annotations": ('{"images": []}', "annotations: expected a list"),
    "images a dict": ('{"images": {}, "annotations": []}', "images: expected a list of records, got a dict"),
    "record a string": ('{"images": ["x"], "annotations": []}', r"images\[0\]: expected an object"),
    "nan": ('{"images": [{"id": NaN, "file_name": "0.png"}], "annotations": []}', "NaN"),
    "deep nesting": ('{"images": ' + "[" * 100_000 + "]" * 100_000 + "}", "not valid JSON"),
    "giant integer": ('{"images": [{"id": ' + "9" * 5000 + "}]}", "not valid JSON"),
    **{f"id {value!r}": ({"images": [{**IMAGE, "id": value}], "annotations": []}, r"images\[0\].id: expected int")
       for value in ("1", 1.0, True, None)},
    "image twice": ({"images": [IMAGE, IMAGE], "annotations": []}, r"images\[1\].id: 1 has been given"),
    "annotation twice": ({"images": [IMAGE], "annotations": [ANNOTATION] * 2}, r"annotations\[1\].id: 1 has been"),
    "unknown image": ({"images": [IMAGE], "annotations": [{**ANNOTATION, "image_id": 7}]},
                      r"annotations\[0\].image_id: no image has the id 7"),
    "caption a list": ({"images": [IMAGE], "annotations": [{**ANNOTATION, "caption": ["a"]}]},
                       r"annotations\[0\].caption: expected str"),
    **{f"file_name {name!r}": ({"images": [{**IMAGE, "file_name": name}], "annotations": []}, r"images\[0\]")
       for name in ("/etc/passwd", "../secret.png", "a/../../secret.png", "nul\0.png", "", "..\\secret.png", 7,
                    "out.png", "out/secret.png")},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_coco_files_are_one_line_that_names_file_and_record(tmp_path, case):
    content, match = HOSTILE[case]
    root = tmp_path / "data"
    write_images(root, 1)
    write_images(tmp_path, 1)
    (tmp_path / "0.png").rename(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", root / "out.png")
    os.symlink(tmp_path, root / "out")
    path = root / "captions_train.json"
    content = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=match) as caught:
        read_coco(path)
    assert "captions_train.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_and_inner_links_are_fine(tmp_path):
    path = coco(tmp_path, images=[{"id": 0, "file_name": "link.png"}], annotations=[])
    os.symlink(tmp_path / "train2017" / "0.png", tmp_path / "train2017" / "link.png")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_coco(path).image_ids == ["0"]


@pytest.mark.parametrize("record, match", [
    ({"filename": "../x.png"}, r"images\[0\]"), ({"filename": 3}, "filename"), ({"split": "later"}, "split"),
    ({"split": ["train"]}, "split: expected str"),
    ({"sentences": "a dog"}, "sentences"), ({"sentences": [3]}, "sentences"), ({"filepath": "/"}, r"images\[0\]"),
])
def test_bad_karpathy_records_are_named(tmp_path, record, match):
    (tmp_path / "images").mkdir()
    records = [{"filename": "0.png", "split": "train", "sentences": [], **record}]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": records}))
    with pytest.raises(ValueError, match=match) as caught:
        open_data(config(tmp_path, tmp_path), "train", SIZE)
    assert "dataset.json" in str(caught.value)


@pytest.mark.parametrize("content, match", [
    ("name,text\na,b\n", "expected a column image"), ("image,caption\n0.png,a, b\n", "row 0.*quote"),
    ("image,caption\n0.png\n", "row 0"), ("image,caption\n../x.png,a\n", "row 0"), 
    (b"image,caption\n\xff,a\n", "UTF-8"),
    ("image,caption\n", "no images"),
    ('image,caption\n0.png,a dog\n1.png,"stop sign\n2.png,a cat\n', "from line 3 on: unexpected end.*stands twice"),
    ('image,caption\n0.png,a dog\n1.png,"stop" says a sign\n', "from line 3 on.*stands twice"),
    ('image,caption\n0.png,"stop sign\n1.png,a cat"\n', "row 0: .*'1.png,a cat"),
    ('caption,image\n"stop sign,0.png\na cat, a cup,1.png\nthe end",2.png\n', "row 0: .*'a cat, a cup,1.png'"),
])
def test_bad_csv_is_named(tmp_path, content, match):
    (tmp_path / "data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=match):
        open_data(config(tmp_path / "data.csv", tmp_path), "train", SIZE)


def test_bad_shards_are_named(tmp_path):
    tar(tmp_path)
    shard = tmp_path / "train-000.tar"
    whole = shard.read_bytes()
    damaged = whole[:2048] + b"\xff" * 512 + whole[2560:]  # the header of the third member
    for content, match in ((b"no tar" * 200, "not a readable tar"), (b"", "not a readable tar"), (damaged, "byte 2048"),
                           (whole[:15360], "truncated"), (whole[:1300], "byte 1024"), (whole[:700], "not a readable")):
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=match) as caught:
            open_data(config(tmp_path, tmp_path), "train", SIZE)
        assert "train-000.tar" in str(caught.value)


def test_a_shard_that_is_gone_is_unreadable_images(tmp_path):
    tar(tmp_path)
    listing = read_webdataset([tmp_path / "train-000.tar"])
    (tmp_path / "train-000.tar").unlink()
    with pytest.raises(BadImage, match="train-000.tar: sample 1: No such file"):
        listing.read(1)


def test_a_few_bad_images_are_recorded_and_too_many_stop(tmp_path):
    karpathy(tmp_path, count=200, broken=range(0, 8, 4))  # 2 of the 100 training images
    with pytest.raises(ValueError, match=r"2 of 100 images are unreadable(.|\n)*sub/0.png(.|\n)*sub/4.png"):
        open_data(config(tmp_path, tmp_path), "train", SIZE)
    dataset = open_data(config(tmp_path, tmp_path, max_bad_fraction=0.02), "train", SIZE)
    assert len(dataset) == 100 and len(dataset.bad) == 2
    (position, reason), *_ = dataset.bad.items()
    assert "0.png" in reason
    with pytest.raises(BadImage, match="0.png"):
        dataset.pixels(position, SIZE)


def test_where_no_image_is_found_the_setting_for_their_folder_is_named(tmp_path):
    karpathy(tmp_path, count=8)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="4 of 4 images .*(.|\n)*data.image_root$"):
        open_data(config(tmp_path, tmp_path), "train", SIZE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "0.png").write_bytes(jpeg(0))
    with pytest.raises(ValueError, match="3 of 4 images") as caught:
        open_data(config(tmp_path, tmp_path), "train", SIZE)
    assert "image_root" not in str(caught.value)


def test_the_list_of_bad_images_is_bounded():
    with pytest.raises(ValueError, match="and 950 more"):
        check_bad({str(i): "broken" for i in range(1000)}, 1000, 0.01)
