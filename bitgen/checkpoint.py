"""Crash-safe checkpoints: a folder appears under its name whole, or not at all.

    runs/scenes/checkpoint-200/            what the writers wrote, and MANIFEST.json with size and sha256 of each file
    runs/scenes/checkpoint-400.tmp/        being written, or cut off: never read, removed by the next save
    runs/scenes/checkpoint-200.old/        an earlier checkpoint-200, until its replacement stands

The order of a save is what makes it safe: write, fsync each file, manifest last, read it all back, rename, fsync the
parent, and only then delete what rotates out. `kill -9` between any two of these leaves a checkpoint that verifies.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MANIFEST = "MANIFEST.json"
NAME = re.compile(r"checkpoint-(\d+)(\.old|\.tmp)?")
LAST = 2**53
"""Largest number of a save; whole numbers beyond it are no longer told apart everywhere."""
MARGIN = 1.2
"""Free space asked for before a save, times the size of the checkpoint before it."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or must not be read; `needed` and `free` (bytes) are known for writes."""

    def __init__(self, path: Path, reason: str, needed: int | None = None, free: int | None = None):
        space = "" if needed is None else f" ({needed:,} bytes needed, {free:,} bytes free)"
        super().__init__(f"{path}: {reason}{space}")
        self.path, self.reason, self.needed, self.free = path, reason, needed, free


def save(run_folder: str | Path, step: int, writers: dict[str, Callable[[Path], None]], keep: int = 5,
         best_step: int | None = None, estimate: int = 0) -> Path:
    """`checkpoint-{step}` with one file for each writer, then rotation. Returns the new folder.

    A writer gets the path to write and may put more files beside it. `estimate` (bytes) is the expected size where
    no earlier checkpoint tells. Raises `CheckpointError` when anything fails; the partial folder is removed and
    every earlier checkpoint still stands.
    """
    run = Path(run_folder)
    final, partial, old = (run / f"checkpoint-{step}{suffix}" for suffix in ("", ".tmp", ".old"))
    with _or_nothing(final, partial) as needed:
        run.mkdir(parents=True, exist_ok=True)
        last = next((manifest for _, manifest in _readable(run)), {"sequence": -1, "files": {}})
        needed.append(int(MARGIN * max(estimate, sum(size for size, _ in last["files"].values()))))
        for leftover in run.glob("checkpoint-*.tmp"):
            shutil.rmtree(leftover)
        if shutil.disk_usage(run).free < needed[-1]:
            raise OSError(errno.ENOSPC, "too little free space for a checkpoint")
        partial.mkdir()
        for name, write in writers.items():
            write(partial / name)
        _seal(partial, step, last["sequence"] + 1)
        verify(partial)
        if final.exists():  # an earlier run in this folder, or a damaged one that is being redone
            shutil.rmtree(old, ignore_errors=True)
            os.rename(final, old)
        os.rename(partial, final)
        _fsync(run)
        rotate(run, keep, best_step)
    return final


def rotate(run_folder: str | Path, keep: int, best_step: int | None = None) -> None:
    """Deletes all but the `keep` checkpoints saved last and `checkpoint-{best_step}`.

    Last by the order of saving, not by step: a folder may hold higher steps of an older run. What has no readable
    manifest is not known to be ours and stays. Raises `ValueError` for `keep` < 1, `OSError` where deleting fails.
    """
    if keep < 1:
        raise ValueError(f"keep: at least 1 checkpoint must stay, got {keep}")
    run = Path(run_folder)
    replaced = [folder for folder in _folders(run) if folder.suffix and folder.with_suffix("").exists()]
    ours = [folder for folder, _ in _readable(run) if folder not in replaced]
    for folder in replaced + [folder for folder in ours[keep:] if _step(folder) != best_step]:
        doomed = folder.with_suffix(".tmp")  # half a deletion must not look like a damaged checkpoint
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


def publish(folder: Path, names: Iterable[str], root: str | Path) -> None:
    """Copies files of a checkpoint to the run's root, each replaced in one step: a reader sees the old or the new.

    Raises `CheckpointError`; the old files then still stand.
    """
    for name in names:
        partial = Path(root) / f".{name}.tmp"
        with _or_nothing(Path(root) / name, partial) as needed:
            needed.append((folder / name).stat().st_size)
            shutil.copyfile(folder / name, partial)
            _fsync(partial)
            os.replace(partial, Path(root) / name)
            _fsync(Path(root))


def replace_text(path: Path, text: str) -> None:
    """Writes a file in one step: a reader, and a full disk, leave the old or the new. Raises `OSError`."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def newest(run_folder: str | Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The checkpoint saved last that verifies (None where none does), and each later one with why it was rejected."""
    run = Path(run_folder)
    readable = [folder for folder, _ in _readable(run)]
    unreadable = sorted(set(_folders(run)) - set(readable), key=_step, reverse=True)
    rejected = []
    for folder in unreadable + readable:
        try:
            verify(folder)
        except CheckpointError as error:
            rejected.append((folder, error.reason))
        else:
            return folder, rejected
    return None, rejected


