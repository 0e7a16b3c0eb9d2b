"""Every layout gives the same items; batches are a pure function of (seed, epoch, step), bad images or not."""

import csv
import io
import json
import os
import sys
import tarfile
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from bitgen.annotations import read_coco
from bitgen.cache import check_bad
from bitgen.config import DataConfig
from bitgen.data import BatchSampler, Collator, Dataset, open_data, stable_hash
from bitgen.dataset import held_out
from bitgen.images import BadImage, to_uint8
from bitgen.listing import Listing
from bitgen.prepare import check, contact_sheet, prepare, summary
from bitgen.tokenizer import Tokenizer

SIZE = 8
FLICKR = Path(__file__).resolve().parents[2] / "shared" / "data" / "flickr8k"


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
    with tarfile.open(root / name, "w") as shard:
        for i in range(count):
            text = "\n".join(texts(i)) if kind == "txt" else json.dumps({"captions": texts(i)})
            for member, data in ((f"dir/{i}.png", jpeg(i)), (f"dir/{i}.{kind}", text.encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))


def parquet(root, count=12, names=("train.parquet",), with_path=True, start=0):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table
    for n, name in enumerate(names):
        rows = range(start + n * count, start + (n + 1) * count)
        images = [{"bytes": jpeg(i), "path": f"{i}.png"} if with_path else jpeg(i) for i in rows]
        write_table(arrow.table({"image": images, "captions": [texts(i) for i in rows]}), root / name, row_group_size=5)


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


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for i in range(20) for text in texts(i)], 300)


# Layouts --------------------------------------------------------------------------------------------------

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


def test_karpathy_splits_count_restval_as_training(tmp_path):
    karpathy(tmp_path)
    settings = config(tmp_path, tmp_path)
    ids = {split: set(open_data(settings, split, SIZE).image_ids) for split in ("train", "val", "test")}
    assert ids["train"] == {f"sub/{i}.png" for i in range(12) if i % 4 < 2}
    assert ids["val"] == {"sub/2.png", "sub/6.png", "sub/10.png"} and len(ids["test"]) == 3
    one_file = open_data(config(tmp_path / "dataset_small.json", tmp_path), "test", SIZE)
    assert set(one_file.image_ids) == ids["test"]


def test_splits_by_file_name(tmp_path):
    parquet(tmp_path, names=("train-0.parquet", "train-1.parquet", "validation-0.parquet", "test.parquet"), count=4)
    counts = {split: len(open_data(config(tmp_path, tmp_path), split, SIZE)) for split in ("train", "val", "test")}
    assert counts == {"train": 8, "val": 4, "test": 4}
    for split in counts:  # one file by name is that file, whatever the split
        assert open_data(config(tmp_path / "test.parquet", tmp_path), split, SIZE).image_ids[0] == "12.png"


def test_coco_keeps_its_own_splits(tmp_path):
    coco(tmp_path, split="train2017")
    coco(tmp_path, count=3, split="val2017")
    settings = config(tmp_path, tmp_path)
    assert [len(open_data(settings, split, SIZE)) for split in ("train", "val")] == [12, 3]


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


def test_captions_without_words_and_images_without_captions_are_left_out(tmp_path):
    captions = [{"id": 1, "image_id": 0, "caption": " \0 "}, {"id": 2, "image_id": 0, "caption": "a dog"},
                {"id": 3, "image_id": 1, "caption": ""}, {"id": 4, "image_id": 2, "caption": "a cat"}]
    coco(tmp_path, count=4, annotations=captions)
    settings = config(tmp_path, tmp_path)
    both = [open_data(settings, split, SIZE) for split in ("train", "val")]
    assert sorted(text for dataset in both for some in dataset.captions for text in some) == ["a cat", "a dog"]


def test_limit_takes_the_first_training_images(tmp_path):
    parquet(tmp_path, names=("train.parquet", "val.parquet"))
    settings = config(tmp_path, tmp_path, limit=5)
    assert open_data(settings, "train", SIZE).image_ids == [f"{i}.png" for i in range(5)]
    assert len(open_data(settings, "val", SIZE)) == 12


def test_validation_images_stay_when_others_come():
    names = [f"{i}.png" for i in range(1000)]
    held = held_out(names, 0.05)
    assert len(held) == 50 and held == held_out(names[::-1], 0.05)
    more = held_out([*names, *(f"new {i}.png" for i in range(100))], 0.05)
    assert len(held & more) >= 45
    for fraction, some in ((0, names), (1, names), (0.5, names[:1])):
        with pytest.raises(ValueError, match="val_fraction"):
            held_out(some, fraction)


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


def test_bad_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ValueError, match="train.parquet: not a readable parquet file"):
        open_data(config(tmp_path, tmp_path), "train", SIZE)


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


