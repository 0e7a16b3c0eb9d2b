"""A Hub on this computer: speaks to the real huggingface_hub client what the Hub speaks, and fails where it is told to.

    with HubServer() as hub:                            # user `ann`, organisation `org`, token `hf_stub`
        hub.seed("org/name", {"config.json": b"{}"})    # a repository, without a client
        hub.fault("commit", 503, times=2, headers={"Retry-After": "3"})
        subprocess.run([...], env=os.environ | hub.env(home))
        hub.files("org/name")                           # path -> bytes at the head

Small files travel in the commit, LFS files (by their suffix) through a storage server of another origin, as on the Hub.
Repositories are in memory: `repos[id].commits` by oid, `refs` by name, `blobs` (LFS) by sha256.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_store import AFTER, BEFORE, LFS, Answer, Fault, File, Refusal, Repository, change

DATE = "2026-01-01T00:00:00.000Z"


class HubServer:
    """The server; a context manager. `requests` is all it was asked: (endpoint, method, path, token or None)."""

    def __init__(self, user: str = "ann", orgs: tuple[str, ...] = ("org",), token: str = "hf_stub"):
        self.user, self.orgs, self.token, self.role = user, orgs, token, "write"
        self.repos: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str, str | None]] = []
        self.page = 1000  # entries in one answer of the tree
        self._faults: list[Fault] = []
        self._lock = threading.RLock()

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(self, *_) -> None:
        self.clear()
        for server in self._servers:
            server.shutdown()
            server.block_on_close = False  # a client may still hold its connection open
            server.server_close()

    def env(self, home) -> dict[str, str]:
        """The environment of a client; `home` is the folder for its cache and its settings."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}

    def fault(self, endpoint: str, kind: int | str, times: float = math.inf, **more) -> Fault:
        """From now on, `times` times, after faults that were there before. See `Fault`."""
        assert endpoint in {"*", *(name for _, name, _ in ROUTES)} and (isinstance(kind, int) or kind in BEFORE + AFTER)
        self._faults.append(Fault(endpoint, kind, times, **more))
        return self._faults[-1]

    def clear(self) -> None:
        """Ends every fault; who waits in silence is disconnected."""
        with self._lock:
            for fault in self._faults:
                fault.over.set()
            self._faults.clear()

    def take(self, endpoint: str, path: str) -> Fault | None:
        """The fault that a request meets."""
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.endpoint in ("*", endpoint) and fault.path in path:
                    fault.times -= 1
                    return fault
        return None

    def seed(self, repo: str, files: dict[str, bytes], delete: tuple[str, ...] = ()) -> str:
        """One commit without a client; makes the repository where it is missing. Returns the commit's oid."""
        with self._lock:
            found = self.repos.setdefault(repo, Repository())
            head = found.at() if found.refs else found.add("initial commit", {}, None)
            merged = {path: file for path, file in head.files.items() if path not in delete}
            merged |= {path: File(data, path.endswith(LFS)) for path, data in files.items()}
            self.blobs |= {file.sha256: file.data for file in merged.values() if file.lfs}
            return found.add("seed", merged, head.oid).oid

    def commits(self, repo: str) -> list[str]:
        """Titles of the commits to main, the newest first; the last is the repository's own first one."""
        return [commit.title for commit in self.repos[repo].history()]

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Every file of a revision."""
        return {path: file.data for path, file in self.repos[repo].at(revision).files.items()}

    def asked(self, *endpoints: str) -> list[str]:
        """Paths that these endpoints were asked for."""
        return [path for name, _, path, _ in self.requests if name in endpoints]

    # What the endpoints do: (request, what the path names) -> Answer --------------------------------------

    def whoami(self, request: _Handler) -> Answer:
        self._may_write(request)
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in self.orgs]
        token = {"displayName": "stub", "role": self.role}
        return Answer({"type": "user", "name": self.user, "orgs": orgs,
                       "auth": {"type": "access_token", "accessToken": token}})

    def create(self, request: _Handler) -> Answer:
        wanted = request.json()
        repo = f"{wanted.get('organization') or self.user}/{wanted['name']}"
        self._may_write(request, repo)
        if repo in self.repos:
            raise Refusal(409, "You already created this model repo", url=f"{self.url}/{repo}")
        self.repos[repo] = Repository(private=wanted.get("visibility") == "private")
        self.repos[repo].add("initial commit", {".gitattributes": File(b"*.pt filter=lfs\n", False)}, None)
        return Answer({"url": f"{self.url}/{repo}"})

    def validate(self, request: _Handler) -> Answer:
        bad = "---\n" not in request.json()["content"]
        errors = [{"message": "no metadata"}] if bad else []
        return Answer({"errors": errors, "warnings": []}, 400 if bad else 200)

    def preupload(self, request: _Handler, repo: str, revision: str) -> Answer:
        held = self._writable(request, repo).at(revision).files
        files = []
        for wanted in request.json()["files"]:
            path, file = wanted["path"], held.get(wanted["path"])
            oid = {"oid": file.sha256 if file.lfs else file.oid} if file else {}
            files.append({"path": path, "uploadMode": "lfs" if path.endswith(LFS) else "regular",
                          "shouldIgnore": False} | oid)
        return Answer({"files": files})

    def batch(self, request: _Handler, repo: str) -> Answer:
        self._writable(request, repo)
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in request.json()["objects"]]
        for wanted in objects:
            if request.fault and request.fault.kind == "quota":
                wanted["error"] = {"code": 403, "message": "You have exceeded your storage quota"}
            elif wanted["oid"] not in self.blobs:
                wanted["actions"] = {"upload": {"href": f"{self.storage}/put/{wanted['oid']}", "header": {}},
                                     "verify": {"href": f"{self.url}/{repo}.git/info/lfs/verify"}}
        return Answer({"transfer": "basic", "objects": objects})

    def put(self, request: _Handler, oid: str) -> Answer:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "The SHA256 you specified did not match")
        self.blobs[oid] = request.body
        return Answer()

    def verify(self, request: _Handler, repo: str) -> Answer:
        self._writable(request, repo)
        if len(self.blobs.get(request.json()["oid"], b"")) != request.json()["size"]:
            raise Refusal(422, "the uploaded object is not here")
        return Answer({})

    def commit(self, request: _Handler, repo: str, revision: str) -> Answer:
        found = self._writable(request, repo)
        lines = [json.loads(line) for line in request.body.splitlines()]
        header, head = lines[0]["value"], found.at(revision)
        if header.get("parentCommit") not in (None, head.oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            change(files, line["key"], line["value"], self.blobs)
        oid = found.add(header["summary"], files, head.oid).oid
        return Answer({"commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}", "success": True})

    def tree(self, request: _Handler, repo: str, revision: str, path: str | None = None) -> Answer:
        entries = self._readable(request, repo).at(revision).entries()
        deep, below = request.query.get("recursive", [""])[0].lower() == "true", f"{path}/" if path else ""
        shown = [entries[name] for name in sorted(entries) if name.startswith(below)]
        if path and not shown:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if not deep:
            shown = [entry for entry in shown if "/" not in entry["path"].removeprefix(below)]
        start, here = int(request.query.get("cursor", ["0"])[0]), request.path.split("?")[0]
        more = {"Link": f'<{self.url}{here}?recursive={deep}&cursor={start + self.page}>; rel="next"'}
        return Answer(shown[start: start + self.page], headers=more if len(shown) > start + self.page else {})

    def info(self, request: _Handler, repo: str, revision: str = "main") -> Answer:
        found = self._readable(request, repo)
        commit = found.at(revision)
        siblings = [{"rfilename": path, "size": len(file.data), "blobId": file.oid, **file.pointer("sha256")}
                    for path, file in sorted(commit.files.items())]
        return Answer({"id": repo, "modelId": repo, "sha": commit.oid, "private": found.private, "gated": False,
                       "tags": [], "lastModified": DATE, "siblings": siblings})

    def resolve(self, request: _Handler, repo: str, revision: str, path: str) -> Answer:
        commit = self._readable(request, repo).at(revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        file, headers = commit.files[path], {"X-Repo-Commit": commit.oid}
        if not file.lfs:
            return Answer(file.data, headers=headers | {"ETag": f'"{file.oid}"'})
        return Answer(b"", 302, headers | {"X-Linked-Size": str(len(file.data)), "X-Linked-Etag": f'"{file.sha256}"',
                                           "Location": f"{self.storage}/get/{file.sha256}?{quote(path)}"})

    def get(self, request: _Handler, oid: str) -> Answer:
        data = self.blobs[oid]
        if ranged := re.match(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")):
            start, end = int(ranged[1]), int(ranged[2] or len(data) - 1)
            return Answer(data[start: end + 1], 206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"})
        return Answer(data, headers={"ETag": f'"{oid}"'})

    def log(self, request: _Handler, repo: str, revision: str) -> Answer:
        return Answer([{"id": commit.oid, "title": commit.title, "message": "", "authors": [{"user": self.user}],
                        "date": DATE} for commit in self._readable(request, repo).history(revision)])

    def squash(self, request: _Handler, repo: str, branch: str) -> Answer:
        found = self._writable(request, repo)
        found.add(request.json().get("message") or "Super-squash branch", found.at(branch).files, None)
        return Answer({})

    def stored(self, request: _Handler, repo: str) -> Answer:
        held = {file.sha256: (path, file) for commit in self._writable(request, repo).commits.values()
                for path, file in commit.files.items() if file.lfs}
        return Answer([{"fileOid": oid, "filename": path, "oid": oid, "pushedAt": DATE, "ref": "main",
                        "size": len(file.data)} for oid, (path, file) in held.items()])

    def purge(self, request: _Handler, repo: str) -> Answer:
        gone = set(request.json()["deletions"]["sha"])
        for commit in self._writable(request, repo).commits.values():
            commit.files = {path: file for path, file in commit.files.items() if file.sha256 not in gone}
        self.blobs = {oid: data for oid, data in self.blobs.items() if oid not in gone}
        return Answer({})

    def _may_write(self, request: _Handler, repo: str | None = None) -> None:
        if request.token != self.token:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if repo and (self.role == "read" or repo.split("/")[0] not in (self.user, *self.orgs)):
            raise Refusal(403, f"You don't have the rights to write to {repo}")

    def _readable(self, request: _Handler, repo: str) -> Repository:
        found = self.repos.get(repo)
        if found is None or found.private and request.token != self.token:
            raise Refusal(404 if request.token == self.token else 401, "Repository not found", "RepoNotFound")
        return found

    def _writable(self, request: _Handler, repo: str) -> Repository:
        self._readable(request, repo)
        self._may_write(request, repo)
        return self.repos[repo]


MODEL, REVISION = r"/api/models/([^/]+/[^/]+)", r"([^/]+)"
ROUTES = [(method, name, re.compile(pattern)) for method, name, pattern in [
    ("GET", "whoami", "/api/whoami-v2"), ("POST", "create", "/api/repos/create"),
    ("POST", "validate", "/api/validate-yaml"), ("POST", "preupload", f"{MODEL}/preupload/{REVISION}"),
    ("POST", "batch", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch"), ("PUT", "put", r"/put/(\w+)"),
    ("POST", "verify", r"/([^/]+/[^/]+)\.git/info/lfs/verify"), ("POST", "commit", f"{MODEL}/commit/{REVISION}"),
    ("GET", "tree", f"{MODEL}/tree/{REVISION}(?:/(.+))?"), ("GET", "log", f"{MODEL}/commits/{REVISION}"),
    ("GET", "info", f"{MODEL}/revision/{REVISION}"), ("POST", "squash", f"{MODEL}/super-squash/{REVISION}"),
    ("GET", "stored", f"{MODEL}/lfs-files"), ("POST", "purge", f"{MODEL}/lfs-files/batch"), ("GET", "info", MODEL),
    ("GET", "resolve", rf"/([^/]+/[^/]+)/resolve/{REVISION}/(.+)"), ("GET", "get", r"/get/(\w+)"),
]]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients that hang up are no news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection: finds the route, lets the fault happen, answers."""

    hub: HubServer
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query, self.token = parse_qs(url.query), self.headers.get("Authorization", "").removeprefix("Bearer ")
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, name, pattern in ROUTES:
            if wanted == method and (match := pattern.fullmatch(url.path)):
                self.hub.requests.append((name, self.command, self.path, self.token or None))
                self.fault = self.hub.take(name, unquote(self.path))
                return self._serve(getattr(self.hub, name), [unquote(part) for part in match.groups() if part])
        self.fault, self.body = None, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(Refusal(404, f"no such endpoint: {method} {url.path}").answer)

    do_HEAD = do_POST = do_PUT = do_GET

    def json(self) -> dict:
        return json.loads(self.body)

    def log_message(self, *_) -> None:
        """The test's output stays its own."""

    def _serve(self, act, named: list[str]) -> None:
        kind = self.fault.kind if self.fault else None
        if kind in BEFORE:
            return self._disconnect(wait=kind == "silent")
        self.body = self._read(size := int(self.headers.get("Content-Length", 0)))
        if len(self.body) < size:  # the client gave up
            return self._disconnect(wait=False)
        if isinstance(kind, int):
            answer = Answer({"error": self.fault.message or f"fault {kind}"}, kind, self.fault.headers)
        elif kind == "quota" and act.__name__ != "batch":
            answer = Refusal(403, "Private repository storage limit reached").answer
        elif kind == "html":
            answer = Answer(b"<html><body>Down for maintenance</body></html>", headers={"Content-Type": "text/html"})
        else:
            with self.hub._lock:
                try:
                    answer = act(self, *named)
                except Refusal as refusal:
                    answer = refusal.answer
        if kind in ("lost", "mute"):
            return self._disconnect(wait=kind == "mute")
        self._send(answer, kind)

    def _read(self, size: int) -> bytes:
        if not (self.fault and self.fault.kind == "slow"):
            return self.rfile.read(size)
        parts = []
        while size and not self.fault.over.wait(0.1):
            parts.append(self.rfile.read(min(size, max(self.fault.rate // 10, 1))))
            size -= len(parts[-1])
        return b"".join(parts)

    def _send(self, answer: Answer, kind: int | str | None = None) -> None:
        body, half = answer.body, len(answer.body) // 2
        if kind == "flip" and body:
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1:]
        self.send_response(answer.status)
        for name, value in (answer.headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "cut":
            self.close_connection, body = True, body[:half]
        step = max(self.fault.rate // 10, 1) if kind == "slow" else len(body) or 1
        for start in range(0, len(body), step):
            self.wfile.write(body[start: start + step])
            if kind == "slow" and self.fault.over.wait(0.1):
                return self._disconnect(wait=False)

    def _disconnect(self, wait: bool) -> None:
        """Resets the connection; `wait`: only when the fault is over."""
        if wait:
            self.fault.over.wait()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