def course(run_folder: str | Path) -> list[Path]:
    """The checkpoints of the training that saved last, in the order of their steps, by their manifests.

    Neither what is being written is among them nor what an older run left in the folder.
    """
    found: list[Path] = []
    for folder, manifest in _readable(Path(run_folder)):
        if found and manifest["step"] >= _step(found[-1]):
            break
        if not folder.suffix:
            found.append(folder)
    return found[::-1]


def verify(folder: str | Path) -> None:
    """Reads every file back. Raises `CheckpointError` with the first reason not to load this checkpoint."""
    folder = Path(folder)
    manifest = _manifest(folder)
    if NAME.fullmatch(folder.name) and manifest["step"] != _step(folder):
        raise CheckpointError(folder, f"{MANIFEST} is of step {manifest['step']}")
    for name, (size, sha256) in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(folder, f"{name} is missing")
        if path.stat().st_size != size:
            raise CheckpointError(folder, f"{name} has {path.stat().st_size:,} bytes instead of {size:,}")
        if file_digest(path) != sha256:
            raise CheckpointError(folder, f"{name} is damaged: its sha256 is not the manifest's")


def file_digest(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _or_nothing(target: Path, partial: Path) -> Iterator[list[int]]:
    """On any failure (torch and safetensors raise their own kinds) what was begun goes and the cause is told.

    Yields a list for the bytes that are known to be needed.
    """
    needed = [0]
    try:
        yield needed
    except Exception as error:
        needed.append(_removed(partial))
        reason = error.reason if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(target, reason, max(needed), _free(target)) from error


def _removed(partial: Path) -> int:
    """Bytes of what was begun, which is gone afterwards as far as the disk lets it."""
    size = 0
    with suppress(OSError):
        size = sum(path.stat().st_size for path in [partial, *partial.rglob("*")] if path.is_file())
        partial.unlink() if partial.is_file() else shutil.rmtree(partial, ignore_errors=True)
    return size


def _free(target: Path) -> int:
    """Free bytes where `target` is to stand; 0 where that cannot be told."""
    for parent in target.absolute().parents:
        with suppress(OSError):
            return shutil.disk_usage(parent).free
    return 0


def _seal(folder: Path, step: int, sequence: int) -> None:
    """Flushes every file to the disk, then writes the manifest that makes the folder a checkpoint."""
    files = {}
    for path in sorted(folder.iterdir()):
        _fsync(path)
        files[path.name] = [path.stat().st_size, file_digest(path)]
    (folder / MANIFEST).write_text(_sealed({"step": step, "sequence": sequence, "files": files}), encoding="utf-8")
    _fsync(folder / MANIFEST)
    _fsync(folder)


def _sealed(body: dict) -> str:
    """The manifest as it stands on disk; it ends in its own sha256, so that no byte of it can change unseen."""
    body = {key: body[key] for key in ("step", "sequence", "files")}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, indent=1) + "\n"


def _manifest(folder: Path) -> dict:
    """The manifest, checked against its own sha256; raises `CheckpointError`."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        if text == _sealed(manifest):
            return _checked(manifest)
    except FileNotFoundError:
        raise CheckpointError(folder, f"{MANIFEST} is missing: the save was cut off") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(folder, f"{MANIFEST} is damaged: {type(error).__name__}: {error}") from error
    raise CheckpointError(folder, f"{MANIFEST} is damaged: its sha256 does not match")


def _checked(manifest: dict) -> dict:
    """The manifest, if its values can be counted with: a stranger's may say anything. Raises `ValueError`."""
    step, sequence, files = (manifest[key] for key in ("step", "sequence", "files"))
    if type(step) is not int or step < 0 or type(sequence) is not int or not 0 <= sequence <= LAST:
        raise ValueError(f"step {step!r:.40} and sequence {sequence!r:.40} are no counts")
    if not isinstance(files, dict):
        raise ValueError("files is no mapping")
    for name, (size, sha256) in files.items():
        if type(size) is not int or not isinstance(sha256, str):
            raise ValueError(f"files: {name!r:.80} has no size and sha256")
    return manifest


def _readable(run: Path) -> list[tuple[Path, dict]]:
    """Checkpoints with a whole manifest, the one saved last first; their files are not read."""
    found = []
    for folder in _folders(run):
        try:
            found.append((folder, _manifest(folder)))
        except CheckpointError:
            continue
    return sorted(found, key=lambda pair: pair[1]["sequence"], reverse=True)


def _folders(run: Path) -> list[Path]:
    """Every `checkpoint-N` and `checkpoint-N.old`."""
    return [p for p in run.glob("checkpoint-*") if (m := NAME.fullmatch(p.name)) and m[2] != ".tmp" and p.is_dir()]


def _step(folder: Path) -> int:
    return int(NAME.fullmatch(folder.name)[1])


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
