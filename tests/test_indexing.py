"""Builds that are killed, cut off, or shared by several processes lose nothing."""

import os
import signal
import threading

import pytest
from painted import COLOUR_PAIRS, COLOURS, WIDTH, Painter, gallery

from bitgen import indexing
from bitgen.catalogue import Catalogue
from bitgen.index import Index
from bitgen.processes import launched
from bitgen.store import Store

pytest.importorskip("faiss")


def killed_at(call, folder, painter):
    """Build in a process that is killed at its `call`-th step between two writes; True where it was."""
    child = os.fork()
    if child == 0:
        steps = iter(range(1, 1000))

        def dying(function):
            def step(*arguments, **named):
                if next(steps) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = function(*arguments, **named)
                if next(steps) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            return step

        for owner, names in ((Store, ("_write", "append")), (Catalogue, ("add", "set_fact"))):
            for name in names:
                setattr(owner, name, dying(getattr(owner, name)))
        try:
            Index.build(folder, gallery(COLOUR_PAIRS), painter, batch_size=4)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_build_killed_anywhere_goes_on_without_loss(tmp_path, painter):
    whole = Index.build(tmp_path / "whole", gallery(COLOUR_PAIRS), painter, batch_size=4)
    deaths = 0
    for call in range(1, 60, 3):
        folder = tmp_path / str(call)
        deaths += killed_at(call, folder, painter)
        index = Index.build(folder, gallery(COLOUR_PAIRS), painter, batch_size=4)
        assert index.ids() == whole.ids()
        for name in ("images.features", "captions.features"):
            assert (folder / name).read_bytes() == (whole.folder / name).read_bytes()
        assert [index.item(name) for name in index.ids()] == [whole.item(name) for name in whole.ids()]
    assert deaths > 10


def test_a_feature_file_that_was_cut_off_is_named(index, painter):
    with open(index.folder / "images.features", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"images.features: 100 bytes, but 64 rows need 1,024"):
        Index.open(index.folder, painter).search(painter.text(["red"]))


def test_folders_that_hold_no_index(tmp_path):
    with pytest.raises(ValueError, match="no index here .* `bitgen index` builds one"):
        Index.open(tmp_path)
    (tmp_path / "catalogue.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(ValueError, match="not the catalogue of an index"):
        Index.open(tmp_path)
    (tmp_path / "catalogue.sqlite").unlink()
    Catalogue(tmp_path / "catalogue.sqlite", create=True).set_fact("format", 99)
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        Index.open(tmp_path)


def test_two_writers_take_turns(tmp_path, painter):
    Index.build(tmp_path, gallery(COLOUR_PAIRS), painter)
    sources = [gallery([(a, colour) for a in COLOURS]) for colour in ("blue", "green")]
    writers = [threading.Thread(target=Index.open(tmp_path).add, args=(source, Painter())) for source in sources]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    index = Index.open(tmp_path)
    assert len(index) == 24
    for name in index.ids():
        assert name in index.search(index.features([name]), k=3).ids[0], "features and ids went apart"


# Several processes ----------------------------------------------------------------------------------------


def build_parts(folder, source, world, monkeypatch):
    """What `world` processes do, in threads: the folder is all that they share."""
    ranks = threading.local()
    monkeypatch.setattr("bitgen.index.launched", lambda: (ranks.rank, world))
    built = {}

    def process(rank):
        ranks.rank = rank
        built[rank] = Index.build(folder, source, Painter(), batch_size=5)

    threads = [threading.Thread(target=process, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return built


def test_parts_merge_into_what_one_process_builds(tmp_path, index, monkeypatch):
    built = build_parts(tmp_path / "parts", gallery(), 3, monkeypatch)
    for name in ("images.features", "captions.features"):
        assert (tmp_path / "parts" / name).read_bytes() == (index.folder / name).read_bytes()
    for part in built.values():
        assert part.ids() == index.ids() and part.item("red blue") == index.item("red blue")
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == sorted(
        path.name for path in index.folder.iterdir())


def test_parts_of_an_interrupted_build_are_taken_over(tmp_path, painter, monkeypatch):
    folder = tmp_path / "index"
    left = Store.create(folder / "parts" / "1-of-2", painter.fingerprint, WIDTH, "float16", True, "painted")
    indexing.fill(left, gallery().select(range(40, 50)), painter)
    built = build_parts(folder, gallery(), 2, monkeypatch)[0]
    assert sorted(built.ids()) == sorted(gallery().ids) and not (folder / "parts").exists()
    again = build_parts(folder, gallery(), 2, monkeypatch)[0]
    assert again.ids() == built.ids()


def test_processes_are_those_of_the_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launched() == (3, 8)
