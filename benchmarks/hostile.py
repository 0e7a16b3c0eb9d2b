"""What hostile checkpoints cost: `python benchmarks/hostile.py [--mutations N]`.

Each case of `tests/strangers.py` is loaded in a process of its own; printed are seconds of processor time, memory
beyond what the process had before, and the reason of the refusal. `--mutations` then changes random bytes of a valid
checkpoint N times, each of which has to be refused or to load. The exit status is 1 where a case was not refused, took
more than 5 s or 300 MB, or ran what it carried.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import strangers  # noqa: E402

from bitgen.hub import load  # noqa: E402

SECONDS, BYTES = 5.0, 300e6


def attempt(name: str, folder: Path) -> bool:
    """Load the spoiled folder; prints what it cost, returns whether that is as promised."""
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
    print(f"{'ok ' if good else 'BAD'}  {seconds:5.2f} s {peak / 1e6:6.0f} MB  {name}: {'RAN. ' * ran}{reason[:90]}",
          flush=True)
    return good


def isolated(action) -> bool:
    """`action()` in a forked process; false where it died."""
    if not (child := os.fork()):
        os._exit(0 if action() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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


def mutations(valid: Path, count: int) -> bool:
    """Load `count` mutations; anything but a model or a `ValueError` ends the process."""
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
        print(f"mutations: {dict(ends)}, slowest {slowest:.2f} s, {used() / 1e6:.0f} MB more at the peak")
    return slowest <= SECONDS and used() <= BYTES


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--mutations", type=int, default=0)
    count = options.parse_args().mutations
    with tempfile.TemporaryDirectory() as place:
        valid = strangers.write(Path(place) / "valid")
        load(valid)
        good = []
        for name, (spoil, _) in strangers.CASES.items():
            folder = Path(shutil.copytree(valid, Path(place) / "checkpoint-1"))
            spoil(folder)
            good.append(isolated(lambda name=name, folder=folder: attempt(name, folder)))
            shutil.rmtree(folder)
        print(f"{sum(good)} of {len(good)} refused within {SECONDS:.0f} s and {BYTES / 1e6:.0f} MB")
        fine = all(good) and (not count or isolated(lambda: mutations(valid, count)))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
