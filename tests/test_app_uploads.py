"""Uploads of the app without a browser: bounded, forgotten, bad files named."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from app_runs import png, write_run

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import limits, look, search
from app.gallery import Brought, Uploads
from app.models import Choice, View
from app.search import Query, Wish


@pytest.fixture(scope="module")
def place(place):
    """With runs/second."""
    write_run(place / "runs" / "second", seed=1)
    return place


def test_an_upload_is_searched_and_bad_files_are_named(bench, tmp_path):
    (tmp_path / "good.png").write_bytes(png("red"))
    (tmp_path / "other.png").write_bytes(png("blue"))
    (tmp_path / "page.png").write_bytes(b"<script>alert(1)</script>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    files = [str(tmp_path / name) for name in ("good.png", "page.png", "other.png", "empty.jpg")]
    key, refused = bench.uploads.add(files, bench.model(bench.start))
    assert refused == ["page.png: no JPEG, PNG, WEBP, GIF, BMP picture", "empty.jpg: empty file"]
    view = bench.open(View(bench.start.choice, key))
    assert [hit.name for hit in search.search(bench, view, Query(file=files[0]), Wish(top=1)).hits] == ["good.png"]
    for file in files:
        Path(file).unlink()  # the server keeps its own copy, small and re-encoded
    other = bench.open(View(Choice(bench.start.choice.source, "checkpoint-7"), key))
    assert len(search.search(bench, other, Query("a red ring")).hits) == 2
    assert look.look(bench, other, "good.png", None, "a red ring").words == ["a", "red", "ring"]
    bench.close(view)
    with pytest.raises(ValueError, match="upload them again"):
        bench.open(View(Choice(str(bench.models.runs[1])), key))


def test_an_upload_without_a_picture_is_refused_by_name(bench, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="a.png: no JPEG"):
        bench.uploads.add([str(tmp_path / "a.png")], bench.model(bench.start))


def test_of_an_upload_without_a_picture_nothing_is_left(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uploads = Uploads()
    (tmp_path / "a.png").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="a.png: no JPEG"):
        uploads.add([str(tmp_path / "a.png")], bench.model(bench.start))
    assert list(tmp_path.glob("bitgen-uploads-*")) and not list(tmp_path.glob("bitgen-uploads-*/*"))


def test_a_session_uploads_so_many_files_and_bytes_in_all(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_bytes(bytes(1_000_000))
    files = [tmp_path / f"{i}.png" for i in range(201)]
    for each in files:
        each.hardlink_to(file)
    brought = Brought()
    brought.add(files[:150])
    with pytest.raises(ValueError, match="^51 files of 51 MB: .* 200 files of 500 MB .* and 50 of 350 MB are"):
        brought.add(files[150:])
    monkeypatch.setattr(limits, "UPLOAD_BYTES", 160_000_000)
    with pytest.raises(ValueError, match="^11 files of 11 MB: .* 50 of 10 MB are left"):
        brought.add(files[150:161])
    assert (len(brought.files), brought.size) == (150, 150_000_000), "what was refused does not count"


def test_a_file_that_is_handed_over_again_counts_once(tmp_path, monkeypatch):
    """The page hands over all that it lists when one is added; some may have gone meanwhile."""
    monkeypatch.setattr(limits, "FILES", 3)
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for file in files:
        file.write_bytes(png())
    brought = Brought()
    for count in (1, 2, 3, 3):
        brought.add(files[:count])
    files[0].unlink()
    brought.add(files[:3])
    with pytest.raises(ValueError, match="^1 files .* and 0 of"):
        brought.add(files)


def test_uploads_are_bounded_in_number_and_time(bench, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    uploads, loaded = Uploads(keep=2, seconds=3600), bench.model(bench.start)
    keys = [uploads.add([str(tmp_path / "a.png")], loaded)[0] for _ in range(3)]
    assert len(set(keys)) == 3 and all(len(key) > 32 for key in keys)
    with pytest.raises(ValueError, match="upload them again"):
        uploads.pictures(keys[0])
    source, folder = uploads.pictures(keys[2])
    assert source.ids == ["a.png"] and len(list(folder.parent.iterdir())) == 2
    brief = Uploads(seconds=0)
    key, _ = brief.add([str(tmp_path / "a.png")], loaded)
    with pytest.raises(ValueError, match="upload them again"):
        brief.pictures(key)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the gallery's clock shows."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("app.gallery.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def test_an_upload_is_kept_as_long_as_it_is_searched(bench, tmp_path, clock):
    for name in ("used", "unused"):
        (tmp_path / f"{name}.png").write_bytes(png())
    views = [View(bench.start.choice, bench.uploads.add([str(tmp_path / f"{name}.png")], bench.model(bench.start))[0])
             for name in ("used", "unused")]
    for view in views:
        bench.open(view)
    for _ in range(3):
        clock.seconds += limits.UPLOAD_SECONDS - 1
        search.search(bench, views[0], Query("a red ring"))
    bench.uploads.forget_old()  # as at each upload
    assert search.search(bench, views[0], Query("a red ring")).hits[0].name == "used.png"
    with pytest.raises(ValueError, match="upload them again"):
        search.search(bench, views[1], Query("a red ring"))
    bench.close(views[0])


def test_the_upload_that_was_used_last_is_not_the_one_to_go(bench, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    uploads, loaded = Uploads(keep=2), bench.model(bench.start)
    first, second = (uploads.add([str(tmp_path / "a.png")], loaded)[0] for _ in range(2))
    uploads.pictures(first)
    uploads.add([str(tmp_path / "a.png")], loaded)
    assert uploads.pictures(first)[0].ids == ["a.png"]
    with pytest.raises(ValueError, match="upload them again"):
        uploads.pictures(second)
