"""The bench: what the server holds for all visitors. Callbacks get it first, and a visitor's `View` second."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from pathlib import Path

from app.gallery import Gallery, Progress, Uploads, find_pictures, indexes, open_gallery, silent
from app.models import HUB_ID, Choice, Loaded, Models, Recent, View, find_runs
from bitgen.facts import settings
from bitgen.streamed import HUB

GALLERIES = 4  # encoded galleries in memory, uploads included


class Bench:
    """Models, galleries and uploads; safe for threads.

    run: what visitors see first, a run folder or a Hub id; by default the newest run under `runs/`, if there is one.
    gallery: data set or folder of images; by default what the run was trained on, held out. save_to: folder below which
    visitors may save what they made of a model's memory. Raises `ValueError` for a run or a gallery that is none.
    """

    def __init__(self, run: str | None = None, gallery: str | None = None, runs: str | Path = "runs",
                 save_to: Path | None = None):
        _check(run, gallery)
        offered = find_runs(runs)
        local = run is not None and Path(run).is_dir()
        self.models = Models(([run] if local and run not in offered else []) + offered)
        self.uploads, self.save_to = Uploads(), save_to
        self._galleries = Recent(self._open, GALLERIES)
        run = run or (offered[0] if offered else None)
        self.start = None if run is None else View(Choice(run), gallery or _trained_on(run))
        self.gallery_names = [gallery] if gallery else []
        if self.start and self.start.gallery not in self.gallery_names:
            self.gallery_names.append(self.start.gallery)
        if "scenes" not in self.gallery_names:
            self.gallery_names.append("scenes")

    def model(self, view: View) -> Loaded:
        """The model of a view. Raises `ValueError` where it cannot be loaded, or for no view at all."""
        if view is None:
            raise ValueError("no model is loaded yet: choose one above")
        return self.models.get(view.choice)

    def gallery(self, view: View, progress: Progress = silent) -> Gallery:
        """The gallery of a view, encoded by its model."""
        self.model(view)
        if view.gallery.startswith("upload-"):
            self.uploads.use(view.gallery)
        return self._galleries.get(view, progress)

    def open(self, view: View, progress: Progress = silent) -> View:
        """The view, once its model and gallery are there. Raises `ValueError` where either cannot be had."""
        if not view.gallery.startswith("upload-") and view.gallery not in self.gallery_names:
            raise ValueError(f"gallery {view.gallery[:100]!r}: choose one of the list, or upload pictures")
        progress(0, f"Loading {view.choice.title}")
        self.gallery(view, progress)
        return view

    def close(self, view: View | None) -> None:
        """A visitor left: what was uploaded goes."""
        if view is not None and view.gallery.startswith("upload-"):
            self.uploads.drop(view.gallery)
            self._galleries.drop(lambda other: other.gallery == view.gallery)

    def _open(self, view: View, progress: Progress = silent) -> Gallery:
        loaded = self.models.get(view.choice)
        if view.gallery.startswith("upload-"):
            source, folder = self.uploads.pictures(view.gallery)
        else:
            source, folder = find_pictures(view.gallery, loaded.processor.vision.image_size), indexes()
        return open_gallery(source, loaded, folder, progress)


def kept(make: Callable) -> Callable:
    """`make(bench, view)`, asked once for each gallery in memory: of a gallery and its model, of no visitor."""
    there: weakref.WeakKeyDictionary[Gallery, object] = weakref.WeakKeyDictionary()

    @functools.wraps(make)
    def found(bench: Bench, view: View):
        gallery = bench.gallery(view)
        if gallery not in there:
            there[gallery] = make(bench, view)
        return there[gallery]
    return found


def _check(run: str | None, gallery: str | None) -> None:
    """Raise `ValueError` for what nobody could look at: before the server starts."""
    if run and not Path(run).expanduser().is_dir() and not HUB_ID.fullmatch(run):
        raise ValueError(f"{run!r}: no such folder, and no Hub id such as ORG/NAME")
    if gallery and gallery != "scenes" and not gallery.startswith(HUB) and not Path(gallery).expanduser().exists():
        raise ValueError(f"gallery {gallery!r}: no such file or folder; expected `scenes`, pictures or data on disk, "
                         "or hub://ORG/NAME")


def _trained_on(run: str) -> str:
    """The data set of a local run, `scenes` where that is not known or not there."""
    root = settings(Path(run)).get("data", {}).get("root", "")
    return root if root and Path(root).exists() else "scenes"
