"""Builds that are killed, cut off, or shared by several processes lose nothing."""

import os
import signal
import sqlite3
import threading
import time

import pytest
from painted import COLOUR_PAIRS, COLOURS, WIDTH, Painter, gallery, painted

from bitgen import indexing
from bitgen.catalogue import Catalogue
from bitgen.gallery import pictures
from bitgen.index import Index
from bitgen.listing import digest
from bitgen.processes import launched
from bitgen.store import Store

pytest.importorskip("faiss")


def killed_at(call, folder, painter, source=None, batch_size=4):
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
            Index.build(folder, source or gallery(COLOUR_PAIRS), painter, batch_size=batch_size)
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


def test_what_an_earlier_index_learned_goes_with_it(index, painter):
    """Its catalogue was removed, to begin again; codes of as many rows of other features would fit, and be wrong."""
    learned = index.folder / "images.two-stage.faiss"
    learned.write_bytes(b"codes")
    Index.build(index.folder, gallery(), painter)
    assert learned.exists()
    (index.folder / "catalogue.sqlite").unlink()
    Index.build(index.folder, gallery(), painter)
    assert not learned.exists()


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


# Folders that change --------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A folder of four pictures and of one that cannot be read."""
    folder = tmp_path / "photos"
    (folder / "sea").mkdir(parents=True)
    for colour in ("red", "blue", "green"):
        painted(colour, colour).save(folder / f"{colour}.png")
    painted("cyan", "cyan").save(folder / "sea" / "cyan.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def change(photos):
    """One picture is another now, one is gone, one can no longer be read, one is new; a broken one is gone."""
    painted("pink", "pink").resize((40, 40)).save(photos / "red.png")
    (photos / "blue.png").unlink()
    (photos / "broken.png").unlink()
    (photos / "sea" / "cyan.png").write_bytes(b"cut off")
    painted("yellow", "yellow").save(photos / "yellow.png")


def changed_as_it_should(index, painter):
    found = {name: painter.text([colour]) for name, colour in (("red.png", "pink"), ("yellow.png", "yellow"))}
    assert set(index.skipped) == {"sea/cyan.png"} and set(index.ids()) == {"green.png", *found}
    for name, query in found.items():
        hits = index.search(query, k=5)
        assert hits.ids[0][0] == name and hits.scores[0][0] > 0.99 and len(hits.ids[0]) == 3
    assert index.item("red.png").width == 40
    return True


def test_building_again_follows_the_folder(tmp_path, photos, painter, caplog):
    built = Index.build(tmp_path / "index", photos, painter)
    assert len(built) == 4
    change(photos)
    counting = Painter()
    index = Index.build(tmp_path / "index", photos, counting)
    assert changed_as_it_should(index, painter) and counting.encoded == 2
    assert caplog.messages == [f"left out blue.png: no longer in {photos}"]
    again = Index.build(tmp_path / "index", photos, counting)
    assert counting.encoded == 2 and again.ids() == index.ids()


def test_a_folder_says_nothing_of_what_came_from_elsewhere(tmp_path, photos, painter):
    Index.build(tmp_path / "index", photos, painter)
    Index.build(tmp_path / "index", photos / "sea", painter)
    index = Index.build(tmp_path / "index", gallery(COLOUR_PAIRS), painter)
    ids = index.ids()
    assert len(ids) == 13
    assert Index.build(tmp_path / "index", photos / "sea", painter).ids() == ids
    assert Index.build(tmp_path / "index", [photos / "red.png"], painter).ids() == ids


@pytest.mark.parametrize("call", range(1, 24, 2))
def test_a_folder_that_changed_is_followed_after_a_kill_too(tmp_path, photos, painter, call):
    Index.build(tmp_path / "index", photos, painter)
    change(photos)
    killed_at(call, tmp_path / "index", painter, photos, 1)
    assert changed_as_it_should(Index.build(tmp_path / "index", photos, painter, batch_size=1), painter)


def test_captions_that_changed_are_taken_in(tmp_path, painter):
    Index.build(tmp_path / "index", gallery(COLOUR_PAIRS), painter)
    corrected, counting = gallery(COLOUR_PAIRS), Painter()
    corrected.captions[0][0] = "yellow yellow"
    index = Index.build(tmp_path / "index", corrected, counting)
    name = corrected.ids[0]
    assert counting.encoded == 1 and index.item(name).captions == corrected.captions[0]
    assert "yellow yellow" in index.search(painter.text(["yellow yellow"]), k=2, captions=True).texts[0]
    silent = Index.build(tmp_path / "index", gallery(COLOUR_PAIRS, captions=False), counting)
    assert counting.encoded == 1 and silent.item(name).captions, "a source that says nothing takes nothing back"


def test_pictures_in_memory_that_changed_are_taken_in(tmp_path, painter):
    Index.build(tmp_path / "index", gallery(COLOUR_PAIRS), painter)
    source, counting = gallery(COLOUR_PAIRS), Painter()
    source.sources[0] = painted("pink", "pink")
    index = Index.build(tmp_path / "index", source, counting)
    assert counting.encoded == 1 and index.search(painter.text(["pink"]), k=1).ids == [[source.ids[0]]]


def test_an_index_of_before_is_read_and_takes_in_what_is_new(tmp_path, photos, painter):
    folder = tmp_path / "index"
    Index.build(folder, photos, painter)
    with sqlite3.connect(folder / "catalogue.sqlite") as old:
        old.execute("DROP TABLE files")
        old.execute("DROP TABLE removed")
    old.close()
    assert Index.open(folder).item("red.png").stamp is None
    change(photos)
    counting = Painter()
    index = Index.build(folder, photos, counting)
    assert counting.encoded == 1 and set(index.ids()) == {"red.png", "green.png", "sea/cyan.png", "yellow.png"}
    index.remove("green.png")
    assert "green.png" not in Index.build(folder, photos, counting)


def test_an_index_of_before_is_read_where_nothing_can_be_written(index, painter, monkeypatch):
    with sqlite3.connect(index.folder / "catalogue.sqlite") as old:
        old.execute("DROP TABLE files")
        old.execute("DROP TABLE removed")
    old.close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **how: connect(f"file:{path}?mode=ro", uri=True, **how))
    opened = Index.open(index.folder)
    assert opened.removed == set() and opened.item("red blue").stamp is None
    assert opened.search(painter.text(["red"]), k=99, where={"tag": "red"}).ids[0]


