"""TensorBoard's projector in a real Chromium: it opens what a run wrote, draws its thumbnails, and nothing fails."""

import io
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import launched
from PIL import Image

from bitgen.logs import RunLog

playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TESTS: playwright is not installed")

COUNT, COLOURS = 40, ((255, 0, 255), (255, 200, 0))  # nothing of the page itself has these
PATIENCE = 120  # seconds: a guard against hanging, not a promise
FLAGS = ["--use-angle=swiftshader-webgl", "--enable-unsafe-swiftshader"]  # WebGL without a graphics card


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """TensorBoard on a run with an embedding, each thumbnail of one colour."""
    from tensorboard import program

    runs = tmp_path_factory.mktemp("projector")
    log = RunLog(runs / "first")
    log.scalars(1, {"itc": 1.0})
    thumbnails = [np.tile(np.array(COLOURS[i % 2], np.uint8)[:, None, None], (1, 32, 32)) for i in range(COUNT)]
    log.embedding("features, step 1", np.random.default_rng(0).standard_normal((COUNT, 8)),
                  {"caption": [f"a red ring, {i}" for i in range(COUNT)], "what": ["image"] * COUNT}, thumbnails)
    log.close()
    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", str(runs), "--port", "0", "--load_fast", "false"])
    return board.launch()


def painted(page):
    """How many pixels of the page have each of the thumbnails' colours."""
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        pixels = np.asarray(shot.convert("RGB"))
    return [int((pixels == colour).all(-1).sum()) for colour in COLOURS]


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:html5lib's sanitizer:DeprecationWarning")  # of what TensorBoard brings along
def test_the_projector_shows_points_with_their_thumbnails(address):
    answers, troubles = {}, []
    with playwright.sync_playwright() as driver:
        browser = launched(driver, FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.on("response", lambda reply: answers.update({urlsplit(reply.url).path.rpartition("/")[2]: reply.status}))
        page.on("response", lambda reply: reply.status >= 400 and troubles.append(f"{reply.status}: {reply.url}"))
        page.on("requestfailed", lambda asked: troubles.append(f"failed: {asked.url} {asked.failure}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("request", lambda asked: not asked.url.startswith((address, "data:", "blob:"))
                and troubles.append(f"asked elsewhere: {asked.url}"))
        page.goto(f"{address}#projector", timeout=1000 * PATIENCE)
        inner = page.frame_locator("iframe").frame_locator("iframe")
        inner.get_by_text(f"Points: {COUNT}").wait_for(timeout=1000 * PATIENCE)
        until = time.monotonic() + PATIENCE
        while min(painted(page)) < 100 and time.monotonic() < until:  # drawn once the sprite is there
            page.wait_for_timeout(200)
        seen = painted(page)
        browser.close()
    assert not troubles and {name: answers.get(name) for name in ("info", "tensor", "metadata", "sprite_image")} == {
        "info": 200, "tensor": 200, "metadata": 200, "sprite_image": 200}
    assert min(seen) >= 100, seen
