"""How events are answered: a few at a time, none in the way of a load, and none for longer than its time.

gradio (6.31) gives an event its place until its callback returns, whatever it waits for. Here who has to wait for a
model or a gallery makes room for another event meanwhile, and no sooner: an event that is let in reads the session's
state at once, before those that it follows have changed it. gradio has no deadline either, but for streams. Here who
has waited too long is told, and the place is free; the thread ends when its work does, for Python can stop none.
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
from app.pages import ASK, FAILED, for_programs, plain

LATE = "This took longer than {} s and was given up. What is loaded for it goes on being loaded: ask again later."
BUSY = "Models or galleries of other visitors are being loaded: ask again in a moment."


class Answers:
    """The places of one app, shared by all its visitors."""

    def __init__(self, demo: gr.Blocks):
        self._demo, self._loading = demo, asyncio.Semaphore(limits.WAITING)

    def answered(self, event) -> Callable:
        """The callback of one of gradio's events as it is to be called. It is called once more when what was not in
        memory has been loaded."""
        callback, told = event.fn, for_programs if event.api_visibility == "public" else plain

        @functools.wraps(callback)
        async def answer(*args, **kwargs):
            with anyio.move_on_after(limits.ANSWER_SECONDS):
                return await self._compute(functools.partial(callback, *args, **kwargs), told)
            raise gr.Error(LATE.format(limits.ANSWER_SECONDS), title=FAILED, print_exception=False)
        return answer

    async def _compute(self, callback: Callable, told: Callable):
        while True:
            try:
                return await to_thread.run_sync(_answering, callback, abandon_on_cancel=True)
            except Absent as absent:
                await self._load(told(absent.load))

    async def _load(self, load: Callable) -> None:
        if self._loading.locked():
            raise gr.Error(BUSY, title=FAILED, print_exception=False)
        places = self._demo._queue.event_queue_per_concurrency_id[ASK["concurrency_id"]]
        async with self._loading:
            places.current_concurrency -= 1  # not its limit, which every request sets again
            try:
                await to_thread.run_sync(load, abandon_on_cancel=True)
            finally:
                places.current_concurrency += 1


def _answering(callback: Callable):
    ANSWERING.set(True)  # in the context that anyio copies for each call
    return callback()
