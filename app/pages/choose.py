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


def build(shell: Shell, status: gr.Markdown, recent: gr.BrowserState) -> None:
    """The panel. Loading runs in a queue of its own; what was chosen before is in the browser's own storage."""
    bench = shell.bench
    start, brought = bench.start, gr.State(Brought())
    with gr.Accordion("Model and gallery", open=start is None, elem_id="choose"):
        with gr.Row(equal_height=True):
            source = gr.Dropdown(short(bench.models.runs), value=start.choice.source if start else None,
                                 allow_custom_value=True, label="Run or Hub id",
                                 info="A run of this computer, or ORG/NAME on the Hugging Face Hub", scale=3,
                                 min_width=240)
            revision = gr.Textbox(label="Revision", info="Branch, tag or commit on the Hub", max_length=200, scale=2,
                                  min_width=240)
            checkpoint = gr.Dropdown([NEWEST, *at_first(bench)], value=NEWEST, label="Checkpoint",
                                     info="Saved while it trained", scale=2, min_width=240)
            gallery = gr.Dropdown(short(bench.gallery_names), value=start.gallery if start else bench.gallery_names[0],
                                  label="Gallery", info="The pictures that are searched", scale=2, min_width=240)
        with gr.Row():
            load = gr.Button("Load", variant="primary", scale=0, min_width=120)
            note = gr.Markdown(elem_classes="quiet")
        with gr.Accordion("Search your own pictures", open=False):
            files = gr.File(file_count="multiple", file_types=["image"], label="Pictures",
                            elem_id="upload", height=140)
            gr.Markdown(f"Up to {limits.FILES} JPEG, PNG, WebP, GIF or BMP files of at most 20 MB, "
                        f"{limits.UPLOAD_BYTES // 10**6} MB in all. They stay on this server, are seen by nobody else, "
                        "and are forgotten an hour after you leave.",
                        elem_classes="quiet")
            refused = gr.Textbox(label="Files that were left out", visible=False, interactive=False, lines=3)

    def checkpoints(source, revision):
        choice = bench.models.choose(source, None, revision)
        names = bench.models.checkpoints(choice)
        return gr.Dropdown([NEWEST, *names], value=NEWEST), f"Checkpoints beside the newest weights: {len(names)}"

    def chosen(source, revision, checkpoint, gallery):
        return View(bench.models.choose(source, None if checkpoint == NEWEST else checkpoint, revision), gallery)

    def change(old, source, revision, checkpoint, gallery, recent, progress=gr.Progress()):  # noqa: B008 - gradio's way
        view = bench.open(chosen(source, revision, checkpoint, gallery), watched(progress))
        if old is not None and old.gallery != view.gallery:
            bench.close(old)
        recent = [view.choice.source, *(name for name in recent or [] if name != view.choice.source)][:8]
        return view, recent, heading(bench, view), "", galleries(bench, view)

    def upload(old, files, source, revision, checkpoint, brought, progress=gr.Progress()):  # noqa: B008
        if not files:
            raise ValueError("no files were given")
        brought.add(files)
        view = chosen(source, revision, checkpoint, "")
        key, out = bench.uploads.add(files, bench.model(view), watched(progress))
        view = bench.open(replace(view, gallery=key), watched(progress))
        bench.close(old)
        refused = gr.Textbox("\n".join(out), visible=bool(out))
        return view, heading(bench, view), galleries(bench, view), refused

    def remembered(names):
        known = [name for name in names or [] if isinstance(name, str) and name not in bench.models.runs]
        return gr.Dropdown([*short(bench.models.runs), *known[:8]])

    for event in (source.input, revision.blur):
        event(plain(checkpoints), [source, revision], [checkpoint, note], show_progress="hidden", **LOAD)
    load.click(plain(change), [shell.view, source, revision, checkpoint, gallery, recent],
               [shell.view, recent, status, note, gallery], show_progress_on=note, **LOAD)
    files.upload(plain(upload), [shell.view, files, source, revision, checkpoint, brought],
                 [shell.view, status, gallery, refused], show_progress_on=refused, **LOAD)
    recent.change(remembered, recent, source, show_progress="hidden", **ASK)


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
