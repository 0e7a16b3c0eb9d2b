"""Every fault of the Hub at every request of a push: how it ends, how soon, and what training notices of it.

    python benchmarks/hub_faults.py                       # all cases; --endpoints commit put for some of them

For each case a run offers a checkpoint to the Hub of the tests while the fault lasts, "trains" (matrix products) until
the first try has ended, then the fault ends and the run closes. A row is one fault: for each endpoint the kind of the
outcome (`done`, `auth`, `quota`, `conflict`, `transient`, `bug`), seconds of the first try, and tries until the
checkpoint was there after the fault. Every state of the repository seen by a reader is checked to be whole.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import measure
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = str(ROOT)

from hub_server import HubServer  # noqa: E402
from test_push import REPO, save, whole  # noqa: E402

from bitgen.config import HubConfig  # noqa: E402
from bitgen.push import Publisher  # noqa: E402
from bitgen.repository import Limits  # noqa: E402

ENDPOINTS = ("whoami", "create", "preupload", "batch", "put", "verify", "commit")
LIMITS = Limits(connect=0.5, read=0.5, deadline=60, first_wait=0.05, longest_wait=0.1, commits_per_hour=1000)
SHORT = dataclasses.replace(LIMITS, deadline=10)  # where connections break: the client repeats those for half a minute
CONFLICT = "Cannot create repo: another conflicting operation is in progress"
FAULTS = {  # name: (kind, headers, what a try may make of it)
    "refused": ("refused", {}, {"transient"}), "silent": ("silent", {}, {"transient"}),
    "1 kB/s": ("slow", {}, {"done", "transient"}),
    "401": (401, {}, {"auth"}), "403": (403, {}, {"auth"}), "404": (404, {}, {"auth"}),
    "409": (409, {}, {"conflict"}), "412": (412, {}, {"conflict"}), "413": (413, {}, {"quota"}),
    "429": (429, {}, {"transient"}), "429 after 3": (429, {"Retry-After": "3"}, {"transient"}),
    "429 after 3600": (429, {"Retry-After": "3600"}, {"transient"}),
    "429 RateLimit": (429, {"RateLimit": '"api";r=0;t=4'}, {"transient"}),
    "500": (500, {}, {"transient"}), "502": (502, {}, {"transient"}), "503": (503, {}, {"transient"}),
    "504": (504, {}, {"transient"}), "quota": ("quota", {}, {"quota"}), "reset before": ("reset", {}, {"transient"}),
    "reset after": ("lost", {}, {"transient"}),
    "cut": ("cut", {}, {"done", "transient"}), "HTML": ("html", {}, {"done", "transient"}),  # put has no answer to lose
}


class Case:
    """One fault at one endpoint, from its beginning to the checkpoint's arrival."""

    def __init__(self, endpoint: str, fault: str, folder: Path, steps: list[float]):
        self.endpoint, self.name, self.folder, self.steps = endpoint, fault, folder, steps
        self.kind, self.headers, self.allowed = FAULTS[fault]
        self.torn, self.done = [], threading.Event()

    def run(self) -> tuple[str, float, int, str]:
        """Kind of the outcome, seconds until the first try ended, tries after the fault, and what was wrong."""
        with HubServer() as self.hub:
            os.environ.update(self.hub.env(self.folder / "home"))
            reader = threading.Thread(target=self._read)
            if self.endpoint != "create":
                self.hub.seed(REPO, {})
            reader.start()
            save(self.folder, 1)
            self.messages = []
            limits = LIMITS if isinstance(self.kind, int) else SHORT
            run = Publisher(self.folder, HubConfig(repo=REPO), limits, tell=self.messages.append)
            begun = time.monotonic()
            kind = self._fail(run)
            seconds = time.monotonic() - begun
            tries, status = self._recover(run)
            self.done.set()
            reader.join()
            wrong = [f"ended as {kind}"] * (kind not in self.allowed) + self.torn[:1]
            wrong += [] if status.complete and whole(self.hub.files(REPO)) == [1] else [f"is not there: {status}"]
            wrong += ["two commits"] * (self.hub.commits(REPO).count("checkpoint-1") > 1)
        return kind, seconds, tries, "; ".join(wrong)

    def _fail(self, run: Publisher) -> str:
        """Everything that happens under the fault; returns how it ended."""
        if self.kind == "refused":
            nobody = socket.socket()
            nobody.bind(("127.0.0.1", 0))  # and listens not
            self.closed = (nobody, self.hub.storage)
            address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            self.hub.storage = address
            if self.endpoint != "put":
                os.environ["HF_ENDPOINT"] = address
        else:
            self.hub.fault(self.endpoint, self.kind, headers=self.headers, message=CONFLICT if self.kind == 409 else "")
        if self.endpoint in ("whoami", "create"):
            return self._checked(run)
        run.offer(1)
        while not run.state.last:
            self._train()
        return run.state.last["kind"]

    def _checked(self, run: Publisher) -> str:
        outcome, ask = [], run._ask
        run._ask = lambda job: outcome.append(ask(job)) or outcome[-1]
        try:
            run.check()
        except ValueError:
            assert outcome[0].kind not in ("done", "transient", "conflict"), outcome
        run._ask = ask
        return outcome[0].kind

    def _recover(self, run: Publisher):
        self.hub.clear()
        run.limits = LIMITS
        os.environ["HF_ENDPOINT"] = self.hub.url
        if self.kind == "refused":
            self.closed[0].close()
            self.hub.storage = self.closed[1]
        asked = len(self.hub.requests)
        if not run.state.pushed:  # what is slow may have arrived
            run.offer(1)
        status = run.close(60)
        looked = [endpoint for endpoint, method, *_ in self.hub.requests[asked:] if endpoint == "tree"]
        return len(looked), status

    def _train(self) -> None:
        """Steps of a training that has nothing to do with the Hub."""
        matrix = np.full((256, 256), 0.5, dtype=np.float32)
        for _ in range(20):
            begun = time.perf_counter()
            for _ in range(4):
                matrix = matrix @ matrix * 1e-3
            self.steps.append(time.perf_counter() - begun)
            time.sleep(0.002)

    def _read(self) -> None:
        while not self.done.wait(0.05):
            if REPO in self.hub.repos:
                try:
                    whole(self.hub.files(REPO))
                except (AssertionError, KeyError) as error:
                    self.torn.append(f"a reader saw {error!r}")


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--endpoints", nargs="+", choices=ENDPOINTS, default=ENDPOINTS)
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    options = parser.parse_args()
    where = measure.begin(None, "seconds")
    busy, quiet, failures, rows = [], [], [], []
    print(measure.table(["fault", *options.endpoints], []), end="", flush=True)
    for fault in options.faults:
        cells = []
        for endpoint in options.endpoints:
            with tempfile.TemporaryDirectory() as folder:
                case = Case(endpoint, fault, Path(folder), busy)
                kind, seconds, tries, wrong = case.run()
                case.steps, enough = quiet, len(quiet) + 100
                while len(quiet) < min(len(busy), enough):
                    case._train()
            rows.append({"fault": fault, "endpoint": endpoint, "outcome": kind, "seconds": seconds, "tries": tries,
                         "wrong": wrong})
            failures += [f"{fault} at {endpoint}: {wrong}"] if wrong else []
            cells.append(f"{kind} {seconds:.1f} s, {tries}" + "!" * bool(wrong))
        print(measure.row([fault, *cells]), flush=True)
    print("\n" + "\n".join([f"{len(rows)} cases, {len(failures)} wrong", *failures]))
    steps = {name: 1000 * statistics.median(taken) for name, taken in
             (("while pushing", busy), ("without", quiet)) if taken}
    if steps:
        print("\n" + measure.table(["median step", "ms"], list(steps.items())))
    measure.write(options.json, {"environment": where, "cases": rows, "median step, ms": steps})
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
