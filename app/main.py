"""The app's shell: header, choice of model and gallery, tabs; and how it is served.

How a tab is added
------------------
1. `app/<tab>.py`: callbacks, plain functions without gradio. The first arguments are `bench` (what the server holds:
   `bench.model(view)`, `bench.gallery(view)`) and `view` (what this visitor looks at, may be None before anything is
   loaded: `bench.model` then raises). They take and return plain values, pictures and arrays; they raise `ValueError`
   with a message for the visitor. Nothing of a visitor goes into a module or into `bench`: it goes into `gr.State`.
   Tests call them directly (`tests/test_app.py`).
2. `app/pages/<tab>.py`: `TITLE`, `ID` and `Page(shell)`, made inside the `gr.Tab`: methods that lay out components,
   those that events call, and last those that wire them: `event(plain(self.method), inputs, outputs, **ASK)`, or
   `**LOAD` with `progress=gr.Progress()` for what takes seconds. `plain` shows `ValueError`s as text. A callback of
   `ASK` is called once more where a model or gallery that it asked `bench` for had to be loaded first: it changes
   nothing before that. `shell.view.change(...)` fills the tab when the page opens and when another checkpoint or
   gallery was chosen; what is expensive waits for the tab's own `select`.
3. The module's place in `PAGES` below.

Nothing a visitor typed goes into `gr.HTML` or `gr.Markdown` unless `html.escape`d; lists of it are a `gr.Dataframe` or
a `gr.Textbox`. Every component has a `label`, shown or not: screen readers read it.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.update({  # before gradio is imported
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",             # calls are recorded nowhere
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",        # else each answer is followed by statistics over the last 10,000 answers
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),
})

import gradio as gr
from gradio.utils import get_upload_folder

from app import api, limits, saved
from app.bench import Bench
from app.guard import Events, Guard
from app.pages import ASK, LOAD, Shell, caption, choose, compare, map, memory, plain, search, training, watched
from app.pages.answers import Answers
from app.sessions import lean
from app.theme import CSS, theme

PAGES = (search, caption, memory, map, training, compare)

NOTHING = "Nothing is loaded."
EMPTY = """
## No model yet

BitGen searches pictures with words once it has a model. Train the demo's, in about ten minutes on two cores:

    make demo

then open this page again with `make app`. Or type a Hub id such as `ORG/NAME` above and press *Load*.
"""


def build_app(run: str | None = None, gallery: str | None = None, runs: str = "runs",
              save_to: Path | None = None) -> gr.Blocks:
    """The page. run: run folder or Hub id, by default the newest below `runs`; gallery: data set or image folder;
    save_to: folder below which visitors may save, by default nowhere."""
    bench = Bench(run, gallery, runs, save_to)
    with gr.Blocks(title="BitGen", analytics_enabled=False, delete_cache=(600, limits.UPLOAD_SECONDS)) as demo:
        view = gr.State(None, delete_callback=bench.close)
        query, wanted = gr.State(None), gr.State(None)
        recent = gr.BrowserState([], storage_key="bitgen-recent", secret="none")  # else another one at each start
        with gr.Row(elem_id="head"):
            gr.Markdown("# BitGen", container=False)
            status = gr.Markdown("" if bench.start else NOTHING, elem_id="status", container=False)
        with gr.Column():
            panel = gr.Column()
            empty = gr.Markdown(EMPTY, visible=bench.start is None, elem_id="no-model")
            with gr.Tabs(visible=bench.start is not None, selected=PAGES[0].ID) as tabs:
                shell = Shell(bench, view, query, wanted, tabs)
                for page in PAGES:
                    with gr.Tab(page.TITLE, id=page.ID):
                        page.Page(shell)
        with panel:
            choose.Panel(shell, status, recent)

        def first(progress=gr.Progress()):  # noqa: B008 - gradio's way
            if bench.start is None:
                return None, NOTHING
            return bench.open(bench.start, watched(progress)), choose.heading(bench, bench.start)

        demo.load(plain(first), None, [view, status], show_progress="minimal", **LOAD)
        view.change(lambda view: (gr.Markdown(visible=view is None), gr.Tabs(visible=view is not None)),
                    view, [empty, tabs], show_progress="hidden", **ASK)
        api.build(bench)
    answers = Answers(demo)
    for event in demo.fns.values():
        if event.concurrency_id == ASK["concurrency_id"]:
            event.fn = answers.answered(event)
    demo.default_config.fns = Events(demo.fns)
    demo.queue(max_size=limits.QUEUE, default_concurrency_limit=2, api_open=False)
    return demo


def launch(run: str | None = None, gallery: str | None = None, host: str = "127.0.0.1", port: int | None = None,
           mcp: bool = False, save_to: str | None = None, block: bool = True, quiet: bool = False) -> gr.Blocks:
    """Serve the page at `host`, only to this computer unless told otherwise. save_to: folder below which visitors may
    save models with a memory that they edited.

    Raises `ValueError` for a host or port that cannot be had, for MCP without its packages, and for a folder that
    cannot be written or that others than this computer would write to.
    """
    demo = build_app(run, gallery, save_to=saved.place(save_to, host))
    try:
        demo.launch(**serving(mcp), server_name=host, server_port=port, prevent_thread_lock=not block, quiet=quiet)
    except OSError as error:
        raise ValueError(f"cannot listen at {host}, port {port or '7860 to 7959'}: {error}") from None
    return demo


def serving(mcp: bool = False) -> dict:
    """What `Blocks.launch` is told, here and in a Space. Raises `ValueError` for MCP without its packages."""
    if mcp:
        api.check_mcp()
    return {"theme": theme(), "css": CSS, "share": False, "allowed_paths": [], "max_file_size": limits.FILE_SIZE,
            "state_session_capacity": limits.SESSIONS, "mcp_server": mcp, "ssr_mode": False, "show_error": False,
            "footer_links": ["api"], "app_kwargs": {"middleware": [_guard()], "lifespan": lean},
            "enable_monitoring": False,
            "_frontend": False}  # else gradio asks its own page, and gives up after 3 s on a busy computer


def _guard():
    from starlette.middleware import Middleware

    return Middleware(Guard, folder=get_upload_folder())
