"""The Compare tab: layout and wiring of `app.compare`."""

from __future__ import annotations

import gradio as gr

from app import compare, limits, search
from app.compare import Move, Place
from app.pages import ASK, LOAD, Shell, plain, thumbnail, watched
from app.pages.choose import NEWEST, at_first

TITLE, ID = "Compare", "compare"
RECALL = ["Found", "First", "Second", "Points", "Chance"]


def build(shell: Shell) -> None:
    """Which other checkpoint; recall of both and what moved; then one query, side by side."""
    bench, view = shell.bench, shell.view
    start = bench.start
    second, names = gr.State(None), [NEWEST, *at_first(bench)]
    gr.Markdown("The first is the checkpoint that you look at; choose a second one for the same gallery.",
                elem_classes="quiet")
    with gr.Row(equal_height=True):
        source = gr.Dropdown(bench.models.runs, value=start.choice.source if start else None, allow_custom_value=True,
                             label="Second: run or Hub id", scale=3, min_width=240, elem_id="second")
        checkpoint = gr.Dropdown(names, value=names[-1], label="Its checkpoint", scale=2, min_width=200,
                                 elem_id="second-checkpoint")
        words = gr.Textbox(label="Words", lines=1, max_lines=3, max_length=limits.TEXT, scale=3,
                           elem_id="compare-words")
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Compare", variant="primary", size="sm", min_width=100, elem_id="compare-go")
    line = gr.Markdown(elem_classes="quiet", elem_id="compare-line")
    with gr.Column(visible=False) as panel:
        with gr.Row(equal_height=False):
            sides = [_side(name) for name in ("First", "Second")]
        with gr.Column() as measures:
            gr.Markdown("### Recall, with 95 % intervals")
            recall = _table(RECALL, "Recall of both", "compare-recall", ["24%", "20%", "20%", "18%", "18%"])
            gr.Markdown("### What moved")
            with gr.Row(equal_height=False):
                risen, fallen = (_moved_table(*which) for which in (("Higher with the second", "up"),
                                                                    ("Lower with the second", "down")))

    def checkpoints(source):
        names = bench.models.checkpoints(bench.models.choose(source))
        return gr.Dropdown([NEWEST, *names], value=NEWEST)

    def opened(view):
        return next(iter(search.examples(bench, view, 1)), "")

    def compared(view, source, checkpoint, words, progress=gr.Progress()):  # noqa: B008 - gradio's way
        there = compare.other(bench, view, source, None if checkpoint == NEWEST else checkpoint,
                              progress=watched(progress))
        how, *tables = measured(view, there)
        said = f"First: {view.choice.title}. Second: {there.choice.title}. {how}"
        return (there, said.replace("`", ""), gr.Column(visible=True), gr.Column(visible=bool(tables[0])), *tables,
                *listed(view, there, words))

    def measured(view, there):
        try:
            both = compare.standings(bench, view, there)
        except ValueError as error:  # there are no captions; to search by words takes none
            return f"{str(error).capitalize()}.", [], [], []
        return (f"Recall of {len(both[0].texts):,} pictures with their first captions, among themselves.",
                compare.table(*both), *map(_moved, compare.moves(*both)))

    def listed(view, there, words):
        here, other = compare.results(bench, view, there, words)
        gallery = bench.gallery(view)
        return [[(thumbnail(gallery, place.name), _label(place, first)) for place in places]
                for places, first in ((here, True), (other, False))]

    def again(view, there, words):
        return listed(view, there, words) if there else [gr.skip(), gr.skip()]

    source.input(plain(checkpoints), source, checkpoint, show_progress="hidden", **LOAD)
    view.change(plain(opened), view, words, show_progress="hidden", **ASK)
    view.change(lambda: (None, gr.Column(visible=False), ""), None, [second, panel, line], show_progress="hidden",
                **ASK)
    go.click(plain(compared), [view, source, checkpoint, words],
             [second, line, panel, measures, recall, risen, fallen, *sides], show_progress_on=line, **LOAD)
    words.submit(plain(again), [view, second, words], sides, show_progress_on=line, **ASK)


def _side(name: str) -> gr.Gallery:
    with gr.Column(min_width=280):
        gr.Markdown(f"### {name}")
        return gr.Gallery(label=f"{name}: pictures found", columns=3, object_fit="contain", allow_preview=False,
                          height="auto", show_label=False, buttons=[], elem_id=f"compare-{name.lower()}",
                          elem_classes=["results", "pixelated"])


def _moved_table(title: str, name: str) -> gr.Dataframe:
    with gr.Column(min_width=320):
        return _table([title, "First", "Second"], title, f"moved-{name}", ["62%", "19%", "19%"])


def _table(headers: list[str], label: str, elem_id: str, widths: list[str]) -> gr.Dataframe:
    return gr.Dataframe(headers=headers, label=label, elem_id=elem_id, column_widths=widths, datatype="str",
                        interactive=False, wrap=True, show_label=False, buttons=[])


def _label(place: Place, first: bool) -> str:
    """What stands under a result: its rank, its similarity, and its rank with the other checkpoint."""
    own, elsewhere = (place.here, place.there) if first else (place.there, place.here)
    where = "same there" if own == elsewhere else f"there {elsewhere}"
    return f"{own} · {place.score:.2f} · {where}\n{place.text or place.name}"


def _moved(moves: list[Move]) -> list[list[str]]:
    return [[move.text, f"{move.here:.0f}", f"{move.there:.0f}"] for move in moves] or [["none", "", ""]]
