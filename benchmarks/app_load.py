"""The app under load: from start to answering, latency over HTTP by number of clients, and who gets whose results.

    python benchmarks/app_load.py runs/scenes --images 5000 --clients 1 8 32 96

Starts `bitgen app RUN` in an empty home, once with the gallery to encode and once more, until it has answered. Then
draws a gallery of test scenes, serves it as `bitgen app` does, in a process of its own, and asks `/search` by words
from K clients at once; each waits for its answer before it asks again. "Refused" is the server's own 503: its queue is
full. At the end visitors ask for two checkpoints at once, and each answer is held against what that checkpoint answers
alone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import measure
import numpy as np
import psutil

from app.models import Choice, Models
from bitgen.images import picture
from bitgen.scenes import render


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("run", help="run folder with at least one checkpoint-N")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 96])
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    where = measure.begin(None, "seconds") | {"cores": os.cpu_count()}
    starts = []
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as folder:
        captions = draw(Path(folder), options.images)
        for what, gallery, places in (("its own gallery", None, {"HOME": home}),
                                      (f"{options.images} images", folder, None)):
            for attempt in ("encoded first", "encoded already"):
                with Server(options.run, gallery, places) as server:
                    starts.append([f"{what}, {attempt}", *server.started])
        print(measure.table(["start", "s to the first answer", "s of processors"], starts), flush=True)
        with Server(options.run, folder) as server:
            rows = [load(server, clients, options.seconds, captions) for clients in options.clients]
            own = visitors(server, options.run, captions)
    print(measure.table(["clients", "answers a second", "p50 s", "p95 s", "refused", "errors"], rows))
    print(measure.table(["two checkpoints at once", "of them"], own))
    measure.write(options.json, {"environment": where, "starts": starts, "load": rows, "two checkpoints": own})


def draw(folder: Path, images: int) -> list[str]:
    """The pictures as files; returns a caption of each."""
    scenes = render("test", images)
    for i in range(images):
        picture(scenes.pixels, i).save(folder / f"{i:05}.png")
    return [lines[0] for lines in scenes.captions]


class Server:
    """The app in a process of its own, from its start until it has answered once."""

    def __init__(self, run: str, gallery: str | None, places: dict[str, str] | None = None):
        """gallery: by default the app's own. places: environment variables that say where its files go."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}/"
        self.url, self.environment = f"{self.base}gradio_api/call/search", os.environ | (places or {})
        self.command = [sys.executable, "-m", "bitgen", "app", run, "--port", str(port)]
        self.command += ["--gallery", gallery] if gallery else []
        self.http = httpx.Client(timeout=120, limits=httpx.Limits(max_connections=256))

    def __enter__(self) -> Server:
        started = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, env=self.environment)
        while time.monotonic() < started + 600 and self.process.poll() is None:
            try:
                if self.ask("a red ring")[0] == "answered":
                    worked = sum(psutil.Process(self.process.pid).cpu_times()[:2])
                    self.started = time.monotonic() - started, worked
                    return self
            except httpx.TransportError:
                time.sleep(0.1)
        self.process.terminate()
        raise SystemExit("the app did not start")

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(60)

    def ask(self, words: str, checkpoint: str = "") -> tuple[str, list]:
        """(answered, refused or error; the hits) of one search."""
        data = [words, "", "images", 12, False, "", checkpoint]
        joined = self.http.post(self.url, json={"data": data})
        if joined.status_code == 503:
            return "refused", []
        if joined.status_code != 200:
            return "error", []
        events = self.http.get(f"{self.url}/{joined.json()['event_id']}").text
        if "event: complete" not in events:
            return "error", []
        return "answered", json.loads(events.rpartition("data: ")[2])[0]


def load(server: Server, clients: int, seconds: float, captions: list[str]) -> list:
    """A row: clients, answers a second, median and 95th percentile of the seconds they took, refused, errors."""
    until = time.monotonic() + seconds

    def client(number: int) -> list[tuple[str, float]]:
        seen = []
        while time.monotonic() < until:
            started = time.monotonic()
            state, _ = server.ask(captions[(number + 97 * len(seen)) % len(captions)])
            seen.append((state, time.monotonic() - started))
            if state == "refused":
                time.sleep(0.5)  # as a polite client does
        return seen

    with ThreadPoolExecutor(clients) as pool:
        seen = [one for each in pool.map(client, range(clients)) for one in each]
    waited = np.array([waited for state, waited in seen if state == "answered"])
    count = {state: sum(one == state for one, _ in seen) for state in ("refused", "error")}
    half, most = np.quantile(waited, [0.5, 0.95]) if len(waited) else (np.nan, np.nan)
    return [clients, len(waited) / seconds, half, most, count["refused"], count["error"]]


def visitors(server: Server, run: str, captions: list[str], questions: int = 500) -> list[list]:
    """Rows about two checkpoints asked at once: how many answers are the asked one's own."""
    names = ["", Models([run]).checkpoints(Choice(run))[-1]]
    asked = [(captions[i % 50], names[i // 50 % 2]) for i in range(questions)]
    alone = {one: server.ask(*one) for one in dict.fromkeys(asked)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: server.ask(*one), asked))
    right = sum(answer == alone[one] and answer[0] == "answered" for one, answer in zip(asked, found))
    differ = sum(alone[words, names[0]] != alone[words, names[1]] for words in captions[:50])
    return [["answers that are the asked one's own", f"{right} of {questions}"],
            ["queries that the two answer differently", f"{differ} of 50"]]


if __name__ == "__main__":
    main()
