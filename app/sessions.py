"""Sessions as gradio keeps them, without what each would cost.

gradio (6.31) describes every part of the page anew for each session, 24 ms and 0.4 MB on this page, in the one thread
that all answers come through; it does so for links into a session's state, which this page does not offer. And where a
program asks an endpoint without a session, each of its calls is given one, which stays until `limits.SESSIONS` newer
ones push it out, and visitors with it. A session whose page was closed stays as long, its state alone is let go; and of
every session and every call without one, the queue keeps its letter-box.

When that state goes is counted from when it was last written, so that of who has searched for an hour everything would
go with the first moment without a connection. Here time counts for who has left alone, from when he left or last asked.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

from gradio.state_holder import SessionState, StateHolder

from app import heap, limits


class Session(SessionState):
    """What is kept for one visitor: the values of `gr.State`, and no description of the page."""

    def __init__(self, blocks):
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))
        self.blocks_config.fns = blocks.default_config.fns  # the same for all: no event belongs to one session alone

    @property
    def is_closed(self) -> bool:
        """Whether its connection broke off. A page makes none anew (gradio 6.31), so this stays, whoever asks again."""
        return self._is_closed

    @is_closed.setter
    def is_closed(self, closed: bool) -> None:
        self._is_closed = closed
        self.keep(limits.CLOSED_SECONDS)

    def keep(self, seconds: float) -> None:
        """From now on, where it is closed; while it is open nothing goes."""
        self.STATE_TTL_WHEN_CLOSED = seconds
        self._state_ttl = dict.fromkeys(self._state_ttl, (float("inf"), datetime.datetime.now()))

    def __setitem__(self, key, value):
        """A part's value; what describes it is not kept."""
        super().__setitem__(key, value)
        self.config_values.clear()

    def _update_config(self, key):
        """Nothing: it would only be read to make a link."""

    def _update_value_in_config(self, key, value):
        """Nothing, likewise."""


class Sessions(StateHolder):
    """The sessions of all visitors; a call without a session leaves none behind."""

    def __init__(self):
        super().__init__()
        self.idle: dict[str, int] = {}  # letter-box -> seconds for which it was empty and nothing was awaited

    def __getitem__(self, session_id: str) -> Session:
        """The session of this name; a new one where there is none."""
        if session_id in self.blocks._queue.event_ids_to_events:  # a call that brought no session goes by its own name
            return Session(self.blocks)
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        session = super().__getitem__(session_id)
        if session.is_closed:  # only for a moment: there is somebody who asks
            session.keep(limits.UPLOAD_SECONDS)
        return session

    def delete_all_expired_state(self):
        """What gradio does every second: the state whose time is over goes. Here that of too many closed sessions goes
        too, and with its state the rest of a session, and the letter-boxes of the queue that nothing is awaited from.
        """
        super().delete_all_expired_state()
        closed = [name for name, session in list(self.session_data.items()) if session.is_closed]
        for name in closed[:max(0, len(closed) - limits.CLOSED)]:
            self.delete_state(name)
        for name, session in list(self.session_data.items()):
            if session.is_closed and not any(session.state_components):
                with self.lock:
                    self.session_data.pop(name, None)
                    self.time_last_used.pop(name, None)
        boxes, awaited = self.blocks._queue.pending_messages_per_session, self.blocks._queue.pending_event_ids_session
        self.idle = {name: self.idle.get(name, 0) + 1 for name, box in list(boxes.items())
                     if box.empty() and not awaited.get(name)}
        for name, passes in self.idle.items():
            if passes > limits.IDLE_SECONDS:  # not at once: an answer's stream looks for its box until it has ended
                boxes.pop(name, None)
        for name in set(awaited).difference(boxes):
            awaited.pop(name, None)


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
