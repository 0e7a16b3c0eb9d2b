"""Which model and which gallery a visitor looks at, and the few of each that stay in memory.

A `View` is plain values: it lives in the visitor's session, while models and galleries are shared by all visitors and
never changed. Any thread may ask; what is not there is loaded, one at a time.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from app import facts
from app.facts import Fact
from bitgen.download import Commit
from bitgen.hub import load
from bitgen.model import BitGen
from bitgen.processing import Processor

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}")
REVISION = re.compile(r"\w[\w./-]{0,199}")
KEPT = 2  # models in memory


@dataclass(frozen=True)
class Choice:
    """A checkpoint: run folder or Hub id, a `checkpoint-N` in it or None for the newest, a revision on the Hub."""

    source: str
    checkpoint: str | None = None
    revision: str | None = None

    @property
    def title(self) -> str:
        """What the page calls it."""
        name = self.source if HUB_ID.fullmatch(self.source) else Path(self.source).name
        return " · ".join(filter(None, [name, self.revision, self.checkpoint or "newest weights"]))


@dataclass(frozen=True)
class View:
    """What a visitor looks at: a checkpoint, and a gallery by its name."""

    choice: Choice
    gallery: str


class Loaded(NamedTuple):
    """A model in evaluation mode with its processor. Shared by all visitors: nobody changes it."""

    model: BitGen
    processor: Processor
    facts: tuple[Fact, ...] = ()
    """What its memory was told before it was saved (`app.saved`)."""


ANSWERING: ContextVar[bool] = ContextVar("ANSWERING", default=False)
"""Whether this thread answers a visitor, others waiting for its place: then nothing is loaded in it."""


class Absent(Exception):
    """What an answer needs is not in memory. `load()` brings it there, and raises what loading raises."""

    def __init__(self, load: Callable):
        super().__init__("not in memory")
        self.load = load


class Recent:
    """The `keep` things last asked for, made by `make(key)` when they are not there; safe for threads.

    One thing is made at a time, and who waits for the same one finds it there. What is there is answered at once, also
    while something else is being made.
    """

    def __init__(self, make: Callable, keep: int):
        self._make, self._keep = make, keep
        self._there: OrderedDict[Hashable, object] = OrderedDict()
        self._look, self._making = threading.Lock(), threading.RLock()

    def __len__(self) -> int:
        return len(self._there)

    def get(self, key: Hashable, *how):
        """The thing of `key`; `how` goes to `make` where it has to be made. Raises what `make` raises, and `Absent`
        where it is not there and this thread is `ANSWERING`.
        """
        found = self._find(key)
        if found is not None:
            return found
        if ANSWERING.get():
            raise Absent(lambda: self.get(key, *how))
        with self._making:
            found = self._find(key)
            if found is None:
                found = self._make(key, *how)
                with self._look:
                    self._there[key] = found
                    while len(self._there) > self._keep:
                        self._there.popitem(last=False)
        return found

    def drop(self, wanted: Callable[[Hashable], bool]) -> None:
        """Forget what has a key that is `wanted`."""
        with self._look:
            for key in [key for key in self._there if wanted(key)]:
                del self._there[key]

    def _find(self, key: Hashable):
        with self._look:
            if key in self._there:
                self._there.move_to_end(key)
            return self._there.get(key)


class Models:
    """The checkpoints a visitor may choose: local runs that the owner of the app offers, and anything on the Hub."""

    def __init__(self, runs: list[str]):
        self.runs = runs
        self._recent = Recent(self._load, KEPT)

    def get(self, choice: Choice) -> Loaded:
        """The model of a choice that `choose` made. Raises `ValueError` as `bitgen.load` does."""
        return self._recent.get(choice)

    def choose(self, source: str, checkpoint: str | None = None, revision: str | None = None) -> Choice:
        """A visitor's choice, checked: a local path is taken only if it is one of `runs`.

        Raises `ValueError` for anything that is neither an offered run nor a Hub id.
        """
        source, revision = (source or "").strip(), (revision or "").strip() or None
        if source not in self.runs and (not HUB_ID.fullmatch(source) or os.path.exists(source)):
            raise ValueError(f"{source[:100]!r}: choose one of the runs in the list, or type a Hub id such as ORG/NAME")
        if source in self.runs and revision:
            raise ValueError("a revision belongs to a Hub id; a local run has none")
        if revision and not REVISION.fullmatch(revision):
            raise ValueError(f"revision {revision[:100]!r}: expected a branch, a tag or a commit")
        if checkpoint and not CHECKPOINT.fullmatch(checkpoint):
            raise ValueError(f"checkpoint {checkpoint[:100]!r}: expected a name such as checkpoint-1000")
        return Choice(source, checkpoint or None, revision)

    def checkpoints(self, choice: Choice) -> list[str]:
        """Names of the checkpoints of a run or repository, newest first. Asks the Hub for a Hub id."""
        if choice.source in self.runs:
            names = [path.name for path in Path(choice.source).iterdir() if path.is_dir()]
        else:
            names = Commit.at(choice.source, choice.revision).listing()[1]
        numbers = {int(match[1]) for name in names if (match := CHECKPOINT.fullmatch(name))}
        return [f"checkpoint-{number}" for number in sorted(numbers, reverse=True)]

    @staticmethod
    def _load(choice: Choice) -> Loaded:
        model, processor = load(choice.source, checkpoint=choice.checkpoint, revision=choice.revision)
        folder = Path(choice.source, choice.checkpoint or "")  # of a Hub id there is none
        return Loaded(model, processor, facts.read(folder, model.config.hidden_size) if model.memory else ())


def find_runs(folder: str | Path = "runs") -> list[str]:
    """Run folders below `folder` that hold a model, newest first."""
    found = [path for path in Path(folder).glob("*/model.safetensors") if path.with_name("config.json").is_file()]
    return [str(path.parent) for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]
