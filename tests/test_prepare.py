"""Looking a data set over: counts, what is wrong with it, a contact sheet."""

import dataclasses
import json

import pytest
from layouts import config, csv_file, jpeg, karpathy, memory, parquet
from PIL import Image

from bitgen import data_figures
from bitgen.cli import main
from bitgen.config import DataConfig
from bitgen.data import open_data
from bitgen.prepare import check, contact_sheet, summary


def test_check_counts_what_is_wrong(tmp_path):
    karpathy(tmp_path, count=40, broken={4})
    content = json.loads((tmp_path / "dataset_small.json").read_text())
    content["images"][8]["sentences"] = []
    content["images"][12]["sentences"] = [{"raw": "Photo  9"}]
    content["images"][16]["sentences"][1] = {"raw": "photo  16"}
    (tmp_path / "dataset_small.json").write_text(json.dumps(content))
    pictures = tmp_path / "images" / "sub"
    (pictures / "16.png").write_bytes(jpeg(20))
    (pictures / "2.png").write_bytes(jpeg(1))
    report = check(config(tmp_path, tmp_path))
    train = report["splits"]["train"]
    assert train["images"] == 20 and train["captions"] == 37
    assert list(train["unreadable"]) == ["sub/4.png"] and train["without_captions"] == ["sub/8.png"]
    assert train["duplicate_images"] == [["sub/16.png", "sub/20.png"]] and train["repeated_captions"] == 1
    assert train["same_caption_twice"] == ["sub/16.png"]
    assert train["captions_per_image"] == {"min": 0, "mean": 1.85, "max": 2}
    assert report["in_two_splits"] == [["train: sub/1.png", "val: sub/2.png"]]
    assert report["splits"]["val"]["unreadable"] == {}
    assert json.loads(json.dumps(report)) == report
    told = summary(report)
    for said in ("20 images, 37 captions", "sub/4.png", "sub/8.png", "sub/16.png", "val: sub/2.png"):
        assert said in told
    assert "such as sub/4.png (…/images/sub/4.png: no JPEG" in told and "image_root" not in told


def test_check_says_why_no_image_can_be_read(tmp_path):
    csv_file(tmp_path, count=4)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    told = summary(check(config(tmp_path, tmp_path)))
    assert "unreadable images: 4, such as 0.png; 1.png; 2.png ('…/0.png': No such file" in told
    assert "data.image_root" in told and str(tmp_path) not in told


def test_contact_sheet(tmp_path):
    pytest.importorskip("matplotlib")
    contact_sheet(memory(bad={0}), tmp_path / "out" / "sheet.png")
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert min(sheet.size) > 100


@pytest.mark.parametrize("count, bad, shown", [
    (30, (), [k * 30 // 24 for k in range(24)]),  # spread, to the end
    (10, {0, 3}, [1, 2, 4, 5, 6, 7, 8, 9]),
    (48, set(range(0, 48, 2)), list(range(1, 48, 2))),  # others stand in
])
def test_a_contact_sheet_is_of_images_all_over_the_data_set(tmp_path, monkeypatch, count, bad, shown):
    pytest.importorskip("matplotlib")
    drawn = []
    draw = data_figures.contact_sheet
    monkeypatch.setattr(data_figures, "contact_sheet", lambda images, captions, **named: (
        drawn.extend(int(texts[0].split()[1]) for texts in captions), draw(images, captions, **named))[1])
    contact_sheet(memory(count=count, bad=bad), tmp_path / "sheet.png")
    assert drawn == shown


def test_where_no_image_can_be_read_the_report_is_given_and_no_sheet(tmp_path, capsys):
    karpathy(tmp_path, count=4, broken=range(4))
    sheet = tmp_path / "sheet.png"
    assert main(["data", "check", str(tmp_path), "--sheet", str(sheet)]) == 65
    said = capsys.readouterr()
    assert "unreadable images: 2" in said.out and not sheet.exists()
    assert said.err.endswith("bitgen: no image could be read: no contact sheet\n")


@pytest.mark.parametrize("write, counted", [
    (lambda root: csv_file(root, name="val.csv"), "val: 12 images"),
    (lambda root: csv_file(root, count=1), "train: 1 images"),
    (lambda root: parquet(root, names=("photos.parquet",)), "train: 12 images"),
])
def test_whatever_it_holds_it_is_looked_over(tmp_path, write, counted, capsys):
    pytest.importorskip("matplotlib")
    write(tmp_path)
    assert main(["data", "check", str(tmp_path), "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert counted in capsys.readouterr().out and (tmp_path / "sheet.png").stat().st_size > 1000


def test_what_is_prepared_is_what_training_with_these_settings_finds(tmp_path, monkeypatch, caplog):
    csv_file(tmp_path, count=20)
    (tmp_path / "images" / "7.png").write_bytes(b"broken")
    given = {"val_fraction": 0.25, "limit": 12, "max_bad_fraction": 0.5, "cache": str(tmp_path / "pixels")}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["data", "prepare", str(tmp_path), "--image-size", "8", *options]) == 0
    monkeypatch.setattr("bitgen.dataset.PREPARE_BYTES", 0)
    settings = DataConfig(root=str(tmp_path), **given)
    for split in ("train", "val"):
        assert open_data(settings, split, 8).prepared(8) is not None and not caplog.messages
    assert open_data(dataclasses.replace(settings, limit=11), "train", 8).prepared(8) is None
    assert [message for message in caplog.messages if "11 train images" in message and "data prepare" in message]


@pytest.mark.parametrize("option, told", [
    (("--image-size", "0"), "vision.image_size must be between 8 and 2048, got 0"),
    (("--image-size", "-4"), "vision.image_size must be between 8 and 2048, got -4"),
    (("--limit", "-3"), "data.limit must be at least 1, got -3"),
    (("--val-fraction", "1.5"), "data.val_fraction must be between 0 and 0.9, got 1.5"),
])
def test_what_training_would_refuse_is_not_prepared(tmp_path, option, told, capsys):
    csv_file(tmp_path)
    assert main(["data", "prepare", str(tmp_path), "--cache", str(tmp_path / "pixels"), *option]) == 65
    assert capsys.readouterr().err == f"bitgen: {told}\n" and not (tmp_path / "pixels").exists()


@pytest.mark.parametrize("content", ["", "image,caption\n"])
def test_a_table_without_rows_is_one_line(tmp_path, content):
    (tmp_path / "captions.csv").write_text(content)
    assert main(["data", "check", str(tmp_path), "--sheet", str(tmp_path / "sheet.png")]) == 65
