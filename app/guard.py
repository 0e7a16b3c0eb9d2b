"""What stands in front of the server: requests that no page of ours makes are refused, and more files than fit."""

from __future__ import annotations

import asyncio
import os
import re
import time
import traceback
from pathlib import Path
from urllib.parse import unquote

from starlette.exceptions import HTTPException

from app import limits

NAMED = re.compile(r"/(?:call|run|api)(/v2)?/([^/]+)/?$")
CALLED = "construct_args"  # gradio's own (6.31), where a keyword that is wrong or missing would end as 500
REMOTE = re.compile(r"file=\s*(?:[a-z][a-z0-9+.-]*:|//|\\\\)", re.I)


class Guard:
    """ASGI middleware: 403 for `file=http…`, by which a visitor would have the server fetch an address for him; 404 for
    an endpoint that there is not, 422 for arguments that it does not take; 411 for a body that does not say how large
    it is, 413 for one that is too large, and 507 for an upload where `folder`, which holds what visitors sent and were
    shown, is full."""

    def __init__(self, app, folder: str):
        self.app, self.folder = app, folder

    async def __call__(self, scope, receive, send):
        """Pass a request on, or refuse it."""
        refused = await self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            try:
                return await self.app(scope, receive, send)
            except TypeError as error:
                if traceback.extract_tb(error.__traceback__)[-1].name != CALLED:
                    raise
                refused = 422, str(error)
        status, why = refused
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": why.encode()})

    async def _refusal(self, scope) -> tuple[int, str] | None:
        if foreign(scope["path"], scope.get("query_string", b"").decode("latin-1")):
            return 403, "not served here"
        asked = NAMED.search(scope["path"])
        if asked and asked[2] not in named(scope["app"], by_keyword=bool(asked[1])):
            return 404, "there is no endpoint of this name"
        headers = dict(scope["headers"])
        if b"transfer-encoding" in headers:
            return 411, "a request says how large it is"
        length, upload = int(headers.get(b"content-length", 0)), scope["path"].rstrip("/").endswith("/upload")
        most = limits.UPLOAD_BYTES if upload else limits.BODY_BYTES
        if length > most:
            return 413, f"more than {most // 10**6} MB in one request"
        if upload:
            await asyncio.to_thread(sweep, self.folder)
            if length + await asyncio.to_thread(held, self.folder) > limits.TEMPORARY_BYTES:
                return 507, "the server holds as many files as it may: try again later"
        return None


class Events(dict):
    """The page's events by their numbers. A request for another one is answered with 404, where gradio (6.31), which
    looks it up in a plain dictionary, would answer 500."""

    def __missing__(self, number: int):
        raise HTTPException(404, f"there is no event {number}")


def named(app, by_keyword: bool = False) -> set[str]:
    """Names of all endpoints of a gradio server, the page's own among them unless they are called by keyword."""
    return {event.api_name for event in app.get_blocks().fns.values()
            if not by_keyword or event.api_visibility == "public"}


def sweep(folder: str) -> None:
    """Delete what uploads that were refused or broken off left right in `folder`, and gradio forgot."""
    for file in Path(folder).glob("tmp*"):
        try:
            if time.time() - file.lstat().st_mtime > limits.CLOSED_SECONDS and not file.is_dir():
                file.unlink()
        except FileNotFoundError:
            continue


def held(folder: str) -> int:
    """Bytes of all files below a folder; some may vanish while they are counted."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def foreign(path: str, query: str) -> bool:
    """Whether a request asks for a file at another address, however often it is quoted."""
    asked = f"{path}?{query}"
    for _ in range(3):
        if REMOTE.search(asked):
            return True
        asked = unquote(asked)
    return False
