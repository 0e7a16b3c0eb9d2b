"""An index answers what looking at every feature would, whatever was added, removed, killed or split before."""

import json
import os
import shutil
import signal
import sqlite3
import threading
import zlib

import numpy as np
import pytest
import torch
from conftest import tiny_model
from PIL import Image

from bitgen import cli, indexing
from bitgen.catalogue import Catalogue
from bitgen.config import VisionConfig
from bitgen.engine import Exact, Shortlist, make_engine
from bitgen.gallery import Pictures, find, of_files, pictures
from bitgen.index import Index
from bitgen.parquet import export
from bitgen.processing import Processor
from bitgen.query import Encoder, fingerprint, mix, rerank
from bitgen.store import Store
from bitgen.tokenizer import Tokenizer

pytest.importorskip("faiss")

PALETTE = {"black": (0, 0, 0), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
           "pink": (255, 0, 255), "cyan": (0, 255, 255), "white": (255, 255, 255)}
COLOURS = list(PALETTE)
SIDE, WIDTH = 16, 8


class Painter(Encoder):
    """Sees which colours a picture has, and in matching which is left and which is right; words are colours too."""

    def __init__(self, name="painter"):
        self.fingerprint, self.width, self.image_size = f"{zlib.crc32(name.encode()):032x}", WIDTH, SIDE
        self.encoded = 0

    scale = 10.0

    def text(self, texts):
        return unit(np.array([[text.split().count(colour) for colour in COLOURS] for text in texts], np.float32))

    def pixels(self, pixels):
        self.encoded += len(pixels)
        return unit(np.stack([sides(image).sum(0) for image in pixels.numpy()]))

    def images(self, images):
        return self.pixels(torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
                                        for image in images]))

    def log_odds(self, images, texts):
        count = max(len(images), len(texts))
        pairs = zip(images * (count // len(images)), texts * (count // len(texts)))
        return np.array([8 * sum(sides(np.asarray(image).transpose(2, 0, 1))[i, COLOURS.index(word)] > 0.5
                                 for i, word in enumerate(text.split())) - 12 for image, text in pairs], np.float32)


def unit(features):
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)


def sides(pixels):
    """(2, 8): the share of each colour in the left and the right half of uint8 (3, S, S)."""
    palette = np.array(list(PALETTE.values()), np.float32)[:, :, None, None]
    nearest = ((pixels[None] - palette) ** 2).sum(1).argmin(0)  # (S, S)
    halves = np.split(nearest, [nearest.shape[1] // 2], axis=1)
    return np.stack([np.bincount(half.ravel(), minlength=WIDTH) / half.size for half in halves])


def painted(left, right):
    image = Image.new("RGB", (SIDE, SIDE), PALETTE[left])
    image.paste(PALETTE[right], (SIDE // 2, 0, SIDE, SIDE))
    return image


def gallery(pairs=None, captions=True):
    """A picture `left right` for all pairs of colours, with the captions "left right" and "left"."""
    pairs = pairs or [(a, b) for a in COLOURS for b in COLOURS]
    names = [f"{a} {b}" for a, b in pairs]
    return Pictures("painted", names, [painted(a, b) for a, b in pairs],
                    [[f"{a} {b}", a] if captions else [] for a, b in pairs], [sorted({a, b}) for a, b in pairs])


@pytest.fixture(scope="module")
def painter():
    return Painter()


@pytest.fixture(scope="module")
def built(tmp_path_factory, painter):
    return Index.build(tmp_path_factory.mktemp("built") / "index", gallery(), painter, batch_size=10).folder


@pytest.fixture
def index(tmp_path, built):
    return Index.open(shutil.copytree(built, tmp_path / "index"))


def noise(count, width=32, seed=0, clusters=40):
    """Unit rows in clusters, as features of real pictures lie."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((clusters, width))
    rows = centres[generator.integers(clusters, size=count)] + 0.5 * generator.standard_normal((count, width))
    return unit(rows.astype(np.float32))


def near(rows, count=50):
    """Queries beside some of the rows."""
    chosen = rows[:: len(rows) // count][:count].astype(np.float32)
    return unit(chosen + 0.05 * np.random.default_rng(1).standard_normal(chosen.shape, np.float32))


def best(rows, query, k):
    return np.argsort(-(rows.astype(np.float32) @ query), kind="stable")[:k]


# Searching ------------------------------------------------------------------------------------------------


def test_search_is_what_looking_at_every_picture_finds(index, painter):
    features = painter.pixels(torch.stack([gallery().load(i, SIDE)[0] for i in range(64)]))
    queries = noise(20, WIDTH)
    hits = index.search(queries, k=7)
    for query, ids, scores in zip(queries, hits.ids, hits.scores):
        expected = sorted((features @ query).tolist(), reverse=True)[:7]
        assert scores == pytest.approx(expected, abs=2e-3)
        assert [features[index.ids().index(name)] @ query for name in ids] == pytest.approx(scores, abs=2e-3)
    assert hits.texts is None and index.search(queries[0], k=3).ids == [hits.ids[0][:3]]


def test_pictures_find_their_captions(index, painter):
    hits = index.search(painter.images([painted("red", "blue"), painted("cyan", "cyan")]), k=2, captions=True)
    assert set(hits.texts[0]) == {"red blue", "blue red"}
    assert hits.texts[1] == ["cyan cyan"] + ["cyan"] or set(hits.texts[1]) <= {"cyan", "cyan cyan"}
    assert [text in index.item(name).captions for name, text in zip(hits.ids[0], hits.texts[0])] == [True, True]


def test_more_than_there_is_gives_what_there_is(index, painter):
    hits = index.search(painter.text(["red"]), k=1000)
    assert sorted(hits.ids[0]) == sorted(index.ids()) and hits.scores[0] == sorted(hits.scores[0], reverse=True)


@pytest.mark.parametrize("where, right", [
    ({"tag": "red"}, lambda a, b: "red" in (a, b)),
    ({"tag": ["red", "blue"]}, lambda a, b: {"red", "blue"} & {a, b}),
    ({"tag": "red", "caption": "BLUE"}, lambda a, b: {a, b} == {"red", "blue"}),
    ({"id": "red*"}, lambda a, b: a == "red"),
    ({"min_width": SIDE, "max_height": SIDE}, lambda a, b: True),
    ({"min_width": SIDE + 1}, lambda a, b: False),
    ({"tag": []}, lambda a, b: False),
    ({"tag": "re"}, lambda a, b: False),
])
def test_filters_leave_exactly_what_they_say(index, painter, where, right):
    expected = {name for name in index.ids() if right(*name.split())}
    assert set(index.search(painter.text(["green"]), k=100, where=where).ids[0]) == expected
    found = index.search(painter.text(["green"]), k=1000, where=where, captions=True)
    assert sorted(found.ids[0]) == sorted(2 * list(expected))


def test_a_threshold_is_a_cosine(index, painter):
    hits = index.search(painter.text(["red"]), k=64, threshold=0.7)
    assert set(hits.ids[0]) == {name for name in index.ids() if "red" in name} and min(hits.scores[0]) >= 0.7
    assert index.search(painter.text(["red"]), threshold=1.1).ids == [[]]


def test_distinct_results_are_no_copies_of_each_other(index, painter):
    query = painter.text(["red blue"])
    assert index.search(query, k=3).ids[0][:2] in (["red blue", "blue red"], ["blue red", "red blue"])
    hits = index.search(query, k=20, distinct=0.99)
    features = index.features(hits.ids[0])
    closest = features @ features.T - 2 * np.eye(len(features))
    assert len(hits.ids[0]) == 20 and closest.max() < 0.99
    assert hits.scores[0] == sorted(hits.scores[0], reverse=True)
    assert len(index.search(query, k=64, distinct=0.99).ids[0]) == 36  # unordered pairs of eight colours


@pytest.mark.parametrize("features, how, message", [
    (np.zeros((1, 9)), {}, r"\(queries, 8\), got shape \(1, 9\)"),
    (np.full((1, 8), np.nan), {}, "finite"),
    (np.zeros((1, 8)), {"k": 0}, "k: expected at least 1"),
    (np.zeros((1, 8)), {"where": {"colour": "red"}}, "no filter 'colour'; there are tag"),
])
def test_questions_that_cannot_be_answered(index, features, how, message):
    with pytest.raises(ValueError, match=message):
        index.search(features, **how)


def test_captions_that_were_not_encoded(tmp_path, painter):
    index = Index.build(tmp_path, gallery(), painter, captions=False)
    with pytest.raises(ValueError, match="captions were not encoded"):
        index.search(painter.text(["red"]), captions=True)
    assert index.item("red blue").captions == ["red blue", "red"], "they are still told"


def test_nothing_is_found_in_nothing(tmp_path, painter):
    index = Index.build(tmp_path, gallery([("red", "red")]), painter)
    index.remove("red red")
    assert len(index) == 0 and index.search(painter.text(["red"])).ids == [[]] and index.duplicates() == []


# Mixed queries and matching -------------------------------------------------------------------------------


def test_mixed_queries_say_what_is_added_and_what_is_taken_away(index, painter):
    picture, green, red = painter.images([painted("red", "blue")]), painter.text(["green"]), painter.text(["red"])
    before = index.search(picture, k=2).ids[0]
    after = index.search(mix(np.concatenate([picture, green, red]), [1, 0.7, -0.7]), k=2).ids[0]
    assert set(before) == {"red blue", "blue red"} and set(after) == {"green blue", "blue green"}


def test_a_mixture_is_the_weighted_sum_at_unit_length():
    features = noise(3)
    total = 0.5 * features[0] + 2 * features[1] - features[2]
    assert mix(features, [0.5, 2, -1])[0] == pytest.approx(total / np.linalg.norm(total), abs=1e-6)
    for weights, message in (([1, 1], "3 features and 2 weights"), ([0, 0, 0], "nothing is left"),
                             ([np.inf, 1, 1], "nothing is left")):
        with pytest.raises(ValueError, match=message):
            mix(features, weights)


def test_matching_tells_apart_what_contrast_cannot(index, painter):
    words = ["red blue", "blue red"]
    hits = index.search(painter.text(words), k=6)
    assert hits.scores[0][0] == pytest.approx(hits.scores[0][1], abs=1e-3), "contrast does not see which is left"
    ranked = rerank(painter, index, words, hits)
    assert [ids[0] for ids in ranked.ids] == words and ranked.matches[0][0] > 0.9 > 0.1 > ranked.matches[0][1]
    assert sorted(ranked.ids[0]) == sorted(hits.ids[0]) and sorted(ranked.scores[0]) == sorted(hits.scores[0])
    found = index.search(painter.images([painted("red", "blue")]), k=4, captions=True)
    assert rerank(painter, index, [painted("red", "blue")], found).texts[0][0] == "red blue"
    assert rerank(painter, index, words, hits, weight=0).scores == hits.scores


# Changing -------------------------------------------------------------------------------------------------


def test_ids_stay_when_others_come_and_go(index, painter):
    every = {name: index.features([name])[0] for name in index.ids()}
    index.remove(["red blue", "black black", "white white"])
    with pytest.raises(ValueError, match="'red blue' in this index"):
        index.item("red blue")
    assert len(index) == 61 and "red blue" not in index
    assert "red blue" not in index.search(painter.text(["red blue"]), k=100, captions=True).ids[0]
    assert index.search(painter.text(["red blue"]), k=100).ids[0][0] == "blue red"
    assert index.add(gallery([("red", "blue")]), painter) == ["red blue"]
    reopened = Index.open(index.folder, painter)
    for one in (index, reopened):
        assert len(one) == 62 and one.ids()[-1] == "red blue"
        for name in one.ids():
            assert (one.features([name])[0] == every[name]).all()
        assert set(one.search(painter.text(["red blue"]), k=2).ids[0]) == {"red blue", "blue red"}


def test_adding_twice_and_removing_twice_are_refused_and_change_nothing(index, painter):
    with pytest.raises(ValueError, match="'red blue' is in the index already"):
        index.add(gallery([("red", "blue")]), painter)
    index.remove(["red red"])
    with pytest.raises(ValueError, match="no picture 'red red'"):
        index.remove(["red blue", "red red"])
    assert "red blue" in index and len(index) == 63


def test_building_again_takes_in_what_is_new(tmp_path, painter):
    Index.build(tmp_path, gallery([("red", "blue"), ("red", "red")]), painter)
    counting = Painter()
    index = Index.build(tmp_path, gallery([("red", "blue"), ("green", "red"), ("red", "red")]), counting)
    assert index.ids() == ["red blue", "red red", "green red"] and counting.encoded == 1


def test_duplicates_are_grouped(tmp_path, painter):
    pairs = [(a, b) for a in COLOURS for b in COLOURS if a < b]
    source = gallery(pairs)
    source.ids[:3] = ["one", "two", "three"]
    source.sources[1] = source.sources[2] = source.sources[0]
    index = Index.build(tmp_path, source, painter)
    assert index.duplicates() == [["one", "two", "three"]]
    index.remove("one")
    assert index.duplicates() == [["two", "three"]]
    assert len(index.duplicates(closer=-1.0)[0]) == len(pairs) - 1


def test_a_query_of_another_model_is_refused(index):
    with pytest.raises(ValueError, match="made by another model .* load that one, or build the index anew"):
        Index.open(index.folder, Painter("another"))
    with pytest.raises(ValueError, match="made by another model"):
        Index.build(index.folder, gallery([("red", "blue")]), Painter("another"))
    with pytest.raises(ValueError, match="made by another model"):
        index.add(gallery([("red", "blue")]), Painter("another"))
    assert len(Index.open(index.folder)) == 64


# Folders, files, data sets --------------------------------------------------------------------------------


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


def test_galleries_that_are_none(tmp_path):
    for gallery_, message in (([], "empty list"), (tmp_path / "none", "no such folder"), (tmp_path, "no image files")):
        with pytest.raises(ValueError, match=message):
            pictures(gallery_)
    with pytest.raises(ValueError, match="two pictures have the id 'a'"):
        Pictures("twice", ["a", "b", "a"], [b""] * 3, [[]] * 3, [[]] * 3)


def test_a_folder_is_a_data_set_only_where_it_looks_like_one(tmp_path):
    for name in ("a.png", "b.png"):
        painted("red", "blue").save(tmp_path / name)
    assert find(str(tmp_path), "test", SIDE).ids == ["a.png", "b.png"]
    assert find(str(tmp_path / "a.png"), "test", SIDE).ids == ["a.png"]
    (tmp_path / "captions.csv").write_text("image,caption\na.png,a sight\nb.png,a sight\n", encoding="utf-8")
    assert list(find(str(tmp_path), "train", SIDE).captions) == [["a sight"]]
    with pytest.raises(ValueError, match="no such"):
        find(str(tmp_path / "nowhere"), "test", SIDE)


# Kills ----------------------------------------------------------------------------------------------------


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


COLOUR_PAIRS = [(a, "red") for a in COLOURS]


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
    monkeypatch.setattr("bitgen.index.processes", lambda: (ranks.rank, world))
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
    assert indexing.processes() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert indexing.processes() == (3, 8)


# Engines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_exact_search_is_brute_force(dtype, tmp_path):
    rows = noise(3000).astype(dtype)
    engine = make_engine("auto", rows, tmp_path / "rows")
    assert isinstance(engine, Exact)
    scores, found = engine.search(noise(20, seed=1), 10)
    for query, places in zip(noise(20, seed=1), found):
        assert places.tolist() == best(rows, query, 10).tolist()
    allowed = np.arange(3000) % 7 == 0
    scores, found = engine.search(noise(20, seed=1), 10, allowed)
    few = np.flatnonzero(allowed)
    for query, places in zip(noise(20, seed=1), found):
        assert places.tolist() == few[best(rows[few], query, 10)].tolist()


@pytest.mark.parametrize("kind, recall", [("two-stage", 0.98), ("graph", 0.9)])
def test_a_short_list_finds_what_brute_force_finds(kind, recall, tmp_path):
    rows = noise(20_000).astype(np.float16)
    queries = near(rows)
    engine = make_engine(kind, rows, tmp_path / "rows")
    scores, found = engine.search(queries, 10)
    right = [set(best(rows, query, 10)) for query in queries]
    assert np.mean([len(one & set(places)) / 10 for one, places in zip(right, found)]) >= recall
    assert scores[0] == pytest.approx(rows[found[0]].astype(np.float32) @ queries[0]), "scores are those of the rows"
    assert (tmp_path / f"rows.{kind}.faiss").stat().st_size < (len(rows) * 32 if kind == "two-stage" else 1e9)


def test_a_short_list_under_a_filter(tmp_path, monkeypatch):
    rows = noise(20_000).astype(np.float16)
    queries = near(rows)
    engine = make_engine("two-stage", rows, tmp_path / "rows")
    for few in (10**9, 0):  # looked at one by one; through the codes
        monkeypatch.setattr("bitgen.engine.FEW", few)
        for allowed in (np.arange(20_000) % 50 == 0, np.arange(20_000) < 4):
            places = np.flatnonzero(allowed)
            found = engine.search(queries, min(10, len(places)), allowed)[1]
            assert allowed[found].all()
            right = [set(places[best(rows[places], query, 10)]) for query in queries]
            assert np.mean([len(one & set(some)) / len(one) for one, some in zip(right, found)]) >= 0.98


def test_what_an_engine_learned_is_kept_and_grows(tmp_path, monkeypatch):
    rows = noise(20_000).astype(np.float16)
    first = make_engine("two-stage", rows[:15_000], tmp_path / "rows")
    learned = []
    learn = Shortlist._learn
    monkeypatch.setattr(Shortlist, "_learn", lambda self, faiss: learned.append(1) or learn(self, faiss))
    again = make_engine("two-stage", rows[:15_000], tmp_path / "rows")
    grown = make_engine("two-stage", rows, tmp_path / "rows")
    assert not learned
    queries = near(rows)
    assert (first.search(queries, 5)[1] == again.search(queries, 5)[1]).all()
    right = [set(best(rows, query, 10)) for query in queries]
    assert np.mean([len(a & set(b)) / 10 for a, b in zip(right, grown.search(queries, 10)[1])]) >= 0.98
    make_engine("two-stage", rows[:1200], tmp_path / "rows")
    assert learned, "codes of more rows than there are belong to something else"


def test_the_engine_is_chosen_by_size_and_can_be_set(tmp_path, index, painter):
    assert isinstance(make_engine("auto", np.zeros((99_999, 2), np.float16), tmp_path / "a"), Exact)
    assert isinstance(make_engine("two-stage", noise(999), tmp_path / "b"), Exact), "too few to learn from"
    with pytest.raises(ValueError, match="engine: expected one of auto, exact, two-stage, graph, got 'fast'"):
        Index.open(index.folder, engine="fast")


def test_without_faiss_searching_says_what_to_install(index, painter, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        Index.open(index.folder, painter).search(painter.text(["red"]))


# The encoder ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    tokenizer = Tokenizer.train(["red blue green", "a picture"], 300)
    model = tiny_model(vocab_size=tokenizer.vocab_size, gates=0.5)
    return model, Processor(tokenizer, VisionConfig(image_size=32), 16)


def test_an_encoder_is_the_model(tiny):
    model, processor = tiny
    encoder, texts = Encoder(*tiny), ["a red", "green picture"]
    images = [painted("red", "blue"), painted("green", "red")]
    inputs = processor(images=images, text=texts)
    with torch.no_grad():
        assert encoder.text(texts) == pytest.approx(
            model.encode_text(inputs["input_ids"], inputs["attention_mask"]).numpy(), abs=1e-6)
        features = model.encode_image(inputs["pixel_values"]).numpy()
        match = model.match(**inputs).numpy()
    assert encoder.images(images) == pytest.approx(features, abs=1e-6)
    assert 1 / (1 + np.exp(-encoder.log_odds(images, texts))) == pytest.approx(match, abs=1e-5)
    crossed = [encoder.log_odds(images[:1], texts), encoder.log_odds(images, texts[:1])]
    assert crossed[0][0] == pytest.approx(crossed[1][0], abs=1e-4)
    assert crossed[0][1] == pytest.approx(encoder.log_odds(images[:1], texts[1:])[0], abs=1e-4)


def test_an_index_holds_what_the_encoder_says(tmp_path, tiny):
    for i, (a, b) in enumerate(COLOUR_PAIRS):
        painted(a, b).resize((90, 70)).save(tmp_path / f"{i}.jpg")
    encoder = Encoder(*tiny)
    index = Index.build(tmp_path / "index", tmp_path, encoder, dtype="float32", batch_size=3)
    expected = encoder.images(sorted(tmp_path.glob("*.jpg")))
    assert index.features(index.ids()) == pytest.approx(expected, abs=1e-5)


def test_the_fingerprint_follows_what_makes_features(tiny):
    model, processor = tiny
    known = fingerprint(model, processor)
    other = tiny_model(vocab_size=model.config.vocab_size, gates=0.5)
    assert fingerprint(other, processor) == known
    with torch.no_grad():
        next(other.fusion.parameters()).add_(1)
        next(other.decoder.parameters()).add_(1)
        assert fingerprint(other, processor) == known, "matching and captions have no part in features"
        for part in (other.vision, other.text, other.itc_image, other.itc_text, other.project, other.norm_image):
            weight = next(part.parameters())
            weight.view(-1)[0] += 1e-4
            assert fingerprint(other, processor) != known
            weight.view(-1)[0] -= 1e-4
    assert fingerprint(tiny_model(vocab_size=model.config.vocab_size, dropout=0.3, memory_slots=0), processor) == known
    assert fingerprint(tiny_model(vocab_size=model.config.vocab_size, pooling="first"), processor) != known
    changed = Processor(processor.tokenizer, VisionConfig(image_size=32, mean=(0.5, 0.5, 0.4)), 16)
    assert fingerprint(model, changed) != known


# Exports and commands -------------------------------------------------------------------------------------


def test_the_export_holds_everything(tmp_path, index):
    pq = pytest.importorskip("pyarrow.parquet")
    index.remove("black black")
    assert export(index.store, tmp_path / "out" / "pictures.parquet") == 63
    table = pq.read_table(tmp_path / "out" / "pictures.parquet")
    assert table["id"].to_pylist() == index.ids() and table.schema.metadata[b"model"].decode() == index.fingerprint
    assert np.stack(table["feature"].to_numpy()) == pytest.approx(index.features(index.ids()))
    row = table.to_pylist()[5]
    assert row["captions"] == index.item(row["id"]).captions and row["tags"] == index.item(row["id"]).tags
    assert export(index.store, tmp_path / "captions.parquet", captions=True) == 126
    captions = pq.read_table(tmp_path / "captions.parquet").to_pylist()
    hits = index.search(np.array([captions[7]["feature"]]), k=1, captions=True)
    assert hits.scores[0][0] == pytest.approx(1, abs=2e-3)
    assert captions[7]["caption"] == index.item(captions[7]["id"]).captions[captions[7]["number"]]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pictures.parquet"]


def test_the_command_line(tmp_path, tiny, capsys):
    from safetensors.torch import save_model

    from bitgen.config import to_dict

    model, processor = tiny
    run, photos, out = tmp_path / "run", tmp_path / "photos", str(tmp_path / "index")
    run.mkdir()
    photos.mkdir()
    save_model(model, str(run / "model.safetensors"))
    config = {"model": to_dict(model.config), "vision": to_dict(model.vision_config)}
    (run / "config.json").write_text(json.dumps(config))
    processor.save(run)
    for a, b in COLOUR_PAIRS:
        painted(a, b).save(photos / f"{a}.png")
    (photos / "broken.png").write_bytes(b"no")
    assert cli.main(["index", str(photos), "--checkpoint", str(run), "--out", out]) == 0
    said = capsys.readouterr()
    assert "8 images, 0 captions, 1 unreadable" in said.out and "skipped broken.png" in said.err
    assert cli.main(["search", out, "--image", str(photos / "cyan.png"), "--k", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split("\t") == ["1.000", "cyan.png"]
    assert cli.main(["search", out, "a red", "--minus", "green", "--weights", "1", "0.2", "--where", "id=c*"]) == 0
    assert capsys.readouterr().out.strip().endswith("cyan.png")
    assert cli.main(["search", out, "a red picture", "--rerank", "--k", "3"]) == 0
    assert all(len(line.split("\t")) == 3 for line in capsys.readouterr().out.splitlines())
    assert cli.main(["index", "remove", out, "cyan.png"]) == 0 and len(Index.open(out)) == 7
    for arguments, message in ((["search", out], "nothing to look for"),
                               (["search", out, "a", "--weights", "1", "2"], "2 for 1"),
                               (["search", out, "a", "--where", "red"], "KEY=VALUE"),
                               (["search", out, "a", "b", "--rerank"], "mixture"),
                               (["search", str(photos), "a"], "no index here")):
        assert cli.main(arguments) == cli.EXIT_INPUT
        assert message in capsys.readouterr().err


def test_a_catalogue_is_read_by_plain_sqlite(index):
    rows = sqlite3.connect(index.folder / "catalogue.sqlite").execute("SELECT id FROM items ORDER BY row").fetchall()
    assert [name for name, in rows] == index.ids()
