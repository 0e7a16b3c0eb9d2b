"""Loading a model from a run, a checkpoint folder or the Hugging Face Hub, and taking a run over from there."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import torch

from bitgen.admission import BYTES, PICKLES, check_state, read_model, read_processor
from bitgen.checkpoint import LAST, MANIFEST, CheckpointError, publish, verify
from bitgen.download import Commit
from bitgen.model import BitGen
from bitgen.processing import FILE as PROCESSOR
from bitgen.processing import Processor
from bitgen.strict_json import read_json
from bitgen.wire import HubError

FILES = ("config.json", "model.safetensors", "tokenizer.json", PROCESSOR)
MODEL_BYTES = 2_000_000_000
RUN_BYTES = 8_000_000_000
"""Largest checkpoint with its training state: weights, moving average and two moments of each."""
NAME = r"checkpoint-\d+"


def load(source: str | Path, checkpoint: str | None = None, revision: str | None = None,
         device: str | torch.device = "cpu") -> tuple[BitGen, Processor]:
    """Model (in evaluation mode) and processor of a run folder, a checkpoint folder or a Hub repository, on `device`.

    checkpoint: a folder inside it such as `checkpoint-1000`; by default the newest weights at its root.
    revision: branch, tag or commit on the Hub. A commit that was loaded before is loaded without network.
    Raises `ValueError` naming what is missing, does not fit or is refused (`bitgen.admission`).
    """
    folder = _folder(str(source), checkpoint, revision)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        near = folder if folder.is_dir() else folder.parent
        held = sorted(path.name for path in near.glob("checkpoint-*") if path.is_dir())
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
        raise ValueError(f"{folder}: no model here, {', '.join(missing)} missing"
                         + (f"; its checkpoints: {', '.join(held)}" if held else "")
                         + (f"; {pickles[0]} is a pickle and is not opened" if pickles else ""))
    model = read_model(folder)
    processor = read_processor(folder, model)
    model.tokenizer = processor.tokenizer
    processor.device = device
    try:
        return model.to(device).eval(), processor
    except (RuntimeError, AssertionError) as error:  # torch's ways to say that there is no such device here
        raise ValueError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None


def pull(repo: str, folder: str | Path, revision: str | None = None, checkpoint: str | None = None) -> Path:
    """`folder/checkpoint-N` from a Hub repository, with all that resuming takes; the newest where none is named.

    It appears whole, or not at all, after its files agree with the Hub's hashes and with its manifest, the model is
    admitted, and the training state holds tensors and plain containers alone. At the root of `folder` its weights are
    published unless they are there. Raises `ValueError`, also where another whole checkpoint of that name stands.
    """
    _check_name(checkpoint)
    commit, root = Commit.at(repo, revision), Path(folder)
    name = checkpoint or _newest(commit)
    limits = {file: BYTES[file] for file in (*FILES, MANIFEST, "metrics.json", "run.json")} | {f"{name}.pt": RUN_BYTES}
    files = commit.choose(limits, RUN_BYTES, name)
    final, place = root / name, root / f"{name}.{os.getpid()}.tmp"  # of its own: all processes of a run may pull
    partial = place / name
    try:
        commit.download(files[MANIFEST], partial / MANIFEST)
        if not _stands(final, partial / MANIFEST):
            for file in files.keys() - {MANIFEST}:
                commit.download(files[file], partial / file)
            _check_run(partial, files.keys() - {MANIFEST}, f"{commit}/{name}")
            _move(partial, final)
        if not all((root / file).exists() for file in FILES):  # a kill may have left some of them
            publish(final, FILES, place)
            for file in FILES:
                os.replace(place / file, root / file)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(f"{commit}/{name} is in {final}", file=sys.stderr)
    return final


def resolve_resume(source: str, run_folder: str | Path) -> Path:
    """The checkpoint that `--resume SOURCE` goes on from: a folder, or `hub://ORG/NAME[@REV]`, pulled first."""
    if not source.startswith("hub://"):
        return Path(source)
    repo, revision = split_revision(source.removeprefix("hub://"))
    return pull(repo, run_folder, revision)


def split_revision(source: str) -> tuple[str, str | None]:
    """`ORG/NAME@REV` -> repository and revision; without `@` the revision is None."""
    repo, _, revision = source.partition("@")
    return repo, revision or None


def _folder(source: str, checkpoint: str | None, revision: str | None) -> Path:
    """The local folder of `source`, downloaded where it is a Hub id."""
    _check_name(checkpoint)
    local = Path(source).expanduser()
    if local.is_dir():
        if revision is not None:
            raise ValueError(f"revision {revision!r} applies to a Hub id; {source!r} is a folder")
        return local / checkpoint if checkpoint else local
    if local.is_file():
        what = "a pickle, which is not opened" if local.suffix in PICKLES else "a file"
        raise ValueError(f"{source!r} is {what}; expected a folder with {', '.join(FILES)}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise ValueError(f"{source!r}: no such folder, and no Hub id such as ORG/NAME")
    try:
        commit = Commit.at(source, revision)
        return commit.cached({name: BYTES[name] for name in FILES}, MODEL_BYTES, checkpoint or "")
    except HubError as error:
        raise HubError(f"{source!r} is no folder here; on the Hub: {error}", error.passing) from error


def _check_name(checkpoint: str | None) -> None:
    if checkpoint is not None and not re.fullmatch(NAME, str(checkpoint)):
        raise ValueError(f"checkpoint {checkpoint!r}: expected a name such as 'checkpoint-1000'")


def _newest(commit: Commit) -> str:
    names = [name for name in commit.listing()[1] if re.fullmatch(NAME, name)]
    if not names:
        raise HubError(f"{commit}: no checkpoint-N to go on from")
    return max(names, key=lambda name: int(name.removeprefix("checkpoint-")))


def _stands(folder: Path, manifest: Path) -> bool:
    """Whether the checkpoint of this manifest is there already. Raises `ValueError` where another one is."""
    try:
        verify(folder)
    except CheckpointError:
        return False
    if (folder / MANIFEST).read_bytes() != manifest.read_bytes():
        raise ValueError(f"{folder}: another run's checkpoint of that name is there; take another --output-dir")
    return True


def _move(partial: Path, final: Path) -> None:
    """Give a checked checkpoint its name, in place of a damaged one, unless another process has done so."""
    if _stands(final, partial / MANIFEST):
        return
    shutil.rmtree(final, ignore_errors=True)
    try:
        partial.rename(final)
    except OSError:
        if not _stands(final, partial / MANIFEST):
            raise


def _check_run(folder: Path, names: set[str], source: str) -> None:
    """Raises `ValueError` unless a downloaded checkpoint is whole and can be resumed."""
    manifest = read_json(folder / MANIFEST, BYTES[MANIFEST])
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict) or listed.keys() != names:
        raise ValueError(f"{source}: {MANIFEST} does not list {', '.join(sorted(names))}, and these alone")
    try:
        verify(folder)
    except CheckpointError as error:
        raise ValueError(f"{source}: {error.reason}") from None
    if manifest["sequence"] > LAST // 2:
        raise ValueError(f"{source}: {MANIFEST} tells of {manifest['sequence']:,} checkpoints before this one, and "
                         "leaves no room for those after it")
    read_processor(folder, read_model(folder))
    check_state(folder / f"{folder.name}.pt")
