"""What stands in front of the server: requests that no page of ours makes are refused."""

from __future__ import annotations

import re
from urllib.parse import unquote

REMOTE = re.compile(r"file=\s*(?:[a-z][a-z0-9+.-]*:|//|\\\\)", re.I)


class Guard:
    """ASGI middleware: 403 for `file=http…`, by which a visitor would have the server fetch an address for him."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and foreign(scope["path"], scope.get("query_string", b"").decode("latin-1")):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not served here"})
            return
        await self.app(scope, receive, send)


def foreign(path: str, query: str) -> bool:
    """Whether a request asks for a file at another address, however often it is quoted."""
    asked = f"{path}?{query}"
    for _ in range(3):
        if REMOTE.search(asked):
            return True
        asked = unquote(asked)
    return False