def test_the_list_of_bad_images_is_bounded():
    with pytest.raises(ValueError, match="and 950 more"):
        check_bad({str(i): "broken" for i in range(1000)}, 1000, 0.01)


# The cache ------------------------------------------------------------------------------------------------


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


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    csv_file(tmp_path)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match="data.cache"):
        open_data(config(tmp_path, tmp_path), "train", SIZE)


def test_large_data_are_read_without_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("bitgen.dataset.PREPARE_BYTES", 0)
    csv_file(tmp_path)
    dataset = open_data(config(tmp_path, tmp_path), "train", SIZE)
    assert not (tmp_path / "cache").exists() and dataset.pixels(0, SIZE).shape == (3, SIZE, SIZE)
    assert prepare(config(tmp_path, tmp_path), SIZE) == {"train": {"images": 11, "unreadable": 0},
                                                        "val": {"images": 1, "unreadable": 0}}
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 2


# Batches --------------------------------------------------------------------------------------------------


def test_an_epoch_visits_each_image_once():
    sampler = BatchSampler(103, 10, seed=0)
    assert sampler.epoch_steps == 10
    seen = [i for step in range(10) for i in sampler.batch(0, step)]
    assert len(seen) == len(set(seen)) == 100 and set(seen) <= set(range(103))
    assert seen != [i for step in range(10) for i in sampler.batch(1, step)]


def test_batches_are_a_function_of_seed_epoch_and_step():
    order = [BatchSampler(50, 8, seed=3).batch(epoch, step) for epoch in range(3) for step in range(6)]
    sampler = BatchSampler(50, 8, seed=3)
    back = [sampler.batch(epoch, step) for epoch in reversed(range(3)) for step in reversed(range(6))]
    assert back[::-1] == order
    assert BatchSampler(50, 8, seed=4).batch(0, 0) != order[0]


def test_processes_share_the_batch_of_one():
    whole = BatchSampler(50, 12, seed=0)
    parts = [BatchSampler(50, 4, seed=0, rank=rank, world=3) for rank in range(3)]
    assert {part.epoch_steps for part in parts} == {whole.epoch_steps}
    for step in range(whole.epoch_steps):
        assert sum((part.batch(1, step) for part in parts), []) == whole.batch(1, step)


def test_too_few_images_for_a_batch():
    with pytest.raises(ValueError, match="batch_size"):
        BatchSampler(7, 4, seed=0, world=2)
    with pytest.raises(IndexError):
        BatchSampler(8, 4, seed=0).batch(0, 2)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in (
        "pixel_values", "input_ids", "attention_mask", "image_index", "image_ids", "caption_ids"))


def test_a_batch(tokenizer):
    batch = Collator(memory(), tokenizer, SIZE, 2, seed=0, max_tokens=32)([4, 1, 7], epoch=0)
    assert batch.pixel_values.shape == (3, 3, SIZE, SIZE) and batch.pixel_values.dtype == torch.uint8
    assert [tuple(x[:, 0, 0].tolist()) for x in batch.pixel_values] == [colour(i) for i in (4, 1, 7)]
    assert batch.image_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.input_ids.shape[0] == 6 and batch.input_ids.shape[1] % 8 == 0
    decoded = [tokenizer.decode(row) for row in batch.input_ids]
    for text, image in zip(decoded, (4, 4, 1, 1, 7, 7), strict=True):
        assert text.startswith(f"caption {image} ")
    assert len(set(decoded)) == 6
    assert batch.image_ids.tolist() == [stable_hash(f"{i}.png") for i in (4, 1, 7)]
    assert same(batch.to("cpu"), batch)


def test_captions_are_drawn_by_seed_epoch_and_index(tokenizer):
    dataset = memory()
    first, again = (Collator(dataset, tokenizer, SIZE, 2, seed=0) for _ in range(2))
    again([1, 2, 3], epoch=5)  # what was made before does not matter
    assert same(first([4, 1], epoch=2), again([4, 1], epoch=2))
    assert torch.equal(first([4, 1], epoch=2).caption_ids[:2], first([9, 4], epoch=2).caption_ids[2:])
    chosen = {tuple(first([4], epoch=epoch).caption_ids.tolist()) for epoch in range(20)}
    assert len(chosen) > 5 and len({one for some in chosen for one in some}) == 5


def test_all_captions_in_their_order(tokenizer):
    batch = Collator(memory(), tokenizer, SIZE, None, seed=0)([0, 3])
    assert [tokenizer.decode(row) for row in batch.input_ids] == [f"caption {i} {j}" for i in (0, 3) for j in range(5)]


def test_fewer_captions_than_asked_for(tokenizer):
    batch = Collator(memory(captions=1), tokenizer, SIZE, 3, seed=0)([0, 3])
    assert batch.image_index.tolist() == [0, 1]


