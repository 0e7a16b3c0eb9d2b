"""The app's endpoints without a server: plain values, and what is refused."""

import base64

import pytest
from app_runs import png

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import api, caption, limits
from app.guard import foreign


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
    ("match", {"texts": [1, 2]}, "text: expected text, got int"), ("match", {"texts": None}, "texts: expected a list"),
    ("search", {"words": "red", "image": 5}, "image: expected base64 text, got int"),
    ("search", {"words": "red", "image": 0}, "image: expected base64 text, got int"),
    ("search", {"words": "red", "image": "ä"}, "image: expected base64 text"),
    ("memory_write", {"images": None, "words": None}, "images: expected a list of texts, got NoneType"),
    ("memory_write", {"images": ["x"], "words": "a"}, "words: expected a list of texts, got str")])
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
