"""A visitor's journey through the app in a real Chromium: both themes, a phone and a desktop.

Nothing may fail, log an error, scroll sideways or ask any other server. Screenshots stay in `build/screenshots`.
"""

import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from app_runs import write_gallery, write_run
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("faiss")
playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TESTS: playwright is not installed")

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
PATIENCE = 90_000  # milliseconds: a guard against hanging, not a promise
LOOKS = [(1440, "light"), (390, "dark")]
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser():
    """Chromium: the computer's own, else Playwright's; where there is neither, these tests are skipped."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"NO BROWSER TESTS: no Chromium here; make test installs one ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("visit")
    write_run(place / "runs" / "first")
    write_run(place / "runs" / "first" / "checkpoint-7", seed=5)
    write_gallery(place / "gallery")
    Image.new("RGB", (30, 30), "red").save(place / "mine.png")
    (place / "page.png").write_bytes(b"<script>document.title = 'owned'</script>")
    return place


@pytest.fixture(scope="module")
def address(place):
    """The app with a run, as `bitgen app` serves it."""
    yield from served(str(place / "runs/first"), str(place / "gallery"))


def served(*arguments, **options):
    from app.main import launch

    demo = launch(*arguments, block=False, quiet=True, **options)
    yield demo.local_url
    demo.close()


@pytest.fixture
def visit(browser, request):
    """Opens pages, and fails afterwards if anything went wrong in one of them."""
    troubles, contexts = [], []

    def open_page(address, width=1440, theme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: message.type == "error" and troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("response", lambda reply: reply.status >= 400 and troubles.append(f"{reply.status}: {reply.url}"))
        page.on("requestfailed", lambda asked: "queue/data" not in asked.url  # the stream, when a page is closed
                and troubles.append(f"failed: {asked.url} {asked.failure}"))
        page.on("request", lambda asked: not asked.url.startswith((address, "data:", "blob:"))
                and troubles.append(f"asked elsewhere: {asked.url}"))
        page.goto(f"{address}?__theme={theme}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def settle(page, name):
    """Nothing moves any more: take the picture, and see that the page does not scroll sideways."""
    page.wait_for_timeout(300)  # transitions end; the stream of events never does
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window, f"{name}: {wide} pixels wide in a window of {window}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("width, theme", LOOKS)
def test_a_visitor_searches_looks_and_captions(visit, address, width, theme):
    page = visit(address, width, theme)
    look = f"{width}-{theme}"
    results = page.locator("#results .thumbnail-item")
    results.first.wait_for()                                            # the first results come by themselves
    assert results.count() == 12 and "in" in page.inner_text("#line")
    settle(page, f"search-{look}")
    page.fill("#words textarea", "a green star")
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('#line').innerText.includes('by chance')")  # not of the gallery
    results.nth(2).click()
    page.wait_for_selector("#heat img")
    assert page.locator("#word label").all_inner_texts() == ["all", "a", "green", "star"]
    before = page.get_attribute("#heat img", "src")
    page.locator("#word label", has_text="green").click()
    page.wait_for_function("before => document.querySelector('#heat img').src != before", arg=before)
    page.click("#heat img", position={"x": 30, "y": 30})
    settle(page, f"look-{look}")
    page.get_by_role("tab", name="Caption and match").click()
    page.click("#another")
    page.wait_for_function("document.querySelector('#said-of-it textarea').value")
    page.click("#match")
    page.wait_for_function("document.querySelector('#fits').innerText.includes('a green star')")
    page.click("#classify")
    page.wait_for_function("document.querySelector('#classes').innerText.includes('%')")
    settle(page, f"caption-{look}")


@pytest.mark.timeout(300)
def test_results_become_queries_and_the_other_way_round(visit, address):
    page = visit(address)
    page.locator("#results .thumbnail-item").first.wait_for()
    page.locator("#examples button").nth(1).click()
    page.wait_for_function("document.querySelector('#words textarea').value.startsWith("
                           "document.querySelectorAll('#examples button')[1].innerText.trim().replace('...', ''))")
    page.locator("#results .thumbnail-item").nth(4).click()
    page.click("#described")
    page.locator("#captions [role=gridcell]").first.wait_for()
    settle(page, "captions-1440-light")
    page.locator("#captions [role=gridcell]").nth(1).click()
    page.wait_for_selector("#heat img")
    page.click("#rerank input")
    page.wait_for_function("/0\\.\\d\\d.*0\\.\\d\\d/s.test(document.querySelector('#captions').innerText)")
    page.locator("#captions [role=gridcell]").nth(1).click()            # new results have put the chosen one away
    page.click("#similar")
    page.wait_for_function("document.querySelector('#line').innerText.includes('not re-ranked')")
    page.click("#clear")
    page.fill("#words textarea", "")
    page.click("#words button")
    page.get_by_text("type some words or give a picture").wait_for()    # an error, as words
    settle(page, "error-1440-light")


@pytest.mark.timeout(300)
def test_models_galleries_and_own_pictures_can_be_changed(visit, address, place):
    page = visit(address, 390, "dark")
    page.locator("#results .thumbnail-item").first.wait_for()
    first = page.inner_text("#results")
    page.get_by_role("button", name="Model and gallery").click()
    page.get_by_label("Revision").click()
    page.get_by_label("Run or Hub id").click()                          # leaving a field lists the checkpoints
    page.get_by_text("beside the newest weights: 1").wait_for()
    page.get_by_label("Checkpoint", exact=True).click()
    page.get_by_role("option", name="checkpoint-7").click()
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_text("first · checkpoint-7").wait_for()
    page.wait_for_function("before => document.querySelector('#results').innerText != before", arg=first)
    page.get_by_role("button", name="Search your own pictures").click()
    page.set_input_files("#upload input[type=file]", [place / "mine.png", place / "page.png"])
    page.get_by_text(re.compile("your pictures")).first.wait_for()
    page.wait_for_function("document.querySelectorAll('#results .thumbnail-item').length == 1")
    assert "page.png: not a JPEG" in page.get_by_label("Files that were left out").input_value()
    settle(page, "own-pictures-390-dark")


@pytest.mark.timeout(300)
def test_nothing_typed_becomes_part_of_the_page(visit, address):
    page = visit(address)
    page.locator("#results .thumbnail-item").first.wait_for()
    page.fill("#words textarea", HOSTILE)
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('#line').innerText.includes('by chance')")
    page.locator("#results .thumbnail-item").first.click()
    page.wait_for_selector("#heat img")
    page.get_by_role("tab", name="Caption and match").click()
    page.fill("#texts textarea", HOSTILE)
    page.fill("#labels textarea", f"{HOSTILE}\nring")
    page.click("#another")
    page.wait_for_function("document.querySelector('#said-of-it textarea').value")
    page.click("#match")
    page.wait_for_function("document.querySelector('#fits').innerText.includes('onerror')")
    page.click("#classify")
    page.wait_for_function("document.querySelector('#classes').innerText.includes('onerror')")
    assert page.title() == "BitGen" and not page.locator("img[src=x]").count()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("width, theme", LOOKS)
def test_without_a_model_the_page_says_what_to_do(visit, tmp_path, monkeypatch, width, theme):
    monkeypatch.chdir(tmp_path)  # there are no runs here
    for address in served():
        page = visit(address, width, theme)
        page.get_by_text("No model yet").wait_for()
        assert "make demo" in page.inner_text("#no-model") and page.get_by_role("tab").count() == 0
        settle(page, f"empty-{width}-{theme}")


def test_programs_are_answered_and_addresses_refused(address):
    from gradio_client import Client

    client = Client(address, verbose=False)
    hits = client.predict("a red ring", top=3, api_name="/search")
    assert [hit["rank_by_score"] for hit in hits] == [1, 2, 3]
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert {"/search", "/caption", "/match"} <= set(named) and len(named) < 12  # what pages use is private
    for asked in ("file=http://127.0.0.1:1/x", "file=/etc/passwd", "file=../../etc/passwd", "file=ftp%3A//example.org"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}gradio_api/{asked}", timeout=60)
        assert refused.value.code in (403, 404)
