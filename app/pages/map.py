"""The Map tab: layout and wiring of `app.map`."""

from __future__ import annotations

import gradio as gr

from app import map as map_module
from app.pages import ASK, LOAD, Shell, plain, search, watched
from app.pages.chart import chart, colours

TITLE, ID = "Map", "map"
COLUMNS = ["What", "Words", "Rank"]
SLOW = LOAD | {"concurrency_id": "map"}
"""UMAP takes up to a minute at first: it waits for nobody's model, and nobody's model for it."""
HOW = ("Hover over a point to see it; click on it to search with it. Each caption is joined to its picture. Drag to "
       "move, Ctrl and wheel to zoom; with the lasso, draw around points to see what they have in common.")


class Page:
    """How it is drawn and coloured, the map, and what the lasso caught."""

    def __init__(self, shell: Shell):
        self.shell = shell
        self.bench, self.view, self.query = shell.bench, shell.view, shell.query
        self.is_open, self.caught = gr.State(False), gr.State([])
        self._choices()
        self._drawing()
        self._wire()

    def _choices(self) -> None:
        with gr.Row(equal_height=True):
            self.method = gr.Radio([("PCA, at once", "pca"), ("UMAP, shows clusters", "umap")], value="pca",
                                   label="Drawn by", min_width=260, elem_id="map-method")
            self.by = gr.Radio([(title, way) for way, title in map_module.WAYS.items()], value="kind",
                               label="Coloured by", min_width=280, scale=2, elem_id="map-by")
        self.words = gr.Dropdown([], multiselect=True, max_choices=map_module.COLOURS, label="Words to tell apart",
                                 visible=False, elem_id="map-words")

    def _drawing(self) -> None:
        self.note = gr.Markdown(elem_classes="quiet", elem_id="map-note")
        self.drawn = chart(label="Map", elem_id="map")
        gr.Markdown(HOW, elem_classes="quiet")
        self.line = gr.Markdown(elem_id="lasso-line", visible=False)
        self.rows = gr.Dataframe(headers=COLUMNS, datatype="str", interactive=False, wrap=True, label="Points chosen",
                                 show_label=False, visible=False, max_height=360, column_widths=["26%", "56%", "18%"],
                                 buttons=[], elem_id="lasso-rows")

    def scene(self, view, query, method, by, words, progress=gr.Progress()):  # noqa: B008 - gradio's way
        points = map_module.chart(self.bench, view)
        placed = map_module.place(self.bench, view, method, query, watched(progress))
        groups = map_module.groups(points, by, words)
        return (gr.HTML(map_module.page(points, placed), paint=colours(groups, placed)), placed.note,
                gr.Markdown(visible=False), gr.Dataframe(visible=False), [])

    def painted(self, view, query, method, by, words, chosen=None):
        points = map_module.chart(self.bench, view)
        placed = map_module.place(self.bench, view, method, query)
        return gr.HTML(paint=colours(map_module.groups(points, by, words), placed, chosen))

    def opened(self, view, query, method, by, words, event: gr.SelectData, progress=gr.Progress()):  # noqa: B008
        here = event.value == TITLE
        if not here or view is None:
            return [here, *[gr.skip()] * 6]
        return [here, *self.fresh(view, query, method, by, words, progress)]

    def fresh(self, view, query, method, by, words, progress):
        drawn = map_module.chart(self.bench, view)
        offered = map_module.offered(drawn)
        words = [word for word in words or [] if word in offered] or map_module.telling(drawn)
        return [*self.scene(view, query, method, by, words, progress), gr.Dropdown(offered, value=words)]

    def changed(self, view, query, method, by, words, is_open, progress=gr.Progress()):  # noqa: B008
        if not is_open or view is None:
            return [gr.skip()] * 6
        return self.fresh(view, query, method, by, words, progress)

    def recoloured(self, view, query, method, by, words):
        return self.painted(view, query, method, by, words), gr.Dropdown(visible=by == "words")

    def asked(self, view, query, method, by, words, is_open):
        return self.painted(view, query, method, by, words) if is_open and view is not None else gr.skip()

    def lassoed(self, view, query, method, by, words, event: gr.EventData):
        points = map_module.chart(self.bench, view)
        chosen = map_module.checked(points, event.points)
        first = map_module.worst_first(points, chosen)
        return (self.painted(view, query, method, by, words, chosen),
                gr.Markdown(map_module.summary(points, chosen), visible=True),
                gr.Dataframe(map_module.table(points, first), visible=True), first)

    def sought(self, view, point):
        return map_module.query_of(map_module.chart(self.bench, view), point), gr.Tabs(selected=search.ID)

    def picked(self, view, event: gr.EventData):
        return self.sought(view, event.index)

    def chosen(self, view, caught, event: gr.SelectData):
        if not 0 <= event.index[0] < len(caught):
            raise ValueError("these points have gone: draw around some again")
        return self.sought(view, caught[event.index[0]])

    def _wire(self) -> None:
        looks = [self.view, self.query, self.method, self.by, self.words]
        shown = [self.drawn, self.note, self.line, self.rows, self.caught]
        self.shell.tabs.select(plain(self.opened), looks, [self.is_open, *shown, self.words],
                               show_progress_on=self.note, **ASK)
        self.view.change(plain(self.changed), [*looks, self.is_open], [*shown, self.words], show_progress_on=self.note,
                         **SLOW)
        self.method.input(plain(self.scene), looks, shown, show_progress_on=self.note, **SLOW)
        for event in (self.by.input, self.words.input):
            event(plain(self.recoloured), looks, [self.drawn, self.words], show_progress="hidden", **ASK)
        self.query.change(plain(self.asked), [*looks, self.is_open], self.drawn, show_progress="hidden", **ASK)
        self.drawn.lasso(plain(self.lassoed), looks, [self.drawn, self.line, self.rows, self.caught],
                         show_progress="hidden", **ASK)
        self.drawn.pick(plain(self.picked), self.view, [self.shell.wanted, self.shell.tabs], show_progress="hidden",
                        **ASK)
        self.rows.select(plain(self.chosen), [self.view, self.caught], [self.shell.wanted, self.shell.tabs],
                         show_progress="hidden", **ASK)
