"""The panel above the tabs: which checkpoint and which gallery."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradio as gr

from app import limits
from app.gallery import Brought
from app.models import View
from app.pages import ASK, LOAD, Shell, plain, watched

NEWEST = "newest weights"
OWN = "your pictures"


class Panel:
    """The panel. Loading runs in a queue of its own; what was chosen before is in the browser's own storage."""

    def __init__(self, shell: Shell, status: gr.Markdown, recent: gr.BrowserState):
        self.shell, self.status, self.recent = shell, status, recent
        self.bench = shell.bench
        self.start, self.brought = self.bench.start, gr.State(Brought())
        self._choices()
        self._wire()

    def _choices(self) -> None:
        with gr.Accordion("Model and gallery", open=self.start is None, elem_id="choose"):
            with gr.Row(equal_height=True):
                self.source = gr.Dropdown(short(self.bench.models.runs),
                                          value=self.start.choice.source if self.start else None,
                                          allow_custom_value=True, label="Run or Hub id",
                                          info="A run of this computer, or ORG/NAME on the Hugging Face Hub", scale=3,
                                          min_width=240)
                self.revision = gr.Textbox(label="Revision", info="Branch, tag or commit on the Hub", max_length=200,
                                           scale=2, min_width=240)
                self.checkpoint = gr.Dropdown([NEWEST, *at_first(self.bench)], value=NEWEST, label="Checkpoint",
                                              info="Saved while it trained", scale=2, min_width=240)
                self.gallery = gr.Dropdown(short(self.bench.gallery_names),
                                           value=self.start.gallery if self.start else self.bench.gallery_names[0],
                                           label="Gallery", info="The pictures that are searched", scale=2,
                                           min_width=240)
            with gr.Row():
                self.load = gr.Button("Load", variant="primary", scale=0, min_width=120)
                self.note = gr.Markdown(elem_classes="quiet")
            with gr.Accordion("Search your own pictures", open=False):
                self.files = gr.File(file_count="multiple", file_types=["image"], label="Pictures",
                                     elem_id="upload", height=140)
                gr.Markdown(f"Up to {limits.FILES} JPEG, PNG, WebP, GIF or BMP files of at most 20 MB, "
                            f"{limits.UPLOAD_BYTES // 10**6} MB in all. They stay on this server, are seen by nobody "
                            "else, and are forgotten an hour after you leave.", elem_classes="quiet")
                self.refused = gr.Textbox(label="Files that were left out", visible=False, interactive=False, lines=3)

    def checkpoints(self, source, revision):
        choice = self.bench.models.choose(source, None, revision)
        names = self.bench.models.checkpoints(choice)
        return gr.Dropdown([NEWEST, *names], value=NEWEST), f"Checkpoints beside the newest weights: {len(names)}"

    def chosen(self, source, revision, checkpoint, gallery):
        return View(self.bench.models.choose(source, None if checkpoint == NEWEST else checkpoint, revision), gallery)

    def change(self, old, source, revision, checkpoint, gallery, recent,
               progress=gr.Progress()):  # noqa: B008 - gradio's way
        view = self.bench.open(self.chosen(source, revision, checkpoint, gallery), watched(progress))
        if old is not None and old.gallery != view.gallery:
            self.bench.close(old)
        recent = [view.choice.source, *(name for name in recent or [] if name != view.choice.source)][:8]
        return view, recent, heading(self.bench, view), "", galleries(self.bench, view)

    def upload(self, old, files, source, revision, checkpoint, brought, progress=gr.Progress()):  # noqa: B008
        if not files:
            raise ValueError("no files were given")
        brought.add(files)
        view = self.chosen(source, revision, checkpoint, "")
        key, out = self.bench.uploads.add(files, self.bench.model(view), watched(progress))
        view = self.bench.open(replace(view, gallery=key), watched(progress))
        self.bench.close(old)
        refused = gr.Textbox("\n".join(out), visible=bool(out))
        return view, heading(self.bench, view), galleries(self.bench, view), refused

    def remembered(self, names):
        known = [name for name in names or [] if isinstance(name, str) and name not in self.bench.models.runs]
        return gr.Dropdown([*short(self.bench.models.runs), *known[:8]])

    def _wire(self) -> None:
        for event in (self.source.input, self.revision.blur):
            event(plain(self.checkpoints), [self.source, self.revision], [self.checkpoint, self.note],
                  show_progress="hidden", **LOAD)
        self.load.click(plain(self.change),
                        [self.shell.view, self.source, self.revision, self.checkpoint, self.gallery, self.recent],
                        [self.shell.view, self.recent, self.status, self.note, self.gallery],
                        show_progress_on=self.note, **LOAD)
        self.files.upload(plain(self.upload),
                          [self.shell.view, self.files, self.source, self.revision, self.checkpoint, self.brought],
                          [self.shell.view, self.status, self.gallery, self.refused], show_progress_on=self.refused,
                          **LOAD)
        self.recent.change(self.remembered, self.recent, self.source, show_progress="hidden", **ASK)


def at_first(bench) -> list[str]:
    """The checkpoints of the run that the page opens with; none are asked of the Hub before the visitor does."""
    start = bench.start
    return bench.models.checkpoints(start.choice) if start and start.choice.source in bench.models.runs else []


def galleries(bench, view: View) -> gr.Dropdown:
    """What can be searched: the app's galleries, and what this visitor brought while it is looked at."""
    own = [(OWN, view.gallery)] if view.gallery.startswith("upload-") else []
    return gr.Dropdown([*short(bench.gallery_names), *own], value=view.gallery)


def heading(bench, view: View) -> str:
    """The line under the title: which model, which gallery, how large."""
    pictures = len(bench.gallery(view))
    name = OWN if view.gallery.startswith("upload-") else Path(view.gallery).name
    return f"`{view.choice.title}` on `{name}` · {pictures:,} {'picture' if pictures == 1 else 'pictures'}"


def short(names: list[str]) -> list[tuple[str, str]]:
    """Paths to choose from, shown by their last part where that tells them apart."""
    last = [Path(name).name for name in names]
    return [(part if last.count(part) == 1 else name, name) for part, name in zip(last, names)]
