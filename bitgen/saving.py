"""Where checkpoints go: into the run folder, and from there, with the model card, to the Hub."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from bitgen import card, checkpoint
from bitgen.config import Config
from bitgen.exits import PUSH, Stop
from bitgen.hub import split_revision
from bitgen.outbox import ROOT
from bitgen.push import Publisher

FAILED = 3
"""Saves in a row that fail before the run ends."""
PUSHING, LEAVING = 900.0, 3.0
"""Seconds that the last push may take at the end of a run, and of one that is told to stop: it can be made up for."""


class Saver:
    """The main process's. Raises `ValueError` where it is known at the start that the Hub will take nothing."""

    def __init__(self, config: Config):
        self.folder, self.keep = Path(config.output_dir), config.keep
        self.failed = 0
        self.private = " --private" if config.hub.private else ""
        self.publisher = Publisher(self.folder, config.hub) if config.hub.repo is not None else None
        if self.publisher:
            self.publisher.check()

    def save(self, step: int, writers: dict[str, Callable[[Path], None]], best_step: int | None, push: bool,
             size: int) -> None:
        """`checkpoint-{step}` of about `size` bytes, offered to the Hub where `push`.

        A failure is a warning; `failed` counts those in a row.
        """
        try:
            path = checkpoint.save(self.folder, step, writers, self.keep, best_step, estimate=size)
            checkpoint.publish(path, ROOT, self.folder)
        except checkpoint.CheckpointError as error:
            self.failed += 1
            _say(f"warning: {error}; training goes on")
            return
        self.failed = 0
        if push:
            self.offer(step, best_step)

    def publish(self, path: Path) -> None:
        """Weights of the checkpoint that the run goes on from at its root: a kill may have come between the two."""
        try:
            checkpoint.publish(path, ROOT, self.folder)
        except checkpoint.CheckpointError as error:
            _say(f"warning: {error}; training goes on")

    def offer(self, step: int, best_step: int | None) -> None:
        """The model card brought up to date, and `checkpoint-{step}`, which stands, on its way to the Hub."""
        self._write_card()
        if self.publisher:
            self.publisher.offer(step, best_step)

    def pushed(self) -> dict | None:
        """What a checkpoint keeps of the pushes so far; None where there is no Hub."""
        return self.publisher and self.publisher.pushed()

    def adopt(self, pushed: dict | None, resumed: Path, source: str) -> None:
        """Go on with the pushes of a run that is resumed from `source`, of which `resumed` is the checkpoint."""
        if self.publisher and pushed:
            repo = split_revision(source.removeprefix("hub://"))[0] if source.startswith("hub://") else None
            self.publisher.adopt(pushed, resumed if repo == self.publisher.hub.repo else None)

    def landed(self) -> int | None:
        """Step of the newest checkpoint that is on the Hub, 0 before the first; None where there is no Hub."""
        return None if self.publisher is None else self.publisher.status().landed or 0

    def _write_card(self) -> None:
        try:
            card.write(self.folder)
        except (OSError, ValueError) as error:
            _say(f"warning: the model card {self.folder / card.CARD} is not up to date: {error}")

    def close(self, patience: float = PUSHING) -> None:
        """Waits at most `patience` seconds for the last push, and says what is on the Hub.

        Raises `Stop` where that is not the last checkpoint.
        """
        if self.publisher is None:
            return
        status = self.publisher.close(patience)
        _say(str(status))
        if not status.complete:
            raise Stop(f"checkpoint-{status.wanted} is not on the Hub; to try again: "
                       f"bitgen push {self.folder} --repo {status.repo}{self.private}", PUSH)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
