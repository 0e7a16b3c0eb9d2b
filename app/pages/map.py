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


def build(shell: Shell) -> None:
    """How it is drawn and coloured, the map, and what the lasso caught."""
    bench, view, query = shell.bench, shell.view, shell.query
    is_open, caught = gr.State(False), gr.State([])
    with gr.Row(equal_height=True):
        method = gr.Radio([("PCA, at once", "pca"), ("UMAP, shows clusters", "umap")], value="pca", label="Drawn by",
                          min_width=260, elem_id="map-method")
        by = gr.Radio([(title, way) for way, title in map_module.WAYS.items()], value="kind", label="Coloured by",
                      min_width=280, scale=2, elem_id="map-by")
    words = gr.Dropdown([], multiselect=True, max_choices=map_module.COLOURS, label="Words to tell apart",
                        visible=False, elem_id="map-words")
    note = gr.Markdown(elem_classes="quiet", elem_id="map-note")
    drawn = chart(label="Map", elem_id="map")
    gr.Markdown(HOW, elem_classes="quiet")
    line = gr.Markdown(elem_id="lasso-line", visible=False)
    rows = gr.Dataframe(headers=COLUMNS, datatype="str", interactive=False, wrap=True, label="Points chosen",
                        show_label=False, visible=False, max_height=360, column_widths=["26%", "56%", "18%"],
                        buttons=[], elem_id="lasso-rows")

    def scene(view, query, method, by, words, progress=gr.Progress()):  # noqa: B008 - gradio's way
        points = map_module.chart(bench, view)
        placed = map_module.place(bench, view, method, query, watched(progress))
        groups = map_module.groups(points, by, words)
        return (gr.HTML(map_module.page(points, placed), paint=colours(groups, placed)), placed.note,
                gr.Markdown(visible=False), gr.Dataframe(visible=False), [])

    def painted(view, query, method, by, words, chosen=None):
        points = map_module.chart(bench, view)
        placed = map_module.place(bench, view, method, query)
        return gr.HTML(paint=colours(map_module.groups(points, by, words), placed, chosen))

    def opened(view, query, method, by, words, event: gr.SelectData, progress=gr.Progress()):  # noqa: B008
        here = event.value == TITLE
        if not here or view is None:
            return [here, *[gr.skip()] * 6]
        return [here, *fresh(view, query, method, by, words, progress)]

    def fresh(view, query, method, by, words, progress):
        drawn = map_module.chart(bench, view)
        offered = map_module.offered(drawn)
        words = [word for word in words or [] if word in offered] or map_module.telling(drawn)
        return [*scene(view, query, method, by, words, progress), gr.Dropdown(offered, value=words)]

    def changed(view, query, method, by, words, is_open, progress=gr.Progress()):  # noqa: B008
        if not is_open or view is None:
            return [gr.skip()] * 6
        return fresh(view, query, method, by, words, progress)

    def recoloured(view, query, method, by, words):
        return painted(view, query, method, by, words), gr.Dropdown(visible=by == "words")

    def asked(view, query, method, by, words, is_open):
        return painted(view, query, method, by, words) if is_open and view is not None else gr.skip()

    def lassoed(view, query, method, by, words, event: gr.EventData):
        points = map_module.chart(bench, view)
        chosen = map_module.checked(points, event.points)
        first = map_module.worst_first(points, chosen)
        return (painted(view, query, method, by, words, chosen),
                gr.Markdown(map_module.summary(points, chosen), visible=True),
                gr.Dataframe(map_module.table(points, first), visible=True), first)

    def sought(view, point):
        return map_module.query_of(map_module.chart(bench, view), point), gr.Tabs(selected=search.ID)

    def picked(view, event: gr.EventData):
        return sought(view, event.index)

    def chosen(view, caught, event: gr.SelectData):
        if not 0 <= event.index[0] < len(caught):
            raise ValueError("these points have gone: draw around some again")
        return sought(view, caught[event.index[0]])

    looks = [view, query, method, by, words]
    shown = [drawn, note, line, rows, caught]
    shell.tabs.select(plain(opened), looks, [is_open, *shown, words], show_progress_on=note, **ASK)
    view.change(plain(changed), [*looks, is_open], [*shown, words], show_progress_on=note, **SLOW)
    method.input(plain(scene), looks, shown, show_progress_on=note, **SLOW)
    for event in (by.input, words.input):
        event(plain(recoloured), looks, [drawn, words], show_progress="hidden", **ASK)
    query.change(plain(asked), [*looks, is_open], drawn, show_progress="hidden", **ASK)
    drawn.lasso(plain(lassoed), looks, [drawn, line, rows, caught], show_progress="hidden", **ASK)
    drawn.pick(plain(picked), view, [shell.wanted, shell.tabs], show_progress="hidden", **ASK)
    rows.select(plain(chosen), [view, caught], [shell.wanted, shell.tabs], show_progress="hidden", **ASK)
