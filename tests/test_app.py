"""The app without a browser: choosing, searching, looking, captions."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from app_runs import png, write_run
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import caption, limits, look, search
from app.bench import Bench
from app.gallery import find_pictures, open_gallery
from app.models import Choice, Models, Recent, View
from app.search import Query, Wish
from bitgen.gallery import find
from bitgen.matching import TO_IMAGES


@pytest.fixture(scope="module")
def place(place):
    """With runs/second, and plain/, pictures without captions that their sub-folders tag."""
    write_run(place / "runs" / "second", seed=1)
    for i in range(6):
        file = place / "plain" / ("warm" if i % 2 else "cold") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (40 * i, 90, 255 - 40 * i)).save(file)
    return place


# Choosing ---------------------------------------------------------------------------------------------------


def test_only_offered_folders_and_hub_ids_can_be_chosen(place):
    models = Models([str(place / "runs/first")])
    assert models.choose(str(place / "runs/first"), "checkpoint-7").title == "first · checkpoint-7"
    assert models.choose("ORG/NAME", revision="v1").title == "ORG/NAME · v1 · newest weights"
    for bad in (str(place / "runs/second"), "/etc", "../runs", "a/../../b", "runs", "", None, "x" * 5000):
        with pytest.raises(ValueError, match="Hub id such as ORG/NAME"):
            models.choose(bad)


def test_a_folder_that_looks_like_a_hub_id_is_not_one(tmp_path, monkeypatch):
    (tmp_path / "private" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="choose one of the runs"):
        Models([]).choose("private/run")


@pytest.mark.parametrize("checkpoint, revision, message", [
    ("../first", None, "checkpoint-1000"), (None, "a b", "a branch, a tag"), (None, "-x", "a branch, a tag")])
def test_a_bad_checkpoint_or_revision_is_refused(checkpoint, revision, message):
    with pytest.raises(ValueError, match=message):
        Models([]).choose("ORG/NAME", checkpoint, revision)


def test_checkpoints_are_listed_newest_first(place):
    run = write_run(place / "runs" / "third")
    for step in (200, 1000, 30):
        (run / f"checkpoint-{step}").mkdir()
    (run / "checkpoint-40.tmp").mkdir()
    assert Models([str(run)]).checkpoints(Choice(str(run))) == ["checkpoint-1000", "checkpoint-200", "checkpoint-30"]


def test_a_view_of_another_checkpoint_has_other_results(bench):
    first = bench.open(bench.start)
    second = bench.open(View(Choice(first.choice.source, "checkpoint-7"), first.gallery))
    found = [search.search(bench, view, Query("a red ring")) for view in (first, second)]
    assert [hit.score for hit in found[0].hits] != [hit.score for hit in found[1].hits]


def test_a_gallery_that_is_not_offered_cannot_be_opened(bench):
    with pytest.raises(ValueError, match="choose one of the list"):
        bench.open(View(bench.start.choice, "/etc"))


@pytest.mark.parametrize("run, gallery, message", [
    ("nowhere", None, "'nowhere': no such folder, and no Hub id such as ORG/NAME"),
    ("./no/where", None, "no such folder, and no Hub id"), ("ORG/NAME", "nowhere", "gallery 'nowhere': no such file"),
    (None, "nowhere", "gallery 'nowhere': no such file or folder; expected `scenes`, .* or hub://ORG/NAME")])
def test_a_run_or_gallery_that_is_none_is_refused_before_anything_is_served(tmp_path, run, gallery, message):
    with pytest.raises(ValueError, match=message):
        Bench(run, gallery, tmp_path)


@pytest.mark.parametrize("gallery", [None, "scenes", "hub://ORG/NAME"])
def test_what_may_be_on_the_hub_is_asked_for_when_it_is_looked_at(tmp_path, gallery):
    assert Bench("ORG/NAME", gallery, tmp_path).start == View(Choice("ORG/NAME"), gallery or "scenes")


def test_nothing_is_loaded_without_a_run(tmp_path):
    bench = Bench(runs=tmp_path)
    assert bench.start is None
    with pytest.raises(ValueError, match="no model is loaded"):
        search.search(bench, None, Query("a red ring"))


def test_the_recent_are_kept_and_made_once():
    made = []
    recent = Recent(lambda key: made.append(key) or object(), keep=2)
    one = recent.get("a")
    assert recent.get("b") and recent.get("a") is one and recent.get("c")
    assert len(recent) == 2 and recent.get("a") is one and made == ["a", "b", "c"]
    recent.get("b")
    assert made == ["a", "b", "c", "b"]


def test_what_is_there_is_answered_while_another_is_made():
    begun, go_on = threading.Event(), threading.Event()

    def make(key):
        if key == "slow":
            begun.set()
            assert go_on.wait(60)
        return key

    recent = Recent(make, keep=2)
    recent.get("quick")
    with ThreadPoolExecutor(3) as pool:
        slow = [pool.submit(recent.get, "slow") for _ in range(2)]
        assert begun.wait(60)
        assert recent.get("quick") == "quick" and not slow[0].done()
        go_on.set()
        assert [each.result(60) for each in slow] == ["slow", "slow"]


# Searching --------------------------------------------------------------------------------------------------


def test_words_find_pictures_in_the_order_of_similarity(bench):
    line = bench.gallery(bench.start).captions("scene-03.png")[0]
    answer = search.search(bench, bench.start, Query(line), Wish(top=24))
    gallery = bench.gallery(bench.start)
    scores = gallery.index.features(gallery.ids) @ gallery.encoder.text([line])[0]
    assert [hit.name for hit in answer.hits] == [gallery.ids[i] for i in np.argsort(-scores, kind="stable")]
    assert answer.rank == 1 + [hit.name for hit in answer.hits].index("scene-03.png") and answer.chance == 12.5
    assert answer.typical == pytest.approx(scores.mean(), abs=1e-5) and answer.searched == 24


def test_a_picture_finds_others_and_captions(bench):
    others = search.search(bench, bench.start, Query(name="scene-01.png"), Wish(top=24))
    assert len(others.hits) == 23 and "scene-01.png" not in {hit.name for hit in others.hits}
    said = search.search(bench, bench.start, Query(name="scene-01.png"), Wish("captions", top=48))
    assert said.rank == 1 + [hit.name for hit in said.hits].index("scene-01.png")
    assert said.chance == pytest.approx(49 / 3) and said.searched == 48
    assert {hit.text for hit in said.hits if hit.name == "scene-01.png"} == set(
        bench.gallery(bench.start).captions("scene-01.png"))


def test_an_own_picture_finds_itself_in_the_gallery(bench, place):
    answer = search.search(bench, bench.start, Query(file=str(place / "gallery/scene-05.png")), Wish(top=1))
    assert answer.hits[0].name == "scene-05.png" and answer.hits[0].score > 0.99


def test_a_mixed_query_lies_between_its_parts(bench):
    parts = Query("a red ring", name="scene-01.png")
    gallery = bench.gallery(bench.start)
    words, picture = gallery.encoder.text(["a red ring"])[0], gallery.index.features(["scene-01.png"])[0]
    near = [search.query_feature(gallery, Query(parts.words, name=parts.name, weight=weight))[0]
            for weight in (0, 0.3, 0.7, 1)]
    assert np.allclose(near[0], picture, atol=1e-3) and np.allclose(near[-1], words, atol=1e-5)
    assert np.all(np.diff([feature @ words for feature in near]) > 0)


def test_less_of_words_takes_them_away(bench):
    gallery = bench.gallery(bench.start)
    unwanted = gallery.encoder.text(["a blue square"])[0]
    with_it, without = (search.query_feature(gallery, Query("a red ring", less))[0] for less in ("", "a blue square"))
    assert without @ unwanted < with_it @ unwanted


def test_filters_thresholds_and_top_narrow_the_results(bench):
    view, query = bench.start, Query("a red ring")
    everything = search.search(bench, view, query, Wish(top=24)).hits
    said = search.search(bench, view, query, Wish(top=24, contains="Red")).hits
    lines = bench.gallery(view).captions
    assert {hit.name for hit in said} == {hit.name for hit in everything
                                          if any("red" in line for line in lines(hit.name))} != set()
    floor = everything[9].score - 1e-6
    assert search.search(bench, view, query, Wish(top=24, floor=floor)).hits == everything[:10]
    assert search.search(bench, view, query, Wish(top=3)).hits == everything[:3]
    nothing = search.search(bench, view, query, Wish(contains="zebra"))
    assert nothing.hits == [] and search.summary(nothing) == "Nothing passes the filters."
    unlike = search.search(bench, view, query, Wish(contains="red", floor=0.9999))
    assert search.summary(unlike) == "Nothing that passes the filters is this similar."
    assert "24 pictures, filtered, in" in search.summary(search.search(bench, view, query, Wish(contains="red")))


def test_of_near_duplicates_the_best_alone_is_shown(bench, place):
    view = View(bench.start.choice, str(place / "twice"))
    for i in range(8):
        file = place / "twice" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes((place / f"gallery/scene-{i // 2:02}.png").read_bytes())
    bench.gallery_names.append(view.gallery)
    bench.open(view)
    both, once = (search.search(bench, view, Query("a red ring"), Wish(distinct=one)).hits for one in (False, True))
    assert len(both) == 8 and len(once) <= 4 and once[0] == both[0]
    kept = bench.gallery(view).index.features([hit.name for hit in once])
    assert (kept @ kept.T - np.eye(len(kept)) < limits.ALIKE).all()


def test_a_file_of_something_else_makes_no_data_set_of_a_folder(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for name in ("notes.txt", "album.json"):
        (tmp_path / name).write_text("[]")
        assert find_pictures(str(tmp_path), 32).ids == find(str(tmp_path), "test", 32).ids == ["a.png"]
    with pytest.raises(ValueError, match="no such file or folder"):
        find_pictures(str(tmp_path / "nowhere"), 32)


def test_galleries_of_one_name_in_two_folders_are_two(bench, tmp_path, monkeypatch):
    """The index goes by the name: else one would be searched and the other shown."""
    names = []
    for colour in ("red", "blue"):
        (tmp_path / colour / "photos").mkdir(parents=True)
        (tmp_path / colour / "photos" / "a.png").write_bytes(png(colour))
        monkeypatch.chdir(tmp_path / colour)
        found = find_pictures("photos", 32)
        names.append(found.name)
        gallery = open_gallery(found, bench.model(bench.start), tmp_path / "indexes")
        assert gallery.picture("a.png").getpixel((5, 5)) == pytest.approx(gallery.original("a.png").getpixel((5, 5)),
                                                                          abs=9)
    assert names == [str(tmp_path / colour / "photos") for colour in ("red", "blue")]
    assert find_pictures(str(tmp_path / "blue" / "photos"), 32).name == names[1], "however it was typed"


def test_what_is_said_of_a_picture_that_cannot_be_read_finds_others(bench, place):
    """It is in no index: neither the right answer nor one of the captions that a random order would go through."""
    view = View(bench.start.choice, str(place / "broken"))
    shutil.copytree(place / "gallery", view.gallery)
    bench.gallery_names.append(view.gallery)
    whole = bench.gallery(bench.start)
    line = next(line for line in whole.captions("scene-03.png") if whole.said_of[line] == "scene-03.png")
    (place / "broken" / "scene-03.png").write_bytes(b"no picture")
    bench.open(view)
    answer = search.search(bench, view, Query(line), Wish(top=24))
    assert len(answer.hits) == 23 and answer.rank is None
    said = search.search(bench, view, Query(name="scene-01.png"), Wish("captions", top=60))
    assert said.searched == len(said.hits) == 46 and said.chance == pytest.approx(47 / 3)


def test_a_gallery_follows_its_folder(bench, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png())
    loaded = bench.model(bench.start)

    def opened():
        return open_gallery(find_pictures(str(tmp_path), 32), loaded, tmp_path / "indexes")

    first = opened().index.features(["a.png"])
    (tmp_path / "a.png").write_bytes(png("blue", (30, 30)))
    (tmp_path / "b.png").rename(tmp_path / "away")
    changed = opened()
    assert changed.ids == ["a.png"] and np.abs(changed.index.features(["a.png"]) - first).max() > 1e-3
    (tmp_path / "away").rename(tmp_path / "b.png")
    assert sorted(opened().ids) == ["a.png", "b.png"]


def test_tags_narrow_a_gallery_without_captions(bench, place):
    view = View(bench.start.choice, str(place / "plain"))
    bench.gallery_names.append(view.gallery)
    bench.open(view)
    found = search.search(bench, view, Query("a red ring"), Wish(tags=("warm",)))
    assert {hit.name for hit in found.hits} == {"warm/1.png", "warm/3.png", "warm/5.png"}
    assert bench.gallery(view).tags == ["cold", "warm"] and len(search.examples(bench, view)) == 4
    assert search.summary(found).startswith("6 pictures")
    with pytest.raises(ValueError, match="no captions: find pictures"):
        search.search(bench, view, Query("a red ring"), Wish("captions"))


def test_reranking_orders_by_all_that_is_known_of_a_pair(bench):
    view, query = bench.start, Query("a red ring above a blue square")
    plain, both = (search.search(bench, view, query, Wish(top=24, rerank=rerank)).hits for rerank in (False, True))
    encoder, weights = bench.gallery(view).encoder, TO_IMAGES
    total = [encoder.scale * hit.score + weights.match * np.log(hit.match / (1 - hit.match)) + weights.words * hit.told
             for hit in both]                  # what the words are worth under a blank picture is the same for all
    assert total == pytest.approx(sorted(total, reverse=True), abs=1e-4)
    assert {hit.name for hit in both} == {hit.name for hit in plain}
    assert [hit.before for hit in plain] == sorted(hit.before for hit in both) == list(range(1, 25))
    assert [hit.name for hit in both] != [hit.name for hit in plain]
    captions = search.search(bench, view, Query(name="scene-01.png"), Wish("captions", rerank=True)).hits
    assert all(0 < hit.match < 1 for hit in captions)
    alone = search.search(bench, view, Query(name="scene-01.png"), Wish(rerank=True))
    assert "not re-ranked" in search.summary(alone) and alone.hits[0].match is None


def test_more_are_reranked_than_are_shown(bench, monkeypatch):
    monkeypatch.setattr(limits, "CANDIDATES", 8)
    monkeypatch.setattr(search, "reordered", lambda encoder, pictures, words, scores: (
        list(reversed(range(len(pictures)))), [0.5] * len(pictures), [0.0] * len(pictures)))
    assert [hit.before for hit in search.search(bench, bench.start, Query("a ring"), Wish(top=3, rerank=True)).hits] \
        == [8, 7, 6]
    assert len(search.search(bench, bench.start, Query("a ring"), Wish(top=10, rerank=True)).hits) == 10


@pytest.mark.parametrize("query, wish, message", [
    (Query(), Wish(), "type some words"), (Query("x" * 2001), Wish(), "at most 2000"),
    (Query("x"), Wish(top=0), "1 to 60"), (Query("x"), Wish(top=61), "1 to 60"),
    (Query("x"), Wish(floor=float("nan")), "smallest similarity"), (Query("x"), Wish(find="slots"), "images or"),
    (Query("x", weight=1e308), Wish(), "share of the words"), (Query("x"), Wish(top="5"), "results"),
    (Query(file=__file__), Wish(), "test_app.py")])
def test_bad_queries_are_refused_with_what_would_be_right(bench, query, wish, message):
    with pytest.raises(ValueError, match=message):
        search.search(bench, bench.start, query, wish)


def test_visitors_with_different_checkpoints_get_their_own_results(bench):
    views = [bench.open(View(Choice(bench.start.choice.source, name), bench.start.gallery))
             for name in (None, "checkpoint-7")]
    right = [search.search(bench, view, Query("a green star")).hits for view in views]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: search.search(bench, views[i % 2], Query("a green star")).hits, range(60)))
    assert all(hits == right[i % 2] for i, hits in enumerate(found)) and right[0] != right[1]


# Looking ----------------------------------------------------------------------------------------------------


def test_the_sight_of_a_picture_has_words_heat_and_places(bench):
    sight = look.look(bench, bench.start, "scene-02.png", None, "a red ring above a blue square")
    assert sight.words == "a red ring above a blue square".split() and 0 < sight.match < 1
    assert sight.maps.shape == (7, 8, 8) and sight.attention.shape == (7, 4, 4)
    for by in ("maps", "attention"):
        assert look.heat(sight, by=by).shape == (look.SIDE, look.SIDE, 3)
        word = next(i for i, heat in enumerate(getattr(sight, by)) if heat.max() > 0)
        heat = look.heat(sight, word, by)
        row, column = np.unravel_index(getattr(sight, by)[word].argmax(), getattr(sight, by)[word].shape)
        step = look.SIDE // getattr(sight, by).shape[-1]
        middle = (column * step + step // 2, row * step + step // 2)
        brightest = np.abs(heat[middle[1], middle[0]].astype(int) - sight.image[middle[1], middle[0]]).max()
        assert brightest < 40  # where it looks, the picture is shown as it is
        shares = look.at(sight, *middle, by)
        assert [said for said, _ in shares] == sight.words and max(share for _, share in shares) == 1
    assert max(share for _, share in look.strengths(sight)) == 1


@pytest.mark.parametrize("name, text, message", [("scene-02.png", " ", "type the words"), (None, "a ring", "choose a")])
def test_looking_needs_words_and_a_picture(bench, name, text, message):
    with pytest.raises(ValueError, match=message):
        look.look(bench, bench.start, name, None, text)


# Captions and matching --------------------------------------------------------------------------------------


def test_every_way_captions_a_picture(bench, place):
    file = str(place / "gallery/scene-00.png")
    assert len(caption.caption(bench, bench.start, file)) == 1
    assert len(caption.caption(bench, bench.start, file, "beam")) == 1
    sampled = [caption.caption(bench, bench.start, file, "nucleus", seed=3) for _ in range(2)]
    assert sampled[0] == sampled[1] and 1 <= len(sampled[0]) <= caption.SAMPLES


def test_scores_are_those_of_the_model(bench, place):
    file, texts = str(place / "gallery/scene-00.png"), ["a red ring", "a blue square", "a green star"]
    found = {score.text: score for score in caption.scores(bench, bench.start, file, texts)}
    model, processor, _ = bench.model(bench.start)
    image = processor(images=[file])["pixel_values"]
    words = processor(text=texts)
    cosines = model.encode_text(**words) @ model.encode_image(image)[0]
    matches = model.match(image.expand(3, -1, -1, -1), **words)
    shares = (model.scale() * cosines).softmax(0)
    for text, *values in zip(texts, cosines.tolist(), matches.tolist(), shares.tolist()):
        assert found[text][1:] == pytest.approx(values, abs=1e-4)


def test_classification_is_by_the_users_own_labels(bench, place):
    file = str(place / "gallery/scene-00.png")
    found = caption.classify(bench, bench.start, file, "ring, star\n heart , ring", "a picture of a {}")
    assert {score.text for score in found} == {"ring", "star", "heart"}
    assert sum(score.share for score in found) == pytest.approx(1) and found[0].share == max(s.share for s in found)


def test_spaces_around_the_sentence_of_a_classification_do_not_matter(bench, place):
    file = str(place / "gallery/scene-00.png")
    found = [caption.classify(bench, bench.start, file, "ring, star", said) for said in ("a {}", "  a {} \n")]
    assert found[0] == found[1]


@pytest.mark.parametrize("call, message", [
    (lambda b, f: caption.caption(b, b.start, None), "give a picture"),
    (lambda b, f: caption.caption(b, b.start, f, "magic"), "greedy, beam, nucleus"),
    (lambda b, f: caption.caption(b, b.start, f, "nucleus", temperature=float("inf")), "temperature"),
    (lambda b, f: caption.scores(b, b.start, f, [" ", ""]), "at least one text"),
    (lambda b, f: caption.scores(b, b.start, f, [str(i) for i in range(51)]), "at most 50"),
    (lambda b, f: caption.classify(b, b.start, f, "ring", "a {}"), "two or more"),
    (lambda b, f: caption.classify(b, b.start, f, "ring, star", "a ring"), "where the label goes")])
def test_bad_captions_and_labels_are_refused(bench, place, call, message):
    with pytest.raises(ValueError, match=message):
        call(bench, str(place / "gallery/scene-00.png"))
