"""What the server's threads have freed goes back to the system.

glibc gives threads arenas of their own, up to eight a core, and keeps what is freed in them. A visitor's look into a
picture takes tens of MB for a moment, in whichever thread comes next, so the process would grow by that for every
arena until each of them is as large as the largest of these moments, far above what is alive. So threads share a few
arenas, and every other second all that is free in them is given back.
"""

from __future__ import annotations

import asyncio
import ctypes
import os

SECONDS = 2
"""Between two times that memory is given back."""

ARENAS = 2
"""Heaps that threads share, so that what one has freed another can use."""

_ARENA_MAX = -8  # `M_ARENA_MAX` of glibc's malloc.h
_libc = ctypes.CDLL(None) if os.name == "posix" else None
_glibc = hasattr(_libc, "gnu_get_libc_version")  # others have functions of these names that do something else


def trim() -> None:
    """Give back the whole pages that are free, of all arenas; nothing where the C library is not glibc."""
    if _glibc:
        _libc.malloc_trim(ctypes.c_size_t(0))


def share_arenas() -> None:
    """Let threads that are still to come share `ARENAS` heaps; nothing where the C library is not glibc."""
    if _glibc:
        _libc.mallopt(_ARENA_MAX, ARENAS)


async def keep_trimmed() -> None:
    """For as long as it is not cancelled; other threads go on meanwhile."""
    share_arenas()
    while True:
        await asyncio.sleep(SECONDS)
        await asyncio.to_thread(trim)
