"""A lock on a file, which the kernel lets go of when its process ends, whichever way."""

from __future__ import annotations

import errno
import fcntl
import sys
from pathlib import Path
from typing import TextIO

from tqdm import tqdm


def locked(path: Path, taken: str) -> TextIO:
    """The open file at `path`, which holds the lock until it is closed.

    Raises `ValueError(taken)` where another process has it; a process can have it twice. Where files cannot be locked,
    a warning says so, and nothing is kept from anybody.
    """
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in forked data workers
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise ValueError(taken) from None
        tqdm.write(f"warning: {file.name} cannot be locked ({error.strerror}); nothing keeps a second process away",
                   file=sys.stderr)
    return file
