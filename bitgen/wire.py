"""Asking the Hub: answers within bounds of time and size, and one kind of error for all that it may do instead.

The session, with its proxies and certificates, and the token are huggingface_hub's. Its own requests wait for ever
for a silent server, and as long as a busy one asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from bitgen.repository import REMEDIES
from bitgen.strict_json import brief, parse

SILENCE = 10.0
"""Seconds to wait for a connection, and for the next bytes of an answer."""
PAUSE = 1.0
"""Seconds before the second and last attempt."""
SLOWEST = 10_000
"""Bytes a second, on average and after the first 30 seconds, below which a download ends."""
ANSWER = 4_000_000
"""Bytes of an answer that is no file."""

_REFUSALS = (
    (GatedRepoError, "is gated: ask for access on its page, then `hf auth login`"),
    (RepositoryNotFoundError, "no such repository, or a private one that your token does not open: `hf auth login`"),
    (RevisionNotFoundError, "no such revision"),
    (EntryNotFoundError, "no such file or folder there"),
)
T = TypeVar("T")


class HubError(ValueError):
    """What the Hub refused or did not deliver. `passing`: the same may work later."""

    def __init__(self, message: str, passing: bool = False):
        super().__init__(message)
        self.passing = passing


def json_at(url: str, what: str) -> tuple[Any, str | None]:
    """The JSON that a GET answers, and the address of its next page."""
    def once() -> tuple[Any, str | None]:
        with answer(url, what, ANSWER) as (response, pieces):
            try:
                return parse(b"".join(pieces), depth=64), response.links.get("next", {}).get("url")
            except HubError:
                raise
            except ValueError as error:
                raise HubError(f"{what}: the Hub's answer is no JSON: {brief(error)}", passing=True) from None
    return twice(once)


@contextmanager
def answer(url: str, what: str, most: int) -> Iterator[tuple[httpx2.Response, Iterator[bytes]]]:
    """A GET: the response, and its body in pieces, `most` bytes together. Raises `HubError` for any failure."""
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    try:
        with get_session().stream("GET", url, headers=headers, timeout=SILENCE, follow_redirects=True) as response:
            hf_raise_for_status(response)
            yield response, _pieces(response, what, most)
    except OfflineModeIsEnabled:
        raise HubError(f"{what}: not asked, as HF_HUB_OFFLINE is set", passing=True) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _explained(error, what) from error


def _pieces(response: httpx2.Response, what: str, most: int) -> Iterator[bytes]:
    size, deadline = 0, time.monotonic() + 30 + most / SLOWEST
    for piece in response.iter_bytes():
        size += len(piece)
        if size > most:
            raise HubError(f"{what}: the answer is longer than {most:,} bytes", passing=True)
        if time.monotonic() > deadline:
            raise HubError(f"{what}: slower than {SLOWEST:,} bytes a second", passing=True)
        yield piece


def _explained(error: Exception, what: str) -> HubError:
    for kind, meaning in _REFUSALS:
        if isinstance(error, kind):
            return HubError(f"{what}: {meaning}")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        remedy = f": {REMEDIES[status]}" if status == 401 else ""  # the others' are for writing
        return HubError(f"{what}: the Hub answers {status}{remedy}", passing=status == 429 or status >= 500)
    return HubError(f"{what}: the Hub cannot be reached: {type(error).__name__} {brief(error)}".rstrip(),
                    passing=not isinstance(error, (httpx2.TooManyRedirects, httpx2.InvalidURL)))


def twice(action: Callable[[], T]) -> T:
    """The action, and after a pause once more where its failure may pass."""
    try:
        return action()
    except HubError as error:
        if not error.passing or constants.is_offline_mode():
            raise
        time.sleep(PAUSE)
        return action()
