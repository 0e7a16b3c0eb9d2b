"""SIGTERM and SIGINT, taken as a wish to end soon instead of at once."""

from __future__ import annotations

import signal

from bitgen.exits import SIGNAL


class Signals:
    """A context in which the first signal is only noted in `received` (0 for none) and a second one ends the process.

    Once `leaving` is set, because nothing is left to finish, the first one does so too.
    """

    def __init__(self) -> None:
        self.received, self.leaving = 0, False

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        if self.received or self.leaving:
            raise SystemExit(SIGNAL + number)
        self.received = number
