"""A visitor's page without a browser: its session, its events and its uploads, as they go over the wire."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import httpx


class Page:
    """A session that lives as long as its connection; with `with`, the connection breaks off at the end."""

    def __init__(self, base: str):
        alone = httpx.Limits(max_keepalive_connections=0)  # a kept one may be closed just as it is used again
        self.http, self.session = httpx.Client(base_url=base, timeout=600, limits=alone), secrets.token_hex(8)
        asked = self.http.get("config").json()["dependencies"]
        self.events = {each["api_name"]: each["id"] for each in asked}
        self._alive = self.http.stream("GET", f"gradio_api/heartbeat/{self.session}")

    def __enter__(self) -> Page:
        self._alive.__enter__()
        return self

    def __exit__(self, *_) -> None:
        """As when a tab is closed."""
        self._alive.__exit__(None, None, None)
        self.http.close()

    def event(self, name: str | int, *data, at: int | None = None) -> list:
        """What an event answers, by the name of its callback or its number. Raises `RuntimeError` where it failed."""
        output, good = self.send(name, *data, at=at)
        if not good:
            raise RuntimeError(f"{name}: {json.dumps(output)[:300]}")
        return output["data"]

    def send(self, name: str | int, *data, at: int | None = None, **more) -> tuple[dict, bool]:
        """(what came back, whether it is an answer) of an event; `at` is the place that was clicked on."""
        body = {"fn_index": self.events.get(name, name), "data": data, "session_hash": self.session,
                "event_data": None if at is None else {"index": at, "value": None}, **more}
        joined = self.http.post("gradio_api/queue/join", json=body)
        if joined.status_code != 200:
            return {"error": joined.text, "status": joined.status_code}, False
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                said = json.loads(line[6:]) if line.startswith("data: ") else {}
                if said.get("msg") in ("process_completed", "unexpected_error"):
                    return said.get("output") or {"error": said.get("message")}, bool(said.get("success"))
        return {"error": "the stream ended"}, False

    def upload(self, *files: tuple[str, bytes]) -> list[dict]:
        """Files (name, content) as events take them."""
        sent = [("files", (name, data, "image/png")) for name, data in files]
        paths = self.http.post("gradio_api/upload", files=sent).raise_for_status().json()
        return [given(path) for path in paths]


def given(path: str, **more) -> dict:
    """A file as events take it."""
    return {"path": path, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}, **more}
