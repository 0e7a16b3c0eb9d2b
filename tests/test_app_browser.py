"""A visitor's journey through the app in a real Chromium: every tab, both themes, a phone and a desktop.

Nothing may fail, log an error, scroll sideways or ask any other server. Screenshots stay in `build/screenshots`. One
app and one browser serve all tests, since starting them is what costs.
"""

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from app_runs import write_gallery, write_metrics, write_run
from browser import launched
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("faiss")
playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TESTS: playwright is not installed")

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
PATIENCE = 180_000  # milliseconds: a guard against hanging, not a promise
LOOKS = [(1440, "light"), (390, "dark"), (1440, "dark"), (390, "light")]
TABS = {"Caption and match": "#another", "Memory": "#slots label", "Map": "#map .dot", "Training": "#curves [role=img]",
        "Compare": "#compare-go"}
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
COUNT = 24
STREAMS = ("queue/data", "upload_progress")  # the page itself breaks these off: when it closes, when a file is there
# Software drawing without the detour over an emulated graphics card: half the processor's time.
FLAGS = ["--disable-gpu", "--disable-software-rasterizer"]
IDLE = "!document.querySelector('.progress-text') && [...document.images].every(image => image.complete)"
POINT = """n => { const dot = document.querySelectorAll('#map .dot')[n];
                  const at = dot.getPointAtLength(0).matrixTransform(dot.getScreenCTM()); return [at.x, at.y]; }"""

CUT = """[...document.querySelectorAll('#compare-recall th')].filter(cell =>
         cell.querySelector('span').getBoundingClientRect().right > cell.getBoundingClientRect().right ||
         [...cell.querySelectorAll('*')].some(part => part.scrollWidth > part.clientWidth))
         .map(cell => cell.innerText)"""


@pytest.fixture(scope="module")
def context():
    with playwright.sync_playwright() as driver:
        browser = launched(driver, FLAGS)
        yield browser.new_context(reduced_motion="reduce")  # one for all pages: they share what was fetched
        browser.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("visit")
    write_metrics(write_run(place / "runs" / "first"))
    write_run(place / "runs" / "first" / "checkpoint-7", seed=5)
    write_gallery(place / "gallery", COUNT)
    Image.new("RGB", (30, 30), "red").save(place / "mine.png")
    (place / "page.png").write_bytes(b"<script>document.title = 'owned'</script>")
    return place


@pytest.fixture(scope="module")
def address(place):
    """The app with a run, as `bitgen app` serves it."""
    yield from served(str(place / "runs/first"), str(place / "gallery"), save_to=str(place / "edited"))


def served(*arguments, **options):
    from app.main import launch

    demo = launch(*arguments, block=False, quiet=True, **options)
    yield demo.local_url
    demo.close()


@pytest.fixture
def visit(context):
    """Opens pages, and fails afterwards if anything went wrong in one of them."""
    troubles, pages = [], []

    def open_page(address, width=1440, theme="light"):
        page = context.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: message.type == "error" and troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("response", lambda reply: reply.status >= 400 and troubles.append(f"{reply.status}: {reply.url}"))
        page.on("requestfailed", lambda asked: not any(stream in asked.url for stream in STREAMS)
                and troubles.append(f"failed: {asked.url} {asked.failure}"))
        page.on("request", lambda asked: not asked.url.startswith((address, "data:", "blob:"))
                and troubles.append(f"asked elsewhere: {asked.url}"))
        page.goto(f"{address}?__theme={theme}")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not troubles


def settle(page, name):
    """Nothing is loading any more: take the picture, and see that the page does not scroll sideways."""
    page.wait_for_function(IDLE)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True, animations="disabled")
    wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window, f"{name}: {wide} pixels wide in a window of {window}"


def shows(page, selector, text):
    """Wait until a part of the page says something."""
    page.wait_for_function("([part, text]) => document.querySelector(part)?.innerText.includes(text)",
                           arg=[selector, text])


def tab(page, title):
    """Open a tab; a narrow window keeps some behind a menu."""
    button = page.get_by_role("tab", name=title, exact=True)
    if not button.is_visible():
        page.locator(".overflow-menu > button").first.click()
        button = page.locator(".overflow-dropdown button", has_text=title)
    button.click()


# The journey: one part a tab --------------------------------------------------------------------------------


@pytest.mark.timeout(900)
@pytest.mark.parametrize("width, theme", LOOKS[:2])
def test_a_visitor_goes_through_every_tab(visit, address, width, theme):
    page, look = visit(address, width, theme), f"{width}-{theme}"
    for part in (searches, captions, remembers, maps, reads_the_training, compares):
        part(page, look)
    assert page.title() == "BitGen" and not page.locator("img[src=x]").count(), "nothing typed becomes part of the page"


def searches(page, look):
    results = page.locator("#results .thumbnail-item")
    results.first.wait_for()                                            # the first results come by themselves
    assert results.count() == 12 and "in" in page.inner_text("#line")
    page.wait_for_function(IDLE)
    assert results.first.bounding_box()["y"] < 800, "and are seen without scrolling"
    settle(page, f"search-{look}")
    page.fill("#words textarea", HOSTILE)
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('#line').innerText.includes('by chance')")  # not of the gallery
    page.fill("#words textarea", "a green star")
    line = page.inner_text("#results")
    page.keyboard.press("Enter")
    page.wait_for_function("before => document.querySelector('#results').innerText != before", arg=line)
    results.nth(2).click()
    page.wait_for_function("document.querySelector('#chosen')?.getBoundingClientRect().top < innerHeight - 100")
    page.wait_for_selector("#heat img")
    assert page.locator("#word label").all_inner_texts() == ["all", "a", "green", "star"]
    before = page.get_attribute("#heat img", "src")
    page.locator("#word label", has_text="green").click()
    page.wait_for_function("before => document.querySelector('#heat img').src != before", arg=before)
    page.click("#heat img", position={"x": 30, "y": 30})
    settle(page, f"look-{look}")


