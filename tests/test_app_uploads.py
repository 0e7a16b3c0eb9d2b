"""Uploads of the app without a browser: bounded, forgotten, bad files named."""

from pathlib import Path

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


def test_a_session_uploads_so_many_files_and_bytes_in_all(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_bytes(bytes(1_000_000))
    once = Brought().more([file] * 150)
    assert once == (150, 150_000_000) and once.more([file] * 50) == (200, 200_000_000)
    with pytest.raises(ValueError, match="^51 files of 51 MB: .* 200 files of 500 MB .* and 50 of 350 MB are"):
        once.more([file] * 51)
    monkeypatch.setattr(limits, "UPLOAD_BYTES", 160_000_000)
    with pytest.raises(ValueError, match="^11 files of 11 MB: .* 50 of 10 MB are left"):
        once.more([file] * 11)


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
