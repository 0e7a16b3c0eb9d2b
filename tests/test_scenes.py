"""`scenes`: the same pixels everywhere, new pairs only in test, captions that say what is drawn and read back."""

import hashlib
import itertools
import json
import re

import numpy as np
import pytest

from bitgen import scene_words, scenes
from bitgen.scene_words import SHAPES, SIZES, TEMPLATES, TEXTURES, attributes_right, parse
from bitgen.scenes import HELD_OUT, render

FIELDS = ("colour", "shape", "size", "texture")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def train(cache):
    return render("train", 1500, cache=cache)


@pytest.fixture(scope="module")
def test(cache):
    return render("test", 1000, cache=cache)


def pairs(truth):
    return [(thing["colour"], thing["shape"]) for thing in truth["objects"]]


def digest(data):
    record = json.dumps([data.captions, data.truth, data.image_ids]).encode()
    return hashlib.sha256(np.ascontiguousarray(data.pixels).tobytes() + record).hexdigest()[:16]


@pytest.mark.parametrize("split, size, expected", [
    ("train", 64, "51250a3c469c67b3"), ("test", 64, "1745d1fdeada21e3"),
    ("val", 48, "4d272fea36a1367f"), ("test", 33, "2c826f8f26e73882")])
def test_pixels_captions_and_truth_are_the_same_on_every_machine(cache, split, size, expected):
    found = digest(render(split, 64, size=size, cache=cache))
    assert found == expected, "pixels or captions changed: raise scenes.VERSION and put the new digest here"


def test_a_shorter_set_is_the_start_of_a_longer_one(cache, train):
    start = render("train", 40, cache=cache)
    assert np.array_equal(start.pixels, train.pixels[:40])
    assert start.captions == train.captions[:40] and start.truth == train.truth[:40]


