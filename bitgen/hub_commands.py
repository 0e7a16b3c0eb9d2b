"""`bitgen push`, `pull` and `hub`: what goes to the Hub, what comes from there, and what lies there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from bitgen.arguments import RUN, parse, positional

REPOSITORY = positional(str, "ORG/NAME")


@dataclass
class Push:
    """Push the newest checkpoint of a run to the Hub, with its weights at the root and its model card."""

    run: RUN
    """Run folder."""
    repo: str
    """`ORG/NAME`; made where it is missing."""
    private: bool = False
    """Make the repository private where it is made."""


@dataclass
class Pull:
    """Fetch a checkpoint from the Hub, verified, with what `bitgen train --resume` takes to go on from it."""

    repo: REPOSITORY
    """`ORG/NAME`, or `ORG/NAME@REV` with a branch, tag or commit."""
    checkpoint: str | None = None
    """Which one, such as 2000; the newest where not given."""
    output_dir: str | None = None
    """Run folder that receives it; by default `runs/NAME`."""


@dataclass
class Listed:
    """What a repository holds, by checkpoint."""

    repo: REPOSITORY
    """`ORG/NAME`."""


@dataclass
class Squash:
    """Make one commit of a repository's history, so that the Hub can free what only older commits hold."""

    repo: REPOSITORY
    """`ORG/NAME`."""
    yes: bool = False
    """Do not ask."""


def push(argv: list[str]) -> int:
    """Send a run to the Hub: `bitgen push runs/scenes --repo ORG/NAME`."""
    options = parse(Push, "bitgen push", argv)
    from bitgen import exits
    from bitgen.push import push_run

    status = push_run(options.run, options.repo, options.private)
    print(status, file=sys.stdout if status.complete else sys.stderr)
    return 0 if status.complete else exits.PUSH


def pull(argv: list[str]) -> int:
    """Fetch a checkpoint from the Hub: `bitgen pull ORG/NAME --output-dir runs/NAME`."""
    options = parse(Pull, "bitgen pull", argv)
    from bitgen import hub

    repo, revision = hub.split_revision(options.repo)
    folder = Path(options.output_dir or Path("runs") / repo.rpartition("/")[2])
    checkpoint = options.checkpoint
    path = hub.pull(repo, folder, revision, f"checkpoint-{checkpoint}" if (checkpoint or "").isdigit() else checkpoint)
    print(f"pulled: {path}\ngo on from it: bitgen train … --output-dir {folder} --resume {path}")
    return 0


def hub(argv: list[str]) -> int:
    """Look over or tidy up what is there: `bitgen hub list ORG/NAME`."""
    options = parse({"list": Listed, "gc": Squash}, "bitgen hub", argv)
    from bitgen import repository

    print(repository.listing(options.repo))
    if isinstance(options, Squash):
        print("Older commits, and whoever refers to them by their sha, lose their files for good.")
        print("Make one commit of it all? [y/N]", "y" if options.yes else "", flush=True)
        if not options.yes and sys.stdin.readline().strip().lower() != "y":
            print("nothing was changed")
            return 0
        print(repository.squash(options.repo))
    return 0
