"""The app for ten minutes with visitors that come, look around, change things and vanish: what grows?

    python benchmarks/app_soak.py runs/scenes --minutes 10

Each visitor has a page's session and sends a page's own events, without the browser: searches, a look into a result,
pictures uploaded as a gallery, a fact written into the memory, other checkpoints; then the connection is dropped.
Programs ask `/search` without a session in between. Prints a row a minute and then the slope of resident memory after
the warm-up, open files and temporary bytes. While a picture is looked into, memory is higher by tens of MB for some
seconds, so the slope through the lowest of each half minute stands beside the one through all samples. The exit status
is 1 where the latter is more than 2 MB a minute, files or descriptors were left, or anything failed.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import measure
import numpy as np
import psutil
from app_load import Server, draw
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from app_visitor import Page  # noqa: E402

from app.guard import held  # noqa: E402
from app.models import Choice, Models  # noqa: E402

COLUMNS = ("minute", "resident MB", "descriptors", "temporary MB")
SLOPE, FILES, TEMPORARY = 2.0, 20, 2000.0  # MB a minute, descriptors more than at first, MB of temporary files
ASKED = ("images", 12, -1, "", [], False, False)  # as the page has them at first: what to find, how many …


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("run", help="run folder; its newest weights and last two checkpoints are looked at in turn")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--warm-up", type=float, default=3, help="minutes that do not count")
    parser.add_argument("--visitors", type=int, default=4, help="at a time")
    options = parser.parse_args()
    where = measure.begin(None, "seconds")
    checkpoints = ["newest weights", *Models([options.run]).checkpoints(Choice(options.run))[:2]]
    with tempfile.TemporaryDirectory() as folder:
        pictures, temporary = Path(folder, "pictures"), Path(folder, "temporary")
        pictures.mkdir()
        temporary.mkdir()
        captions = draw(pictures, options.images)
        places = {"GRADIO_TEMP_DIR": str(temporary / "gradio"), "TMPDIR": str(temporary),
                  "XDG_CACHE_HOME": str(Path(folder, "cache"))}
        with Server(options.run, str(pictures), places) as server:
            visit = Visit(server, options.run, str(pictures), captions, checkpoints)
            seen = soak(server, visit, temporary, 60 * options.minutes, options.visitors)
    rows, failed = verdict(seen, options.warm_up, visit.count)
    print("\n" + measure.table(["after the warm-up", "measured", "at most"], rows))
    measure.write(options.json, {"environment": where, "columns": COLUMNS, "samples": seen.tolist(),
                                 "done": visit.count, "rows": rows})
    return int(failed)


def soak(server: Server, visit: Visit, temporary: Path, seconds: float, visitors: int) -> np.ndarray:
    """Visitors until the time is over; (samples, 4): minute, resident MB, open descriptors, temporary MB."""
    process, started, seen, shown = psutil.Process(server.process.pid), time.monotonic(), [], 0

    def come_and_go() -> None:
        while time.monotonic() - started < seconds:
            visit()

    print(measure.table([*COLUMNS, "so far"], []), end="", flush=True)
    with ThreadPoolExecutor(visitors) as pool:
        busy = [pool.submit(come_and_go) for _ in range(visitors)]
        while not all(one.done() for one in busy):
            minute = (time.monotonic() - started) / 60
            seen.append((minute, process.memory_info().rss / 1e6, process.num_fds(), held(str(temporary)) / 1e6))
            if minute >= shown:
                print(measure.row([round(minute, 1), *seen[-1][1:], visit.so_far()]), flush=True)
                shown += 1
            time.sleep(1)
    for one in busy:
        one.result()
    return np.array(seen)


def verdict(seen: np.ndarray, warm_up: float, count: Counter) -> tuple[list[list], bool]:
    """What grew after the warm-up, as rows with what is promised; and whether that was broken."""
    minute, resident, descriptors, temporary = seen[seen[:, 0] >= min(warm_up, seen[-1, 0] / 2)].T
    halves = (2 * minute).astype(int)
    lows = [np.flatnonzero(halves == half)[resident[halves == half].argmin()] for half in np.unique(halves)]
    lowest, slope = (np.polyfit(minute[some], resident[some], 1)[0] for some in (lows, slice(None)))
    more = int(np.median(descriptors[-10:]) - np.median(descriptors[:10]))
    rows = [["minutes", minute[-1] - minute[0], ""], ["MB a minute", slope, SLOPE],
            ["MB a minute, lowest of each half minute", lowest, ""],
            ["resident MB, first of the lowest", resident[lows[0]], ""],
            ["resident MB, last of the lowest", resident[lows[-1]], ""], ["resident MB, highest", resident.max(), ""],
            ["descriptors more or less", more, FILES], ["temporary MB", temporary.max(), TEMPORARY],
            ["visits that failed", count["failed"], 0]]
    return rows, slope > SLOPE or abs(more) > FILES or temporary.max() > TEMPORARY or count["failed"] > 0


class Visit:
    """What a visitor does from coming to vanishing; what was done is counted."""

    def __init__(self, server: Server, run: str, gallery: str, captions: list[str], checkpoints: list[str]):
        self.server, self.run, self.gallery = server, run, gallery
        self.captions, self.checkpoints, self.count = captions, checkpoints, Counter()
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """One visit. What fails is counted and said, and the next visitor comes."""
        number = self._done("sessions") - 1
        words = [self.captions[(number + i) % len(self.captions)] for i in range(3)]
        checkpoint = self.checkpoints[number % len(self.checkpoints)]
        try:
            with Page(self.server.base) as page:
                page.event("first")
                page.event("opened", None, *ASKED)
                for text in words:
                    page.event("ask", None, None, text, None, "", 0.5, *ASKED)
                    self.server.ask(text)
                self._done("searches", 2 * len(words))
                page.event("choose", None, None, None, "maps", at=0)
                page.event("change", None, self.run, "", checkpoint, self.gallery, [])
                self._done("switches")
                page.event("ask", None, None, words[0], None, "", 0.5, *ASKED)
                files = page.upload(*((f"{i}.png", scribble(number, i)) for i in range(4)))
                self._done("uploads", len(files))
                page.event("written", None, None, files[0], words[1])
                page.event("upload", None, files, self.run, "", checkpoint, None)
                page.event("opened", None, *ASKED)
        except (httpx.HTTPError, RuntimeError) as error:
            self._done("failed")
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def so_far(self) -> str:
        """What was done so far."""
        return ", ".join(f"{count:,} {what}" for what, count in sorted(self.count.items()))

    def _done(self, what: str, times: int = 1) -> int:
        with self._lock:
            self.count[what] += times
            return self.count[what]


def scribble(visitor: int, number: int) -> bytes:
    """A picture that nobody else has, as PNG."""
    noise = np.random.default_rng((visitor, number, os.getpid())).integers(0, 256, (64, 64, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
