"""Exit statuses, and the exception that carries one out of a run."""

from __future__ import annotations

DAMAGED = 3
"""Every checkpoint that there is to resume from is damaged."""
INPUT = 65
"""Bad input."""
WORKER = 70
"""A process that makes batches was killed, or hangs."""
DISK = 74
"""Checkpoints cannot be written."""
PUSH = 75
"""The last checkpoint is not on the Hub; it waits in the run folder."""
NUMBERS = 76
"""Losses or gradients are not finite."""
HOPELESS = 77
"""A check of the run's health was bad for long, and `stop_on` says to end then."""
SIGNAL = 128
"""Plus the signal's number."""


class Stop(Exception):
    """The run ends before its last step. `code` is the process's exit status, `args[0]` what to tell the user."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
