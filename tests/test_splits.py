"""What is trained on, what is held out: by names, by a column, and else by a share that stays."""

import csv

import pytest
from layouts import (
    SIZE,
    coco,
    colour,
    config,
    karpathy,
    parquet,
    parquet_rows,
    tar,
    write_images,
)

from bitgen.data import open_data
from bitgen.dataset import held_out
from bitgen.listing import split_of

ROW_SPLITS = ["train", "restval", "Validation", "test", "val", "test"]


def csv_with_splits(root, splits):
    write_images(root / "images", len(splits))
    with open(root / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"),
                                    *((f"{i}.png", f"photo {i}", split) for i, split in enumerate(splits))])


def parquet_with_splits(root, splits):
    half = len(splits) // 2
    for name, rows in (("photos-0.parquet", range(half)), ("photos-1.parquet", range(half, len(splits)))):
        parquet_rows(root / name, [(i, f"{i}.png", f"photo {i}") for i in rows], split=[splits[i] for i in rows])


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
    for name, split in (("validation-0.parquet", "val"), ("test.parquet", "test")):  # one file is what its name says
        assert len(open_data(config(tmp_path / name, tmp_path), split, SIZE)) == 4
        with pytest.raises(ValueError, match=f"no split 'train'; it has {split}"):
            open_data(config(tmp_path / name, tmp_path), "train", SIZE)


@pytest.mark.parametrize("write", [csv_with_splits, parquet_with_splits])
def test_a_column_says_which_split_a_row_is_of(tmp_path, write):
    write(tmp_path, ROW_SPLITS)
    of = {split: open_data(config(tmp_path, tmp_path), split, SIZE) for split in ("train", "val", "test")}
    assert {split: set(data.image_ids) for split, data in of.items()} == {
        "train": {"0.png", "1.png"}, "val": {"2.png", "4.png"}, "test": {"3.png", "5.png"}}
    assert tuple(of["test"].pixels(1, SIZE)[:, 0, 0].tolist()) == colour(5)  # prepared apart from the other splits
    assert of["test"][1].image.getpixel((0, 0)) == colour(5) and of["test"].captions == [["photo 3"], ["photo 5"]]


@pytest.mark.parametrize("write", [csv_with_splits, parquet_with_splits])
@pytest.mark.parametrize("wrong", ["later", ""])
def test_a_row_of_no_split_is_named(tmp_path, write, wrong):
    write(tmp_path, ["train", "test", wrong, "train"])
    with pytest.raises(ValueError, match=f"row [02].split: expected train, restval, val or test, got '{wrong}'"):
        open_data(config(tmp_path, tmp_path), "train", SIZE)


@pytest.mark.parametrize("name, split", [
    ("cc3m-validation-0000.tar", "val"), ("flickr30k_test.parquet", "test"), ("train2017.json", "train"),
    ("val2014.json", "val"), ("Dev", "val"), ("testing", "test"), ("train-test.csv", "train"), ("restval", "train"),
    ("test-00000-of-00001.parquet", "test"), ("devices.parquet", None), ("valley.csv", None),
    ("testimonials.csv", None), ("captions.txt", None), ("my photos.csv", None),
])
def test_a_split_is_a_whole_word_of_a_name(name, split):
    assert split_of(name) == split


def test_shards_whose_names_begin_with_the_data_sets(tmp_path):
    for name in ("cc3m-train-0000.tar", "cc3m-validation-0000.tar"):
        tar(tmp_path, count=3, name=name)
    splits = [open_data(config(tmp_path, tmp_path), split, SIZE).image_ids for split in ("train", "val")]
    assert [ids[0].partition("/")[0] for ids in splits] == ["cc3m-train-0000", "cc3m-validation-0000"]


def test_coco_keeps_its_own_splits(tmp_path):
    coco(tmp_path, split="train2017")
    coco(tmp_path, count=3, split="val2017")
    settings = config(tmp_path, tmp_path)
    assert [len(open_data(settings, split, SIZE)) for split in ("train", "val")] == [12, 3]


def test_a_file_that_is_held_out_serves_whichever_evaluation_asks(tmp_path):
    parquet(tmp_path, 6, names=("val.parquet",))
    found = [open_data(config(tmp_path / "val.parquet", tmp_path), split, SIZE).image_ids for split in ("val", "test")]
    assert found[0] == found[1] and len(found[0]) == 6
    for root, split in ((tmp_path / "val.parquet", "train"), (tmp_path, "test")):
        with pytest.raises(ValueError, match=f"no split '{split}'; it has val"):
            open_data(config(root, tmp_path), split, SIZE)


def test_one_parquet_file_never_gives_an_image_to_training_and_validation(tmp_path):
    parquet(tmp_path, names=("photos.parquet",))
    photos = config(tmp_path / "photos.parquet", tmp_path, val_fraction=0.25)
    train, val = (set(open_data(photos, split, SIZE).image_ids) for split in ("train", "val"))
    assert (len(train), len(val)) == (9, 3) and not train & val
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        open_data(photos, "test", SIZE)


def test_parquet_rows_without_a_path_are_held_out_alike_however_the_folder_is_spelled(tmp_path, monkeypatch):
    parquet(tmp_path, count=40, with_path=False)
    monkeypatch.chdir(tmp_path)
    train, val = open_data(config(".", tmp_path), "train", SIZE), open_data(config(tmp_path, tmp_path), "val", SIZE)
    assert val.image_ids[0].startswith("train.parquet: row group ") and not set(train.image_ids) & set(val.image_ids)
    assert len(train) + len(val) == len({texts[0] for dataset in (train, val) for texts in dataset.captions}) == 40


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