def test_equal_captions_have_equal_ids(tokenizer):
    dataset = memory(count=2)
    dataset.captions[0], dataset.captions[1] = ["A dog  runs"], ["a dog runs "]
    ids = Collator(dataset, tokenizer, SIZE, None, seed=0)([0, 1]).caption_ids
    assert ids[0] == ids[1]


def test_a_hash_is_the_same_everywhere():
    assert stable_hash("0.png") == -7894433674887843837


def test_bad_images_are_replaced_by_a_function_of_seed_epoch_and_index(tokenizer):
    dataset = memory(count=40, bad={3, 5, 8})
    collator = Collator(dataset, tokenizer, SIZE, 2, seed=0)
    batch = collator([3, 4, 5, 8], epoch=1)
    assert len(batch.pixel_values) == 4 and batch.image_ids[1] == stable_hash("4.png")
    assert collator.bad == batch.bad == {f"{i}.png": f"{i}.png: broken" for i in (3, 5, 8)}
    assert {stable_hash(f"{i}.png") for i in (3, 5, 8)}.isdisjoint(batch.image_ids.tolist())
    for b, image_id in enumerate(batch.image_ids.tolist()):  # captions are those of the image that came in
        i = next(i for i in range(40) if stable_hash(f"{i}.png") == image_id)
        assert tokenizer.decode(batch.input_ids[2 * b]).startswith(f"caption {i} ")
    other = Collator(dataset, tokenizer, SIZE, 2, seed=0)
    other([8, 1], epoch=0)
    assert same(other([3, 4, 5, 8], epoch=1), batch)
    assert torch.equal(other([8, 3], epoch=1).image_ids, batch.image_ids[[3, 0]])
    assert not collator([3, 5], epoch=1).bad  # each is told of once


def test_too_many_bad_images_stop(tokenizer):
    with pytest.raises(ValueError, match="unreadable"):
        Collator(memory(count=40, bad={3, 5}, max_bad_fraction=0.04), tokenizer, SIZE, 2, seed=0)([3, 5])
    with pytest.raises(ValueError, match="no readable image"):
        Collator(memory(count=5, bad=set(range(5))), tokenizer, SIZE, 2, seed=0)([0])


# The Hub --------------------------------------------------------------------------------------------------


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


def test_without_the_datasets_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install"):
        open_data(config("hub://someone/photos", tmp_path), "train", SIZE)


# Looking a data set over ----------------------------------------------------------------------------------


def test_check_counts_what_is_wrong(tmp_path):
    karpathy(tmp_path, count=40, broken={4})
    content = json.loads((tmp_path / "dataset_small.json").read_text())
    content["images"][8]["sentences"] = []
    content["images"][12]["sentences"] = [{"raw": "Photo  9"}]
    (tmp_path / "dataset_small.json").write_text(json.dumps(content))
    pictures = tmp_path / "images" / "sub"
    (pictures / "16.png").write_bytes(jpeg(20))
    (pictures / "2.png").write_bytes(jpeg(1))
    report = check(config(tmp_path, tmp_path))
    train = report["splits"]["train"]
    assert train["images"] == 20 and train["captions"] == 37
    assert list(train["unreadable"]) == ["sub/4.png"] and train["without_captions"] == ["sub/8.png"]
    assert train["duplicate_images"] == [["sub/16.png", "sub/20.png"]] and train["repeated_captions"] == 1
    assert train["captions_per_image"] == {"min": 0, "mean": 1.85, "max": 2}
    assert report["in_two_splits"] == [["train: sub/1.png", "val: sub/2.png"]]
    assert report["splits"]["val"]["unreadable"] == {}
    assert json.loads(json.dumps(report)) == report
    for said in ("20 images, 37 captions", "sub/4.png", "sub/8.png", "sub/16.png", "val: sub/2.png"):
        assert said in summary(report)


def test_contact_sheet(tmp_path):
    pytest.importorskip("matplotlib")
    contact_sheet(memory(bad={0}), tmp_path / "out" / "sheet.png")
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert min(sheet.size) > 100


@pytest.mark.skipif(not FLICKR.is_dir(), reason="the photos are not here")
def test_real_photos(tmp_path, tokenizer):
    pytest.importorskip("pyarrow")
    dataset = open_data(config(FLICKR, tmp_path), "val", 112)
    assert len(dataset) == 1000 and not dataset.bad and all(len(some) == 5 for some in dataset.captions)
    assert torch.equal(dataset.pixels(7, 112), to_uint8(dataset[7].image, 112))
    batch = Collator(dataset, tokenizer, 112, 3, seed=0, max_tokens=64)(range(16))
    assert batch.pixel_values.shape == (16, 3, 112, 112) and len(batch.input_ids) == 48
    assert not set(dataset.image_ids) & set(open_data(config(FLICKR, tmp_path, limit=100), "train", 112).image_ids)
