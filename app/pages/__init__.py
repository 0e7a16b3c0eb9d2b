"""The tabs' layout, one file each with `TITLE`, `ID` and `Page(shell)`. What they share stands here."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from app import limits
from app.bench import Bench
from app.gallery import Gallery, Progress
from bitgen.images import BadImage

ASK = {"concurrency_id": "ask", "concurrency_limit": limits.ANSWERS, "api_visibility": "private"}
"""For events that answer at once, over all visitors; `app.pages.answers` says what they do where something has to be
loaded first."""
LOAD = {"concurrency_id": "load", "concurrency_limit": 1, "api_visibility": "private"}
"""For events that load a model or encode a gallery: a queue of their own, so that nobody else waits for them."""
FAILED = "That did not work"
"""What stands above an error."""
WAIT = "One moment …"
"""What stands where an answer is still to come."""


@dataclass
class Shell:
    """What a tab is built into."""

    bench: Bench
    """Models and galleries, shared by all visitors: the first argument of every callback."""
    view: gr.State
    """`app.models.View`: what this visitor looks at. `shell.view.change(...)` fires when the page has opened and
    whenever another checkpoint or gallery was chosen."""
    query: gr.State
    """`app.search.Query`: the visitor's last search; `shell.query.change(...)` fires at the next one."""
    wanted: gr.State
    """`app.search.Query` that another tab asks Search for: output it here, and lead there through `tabs`."""
    tabs: gr.Tabs
    """To lead to another tab: output `gr.Tabs(selected=ID)` to it."""


def picture(height: int, elem_id: str) -> gr.Image:
    """Where a visitor puts a picture: a callback gets the path of its file.

    What is wrong with the file is for who reads it to say: gradio opens every one to look at its mode, and fails
    without a word.
    """
    shown = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], image_mode=None, height=height,
                     elem_id=elem_id, elem_classes=["pixelated", "filled"])
    opened = shown.preprocess
    shown.preprocess = lambda given: given.path if given is not None and given.path else opened(given)
    return shown


def plain(callback: Callable) -> Callable:
    """`callback` with its `ValueError`s shown to the visitor, as text and not as HTML."""
    return _told(callback, lambda told: _fail(html.escape(told)))


def for_programs(callback: Callable) -> Callable:
    """`callback` with its `ValueError`s told to a program, word by word: what it gets is JSON, which no page shows."""
    return _told(callback, _fail)


def in_place(callback: Callable) -> Callable:
    """`callback`, which gives a line and what it is about, with its `ValueError`s told by the line."""
    return _told(callback, lambda told: (html.escape(told), ""))


def _fail(told: str):
    raise gr.Error(told, title=FAILED, print_exception=False) from None


def _told(callback: Callable, tell: Callable) -> Callable:
    """`callback`, or what `tell` makes of the text of its `ValueError`."""
    @functools.wraps(callback)
    def answer(*args, **kwargs):
        try:
            return callback(*args, **kwargs)
        except ValueError as error:
            return tell(reason(error))
    return answer


def reason(error: ValueError) -> str:
    """What is wrong, without the folder in which the server keeps a visitor's picture."""
    name, colon, why = str(error).partition(": ")
    return Path(name).name + colon + why if isinstance(error, BadImage) else str(error)


def watched(progress: gr.Progress) -> Progress:
    """gradio's progress bar as callbacks know it: (share done, what is being done)."""
    return lambda share, text: progress(share, desc=text)


def thumbnail(gallery: Gallery, name: str) -> str:
    """A picture of the gallery as a file for the page to show: as it is kept, since gradio would encode a picture anew,
    and that takes longer than the search."""
    return save_bytes_to_cache(gallery.index.thumbnail(name), "picture.jpg", get_upload_folder())
