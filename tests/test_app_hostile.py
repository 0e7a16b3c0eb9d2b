"""What strangers send to the served app: each is refused as it should be, and the app still answers. No browser.

Pictures that harm are in `test_images.py`, checkpoints in `strangers.py`; here they come over the wire.
"""

import asyncio
import json
import re
import struct
import urllib.parse
import zlib
from pathlib import Path

import httpx
import pytest
from app_runs import write_gallery, write_run
from app_visitor import Page, given
from strangers import memory

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import limits
from app.guard import Guard, held, sweep
from app.main import launch

TAG = "<img src=x onerror=alert(1)>"
ASKED = ("images", 12, -1, "", [], False, False)  # as the page has them at first: what to find, how many …


pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    write_run(place / "runs" / "first")
    write_gallery(place / "gallery")
    return place


@pytest.fixture(scope="module")
def demo(place):
    demo = launch(str(place / "runs/first"), str(place / "gallery"), block=False, quiet=True)
    yield demo
    demo.close()


@pytest.fixture(scope="module")
def page(demo):
    """A visitor who has seen the first results."""
    with Page(demo.local_url) as page:
        page.event("first")
        page.event("opened", None, *ASKED)
        yield page


@pytest.fixture(scope="module")
def answered(page):
    """Whatever a test has sent in all its cases: before the next test begins a visitor is answered."""
    sent = [None]

    def next_is(test):
        if test != sent[-1]:
            assert page.event("ask", None, None, "a red ring", None, "", 0.5, *ASKED), f"no answer after {sent[-1]}"
            sent.append(test)

    yield next_is
    next_is(None)


@pytest.fixture(autouse=True)
def unharmed(request, answered):
    answered(request.node.originalname)


