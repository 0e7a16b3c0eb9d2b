"""The map that is hovered over: every point has its picture and words, and nothing comes from elsewhere."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from bitgen import hover

PICTURES = [np.full((3, 8, 8), shade, dtype=np.uint8) for shade in (0, 100, 200)]


def drawn(**changes):
    given = {"points": np.array([[0.0, 0.0], [2.0, 1.0], [1.0, 0.5]]), "thumbnails": PICTURES,
             "words": ["<one>", "two & three", "$four"], "kinds": ["image", "caption", "image"]}
    return hover.page_map(**given | changes)


def test_points_lie_where_they_lie_and_keep_their_shape():
    found = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="5" fill="(#\w+)" data-n="(\d)"', drawn())
    (x0, y0), (x1, y1), (x2, y2) = ((float(x), float(y)) for x, y, _, _ in found)
    assert [n for *_, n in found] == ["0", "1", "2"]
    assert found[0][2] == found[2][2] != found[1][2]
    assert (x2, y2) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.1) and y0 > y1, "up is up"
    assert (x1 - x0) / (y0 - y1) == pytest.approx(2, rel=0.01), "both axes have one scale"
    assert all(0 <= float(x) <= hover.WIDTH and 0 <= float(y) <= hover.HEIGHT for x, y, *_ in found)


def test_everything_is_inside_and_escaped():
    text = drawn()
    assert "http" not in text and re.findall(r"url\((.{10})", text) == ["data:image"]
    assert "<b>A &amp; B</b>" in drawn(title="A & B")
    assert "&lt;one&gt;" in text and "two &amp; three" in text and "$four" in text and "<one>" not in text
    sprite = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^)]+)\)", text)[1])))
    assert sprite.size == (64, 64) and sprite.getpixel((40, 10)) == (100, 100, 100)
    assert text == drawn() and len(set(re.findall(r'id="(map-\w+)"', text + drawn(words=["a", "b", "c"])))) == 2


def test_points_at_one_place_are_drawn():
    assert drawn(points=np.zeros((3, 2))).count("<circle") == 3


@pytest.mark.parametrize("changes, message", [
    ({"words": ["a"]}, "1 words"), ({"points": np.zeros((0, 2))}, "got 0 points"),
    ({"points": np.full((3, 2), np.nan)}, "not finite"),
    ({"points": np.zeros((7, 2)), "thumbnails": PICTURES[:1] * 7, "words": ["a"] * 7, "kinds": list("abcdefg")},
     "7 kinds"),
])
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        drawn(**changes)
