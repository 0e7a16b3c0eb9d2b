"""Sessions as gradio keeps them, without what each would cost.

gradio (6.31) describes every part of the page anew for each session, 24 ms and 0.4 MB on this page, in the one thread
that all answers come through; it does so for links into a session's state, which this page does not offer. And where a
program asks an endpoint without a session, each of its calls is given one, which stays until `limits.SESSIONS` newer
ones push it out, and visitors with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

from gradio.state_holder import SessionState, StateHolder

from app import heap, limits


class Session(SessionState):
    """What is kept for one visitor: the values of `gr.State`, and no description of the page."""

    def __init__(self, blocks):
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))
        self.STATE_TTL_WHEN_CLOSED = limits.CLOSED_SECONDS

    def _update_config(self, key):
        """Nothing: it would only be read to make a link."""

    def _update_value_in_config(self, key, value):
        """Nothing, likewise."""


class Sessions(StateHolder):
    """The sessions of all visitors; a call without a session leaves none behind."""

    def __getitem__(self, session_id: str) -> Session:
        """The session of this name; a new one where there is none."""
        if session_id in self.blocks._queue.event_ids_to_events:  # a call that brought no session goes by its own name
            return Session(self.blocks)
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        return super().__getitem__(session_id)


@asynccontextmanager
async def lean(app) -> AsyncIterator[None]:
    """For the life of a gradio server: its sessions are `Sessions`, and memory that was freed goes back."""
    app.state_holder = Sessions()
    app.state_holder.set_blocks(app.get_blocks())
    trimming = asyncio.create_task(heap.keep_trimmed())
    try:
        yield
    finally:
        trimming.cancel()