def png(width, height, data=b"", extra=b""):
    """A PNG of white grey bits, or one that says so and holds `data`."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    rows = data or zlib.compress((b"\0" + b"\xff" * ((width + 7) // 8)) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"") + extra


# Files of the server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [
    "file=/etc/passwd", "file=../../../../etc/passwd", "file=%2Fetc%2Fpasswd", "file=..%2f..%2f..%2fetc%2fpasswd",
    "file=/proc/self/environ", "file=/dev/zero", "file=file:///etc/passwd", "file=http://127.0.0.1:1/x",
    "file=http://[::1]:1/x", "file=//127.0.0.1/x", "file=%5C%5Chost%5Cshare", "proxy=http://127.0.0.1:1/x",
    "file={place}/runs/first/model.safetensors", "file={place}/gallery/scene-00.png", "file={app}/main.py",
    "static/../../../../etc/passwd", "static/..%2f..%2f..%2fetc/passwd", "assets/..%2f..%2f..%2f..%2fetc%2fpasswd"])
def test_no_file_of_the_server_is_served(page, place, asked):
    asked = asked.format(place=place, app=Path(limits.__file__).parent)
    for prefix in ("gradio_api/", ""):
        answer = page.http.get(prefix + asked)
        assert answer.status_code in (400, 401, 403, 404, 405), (prefix, answer.status_code)
        assert b"root:" not in answer.content


@pytest.mark.parametrize("file", [
    given("/etc/passwd"), given("/proc/self/environ"), given("../../etc/passwd"), given("{place}/runs/first/run.png"),
    given("{place}/gallery/scene-00.png"), given("http://127.0.0.1:1/x.png"),
    given("x.png", url="http://127.0.0.1:1/x.png"), given("x.png", url="file:///etc/passwd"), given(""),
    given("\0"), {"path": None, "meta": {"_type": "gradio.FileData"}}, {"meta": {}}, "/etc/passwd", 5, [[]]])
def test_a_file_that_was_not_uploaded_is_no_picture(page, place, file):
    file = json.loads(json.dumps(file).replace("{place}", str(place)))
    said, good = page.send("told", None, file, "greedy", 1)
    assert not good and "root:" not in json.dumps(said)
    assert not page.send("upload", None, [file], str(place / "runs/first"), "", "", None)[1]


# Uploads ----------------------------------------------------------------------------------------------------

NAMES = ["../../evil.png", "/etc/evil.png", "..\\..\\evil.png", "C:\\evil.png", "..", ".", "a\nb.png",
         "n" * 300 + ".png", "\u202egnp.exe", "%2e%2e%2fevil.png", TAG + ".png",
         "a.png/../../../evil.png", "evil.png\0.html"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_lands_in_its_folder_whatever_its_name(demo, page, name):
    sent = page.http.post("gradio_api/upload", files=[("files", (name, png(8, 8), "image/png"))])
    if sent.status_code == 200:
        root = Path(demo.app.uploaded_file_dir).resolve()
        landed = [Path(path).resolve() for path in sent.json()]
        assert all(path.is_relative_to(root) and len(path.relative_to(root).parts) == 2 for path in landed)
    else:
        assert sent.status_code in (400, 422)


@pytest.mark.parametrize("name, content", [("a.svg", b"<svg onload='alert(1)' xmlns='http://www.w3.org/2000/svg'/>"),
                                           ("a.html", b"<script>alert(1)</script>"), ("a.js", b"alert(1)")])
def test_what_could_run_is_not_served_to_be_run(page, name, content):
    path = page.upload((name, content))[0]["path"]
    served = page.http.get(f"gradio_api/file={urllib.parse.quote(path)}")
    if served.status_code == 200:
        assert served.headers["content-disposition"].startswith("attachment")
        assert served.headers["content-type"] not in ("text/html", "image/svg+xml", "text/javascript")


def test_files_too_large_or_too_many_are_refused(page):
    large = page.http.post("gradio_api/upload", files=[("files", ("a.png", bytes(20_000_001), "image/png"))])
    many = page.http.post("gradio_api/upload", files=[("files", (f"{i}.png", b"x", "image/png")) for i in range(1001)])
    assert (large.status_code, many.status_code) == (413, 400)


@pytest.mark.parametrize("body, kind, status", [
    (b"x", "text/plain", 400), (b"x", "multipart/form-data", 400),
    (iter([b"x"] * 9), "multipart/form-data; boundary=x", 411)])
def test_what_is_no_upload_is_refused(page, body, kind, status):
    sent = page.http.post("gradio_api/upload", content=body, headers={"content-type": kind})
    assert sent.status_code == status


@pytest.mark.parametrize("path, headers, full, status", [
    ("upload", {b"content-length": b"500000001"}, 0, 413), ("upload", {b"content-length": b"1000"}, 2_000_000_000, 507),
    ("upload", {b"transfer-encoding": b"chunked"}, 0, 411), ("upload", {b"content-length": b"1000"}, 0, 200),
    ("queue/join", {b"content-length": b"60000001"}, 0, 413), ("queue/join", {}, 2_000_000_000, 200)])
def test_requests_end_before_memory_and_disk_do(tmp_path, path, headers, full, status):
    with open(tmp_path / "held", "wb") as file:
        file.truncate(full)
    said = []

    async def app(scope, receive, send):
        await send({"status": 200})

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": f"/gradio_api/{path}", "headers": list(headers.items())}
    asyncio.run(Guard(app, str(tmp_path))(scope, None, send))
    assert said[0]["status"] == status


PICTURES = {
    "50,000 x 50,000": (png(50_000, 50_000, b"x"), "exceeds limit"),
    "169 megapixels": (png(13_000, 13_000), "too large"),
    "24 megapixels and one row": (png(6000, 4001), "too large"), "a thread": (png(1, 6000), "too long"),
    "HTML": (TAG.encode(), "no JPEG"), "SVG": (b"<svg/>", "no JPEG"), "nothing": (b"", "empty"),
    "a zip": (b"PK\3\4" + bytes(99), "no JPEG"), "half a PNG": (png(80, 80)[:44], "image"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # gradio reads the header before we do
@pytest.mark.parametrize("kind", PICTURES)
def test_bad_pictures_are_refused_by_name_and_cost_little(page, place, kind):
    data, reason = PICTURES[kind]
    files = page.upload((f"{kind}.png", data), ("\u202egood.png", png(16, 16)))
    with memory() as used:
        *_, refused = page.event("upload", None, files, str(place / "runs/first"), "", "newest weights", None)
        assert len(refused["value"].splitlines()) == 1 and reason in refused["value"] and used() < 300e6
    assert not page.send("told", None, page.upload((f"{kind}.png", data))[0], "greedy", 1)[1]
    page.event("change", None, str(place / "runs/first"), "", "newest weights", str(place / "gallery"), [])


def test_what_a_session_uploaded_counts_for_it_alone(demo, place, monkeypatch):
    monkeypatch.setattr(limits, "FILES", 3)
    with Page(demo.local_url) as page, Page(demo.local_url) as other:
        files = page.upload(*((f"{i}.png", png(16 + i, 16)) for i in range(4)))
        rest = [str(place / "runs/first"), "", "newest weights", None]
        page.event("upload", None, files[:2], *rest)
        said, good = page.send("upload", None, files, *rest)
        assert not good and "2 files" in said["error"] and "and 1 of 500 MB are left" in said["error"]
        page.event("upload", None, files[:3], *rest)
        other.event("upload", None, other.upload(("a.png", png(16, 16))), *rest)


def test_files_that_are_no_pictures_count_too(demo, place, monkeypatch):
    monkeypatch.setattr(limits, "FILES", 3)
    with Page(demo.local_url) as page:
        files = page.upload(*((f"{i}.png", b"%d" % i) for i in range(4)))
        rest = [str(place / "runs/first"), "", "newest weights", None]
        said, good = page.send("upload", None, files[:2], *rest)
        assert not good and "no picture can be used" in said["error"]
        said, good = page.send("upload", None, files[2:], *rest)
        assert not good and "and 1 of 500 MB are left" in said["error"]


def test_a_picture_that_is_also_a_page_is_kept_without_the_page(page, place):
    files = page.upload(("a.png", png(16, 16, extra=b"<script>alert(1)</script>")))
    page.event("upload", None, files, str(place / "runs/first"), "", "newest weights", None)
    shown = page.event("ask", None, None, "a red ring", None, "", 0.5, *ASKED)[1]["value"]
    kept = page.http.get(f"gradio_api/file={shown[0]['image']['path']}")
    assert kept.status_code == 200 and b"script" not in kept.content and kept.headers["content-type"] == "image/jpeg"
    page.event("change", None, str(place / "runs/first"), "", "newest weights", str(place / "gallery"), [])


# Events -----------------------------------------------------------------------------------------------------


def test_every_event_called_with_nonsense_ends_and_repeats_no_html(demo):
    with Page(demo.local_url) as page:
        for number, block in demo.fns.items():
            for data in ([], [TAG] * len(block.inputs), [float(10**9)] * len(block.inputs), [None] * len(block.inputs),
                         [{"a": [TAG]}] * (len(block.inputs) + 1)):
                said, good = page.send(number, *data, at=[10**9, -1])
                why = str(said.get("error", ""))
                own = why.startswith("Value: ") or block.api_visibility == "public"  # gradio's; an endpoint's, as JSON
                assert TAG not in why or own, block.api_name


def test_every_event_called_by_name_without_a_session_ends(demo, page):
    for block in demo.fns.values():
        joined = page.http.post(f"gradio_api/call/{block.api_name}", json={"data": [TAG] * len(block.inputs)})
        assert joined.status_code in (200, 404, 422), block.api_name
        if joined.status_code == 200:
            said = page.http.get(f"gradio_api/call/{block.api_name}/{joined.json()['event_id']}").text
            assert re.search("event: (error|complete)", said) and f"error\ndata: {TAG}" not in said


@pytest.mark.parametrize("body", [
    {"fn_index": 10**6, "data": []}, {"fn_index": -1, "data": []}, {"fn_index": "x", "data": []}, {"data": []}, {}, [],
    "x", {"fn_index": 0, "data": "x"}, {"fn_index": 0, "data": [], "session_hash": 5},
    {"fn_index": 0, "data": [], "event_id": []}])
def test_malformed_events_are_refused(page, body):
    if isinstance(body, dict):
        body = {"session_hash": page.session, **body}
    assert page.http.post("gradio_api/queue/join", json=body).status_code in (400, 404, 422)


@pytest.mark.parametrize("number", [10**6, -1])
def test_an_event_that_there_is_not_is_not_found(page, number):
    for session in (page.session, "nobody"):
        body = {"fn_index": number, "data": [], "session_hash": session}
        refused = page.http.post("gradio_api/queue/join", json=body)
        assert (refused.status_code, refused.json()) == (404, {"detail": f"there is no event {number}"})


@pytest.mark.parametrize("path", ["call/nothing", "call/v2/nothing", "call/v2/nothing/", "run/nothing", "run/predict",
                                  "api/nothing"])
def test_an_endpoint_that_there_is_not_is_not_found(page, path):
    refused = page.http.post(f"gradio_api/{path}", json={"data": []})
    assert (refused.status_code, refused.text) == (404, "there is no endpoint of this name")


@pytest.mark.parametrize("name, body, said", [
    ("search", {"words": "a blue square", "colour": "red"}, "`colour` is not"), ("match", {}, "argument: image")])
def test_arguments_that_an_endpoint_does_not_take_are_refused_by_name(page, name, body, said):
    for path in (f"gradio_api/call/v2/{name}", f"gradio_api/call/v2/{name}/"):
        refused = page.http.post(path, json=body)
        assert refused.status_code == 422 and said in refused.text
    assert page.http.post("gradio_api/call/v2/search", json={"words": "a blue square"}).status_code == 200


@pytest.mark.parametrize("name", ["ask", "told", "False"])
def test_an_event_of_the_page_is_not_called_by_keywords(page, name):
    """Gradio would look its parameters up and answer 500."""
    assert page.http.post(f"gradio_api/call/v2/{name}", json={}).status_code == 404


def test_a_program_is_told_word_by_word_and_a_visitor_without_html(page):
    told = page.http.post("gradio_api/call/search", json={"data": ["x", "", "images", 12, False, TAG, ""]})
    answer = page.http.get(f"gradio_api/call/search/{told.json()['event_id']}")
    assert TAG in answer.text and answer.headers["content-type"].startswith("text/event-stream")
    said, good = page.send("checkpoints", TAG, "")
    assert not good and TAG not in said["error"] and "&lt;img" in said["error"]


@pytest.mark.parametrize("words, number, value", [
    ("x" * 20_000_000, 1, 12), ("a", 1, 1e308), ("a", 2, 1e308), ("a", 0, "slots"), ("a", 3, "x" * 3000),
    ("a", 1, "12"), ("a", 1, 0.5), ("a", 2, -2)])
def test_numbers_and_texts_out_of_range_are_refused(page, words, number, value):
    asked = [*ASKED[:number], value, *ASKED[number + 1:]]
    assert not page.send("ask", None, None, words, None, "", 0.5, *asked)[1]


def test_nan_is_refused(page):
    body = '{"fn_index": 0, "session_hash": "s", "data": [NaN, Infinity, null, null]}'
    sent = page.http.post("gradio_api/queue/join", content=body, headers={"content-type": "application/json"})
    assert sent.status_code in (200, 400, 422)
    if sent.status_code == 200:
        assert '"success":false' in page.http.get("gradio_api/queue/data?session_hash=s").text


@pytest.mark.parametrize("path", ["login", "component_server", "reset", "cancel", "monitoring/x",
                                  "vibe-edit", "process_recording", "deep_link?session_hash=x", "runs",
                                  "stream/x/y/1/playlist.m3u8"])
def test_doors_that_the_page_does_not_use_stay_shut(page, path):
    for method in ("get", "post"):
        assert getattr(page.http, method)(f"gradio_api/{path}").status_code != 500


def test_another_site_may_not_ask_in_a_visitors_name(demo):
    with httpx.Client(base_url=demo.local_url) as http:
        sent = http.post("gradio_api/call/search", json={"data": ["x"]}, headers={"origin": "https://example.org"})
        assert sent.headers.get("access-control-allow-origin") not in ("*", "https://example.org")


def test_what_a_visitor_sent_and_was_shown_is_deleted_when_its_time_is_over(demo, page, monkeypatch):
    from gradio.route_utils import delete_files_created_by_app

    folder = Path(demo.app.uploaded_file_dir)
    others = {path for path in folder.rglob("*") if path.is_file()}  # of apps that other tests have opened
    page.event("ask", None, None, "a blue square", None, "", 0.5, *ASKED)
    page.event("choose", None, None, None, "maps", at=0)
    page.upload(("a.png", png(8, 8)))
    page.http.post("gradio_api/upload", files=[("files", ("a.png", bytes(20_000_001), "image/png"))])  # leaves a part
    assert held(folder) > 10_000
    delete_files_created_by_app(demo, None)
    monkeypatch.setattr(limits, "CLOSED_SECONDS", -1)
    sweep(folder)
    assert not {path for path in folder.rglob("*") if path.is_file()} - others
