"""Files of one commit on the Hub: listed first, then fetched within bounds, verified, and only then given a name.

huggingface_hub's own downloads wait minutes for a silent server and trust what is in the cache. These share the layout
of its cache (https://huggingface.co/docs/huggingface_hub/guides/manage-cache) and let nothing into it, or out of it,
that has not the size and the hash which the listing of the commit tells.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants

from bitgen.strict_json import brief
from bitgen.wire import HubError, answer, json_at, twice

ENTRIES = 5000
"""Files and folders listed; a repository of checkpoints has dozens."""


@dataclass(frozen=True)
class File:
    """A file of a commit: path in the repository, bytes, and its sha256 or, for what is not in LFS, git's sha1."""

    path: str
    size: int
    digest: str

    def hasher(self) -> Any:
        """What to feed the bytes to, so that `hexdigest()` is `digest`."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True)
class Commit:
    """A repository at one commit."""

    repo: str
    sha: str

    @classmethod
    def at(cls, repo: str, revision: str | None = None) -> Commit:
        """The commit that a branch, tag or sha means now; where the Hub cannot be reached, what it last meant here."""
        revision = "main" if revision is None else revision
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo) or not re.fullmatch(r"\w[\w./-]*", revision) \
                or ".." in repo + revision:
            raise HubError(f"{repo}@{revision}: no Hub id such as ORG/NAME with a branch, tag or commit")
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return cls(repo, revision)
        known = _cache(repo) / "refs" / revision
        try:
            url = f"{constants.ENDPOINT}/api/models/{repo}/revision/{quote(revision, safe='')}?expand=sha"
            info, _ = json_at(url, f"{repo}@{revision}")
            sha = str(info.get("sha")) if isinstance(info, dict) else ""
            if not re.fullmatch(r"[0-9a-f]{40}", sha):
                raise HubError(f"{repo}@{revision}: the Hub names no commit", passing=True)
        except HubError as error:
            if not error.passing or not known.is_file():
                raise
            sha = known.read_text().strip()
            print(f"{error}; taking commit {sha} from the cache", file=sys.stderr)
        else:
            known.parent.mkdir(parents=True, exist_ok=True)
            known.write_text(sha)
        return cls(repo, sha)

    def listing(self, folder: str = "") -> tuple[dict[str, File], list[str]]:
        """Files by name, and the names of folders, in one folder. Raises `HubError`."""
        what = f"{self}{'/' + folder if folder else ''}"
        url = f"{constants.ENDPOINT}/api/models/{self.repo}/tree/{self.sha}"
        url += f"/{quote(folder, safe='')}" * bool(folder) + "?recursive=false&expand=false"
        entries: list = []
        while url:
            page, url = json_at(url, what)
            entries += page if isinstance(page, list) else [page]
            if len(entries) > ENTRIES:
                raise HubError(f"{what}: more than {ENTRIES:,} files; no repository of checkpoints")
            if url and not url.startswith(f"{constants.ENDPOINT}/"):
                raise HubError(f"{what}: its listing goes on at {brief(url)}, elsewhere")
        found = [_entry(entry, folder, what) for entry in entries]
        files = {name: file for name, file in found if isinstance(file, File)}
        return files, [name for name, file in found if file is None]

    def choose(self, limits: dict[str, int], most: int, folder: str = "") -> dict[str, File]:
        """The files of `limits` (name -> most bytes) in a folder. Raises `HubError` where one is missing, or one of
        them or all together are larger than they may be.
        """
        files, folders = self.listing()
        held = ", ".join(sorted(name for name in folders if name.startswith("checkpoint-")))
        there = f"; its checkpoints: {held}" if held else ""
        if folder:
            if folder not in folders:
                raise HubError(f"{self}: no {folder} here{there}")
            files, there = self.listing(folder)[0], ""
        missing = [name for name in limits if name not in files]
        if missing:
            raise HubError(f"{self}/{folder}".rstrip("/") + f": lacks {', '.join(missing)}{there}")
        chosen = {name: files[name] for name in limits}
        for name, file in chosen.items():
            if file.size > limits[name]:
                raise HubError(f"{self}/{file.path}: {file.size:,} bytes; at most {limits[name]:,} are fetched")
        if (total := sum(file.size for file in chosen.values())) > most:
            raise HubError(f"{self}: {total:,} bytes in all; at most {most:,} are fetched")
        return chosen

    def cached(self, limits: dict[str, int], most: int, folder: str = "") -> Path:
        """The cache's copy of a folder, holding at least the files of `limits`, verified.

        What is missing or damaged is fetched; where nothing is, the Hub is not asked. Raises `HubError` as `choose`
        does, and where the bytes cannot be had.
        """
        here = _cache(self.repo) / "snapshots" / self.sha / folder
        missing = [name for name in limits if not _intact(here / name)]
        for name, file in self.choose(limits, most, folder).items() if missing else ():
            if name in missing:
                blob = _cache(self.repo) / "blobs" / file.digest
                self.download(file, blob)
                _link(blob, here / name)
        return here

    def download(self, file: File, target: Path) -> None:
        """Write `file` to `target`, which appears whole and verified; one more attempt where that may help."""
        url = f"{constants.ENDPOINT}/{self.repo}/resolve/{self.sha}/{quote(file.path)}"
        twice(lambda: _save(url, file, target, f"{self}/{file.path}"))

    def __str__(self) -> str:
        return f"{self.repo}@{self.sha[:8]}"


# The listing and the cache -------------------------------------------------------------------------------------


def _save(url: str, file: File, target: Path, what: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.NamedTemporaryFile(dir=target.parent, prefix=f"{target.name}.", suffix=".incomplete",
                                          delete=False)
    try:
        with partial, answer(url, what, file.size) as (_, pieces):
            hasher, size = file.hasher(), 0
            for piece in pieces:
                partial.write(piece)
                hasher.update(piece)
                size += len(piece)
        if size != file.size or hasher.hexdigest() != file.digest:
            problem = f"{size:,} bytes instead of {file.size:,}" if size != file.size else "its hash is another"
            raise HubError(f"{what}: what arrived is not what the commit lists: {problem}", passing=True)
        os.replace(partial.name, target)
    finally:
        Path(partial.name).unlink(missing_ok=True)


def _entry(entry: Any, folder: str, what: str) -> tuple[str, File | None]:
    """Name and file of one line of a listing; None for a folder. Raises `HubError` for what no listing holds."""
    try:
        path, large = entry["path"], entry.get("lfs")
        name = path.removeprefix(f"{folder}/") if folder else path
        if not re.fullmatch(r"[^/\\\0]+", name) or name in (".", ".."):
            raise ValueError(f"the path {path!r:.80} leads elsewhere")
        if entry["type"] == "directory":
            return name, None
        if entry["type"] != "file":
            raise ValueError(f"{path!r:.80} is neither file nor directory")
        size, digest = (large["size"], large["oid"]) if large else (entry["size"], entry["oid"])
        if type(size) is not int or size < 0 or not re.fullmatch("[0-9a-f]{64}" if large else "[0-9a-f]{40}", digest):
            raise ValueError(f"size {size!r:.80} and hash {digest!r:.80} of {path!r:.80}")
        return name, File(path, size, digest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HubError(f"{what}: not a listing of files: {type(error).__name__} {brief(error)}") from None


def _cache(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _intact(path: Path) -> bool:
    """Whether a cached file is the one it is called. A damaged one is removed and said to be.

    In the cache a file is a link to a blob that is named by its hash; where there are no links, nothing tells.
    """
    if not path.exists() or not path.is_symlink():
        return path.exists()
    blob = path.parent / os.readlink(path)
    file = File(str(path), blob.stat().st_size, blob.name)
    hasher = file.hasher()
    with blob.open("rb") as data:
        while piece := data.read(1 << 20):
            hasher.update(piece)
    if hasher.hexdigest() == file.digest:
        return True
    print(f"{path}: damaged in the cache; removed", file=sys.stderr)
    path.unlink()
    blob.unlink()
    return False


def _link(blob: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:  # a file system without links
        path.write_bytes(blob.read_bytes())
