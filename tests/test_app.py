"""The app without a browser: choosing, searching, looking, captions, uploads, limits, endpoints, what is refused."""

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from app_runs import write_gallery, write_run
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import api, caption, limits, look, search
from app.bench import Bench
from app.gallery import Brought, Uploads, find_pictures, open_gallery
from app.guard import foreign
from app.models import Choice, Models, Recent, View
from app.search import Query, Wish
from bitgen.gallery import find
from bitgen.matching import TO_IMAGES


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """runs/first with a checkpoint, runs/second, gallery/ with captions, plain/ without, tagged by its sub-folders."""
    place = tmp_path_factory.mktemp("app")
    for seed, name in enumerate(("first", "second")):
        write_run(place / "runs" / name, seed)
    write_run(place / "runs" / "first" / "checkpoint-7", seed=5)
    write_gallery(place / "gallery")
    for i in range(6):
        file = place / "plain" / ("warm" if i % 2 else "cold") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (40 * i, 90, 255 - 40 * i)).save(file)
    return place


@pytest.fixture(scope="module")
def bench(place):
    return Bench(str(place / "runs/first"), str(place / "gallery"), place / "runs")


def png(colour="red", size=(20, 20)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


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


# Uploads ----------------------------------------------------------------------------------------------------


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


# Endpoints and what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("asked, refused", [
    ("/gradio_api/file=http://127.0.0.1/x", True), ("/gradio_api/file=https:%2F%2Fexample.org", True),
    ("/gradio_api/file%3Dhttp%253A//x", True), ("/file=FTP://x", True), ("/file=//x/y", True),
    ("/gradio_api/file=/tmp/gradio/ab/image.webp", False), ("/", False), ("/?q=file=a:b", False),
    ("/gradio_api/file=/tmp/http/image.png", False)])
def test_addresses_in_place_of_files_are_refused(asked, refused):
    path, _, query = asked.partition("?")
    assert foreign(path, "") == refused and (not query or not foreign("/", "x=1"))


def test_endpoints_answer_with_plain_values(bench, place):
    found = {endpoint.__name__: endpoint for endpoint in api.endpoints(bench)}
    assert set(found) == {"search", "caption", "match", "memory_write"}
    hits = found["search"]("a red ring", top=3)
    assert len(hits) == 3 and hits[0]["name"].endswith(".png") and hits[0]["rank_by_score"] == 1
    image = base64.b64encode((place / "gallery/scene-05.png").read_bytes()).decode()
    assert found["search"](image=f"data:image/png;base64,{image}", top=1)[0]["name"] == "scene-05.png"
    assert found["search"]("a red ring", checkpoint="checkpoint-7", top=3) != hits
    assert isinstance(found["caption"](image)[0], str)
    assert {row["text"] for row in found["match"](image, ["a ring", "a star"])} == {"a ring", "a star"}


def test_a_program_writes_facts_that_are_gone_with_the_answer(bench, place):
    write = {endpoint.__name__: endpoint for endpoint in api.endpoints(bench)}["memory_write"]
    images = [base64.b64encode((place / f"gallery/scene-0{i}.png").read_bytes()).decode() for i in range(3)]
    found = write(images[:2], ["my neighbour's ring", "the other one"], images[0])
    assert [fact["words"] for fact in found["facts"]] == ["my neighbour's ring", "the other one"]
    assert all(fact["variance"] < fact["variance_before"] and fact["rank"] in (1, 2) for fact in found["facts"])
    assert found["after"]["variance"] < found["before"]["variance"]
    assert write([], [], images[0]) == {"facts": [], "before": found["before"], "after": found["before"]}
    for shown, words, message in (([""], ["x"], "give the picture"), (images, ["x"], "as many of both"),
                                  (images[:1] * 49, ["x"] * 49, "48 facts")):
        with pytest.raises(ValueError, match=message):
            write(shown, words)


@pytest.mark.parametrize("values, message", [
    ({"image": "not base64!"}, "base64"), ({"image": base64.b64encode(b"<svg/>").decode()}, "image"),
    ({"image": "A" * 27_000_000}, "20 MB"), ({}, "type some words"), ({"words": "x", "run": "/etc"}, "Hub id"),
    ({"words": "x", "checkpoint": "../x"}, "checkpoint-1000"), ({"words": "x", "top": 10**9}, "1 to 60")])
def test_bad_requests_to_endpoints_say_what_is_wrong(bench, values, message):
    with pytest.raises(ValueError, match=message):
        api.endpoints(bench)[0](**values)


@pytest.mark.parametrize("name, values, message", [
    ("search", {"words": 5}, "words: expected text, got int"),
    ("match", {"texts": "a red ring"}, "texts: expected a list"),
    ("match", {"texts": [1, 2]}, "text: expected text, got int"), ("match", {"texts": None}, "texts: expected a list")])
def test_requests_of_other_types_say_what_was_expected(bench, name, values, message):
    endpoint = {endpoint.__name__: endpoint for endpoint in api.endpoints(bench)}[name]
    with pytest.raises(ValueError, match=message):
        endpoint(**({"image": base64.b64encode(png()).decode()} if name == "match" else {}), **values)


def test_what_is_wrong_with_a_picture_is_told_without_the_folder_it_lies_in(bench, tmp_path):
    import gradio

    from app.pages import picture, plain

    broken = tmp_path / "holiday.png"
    broken.write_bytes(png()[:60])
    sent = gradio.FileData(path=str(broken), orig_name="holiday.png")
    given = picture(100, "picture").preprocess(sent)
    with pytest.raises(gradio.Error) as told:
        plain(caption.caption)(bench, bench.start, given)
    assert told.value.message.startswith("holiday.png: ") and str(tmp_path) not in told.value.message


def test_mcp_without_its_package_is_an_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gradio\[mcp\]"):
        api.check_mcp()


def test_limits_name_the_value():
    with pytest.raises(ValueError, match="top: expected a whole number from 1 to 9, got True"):
        limits.whole(True, "top", 1, 9)
    with pytest.raises(ValueError, match="words: 2001 characters"):
        limits.text("x" * 2001, "words")
