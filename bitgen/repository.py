"""A repository on the Hugging Face Hub, asked with a patience that ends.

The client's own does not: it waits for ever on a silent server, sleeps as long as `Retry-After` says, and repeats a
conflicting `create_repo` without a pause. Here each request has a time limit, and an answer that means "come back
later" is an error at once: when to come back is decided in one place (`bitgen.push`), and nowhere in between.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_session, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import hf_raise_for_status

from bitgen.checkpoint import file_digest

NAME = re.compile(r"[\w.-]+/[\w.-]+")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
BESIDE = "beside them"
FULL = re.compile(r"(?i)storage|quota|exceeded|payment")
LATER = {408, 429, 500, 502, 503, 504}
"""Statuses that may be gone the next time; so may 422, which `verify` answers where an upload did not arrive."""
KINDS = {401: "auth", 402: "quota", 403: "auth", 404: "auth", 409: "conflict", 412: "conflict", 413: "quota",
         507: "quota", **dict.fromkeys(LATER | {422}, "transient")}
REMEDIES = {
    401: "not logged in, or the token is no longer valid: `hf auth login`, or set HF_TOKEN to a token that may write",
    403: "the token has no right to write there",
    404: "no such repository, or the token may not see it",
    413: "the Hub takes no files of this size",
}


@dataclass(frozen=True)
class Limits:
    """How long pushing waits, and how often it commits. Seconds where not said otherwise."""

    connect: float = 10.0
    """Until a connection stands."""
    read: float = 60.0
    """Until the next bytes arrive or leave."""
    deadline: float = 900.0
    """For one try, whatever it is busy with; then its process is killed."""
    first_wait: float = 30.0
    """Before the second try; doubled before each one after it."""
    longest_wait: float = 900.0
    """Before any try, also where `Retry-After` asks for more."""
    commits_per_hour: int = 12
    """Commits to the repository in any 3600 seconds; the last of them is kept for the end of the run."""


@dataclass(frozen=True)
class Failure:
    """Why the Hub did not do what it was asked for.

    kind: `auth` (token, rights, repository gone), `quota` (storage full), `conflict` (another writer was faster),
    `transient` (may be gone the next time), `bug` (anything else). `wait`: seconds the Hub asks to be left alone.
    """

    kind: str
    reason: str
    wait: float = 0.0


def client(limits: Limits) -> HfApi:
    """A client of the Hub (`HF_ENDPOINT`), with the user's token, whose requests end within the limits.

    So do from now on all requests of huggingface_hub in this process.
    """
    usual, asks = _usual()
    patience = {"connect": limits.connect, "read": limits.read, "write": limits.read, "pool": limits.connect}

    def bound(request: Any) -> None:  # a client's own `timeout` gives way to None where a method has that parameter
        request.extensions["timeout"] = patience

    hooks = {"request": [*asks, bound], "response": [_raise_what_passes]}
    set_client_factory(lambda: usual(event_hooks=hooks, follow_redirects=True))
    return HfApi()


@cache
def _usual() -> tuple[type, list]:
    """What huggingface_hub makes its sessions of by itself: asked once, before `client` changes it."""
    return type(get_session()), list(get_session().event_hooks["request"])


def _raise_what_passes(response: Any) -> None:
    """Errors that the client would repeat on its own, as long as the answer tells it to."""
    if response.status_code in LATER:
        response.read()
        hf_raise_for_status(response)
    if response.status_code == 409 and b"conflicting operation" in response.read():
        hf_raise_for_status(response)


def explain(error: BaseException) -> Failure:
    """What an exception of the client means."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # from a thread that uploads
        error = error.__cause__
    reason = _line(f"{type(error).__name__}: {error}")
    if isinstance(error, LocalTokenNotFoundError):
        return Failure("auth", REMEDIES[401])
    if isinstance(error, OfflineModeIsEnabled):
        return Failure("auth", "HF_HUB_OFFLINE is set: unset it to push")
    if isinstance(error, HfHubHTTPError):
        status, full = error.response.status_code, FULL.search(str(error.server_message or ""))
        kind = "quota" if status in (402, 403, 413) and full else KINDS.get(status, "bug")
        if status in REMEDIES and not full:
            reason = _line(f"{REMEDIES[status]} ({status} {error.server_message or ''}".rstrip() + ")")
        return Failure(kind, reason, _asked_to_wait(error.response.headers))
    if type(error).__module__.startswith(("httpx", "httpcore")) or isinstance(error, (OSError, json.JSONDecodeError)):
        return Failure("bug" if isinstance(error, FileNotFoundError) else "transient", reason)
    return Failure("quota" if FULL.search(str(error)) else "bug", reason)


def _line(text: str) -> str:
    """One line of a message that may come from anywhere; the token is taken out should it be in there."""
    return " ".join(text.split()).replace(get_token() or "\0", "…")[:400]


def _asked_to_wait(headers: Any) -> float:
    """Seconds that `Retry-After: 30` or `RateLimit: "api";r=0;t=30` asks for; 0 where neither does."""
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    after = headers.get("retry-after", "").strip()
    return float(limit[1]) if limit else float(after) if after.isdigit() else 0.0


def files(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    """Every file of a revision, by path."""
    entries = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def same(path: Path, remote: RepoFile | None) -> bool:
    """Whether a file here has the bytes of the one there, told by size and hash."""
    if remote is None or path.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        return file_digest(path) == remote.lfs.sha256
    return blob_id(path.read_bytes()) == remote.blob_id


def blob_id(data: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Whatever the client raises inside becomes a `ValueError` of one line."""
    try:
        yield
    except Exception as error:  # the client's errors have no common class
        raise ValueError(f"{repo}: {explain(error).reason}") from error


def listing(repo: str, limits: Limits | None = None) -> str:
    """What a repository holds, as `bitgen hub list` prints it: a line a checkpoint, the newest first.

    Raises `ValueError` where the Hub does not tell.
    """
    with explained(repo):
        api = client(limits or Limits())
        head, commits = api.repo_info(repo).sha, len(api.list_repo_commits(repo))
        sizes: dict[str, list[int]] = {}
        for path, file in files(api, repo, head).items():
            folder = path.partition("/")[0]
            sizes.setdefault(folder if CHECKPOINT.fullmatch(folder) else BESIDE, []).append(file.size)
    order = sorted(sizes, key=lambda name: -int(CHECKPOINT.fullmatch(name)[1]) if name != BESIDE else 0)
    lines = [f"{name:20} {sum(sizes[name]) / 1e6:10.1f} MB {len(sizes[name]):4} files" for name in order]
    return "\n".join([f"{repo} at {head[:12]}, {commits} commits", *lines])


def squash(repo: str, limits: Limits | None = None) -> str:
    """Makes one commit of the whole history, for good, and tells how much the Hub can free by that.

    Raises `ValueError` where the Hub does not do it.
    """
    with explained(repo):
        api = client(limits or Limits())
        stored = sum(file.size for file in api.list_lfs_files(repo))
        used = sum({file.lfs.sha256: file.size for file in files(api, repo, "main").values() if file.lfs}.values())
        api.super_squash_history(repo, commit_message="One commit of the history so far")
    return (f"{repo}: one commit; of {stored / 1e6:.1f} MB of large files {used / 1e6:.1f} MB are in use, and the Hub "
            "will free the rest")