def test_parts_follow_a_folder_that_changed(tmp_path, photos, painter, monkeypatch):
    Index.build(tmp_path / "index", photos, painter)
    left = Store.create(tmp_path / "index" / "parts" / "2-of-7", painter.fingerprint, WIDTH, "float16", True, "photos")
    indexing.fill(left, pictures(photos), painter)
    change(photos)
    build_parts(tmp_path / "index", photos, 2, monkeypatch)
    assert changed_as_it_should(Index.open(tmp_path / "index"), painter)


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


def test_what_was_removed_stays_out_of_parts_too(index, monkeypatch):
    index.remove(["red blue", "white white"])
    built = build_parts(index.folder, gallery(), 2, monkeypatch)
    assert all(len(one) == 62 and one.removed == {"red blue", "white white"} for one in built.values())


def test_parts_of_an_interrupted_build_are_taken_over(tmp_path, painter, monkeypatch):
    folder = tmp_path / "index"
    left = Store.create(folder / "parts" / "1-of-2", painter.fingerprint, WIDTH, "float16", True, "painted")
    indexing.fill(left, gallery().select(range(40, 50)), painter)
    built = build_parts(folder, gallery(), 2, monkeypatch)[0]
    assert sorted(built.ids()) == sorted(gallery().ids) and not (folder / "parts").exists()
    again = build_parts(folder, gallery(), 2, monkeypatch)[0]
    assert again.ids() == built.ids()


def test_a_part_that_an_earlier_launch_left_whole_does_not_end_this_one(tmp_path, painter, monkeypatch):
    """The first process would merge it, be gone, and leave the second one waiting for ever."""
    folder, fill = tmp_path / "index", indexing.fill
    for rank in range(2):
        share = gallery().select(range(32 * rank, 32 * rank + 32))
        left = Store.create(folder / "parts" / f"{rank}-of-2", painter.fingerprint, WIDTH, "float16", True, "painted")
        fill(left, share, painter)
        with left.catalogue.transaction():
            left.catalogue.set_fact("whole", digest(*share.ids))
    (folder / "parts" / indexing.LAUNCH).write_text("an earlier one")

    def late(store, *arguments, **how):
        if store.folder.name == "1-of-2":
            time.sleep(1)
        fill(store, *arguments, **how)

    monkeypatch.setattr(indexing, "fill", late)
    built = build_parts(folder, gallery(), 2, monkeypatch)
    assert sorted(built[0].ids()) == sorted(built[1].ids()) == sorted(gallery().ids)
    assert not (folder / "parts").exists()


def test_processes_are_those_of_the_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launched() == (3, 8)
