"""How events are answered: a few at a time, none in the way of a load, and none for longer than its time.

gradio gives an event its place until its callback returns, whatever it waits for. So it lets in more events than are
computed at a time, and who has to wait for a model or a gallery gives the place to compute to another meanwhile. It
(6.31) has no deadline either, but for streams. Here who has waited too long is told, and the place is free; the thread
ends when its work does, for Python can stop none.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import anyio
import gradio as gr
from anyio import to_thread

from app import limits
from app.models import ANSWERING, Absent
from app.pages import FAILED, plain

LATE = "This took longer than {} s and was given up. What is loaded for it goes on being loaded: ask again later."
BUSY = "Models or galleries of other visitors are being loaded: ask again in a moment."


class Answers:
    """The places of one app, shared by all its visitors."""

    def __init__(self):
        self._computing = asyncio.Semaphore(limits.ANSWERS)
        self._loading = asyncio.Semaphore(limits.WAITING)

    def answered(self, callback: Callable) -> Callable:
        """`callback` as gradio is to call it. It is called once more when what was not in memory has been loaded."""
        @functools.wraps(callback)
        async def answer(*args, **kwargs):
            with anyio.move_on_after(limits.ANSWER_SECONDS):
                return await self._compute(functools.partial(callback, *args, **kwargs))
            raise gr.Error(LATE.format(limits.ANSWER_SECONDS), title=FAILED, print_exception=False)
        return answer

    async def _compute(self, callback: Callable):
        while True:
            try:
                async with self._computing:
                    return await to_thread.run_sync(_answering, callback, abandon_on_cancel=True)
            except Absent as absent:
                await self._load(absent)

    async def _load(self, absent: Absent) -> None:
        if self._loading.locked():
            raise gr.Error(BUSY, title=FAILED, print_exception=False)
        async with self._loading:
            await to_thread.run_sync(plain(absent.load), abandon_on_cancel=True)


def _answering(callback: Callable):
    ANSWERING.set(True)  # in the context that anyio copies for each call
    return callback()
