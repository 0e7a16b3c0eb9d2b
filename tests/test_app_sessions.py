"""Sessions of the served app: cheap, apart, and none for a program that asks without one. No browser."""

import datetime
import json
import queue
import time
import urllib.request
from types import SimpleNamespace

import pytest
from app_runs import write_gallery, write_run
from app_visitor import Page

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from app import limits
from app.main import build_app, launch
from app.models import Choice, View
from app.sessions import Session, Sessions

VIEW = View(Choice("a run"), "a gallery")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    place = tmp_path_factory.mktemp("sessions")
    demo = launch(str(write_run(place / "runs" / "first")), str(write_gallery(place / "gallery")), block=False,
                  quiet=True)
    yield demo
    demo.close()


def ask(demo, **more):
    """A search over REST: the hits."""
    url = f"{demo.local_url}gradio_api/call/search"
    body = json.dumps({"data": ["a red ring", "", "images", 12, False, "", ""], **more}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as joined:
        event = json.load(joined)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as answer:
        return json.loads(answer.read().rpartition(b"data: ")[2])[0]


def test_a_call_without_a_session_leaves_none_behind(demo):
    kept = demo.app.state_holder
    before = list(kept.session_data)
    assert all(len(ask(demo)) == 12 for _ in range(3))
    assert list(kept.session_data) == before == [name for name in kept.time_last_used if name in before]
    assert len(ask(demo, session_hash="somebody")) == 12 and "somebody" in kept.session_data


def test_a_box_that_is_empty_for_a_moment_is_kept(demo):
    """A stream that has told all there is looks into it once more before it ends, and breaks where it is gone."""
    kept, boxes = demo.app.state_holder, demo._queue.pending_messages_per_session
    assert len(ask(demo, session_hash="for a moment")) == 12
    boxes["for a moment"] = queue.Queue()
    for _ in range(3):
        kept.delete_all_expired_state()
    assert "for a moment" in boxes
    kept.idle["for a moment"] = limits.IDLE_SECONDS
    kept.delete_all_expired_state()
    assert "for a moment" not in boxes


def test_of_a_closed_session_nothing_is_left_when_its_time_is_over(demo, monkeypatch):
    monkeypatch.setattr(limits, "IDLE_SECONDS", 1)
    kept, boxes = demo.app.state_holder, demo._queue.pending_messages_per_session
    monkeypatch.setattr(limits, "CLOSED_SECONDS", 0)
    with Page(demo.local_url) as open_one, Page(demo.local_url) as closed_one:
        for page in (open_one, closed_one):
            page.event("first")
        kept.session_data[closed_one.session].is_closed = True
        for _ in range(300):  # gradio looks once a second
            if closed_one.session not in kept.session_data and not boxes:
                break
            time.sleep(0.1)
        left = [*kept.session_data, *kept.time_last_used, *boxes, *demo._queue.pending_event_ids_session]
        assert open_one.session in kept.session_data and closed_one.session not in left and not boxes
        open_one.event("first")


def test_of_many_closed_sessions_the_latest_stay(demo, monkeypatch):
    kept = demo.app.state_holder
    monkeypatch.setattr(limits, "CLOSED", 2)
    with Page(demo.local_url) as one, Page(demo.local_url) as two, Page(demo.local_url) as three, \
            Page(demo.local_url) as open_one:
        for page in (open_one, one, two, three):
            page.event("first")
        for page in (one, two, three):
            kept.session_data[page.session].is_closed = True
        for _ in range(300):
            if one.session not in kept.session_data:
                break
            time.sleep(0.1)
        assert [page.session in kept.session_data for page in (one, two, three, open_one)] == [False, True, True, True]


class Later(datetime.datetime):
    """A clock that is set."""

    seconds = 0

    @classmethod
    def now(cls, tz=None):
        return datetime.datetime(2030, 1, 1) + datetime.timedelta(seconds=cls.seconds)


@pytest.fixture
def kept(demo, monkeypatch):
    """Sessions aside from the server's, on a clock that is set."""
    for module in ("gradio.state_holder", "app.sessions"):
        monkeypatch.setattr(f"{module}.datetime", SimpleNamespace(datetime=Later))
    monkeypatch.setattr(Later, "seconds", 0)
    kept = Sessions()
    kept.blocks, kept.capacity = demo, limits.SESSIONS
    return kept


def view_of(demo):
    """The number of the state that says what a visitor looks at."""
    return next(number for number, block in demo.blocks.items() if block.get_block_name() == "state")


def test_while_a_page_is_open_nothing_that_it_holds_is_lost(demo, kept):
    view = view_of(demo)
    kept["mine"][view] = VIEW
    Later.seconds = 10 * limits.UPLOAD_SECONDS
    kept.delete_all_expired_state()
    assert kept["mine"][view] == VIEW


def test_time_counts_from_when_a_page_was_closed_not_from_when_it_last_wrote(demo, kept):
    view = view_of(demo)
    kept["mine"][view] = VIEW
    Later.seconds = 10 * limits.UPLOAD_SECONDS
    kept.session_data["mine"].is_closed = True
    Later.seconds += limits.CLOSED_SECONDS - 1
    kept.delete_all_expired_state()
    assert kept.session_data["mine"].state_data[view] == VIEW
    Later.seconds += 2
    kept.delete_all_expired_state()
    assert "mine" not in kept.session_data


def test_who_comes_back_after_a_moment_without_a_connection_keeps_all_while_it_is_used(demo, kept):
    view = view_of(demo)
    kept["mine"][view] = VIEW
    kept.session_data["mine"].is_closed = True
    for _ in range(3):
        Later.seconds += limits.CLOSED_SECONDS - 1
        kept.delete_all_expired_state()
        assert kept["mine"][view] == VIEW
        Later.seconds += limits.UPLOAD_SECONDS - limits.CLOSED_SECONDS
    kept.delete_all_expired_state()
    assert kept["mine"][view] == VIEW
    Later.seconds += limits.UPLOAD_SECONDS + 1
    kept.delete_all_expired_state()
    assert "mine" not in kept.session_data


def test_an_answer_waits_for_who_asked(demo):
    """Its letter-box is not empty, so it stays."""
    url = f"{demo.local_url}gradio_api/call/search"
    body = json.dumps({"data": ["a red ring", "", "images", 12, False, "", ""]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as joined:
        event = json.load(joined)["event_id"]
    for _ in range(300):
        if event not in demo._queue.event_ids_to_events:
            break
        time.sleep(0.1)
    time.sleep(1.5)  # time to be looked at
    with urllib.request.urlopen(f"{url}/{event}") as answer:
        assert b"event: complete" in answer.read()


def test_the_name_of_a_session_is_neither_logged_nor_on_a_page(demo, caplog, capfd):
    """Who knows it may edit what the session holds."""
    with caplog.at_level("DEBUG"), Page(demo.local_url) as page, Page(demo.local_url) as other:
        page.event("first")
        assert not page.send("take_any")[1] and not page.send("forgotten", None, None, 5, None)[1]
        for asked in ("", "config", "gradio_api/info", f"?session_hash={page.session}"):
            assert page.session not in other.http.get(asked).text
    logged = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert page.session not in "".join([*logged, *capfd.readouterr()])


def test_no_statistics_are_made_of_the_answers(demo):
    ask(demo)
    assert len(demo._queue.event_analytics) <= 1 and not demo._queue.cached_event_analytics_summary["functions"]


def test_a_session_has_state_of_its_own_and_no_description_of_the_page(demo):
    view = view_of(demo)
    one, other = Session(demo), Session(demo)
    one[view] = "mine"
    assert one[view] == "mine" and other[view] is None and demo.blocks[view].value is None
    assert not one.config_values and not other.config_values and list(other.components) == []
    assert other.blocks_config.blocks.keys() == demo.default_config.blocks.keys()


def test_what_a_browser_remembers_is_read_again_after_a_restart(demo, tmp_path):
    """It is kept encrypted with a secret of the page, which would be another one at each start."""
    one, other = (next(block for block in app.blocks.values() if block.get_block_name() == "browserstate")
                  for app in (demo, build_app(runs=str(tmp_path))))
    assert (one.secret, one.storage_key) == (other.secret, other.storage_key)
