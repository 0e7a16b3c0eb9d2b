"""What the Hub of the tests keeps (repositories of commits of files), the shape of its answers, and of its faults."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import threading
import time
from dataclasses import dataclass, field

LFS = (".safetensors", ".pt", ".png", ".bin")
BEFORE, AFTER = ("reset", "silent"), ("lost", "mute", "cut", "flip", "html", "slow", "quota")


@dataclass
class Fault:
    """What goes wrong with requests to `endpoint` (a name of `ROUTES`, or `*`) whose path contains `path`.

    kind: a status code; or before the request is acted on: `reset` (connection reset), `silent` (never answers);
    or after it: `lost` (reset instead of the answer), `mute` (silence instead of it), `cut` (half of the body),
    `flip` (a flipped bit in the middle of the body), `html` (200 with a web page), `slow` (`rate` bytes a second,
    both ways); or `quota` (the storage is full).
    """

    endpoint: str
    kind: int | str
    times: float = math.inf
    headers: dict = field(default_factory=dict)
    path: str = ""
    message: str = ""
    rate: int = 1000
    over: threading.Event = field(default_factory=threading.Event)


@dataclass
class File:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """git's name of the blob: of the file, or of the pointer that stands for it."""
        data = self.data
        if self.lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def pointer(self, name: str) -> dict:
        """What listings add for an LFS file; they differ in the `name` of its sha256."""
        return {"lfs": {name: self.sha256, "size": len(self.data), "pointerSize": 128}} if self.lfs else {}


@dataclass
class Commit:
    oid: str
    parent: str | None
    title: str
    files: dict[str, File]

    def entries(self) -> dict[str, dict]:
        """Files and folders as the tree lists them, by path."""
        found = {path: {"type": "file", "path": path, "size": len(file.data), "oid": file.oid, **file.pointer("oid")}
                 for path, file in self.files.items()}
        folders = {path[:cut.start()] for path in self.files for cut in re.finditer("/", path)}
        return found | {path: {"type": "directory", "path": path, "size": 0,
                               "oid": hashlib.sha1(path.encode()).hexdigest()} for path in folders}


@dataclass
class Repository:
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def add(self, title: str, files: dict[str, File], parent: str | None) -> Commit:
        oid = hashlib.sha1(f"{title}{parent}{len(self.commits)}{time.time_ns()}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, files)
        self.refs["main"] = oid
        return self.commits[oid]

    def at(self, revision: str = "main") -> Commit:
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def history(self, revision: str = "main") -> list[Commit]:
        """The newest first."""
        found, oid = [], self.at(revision).oid
        while oid:
            found.append(self.commits[oid])
            oid = found[-1].parent
        return found


class Refusal(Exception):
    """An error as the Hub answers it: status, message and `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **extra):
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer({"error": message} | extra, status, headers)


class Answer:
    def __init__(self, body: object = b"", status: int = 200, headers: dict | None = None):
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.headers = {"Content-Type": kind} | (headers or {})


def change(files: dict[str, File], key: str, value: dict, blobs: dict[str, bytes]) -> None:
    """Applies one line of a commit to `files`; raises `Refusal`."""
    path = value["path"]
    if key == "file":
        files[path] = File(base64.b64decode(value["content"]), False)
    elif key == "lfsFile":
        if value["oid"] not in blobs:
            raise Refusal(400, f"{path} points to an object that was not uploaded")
        files[path] = File(blobs[value["oid"]], True)
    else:
        gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
        if not gone:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
