"""Filling an index: by one process, or in parts by the processes of `torchrun` and `accelerate launch`.

With several processes each fills a store of its own, `DIR/parts/0-of-4` and so on, with its share of the pictures, and
the first one copies them together when all are whole. Nothing but the folder is shared: no process group, and so no
time-out when one process has slower pictures. Whatever is killed goes on where it was.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from bitgen.gallery import Pictures, loaded
from bitgen.query import Encoder
from bitgen.store import CATALOGUE, Store

log = logging.getLogger(__name__)

PARTS = "parts"
POLL = 0.1  # seconds between two looks at what the other processes have done
LAUNCH = "launch"
"""File in `parts` with a token of the launch: a part that is whole says of which, for a killed one leaves parts too."""
Progress = Callable[[int, int], None]


def fill(store: Store, source: Pictures, encoder: Encoder, batch_size: int = 64, progress: Progress | None = None,
         done: Store | None = None) -> None:
    """Encode the pictures that are not in `store` (or `done`) yet, or were other files then.

    Unreadable ones are noted as skipped, and what was removed stays out.
    """
    missing = _missing(source, [store] if done is None else [done, store])
    already = len(source) - len(missing)
    for batch in loaded(source.select(missing), encoder.image_size, batch_size, progress, already):
        if batch.items:
            texts = [text for item in batch.items for text in item.captions] if store.with_captions else []
            spoken = encoder.text(texts) if texts else np.empty((0, store.width), np.float32)
            store.append(batch.items, batch.thumbnails, encoder.pixels(batch.pixels), spoken)
        if batch.bad:
            with store.catalogue.transaction():
                store.catalogue.skip(batch.bad)


def _missing(source: Pictures, stores: list[Store]) -> list[int]:
    """Positions of the pictures to be encoded; of what several stores hold the last one counts."""
    place = {name: i for i, name in enumerate(source.ids)}
    missing = set(place)
    for store in stores:
        for _, item, _ in (entry for entries in store.chunks() for entry in entries if entry[1].id in place):
            keep = missing.add if source.changed(place[item.id], item) else missing.discard
            keep(item.id)
    for store in stores:
        missing -= store.catalogue.kept_out()
    return sorted(place[name] for name in missing)


def leave_out(store: Store, source: Pictures) -> None:
    """Take out what lay in the folder of `source` and does no longer; the log names it."""
    if source.folder is None:
        return
    listed = set(source.ids)
    gone = [name for name, path in store.catalogue.paths().items()
            if name not in listed and path == str(source.folder / name)]
    store.remove(gone)
    for name in gone:
        log.warning("left out %s: no longer in %s", name, source.folder)
    with store.catalogue.transaction():
        store.catalogue.unskip(name for name in store.catalogue.skipped()
                               if name not in listed and not (source.folder / name).exists())


def fill_in_parts(folder: Path, source: Pictures, create: Callable[[Path], Store], rank: int, world: int,
                  **how) -> Store:
    """What `fill` does, by process `rank` of `world`; returns the whole store when all have done their share."""
    shares = [source.select(range(len(source) * r // world, len(source) * (r + 1) // world)) for r in range(world)]
    places = [folder / PARTS / f"{r}-of-{world}" for r in range(world)]
    launch = folder / PARTS / LAUNCH
    part = create(places[rank])
    if not rank:
        launch.write_text(secrets.token_hex(), encoding="utf-8")
    fill(part, shares[rank], done=Store(folder) if (folder / CATALOGUE).exists() else None, **how)
    if rank:
        _answer(part, launch)
        return Store(folder)
    for place in places[1:]:
        while not _whole(place, launch.read_text(encoding="utf-8")):
            time.sleep(POLL)
    whole = create(folder)
    for place in places:
        whole.copy(Store(place), newer=True)
    for place in sorted(path for path in (folder / PARTS).iterdir() if path.is_dir()):
        whole.copy(Store(place))  # what is left of builds by another number of processes
    shutil.rmtree(folder / PARTS)
    return whole


def _answer(part: Store, launch: Path) -> None:
    """Tell the first process, as often as it asks, that this part is whole; until it has taken all parts away."""
    reported = ""
    while launch.parent.exists():
        with suppress(FileNotFoundError):  # not written yet, or taken away just now
            asked = launch.read_text(encoding="utf-8")
            if asked != reported:
                with part.catalogue.transaction():
                    part.catalogue.set_fact("whole", asked)
                reported = asked
        time.sleep(POLL)


def _whole(place: Path, launch: str) -> bool:
    """Has the process of this part done all of its share, in this launch?"""
    return (place / CATALOGUE).exists() and Store(place).catalogue.fact("whole") == launch
