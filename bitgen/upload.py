"""One try to bring a checkpoint onto the Hub, in a process of its own that can be killed at any time.

`python -m bitgen.upload` reads a `Job` as JSON from its input and writes an `Outcome` as JSON to its output. The token
is in neither: it stays where huggingface_hub finds it. A push is one commit on top of the head that it looked at: it
adds what is not there yet and deletes what rotates out, so a reader sees all of a checkpoint or nothing, and a
commit whose answer was lost is found in the tree and not made again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from bitgen.checkpoint import MANIFEST
from bitgen.repository import CHECKPOINT, Limits, blob_id, client, explain, files, same

RACES = 5
"""Times that another writer may be faster before the try is given up."""


@dataclass(frozen=True)
class Job:
    """What to do: push `folder`, laid out as the repository is to be, or only check the rights where it is None."""

    repo: str
    private: bool = False
    folder: str | None = None
    doomed: tuple[str, ...] = ()
    """Checkpoint folders of the repository that go in the same commit."""
    owned: dict[str, str] = field(default_factory=dict)
    """Those that this run pushed, with git's name of their manifest: another one there is of another run, and stays."""
    create: bool = True
    """Whether a missing repository is made; else it is gone, which is an error."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Outcome:
    """kind: `done`, `taken` (another run's checkpoint has that name there), or one of `repository.Failure`.

    `commit`: where the repository stands; `new`: made by this try. `manifest`: git's name of the checkpoint's.
    """

    kind: str
    reason: str = ""
    wait: float = 0.0
    commit: str | None = None
    new: bool = False
    manifest: str | None = None


def check(api: HfApi, job: Job) -> Outcome:
    """Whether this token may write to the repository, which is made where it is missing."""
    me, owner = api.whoami(), job.repo.split("/")[0]
    roles = {org["name"]: org.get("roleInOrg") for org in me.get("orgs", [])} | {me["name"]: "admin"}
    token = me.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        return Outcome("auth", "the token may only read; make one that may write at huggingface.co/settings/tokens")
    if roles.get(owner, "read") == "read" and token.get("role") != "fineGrained":
        writable = ", ".join(name for name, role in roles.items() if role != "read")
        return Outcome("auth", f"{me['name']!r} may not write to {owner!r}; where it may: {writable}")
    api.create_repo(job.repo, private=job.private, exist_ok=True)
    # Asking how a file would be uploaded takes the right to write, and writes nothing.
    api.preupload_lfs_files(job.repo, [CommitOperationAdd("config.json", b"")])
    return Outcome("done")


def push(api: HfApi, job: Job) -> Outcome:
    """One commit that makes the repository hold `job.folder`, or none where it already does."""
    bad = [name for name in job.doomed if not CHECKPOINT.fullmatch(name)]
    if bad:
        raise ValueError(f"{bad[0]!r} is no checkpoint folder and is not deleted")
    for race in range(RACES):
        try:
            return _commit(api, job)
        except HfHubHTTPError as error:
            if explain(error).kind != "conflict" or race == RACES - 1:
                raise
    raise AssertionError("the last race returns or raises")


def _commit(api: HfApi, job: Job) -> Outcome:
    head = _head(api, job)
    there, root = files(api, job.repo, head), Path(job.folder)
    paths = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    if not paths:
        raise FileNotFoundError(f"{root} is gone")
    title = next(name.split("/")[0] for name in paths if "/" in name)
    manifest = blob_id(paths[f"{title}/{MANIFEST}"].read_bytes())
    if _foreign(title, there, {job.owned.get(title), manifest}):
        return Outcome("taken", f"{job.repo} holds a {title} that this run did not push: take another --hub.repo, or "
                                f"delete {title}/ there")
    add = [CommitOperationAdd(name, path) for name, path in paths.items() if not same(path, there.get(name))]
    held = {name.split("/")[0] for name in there}
    delete = [CommitOperationDelete(f"{name}/", is_folder=True) for name in job.doomed
              if name in held and not _foreign(name, there, {job.owned.get(name)})]
    if not add and not delete:
        return Outcome("done", commit=head, manifest=manifest)
    # The root's weights are a checkpoint's: once that one is uploaded, the Hub has their bytes.
    api.preupload_lfs_files(job.repo, [operation for operation in add if "/" in operation.path_in_repo])
    note = ""
    try:
        made = api.create_commit(job.repo, add + delete, commit_message=title, parent_commit=head)
    except ValueError as error:  # the Hub takes no such card; the weights are worth more
        if "README.md" not in str(error):
            raise
        note = f"without README.md: {' '.join(str(error).split())}"
        rest = [operation for operation in add if operation.path_in_repo != "README.md"]
        made = api.create_commit(job.repo, rest + delete, commit_message=title, parent_commit=head)
    return Outcome("done", note, commit=made.oid, new=True, manifest=manifest)


def _foreign(name: str, there: dict[str, RepoFile], own: set[str | None]) -> bool:
    """Whether the checkpoint of that name there, if there is one, has another manifest than its `own`."""
    manifest = there.get(f"{name}/{MANIFEST}")
    held = any(path.startswith(f"{name}/") for path in there)
    return held and (manifest is None or manifest.blob_id not in own)


def _head(api: HfApi, job: Job) -> str:
    try:
        return api.repo_info(job.repo).sha
    except RepositoryNotFoundError:
        if not job.create:
            raise
    api.create_repo(job.repo, private=job.private, exist_ok=True)
    return api.repo_info(job.repo).sha


def attempt(job: Job) -> Outcome:
    """Does the job, or tells why not: whatever is wrong, training goes on."""
    try:
        return (check if job.folder is None else push)(client(job.limits), job)
    except Exception as error:  # the client's errors have no common class
        return Outcome(**asdict(explain(error)))


def main() -> int:
    """Does the job of the standard input and tells its outcome; the exit status is 0 whatever that is."""
    job = json.load(sys.stdin)
    job = Job(**job | {"limits": Limits(**job["limits"]), "doomed": tuple(job["doomed"])})
    signal.alarm(int(job.limits.deadline) + 1)  # should the process that waits for this one be gone
    os.nice(10)
    print(json.dumps(asdict(attempt(job))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