def test_what_is_read_from_the_cache_is_what_was_drawn(tmp_path):
    drawn = render("val", 8, cache=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert digest(render("val", 8, cache=tmp_path)) == digest(drawn)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert len(files) == 2 and not any(path.suffix == ".tmp" for path in files)


def test_a_half_written_set_is_drawn_again(tmp_path):
    whole = digest(render("val", 8, cache=tmp_path))
    next(tmp_path.glob("*.json")).unlink()
    assert digest(render("val", 8, cache=tmp_path)) == whole


def test_form(train):
    assert train.pixels.shape == (1500, 3, 64, 64) and train.pixels.dtype == np.uint8
    assert len(train) == len(train.captions) == len(train.truth) == len(set(train.image_ids)) == 1500


def test_splits_and_seeds_differ_in_images_and_ids(cache):
    sets = [render(split, 50, seed, cache=cache) for split in ("train", "val", "test") for seed in (0, 1)]
    for one, other in itertools.combinations(sets, 2):
        assert not set(one.image_ids) & set(other.image_ids)
        assert not np.array_equal(one.pixels, other.pixels)


def test_another_size_shows_the_same_scenes(cache, train):
    wide = render("train", 20, size=128, cache=cache)
    assert wide.captions == train.captions[:20]
    for small, large in zip(train.truth, wide.truth):
        for a, b in zip(small["objects"], large["objects"]):
            assert [a[field] for field in FIELDS] == [b[field] for field in FIELDS]
            assert np.abs(2 * np.array(a["box"]) - b["box"]).max() <= 2


def test_each_colour_and_each_shape_is_held_out_once():
    assert [colour for colour, _ in HELD_OUT] == list(scene_words.COLOURS)
    assert sorted(shape for _, shape in HELD_OUT) == sorted(SHAPES)


def test_held_out_pairs_are_in_every_test_image_and_in_no_other(cache, train, test):
    for data in (train, render("val", 500, cache=cache)):
        assert not {pair for truth in data.truth for pair in pairs(truth)} & set(HELD_OUT)
    assert all(len(set(pairs(truth)) & set(HELD_OUT)) == 1 for truth in test.truth)
    assert {pair for truth in test.truth for pair in pairs(truth)} >= set(HELD_OUT)
    assert len({pair for truth in train.truth for pair in pairs(truth)}) == 64 - len(HELD_OUT)


@pytest.mark.parametrize("split", ["val", "test"])
def test_each_caption_is_true_of_its_own_image_alone(cache, split):
    data = render(split, 1000, cache=cache)
    owners = {}
    for i, captions in enumerate(data.captions):
        for caption in captions:
            said = parse(caption)
            things = [(thing["colour"], thing["shape"]) for thing in said["objects"]]
            owners.setdefault((said["relation"], *things), set()).add(i)
    assert all(len(images) == 1 for images in owners.values())
    assert len({frozenset(pairs(truth)) for truth in data.truth if len(truth["objects"]) == 3}) == \
        sum(len(truth["objects"]) == 3 for truth in data.truth)


def test_five_short_captions_in_different_words(train):
    counts = []
    for captions in train.captions:
        assert len(set(captions)) == len(captions) == 5
        without_names = {re.sub(r"\b(an?|the)\b", "", caption) for caption in captions}
        assert len(without_names) == 5
        counts += [len(caption.split()) for caption in captions]
    assert max(counts) <= 26 and np.mean(counts) < 20
    assert len({word for captions in train.captions for text in captions for word in re.findall("[a-z]+", text)}) < 100


def test_captions_say_what_is_drawn(train, test):
    left_out = {field: 0 for field in (*FIELDS, "background")}
    for data in (train, test):
        for captions, truth in zip(data.captions, data.truth):
            for caption in captions:
                said = parse(caption)
                assert said["relation"] == truth["relation"] and len(said["objects"]) == len(truth["objects"])
                assert said["background"] in (None, truth["background"])
                left_out["background"] += said["background"] is None
                for heard, thing in zip(said["objects"], truth["objects"]):
                    assert all(heard[field] in (None, thing[field]) for field in FIELDS)
                    for field in FIELDS:
                        left_out[field] += heard[field] is None
    captions = 5 * (len(train) + len(test))
    assert left_out["colour"] == left_out["shape"] == 0
    assert left_out["background"] < captions / 4 and left_out["size"] < captions and left_out["texture"] < captions


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("relation", ["left of", "above"])
@pytest.mark.parametrize("number", [2, 3])
def test_every_template_is_read_back(template, relation, number):
    things = [{"colour": "blue", "shape": "star", "size": "large", "texture": "plain"},
              {"colour": "orange", "shape": "ring", "size": "small", "texture": "dotted"},
              {"colour": "purple", "shape": "square", "size": "small", "texture": "striped"}]
    scene = {"objects": things[:number], "relation": relation, "background": "grey"}
    random = np.random.RandomState(0)
    captions = {scene_words._write(scene, template, lambda n: int(random.randint(n))) for _ in range(50)}
    assert len(captions) > 10
    for caption in captions:
        said = parse(caption)
        assert said["relation"] == relation
        assert [(t["colour"], t["shape"]) for t in said["objects"]] == pairs(scene)
        assert attributes_right(caption, scene) == {
            "colour_right": number, "colour_total": number, "shape_right": number, "shape_total": number,
            "relation_right": 1, "relation_total": 1}


def test_a_relation_reads_the_same_from_both_ends():
    assert parse("a red star left of a blue ring") == parse("a blue hoop to the right of a red star")
    assert parse("a red star above a blue ring") == parse("under a red star there is a blue ring")
    assert parse("a red star left of a blue ring") != parse("a blue ring left of a red star")
    assert parse("a red star and a blue ring") == parse("a blue ring and a red star")


@pytest.mark.parametrize("text", [
    "", "left of", "red red red", "star", "a star left of", "below it a", "above above star under star ring ring",
    "a réd ☃ \x00 star " * 300, "on the left, on the right", "left of a star"])
def test_free_text_is_read_without_raising(train, text):
    said = parse(text)
    assert set(said) == {"objects", "relation", "background"}
    assert all(set(thing) == set(FIELDS) for thing in said["objects"])
    counts = attributes_right(text, train.truth[0])
    assert all(0 <= counts[f"{name}_right"] <= counts[f"{name}_total"] for name in ("colour", "shape", "relation"))


def test_wrong_captions_lose_exactly_what_is_wrong():
    truth = parse("a red star left of a blue ring, and a green heart")

    def right(text):
        counts = attributes_right(text, truth)
        return tuple(counts[f"{name}_right"] for name in ("colour", "shape", "relation"))

    assert right("a green heart, a red star left of a blue ring") == (3, 3, 1)
    assert right("a red star right of a blue ring, and a green heart") == (3, 3, 0)
    assert right("a red star above a blue ring, and a green heart") == (3, 3, 0)
    assert right("a blue ring left of a red star, and a green heart") == (3, 3, 0)
    assert right("a red star left of a blue heart, and a green ring")[:2] in ((3, 1), (1, 3), (2, 2))
    assert right("a red star left of a pink ring, and a green heart") == (2, 3, 1)
    assert right("a red star left of a blue ring") == (2, 2, 1)
    assert right("") == (0, 0, 0)
    extra = attributes_right("a red star left of a blue ring, and a green heart, and a pink heart", truth)
    assert (extra["colour_right"], extra["colour_total"]) == (3, 4)


def test_a_relation_that_the_picture_shows_is_right_whichever_two_of_three_it_joins():
    """No picture tells which two of its three objects the scene was made from."""
    truth = parse("a red star left of a blue ring, and a green heart")
    centres = {"star": [10, 10], "ring": [50, 12], "heart": [12, 50]}
    truth = {**truth, "objects": [{**thing, "centre": centres[thing["shape"]]} for thing in truth["objects"]]}
    shown = ("a red star above a green heart, and a blue ring", "a green heart below a red star, with a blue ring",
             "a red star left of a blue ring, and a green heart")
    not_shown = ("a green heart above a red star, with a blue ring", "a red star left of a green heart, with a ring",
                 "a blue ring left of a red star", "a red star and a green heart")
    assert [attributes_right(text, truth)["relation_right"] for text in shown + not_shown] == [1, 1, 1, 0, 0, 0, 0]



def test_the_relation_holds_between_the_centres(train):
    for truth in train.truth:
        (x0, y0), (x1, y1) = (thing["centre"] for thing in truth["objects"][:2])
        along, across = (x1 - x0, y1 - y0) if truth["relation"] == "left of" else (y1 - y0, x1 - x0)
        assert along > 1.5 * abs(across)  # 2 for the squares laid out; a silhouette's box is off by a few


def test_boxes_frame_what_is_drawn_and_never_touch(train):
    for image, truth in zip(train.pixels, train.truth):
        boxes = [thing["box"] for thing in truth["objects"]]
        painted = (image != image[:, :1, :1]).any(axis=0)
        for left, top, right, bottom in boxes:
            part = painted[top:bottom, left:right]
            assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
            painted[top:bottom, left:right] = False
        assert not painted.any()
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_shapes_textures_and_sizes_look_different():
    looks = []
    for shape, size, texture in itertools.product(SHAPES, SIZES, TEXTURES):
        span = scenes.DIAMETER[size]
        cover, ink, _ = scenes.stamp(shape, texture, span)
        assert 0.2 < cover.sum() / (16 * span * span) < 0.9
        share = ink.sum() / cover.sum()
        assert share == 0 if texture == "plain" else 0.15 < share < 0.7
        looks.append(np.pad(2 * cover + ink, (0, 26 - span)) / 16)
    distances = [np.abs(a - b).sum() for a, b in itertools.combinations(looks, 2)]
    assert min(distances) > 14  # pixels; the nearest are the stripes and the dots of a small star


def test_a_stamp_agrees_with_the_geometry_point_by_point():
    cover, _, _ = scenes.stamp("ring", "plain", 16)
    for row, column in ((0, 0), (0, 8), (3, 4), (8, 8), (8, 12), (15, 9)):
        samples = [(2 * (4 * column + i) + 1 - 64, 2 * (4 * row + j) + 1 - 64) for i in range(4) for j in range(4)]
        assert cover[row, column] == sum(0.48 ** 2 < (x * x + y * y) / 64 ** 2 <= 1 for x, y in samples)


def test_everything_occurs_about_equally_often(train):
    things = [thing for truth in train.truth for thing in truth["objects"]]
    for field, tolerance in (("colour", 0.25), ("shape", 0.25), ("texture", 0.15)):
        counts = np.unique([thing[field] for thing in things], return_counts=True)[1]
        assert np.abs(counts / counts.mean() - 1).max() < tolerance
    for values in ([truth["relation"] for truth in train.truth], [truth["background"] for truth in train.truth]):
        counts = np.unique(values, return_counts=True)[1]
        assert np.abs(counts / counts.mean() - 1).max() < 0.25


@pytest.mark.parametrize("arguments, named", [
    (("tset", 4), "'tset'"), (("train", 0), "count"), (("test", 5001), "5000"), (("train", "4"), "'4'"),
    (("train", True), "True"), (("val", 4, -1), "seed"), (("val", 4, 0, 8), "size"), (("val", 4, 0, 64.0), "64.0")])
def test_bad_arguments_are_named(cache, arguments, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        render(*arguments, cache=cache)