def captions(page, look):
    tab(page, "Caption and match")
    page.click("#another")
    page.wait_for_function("document.querySelector('#said-of-it textarea').value")
    page.fill("#texts textarea", f"{HOSTILE}\na green star")
    page.fill("#labels textarea", f"{HOSTILE}\nring")
    page.click("#match")
    shows(page, "#fits", "onerror")
    page.click("#classify")
    shows(page, "#classes", "onerror")
    settle(page, f"caption-{look}")


def remembers(page, look):
    tab(page, "Memory")
    page.click("#example-fact")
    page.wait_for_function("document.querySelector('#fact-words textarea').value")
    page.fill("#fact-words textarea", HOSTILE)
    page.click("#write")
    shows(page, "#memory-note", "1 written, 1 comes back first")
    assert "onerror" in page.inner_text("#facts") and "onerror" in page.input_value("#mind-after textarea")
    page.locator("#slots label").nth(3).click()
    shows(page, "#slot-said", "Slot 3")
    page.get_by_role("button", name="How much does it hold?").click()
    page.locator("#capacity [role=img]").wait_for()
    page.fill("#keep-name :is(input, textarea)", f"mine-{look}")
    page.click("#keep-button")
    page.wait_for_function(f"document.querySelector('#kept :is(input, textarea)').value.endsWith('mine-{look}')")
    settle(page, f"memory-{look}")
    page.locator("#facts label").first.click()
    page.click("#forget")
    shows(page, "#memory-note", "Nothing is written")
    page.click("#undo")
    shows(page, "#memory-note", "1 written")


def maps(page, look):
    tab(page, "Map")
    page.locator("#map .dot").last.wait_for(state="attached")
    assert page.locator("#map .dot").count() == 2 * COUNT
    page.locator("#map svg").scroll_into_view_if_needed()
    card = page.locator("#map .map-card")
    for n in range(COUNT, 2 * COUNT):                                   # a caption that no other point lies upon
        page.mouse.move(*page.evaluate(POINT, n))
        if card.inner_text().startswith("Caption"):
            break
    said = page.locator("#map .map-words").inner_text()
    assert card.is_visible() and said
    settle(page, f"map-{look}")
    box = page.locator("#map svg").bounding_box()
    corners = [(box["x"] + x * box["width"], box["y"] + y * box["height"])
               for x, y in ((.01, .2), (.99, .2), (.99, .99), (.01, .99), (.01, .2))]
    page.locator("#map").get_by_role("button", name="Show everything").click()
    page.get_by_role("button", name="Draw around points").click()
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner)
    page.mouse.up()
    shows(page, "#lasso-line", "captions of 48 points")
    page.locator("#lasso-rows [role=gridcell]").first.wait_for()
    page.get_by_label("Rank of its counterpart").click()
    shows(page, "#map .map-legend", "found first")
    settle(page, f"lasso-{look}")
    page.locator("#map svg").scroll_into_view_if_needed()
    page.mouse.click(*page.evaluate(POINT, n))                          # a caption becomes the query
    page.wait_for_function("text => document.querySelector('#words textarea').value == text", arg=said)
    page.locator("#results .thumbnail-item").first.wait_for()


def reads_the_training(page, look):
    tab(page, "Training")
    page.locator("#curves [role=img]").wait_for()
    page.locator("#doctor [role=gridcell]").first.wait_for()
    page.get_by_role("button", name="Worst retrievals").click()
    page.locator("#worst [role=img]").wait_for()
    shows(page, "#worst-line", "by chance")
    settle(page, f"training-{look}")


def compares(page, look):
    tab(page, "Compare")
    page.click("#compare-go")
    page.locator("#compare-recall [role=gridcell]").first.wait_for()
    page.locator("#compare-second .thumbnail-item").first.wait_for()
    assert page.evaluate(CUT) == [], "headers are read whole, on a phone too"
    settle(page, f"compare-{look}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("width, theme", LOOKS[2:])
def test_every_tab_opens_in_the_other_looks(visit, address, width, theme):
    page = visit(address, width, theme)
    page.locator("#results .thumbnail-item").first.wait_for()
    settle(page, f"search-{width}-{theme}")
    for title, part in TABS.items():
        tab(page, title)
        page.locator(part).first.wait_for(state="attached")
        settle(page, f"{title.split()[0].lower()}-{width}-{theme}")


# Ways aside from it -----------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
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


@pytest.mark.timeout(600)
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
    assert "page.png: no JPEG" in page.get_by_label("Files that were left out").input_value()
    settle(page, "own-pictures-390-dark")
    page.get_by_label("Checkpoint", exact=True).click()
    page.get_by_role("option", name="newest weights").click()
    page.get_by_role("button", name="Load", exact=True).click()
    page.wait_for_function("/newest.* on your pictures/.test(document.querySelector('#status').innerText)")


@pytest.mark.timeout(600)
def test_without_a_model_the_page_says_what_to_do(visit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # there are no runs here
    for address in served():
        for width, theme in LOOKS:
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
