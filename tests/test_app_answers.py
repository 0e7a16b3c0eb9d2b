"""Answers of the served app: no load is in their way, and none takes longer than its time. No browser."""

import json
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import httpx
import pytest
from app_runs import write_gallery, write_run
from app_visitor import Page

pytest.importorskip("gradio")
pytest.importorskip("faiss")

import bitgen
from app import bench as bench_module
from app import limits, models
from app import search as search_module
from app.main import launch

ASKED = ("images", 12, -1, "", [], False, False)  # as the page has them at first: what to find, how many …


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One model and one gallery stay in memory: who asks for another one puts the last one out."""
    place = tmp_path_factory.mktemp("answers")
    run, gallery = write_run(place / "runs" / "first"), write_gallery(place / "gallery")
    write_run(run / "checkpoint-7", seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "KEPT", 1)
        patch.setattr(bench_module, "GALLERIES", 1)
        demo = launch(str(run), str(gallery), block=False, quiet=True)
    yield demo
    demo.close()


@pytest.fixture
def stuck(monkeypatch):
    """Two signals: the loading of `checkpoint-7` has begun, and it may go on."""
    begun, go_on = threading.Event(), threading.Event()

    def load(source, checkpoint=None, **rest):
        if checkpoint:
            begun.set()
            assert go_on.wait(100)
        return bitgen.load(source, checkpoint=checkpoint, **rest)

    monkeypatch.setattr(models, "load", load)
    yield begun, go_on
    go_on.set()


def ask(demo, words="a red ring", checkpoint=""):
    """What a program is answered: hits, or why there are none."""
    data = [words, "", "images", 12, False, "", checkpoint]
    with httpx.Client(base_url=f"{demo.local_url}gradio_api/call/", timeout=100) as http:
        event = http.post("search", json={"data": data}).json()["event_id"]
        said = http.get(f"search/{event}").text
    value = json.loads(said.rpartition("data: ")[2])
    return value[0] if "event: complete" in said else value["error"]


def test_a_search_is_answered_while_models_of_others_are_loaded(demo, stuck):
    begun, go_on = stuck
    with Page(demo.local_url) as page, ThreadPoolExecutor(limits.WAITING + 3) as pool:
        page.event("first")
        others = [pool.submit(ask, demo, checkpoint="checkpoint-7") for _ in range(limits.WAITING + 1)]
        assert begun.wait(100)
        refused = wait(others, 100, FIRST_COMPLETED).done.pop().result()
        assert "being loaded: ask again in a moment" in refused
        searched = pool.submit(page.event, "ask", None, None, "a red ring", None, "", 0.5, *ASKED)
        try:
            shown = searched.result(60)[1]["value"]
        finally:
            go_on.set()
        answered = [other.result(60) for other in others]
        assert sorted(map(len, answered))[:-1] == [12] * limits.WAITING and len(shown) == 12


def test_what_others_put_out_of_memory_is_loaded_again(demo):
    right = [ask(demo, checkpoint=name) for name in ("", "checkpoint-7")]
    assert right[0] != right[1] and [ask(demo, checkpoint=name) for name in ("", "checkpoint-7")] == right
    with Page(demo.local_url) as page:
        page.event("first")
        ask(demo, checkpoint="checkpoint-7")
        shown = page.event("ask", None, None, "a red ring", None, "", 0.5, *ASKED)[1]["value"]
        assert [hit["caption"].partition("\n")[0] for hit in shown] == [
            f"{rank} · {hit['score']:.2f}" for rank, hit in enumerate(right[0], 1)]


def test_a_model_that_cannot_be_loaded_is_an_answer(demo):
    assert "no model here" in ask(demo, checkpoint="checkpoint-8")


def test_an_answer_that_takes_too_long_is_given_up_and_its_place_is_free(demo, monkeypatch):
    go_on, search = threading.Event(), search_module.search

    def slow(bench, view, query, wish):
        assert query.words != "slow" or go_on.wait(100)
        return search(bench, view, query, wish)

    ask(demo)  # all is in memory
    monkeypatch.setattr(search_module, "search", slow)
    monkeypatch.setattr(limits, "ANSWER_SECONDS", 1)
    with ThreadPoolExecutor(limits.ANSWERS) as pool:
        said = list(pool.map(lambda _: ask(demo, "slow"), range(limits.ANSWERS)))
    assert all("longer than 1 s and was given up" in why for why in said)
    monkeypatch.setattr(limits, "ANSWER_SECONDS", 100)
    try:
        assert not go_on.is_set() and len(ask(demo)) == 12
    finally:
        go_on.set()


def test_a_load_that_takes_too_long_goes_on_while_who_waits_is_told(demo, stuck, monkeypatch):
    _, go_on = stuck
    ask(demo)
    monkeypatch.setattr(limits, "ANSWER_SECONDS", 1)
    assert "longer than 1 s" in ask(demo, checkpoint="checkpoint-7")
    monkeypatch.setattr(limits, "ANSWER_SECONDS", 100)
    go_on.set()
    assert len(ask(demo, checkpoint="checkpoint-7")) == 12
