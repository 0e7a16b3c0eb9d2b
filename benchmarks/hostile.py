"""What hostile checkpoints cost.

    python benchmarks/hostile.py
    python benchmarks/hostile.py --mutations 1000

Each case of `tests/strangers.py` is loaded in a process of its own; a row is seconds of processor time, memory
beyond what the process had before, and the reason of the refusal. `--mutations` then changes random bytes of a valid
checkpoint N times, each of which has to be refused or to load. The exit status is 1 where a case was not refused, took
more than 5 s or 300 MB, or ran what it carried.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import measure  # noqa: E402
import strangers  # noqa: E402

from bitgen.hub import load  # noqa: E402

SECONDS, BYTES, GOOD = 5.0, 300e6, "ok"
COLUMNS = ("case", "as promised", "s", "MB", "what was said")


def attempt(name: str, folder: Path) -> list:
    """A row about loading the spoiled folder: whether all is as promised, seconds, MB and the reason."""
    started = time.process_time()
    with strangers.memory() as used:
        try:
            load(folder)
            reason = "NOT REFUSED"
        except ValueError as error:
            reason = str(error).replace(f"{folder}/", "")
    seconds, peak = time.process_time() - started, used()
    ran = (folder / strangers.CANARY).exists()
    good = reason != "NOT REFUSED" and not ran and seconds <= SECONDS and peak <= BYTES
    return [name, GOOD if good else "BAD", seconds, peak / 1e6, "RAN. " * ran + reason[:90]]


def isolated(name: str, action: Callable[..., list], *arguments) -> list:
    """The row of `action(name, …)` in a forked process; one that says so where it died."""
    theirs, ours = os.pipe()
    if not (child := os.fork()):
        os.write(ours, json.dumps(action(name, *arguments)).encode())
        os._exit(0)
    os.close(ours)
    with open(theirs, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else [name, "BAD", math.nan, math.nan, "the process died"]


def mutate(folder: Path, chance: random.Random) -> None:
    """Overwrite, remove or repeat up to four short stretches of one file, most often of its first kilobytes."""
    path = folder / chance.choice(["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"])
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(min(len(data), chance.choice([16, 1000, 10**9])))
        stretch = chance.randint(1, 8)
        new = chance.choice([chance.randbytes(stretch), b"", bytes(data[start: start + stretch]) * 2, b"9" * stretch,
                             chance.choice([b"[", b"{", b'"', b"-1", b"null", b"1e999", b"\0"])])
        data[start: start + stretch] = new
    path.write_bytes(data)


def mutations(name: str, valid: Path, count: int) -> list:
    """A row about loading `count` mutations: the slowest one's seconds, the most memory, how many ended how. Anything
    but a model or a `ValueError` ends the process."""
    ends, slowest, chance = Counter(), 0.0, random.Random(0)
    with strangers.memory() as used, tempfile.TemporaryDirectory() as place:
        for _ in range(count):
            folder = Path(shutil.copytree(valid, Path(place) / "checkpoint-1", dirs_exist_ok=True))
            mutate(folder, chance)
            started = time.process_time()
            try:
                load(folder)
                ends["loaded"] += 1
            except ValueError:
                ends["refused"] += 1
            slowest = max(slowest, time.process_time() - started)
        good = slowest <= SECONDS and used() <= BYTES
        return [name, GOOD if good else "BAD", slowest, used() / 1e6, str(dict(ends))]


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--mutations", type=int, default=0)
    options = parser.parse_args()
    where = measure.begin(None, "CPU seconds")
    with tempfile.TemporaryDirectory() as place:
        valid = strangers.write(Path(place) / "valid")
        load(valid)
        rows = []
        for name, (spoil, _) in strangers.CASES.items():
            folder = Path(shutil.copytree(valid, Path(place) / "checkpoint-1"))
            spoil(folder)
            rows.append(isolated(name, attempt, folder))
            shutil.rmtree(folder)
        refused = sum(row[1] == GOOD for row in rows)
        if options.mutations:
            rows.append(isolated("mutations", mutations, valid, options.mutations))
    print(measure.table(COLUMNS, rows))
    print(f"{refused} of {len(strangers.CASES)} refused within {SECONDS:.0f} s and {BYTES / 1e6:.0f} MB")
    measure.write(options.json, {"environment": where, "columns": COLUMNS, "rows": rows})
    return int(any(row[1] != GOOD for row in rows))


if __name__ == "__main__":
    sys.exit(main())
