"""What of a run waits to be pushed, and what was: both on disk, since a run may end at any moment.

    outbox/huggingface.co--ann--scenes/00000007-2000/   what the repository is to hold: checkpoint-2000/ and its card
    push_state.json                                     by repository what was pushed, when, how the last try ended
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bitgen.checkpoint import MANIFEST, replace_text
from bitgen.lock import locked

STATE = "push_state.json"
ROOT = ("model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json")
"""Files of the newest checkpoint that also lie at the repository's root."""
CARD = ("README.md", "curves.png")
"""Files of the run folder that lie beside them where there are any."""
ENTRY = re.compile(r"\d+-\d+")


@dataclass
class State:
    """Of one repository in `push_state.json`: what has to outlive the process."""

    pushed: list[int] = field(default_factory=list)
    """Steps of the checkpoints there that this run has pushed, the last one last: the only ones it may delete."""
    manifests: dict[str, str] = field(default_factory=dict)
    """Git's names of their manifests, by `checkpoint-N`: another run's checkpoint of that step has another."""
    commits: list[float] = field(default_factory=list)
    """When commits were made, seconds since 1970; those of the last hour."""
    best: int | None = None
    """The checkpoint that does not rotate out."""
    last: dict = field(default_factory=dict)
    """How the last try ended: step, kind, reason, commit, time, tries."""

    @classmethod
    def read(cls, path: Path, repository: str) -> State:
        """The state of the run's earlier processes, or an empty one for a repository that is new to it."""
        try:
            return cls(**_records(path).get(repository, {}))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a record of pushes ({error}); without it, checkpoints on the Hub that it "
                             "named are no longer deleted when they rotate out: remove it to go on") from None

    def write(self, path: Path, repository: str) -> None:
        """Replaces the file in one step; what it says of other repositories stays."""
        replace_text(path, json.dumps(_records(path) | {repository: asdict(self)}, indent=1) + "\n")


def _records(path: Path) -> dict[str, dict]:
    """What the file says, by repository (endpoint and name); it once was of one alone."""
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {values.pop("repository"): values} if "repository" in values else values


class Outbox:
    """Entries to push to one `repository`, the newest last; one process at a time and run, or `ValueError`.

    An entry is a folder laid out as the repository is to be. Its files are hard links, so that it costs a millisecond
    and stays whole when checkpoints rotate out. Call `close` in the end.
    """

    def __init__(self, run_folder: Path, repository: str):
        self.run = run_folder
        self.folder = run_folder / "outbox" / repository.rpartition("://")[2].replace("/", "--")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self.folder.parent / ".lock", f"{self.run}: another process is pushing this run")

    def close(self) -> None:
        """Lets another process have it."""
        self._lock.close()

    def entries(self) -> list[Path]:
        """What waits, the newest last; nothing where that cannot be read, or was removed to make room."""
        try:
            return self._listed()
        except OSError:
            return []

    def _listed(self) -> list[Path]:
        return sorted(entry for entry in self.folder.iterdir() if ENTRY.fullmatch(entry.name))

    def add(self, step: int) -> Path:
        """Queues `checkpoint-{step}` of the run, whole as soon as it is seen. Raises `OSError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("*.tmp"):
            shutil.rmtree(leftover)
        name = f"checkpoint-{step}"
        places = [self.run / name, self.run / f"{name}.old"]
        source = next((place for place in places if (place / MANIFEST).is_file()), places[0])
        number = max((_number(entry) for entry in self._listed()), default=-1) + 1
        entry = self.folder / f"{number:08}-{step}"
        partial = entry.with_suffix(".tmp")
        (partial / name).mkdir(parents=True)
        for path in source.iterdir():
            _link(path, partial / name / path.name)
        for file in ROOT:
            _link(source / file, partial / file)
        for file in CARD:  # copied: unlike a checkpoint, they are written again
            if (self.run / file).is_file():
                shutil.copyfile(self.run / file, partial / file)
        os.rename(partial, entry)
        return entry

    def drop(self, entries: list[Path]) -> None:
        """Removes entries, as far as the disk lets it."""
        for entry in entries:
            shutil.rmtree(entry, ignore_errors=True)


def step_of(entry: Path) -> int:
    """The step of the checkpoint in an entry."""
    return int(entry.name.split("-")[1])


def _number(entry: Path) -> int:
    return int(entry.name.split("-")[0])


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
