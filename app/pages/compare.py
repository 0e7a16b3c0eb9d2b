"""The Compare tab: layout and wiring of `app.compare`."""

from __future__ import annotations

import gradio as gr

from app import compare, limits, search
from app.compare import Move, Place
from app.pages import ASK, LOAD, Shell, plain, thumbnail, watched
from app.pages.choose import NEWEST, at_first

TITLE, ID = "Compare", "compare"
RECALL = ["Found", "First", "Second", "Points", "Chance"]


class Page:
    """Which other checkpoint; recall of both and what moved; then one query, side by side."""

    def __init__(self, shell: Shell):
        self.bench, self.view = shell.bench, shell.view
        self.start = self.bench.start
        self.second, self.names = gr.State(None), [NEWEST, *at_first(self.bench)]
        self._choice()
        self._answers()
        self._wire()

    def _choice(self) -> None:
        gr.Markdown("The first is the checkpoint that you look at; choose a second one for the same gallery.",
                    elem_classes="quiet")
        with gr.Row(equal_height=True):
            self.source = gr.Dropdown(self.bench.models.runs, value=self.start.choice.source if self.start else None,
                                      allow_custom_value=True, label="Second: run or Hub id", scale=3, min_width=240,
                                      elem_id="second")
            self.checkpoint = gr.Dropdown(self.names, value=self.names[-1], label="Its checkpoint", scale=2,
                                          min_width=200, elem_id="second-checkpoint")
            self.words = gr.Textbox(label="Words", lines=1, max_lines=3, max_length=limits.TEXT, scale=3,
                                    elem_id="compare-words")
        with gr.Row(elem_classes="actions"):
            self.go = gr.Button("Compare", variant="primary", size="sm", min_width=100, elem_id="compare-go")

    def _answers(self) -> None:
        self.line = gr.Markdown(elem_classes="quiet", elem_id="compare-line")
        with gr.Column(visible=False) as self.panel:
            with gr.Row(equal_height=False):
                self.sides = [_side(name) for name in ("First", "Second")]
            with gr.Column() as self.measures:
                gr.Markdown("### Recall, with 95 % intervals")
                self.recall = _table(RECALL, "Recall of both", "compare-recall", ["24%", "20%", "20%", "18%", "18%"])
                gr.Markdown("### What moved")
                with gr.Row(equal_height=False):
                    self.risen, self.fallen = (_moved_table(*which) for which in (("Higher with the second", "up"),
                                                                                  ("Lower with the second", "down")))

    def checkpoints(self, source):
        names = self.bench.models.checkpoints(self.bench.models.choose(source))
        return gr.Dropdown([NEWEST, *names], value=NEWEST)

    def opened(self, view):
        return next(iter(search.examples(self.bench, view, 1)), "")

    def compared(self, view, source, checkpoint, words, progress=gr.Progress()):  # noqa: B008 - gradio's way
        there = compare.other(self.bench, view, source, None if checkpoint == NEWEST else checkpoint,
                              progress=watched(progress))
        how, *tables = self.measured(view, there)
        said = f"First: {view.choice.title}. Second: {there.choice.title}. {how}"
        return (there, said.replace("`", ""), gr.Column(visible=True), gr.Column(visible=bool(tables[0])), *tables,
                *self.listed(view, there, words))

    def measured(self, view, there):
        try:
            both = compare.standings(self.bench, view, there)
        except ValueError as error:  # there are no captions; to search by words takes none
            return f"{str(error).capitalize()}.", [], [], []
        return (f"Recall of {len(both[0].texts):,} pictures with their first captions, among themselves.",
                compare.table(*both), *map(_moved, compare.moves(*both)))

    def listed(self, view, there, words):
        here, other = compare.results(self.bench, view, there, words)
        gallery = self.bench.gallery(view)
        return [[(thumbnail(gallery, place.name), _label(place, first)) for place in places]
                for places, first in ((here, True), (other, False))]

    def again(self, view, there, words):
        return self.listed(view, there, words) if there else [gr.skip(), gr.skip()]

    def _wire(self) -> None:
        self.source.input(plain(self.checkpoints), self.source, self.checkpoint, show_progress="hidden", **LOAD)
        self.view.change(plain(self.opened), self.view, self.words, show_progress="hidden", **ASK)
        self.view.change(lambda: (None, gr.Column(visible=False), ""), None, [self.second, self.panel, self.line],
                         show_progress="hidden", **ASK)
        self.go.click(plain(self.compared), [self.view, self.source, self.checkpoint, self.words],
                      [self.second, self.line, self.panel, self.measures, self.recall, self.risen, self.fallen,
                       *self.sides], show_progress_on=self.line, **LOAD)
        self.words.submit(plain(self.again), [self.view, self.second, self.words], self.sides,
                          show_progress_on=self.line, **ASK)


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
