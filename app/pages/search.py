"""The Search tab: layout and wiring of `app.search`."""

from __future__ import annotations

import gradio as gr
import numpy

from app import limits, search
from app.pages import ASK, Shell, plain
from app.search import Query, Wish

TITLE, ID = "Search", "search"
COLUMNS = ["Rank", "Caption", "Similarity", "Match", "Before"]


def build(shell: Shell) -> None:
    """Query on top, examples to click, results, and the chosen result with where the model looks."""
    bench = shell.bench
    hits = gr.State([])
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=280):
            words = gr.Textbox(label="Words", placeholder="a red ring above a blue square", max_length=limits.TEXT,
                               autofocus=True, elem_id="words")
            samples = gr.Dataset(components=[words], samples=[], label="Examples", type="index",
                                 elem_id="examples", samples_per_page=5)
            with gr.Row():
                go = gr.Button("Search", variant="primary", elem_id="go")
                surprise = gr.Button("A picture of the gallery", elem_id="surprise")
                clear = gr.Button("Clear")
        with gr.Column(scale=2, min_width=220):
            image = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], image_mode=None,
                             height=190, elem_id="picture", elem_classes="pixelated")
    with gr.Row(equal_height=True):
        find = gr.Radio([("Pictures", "images"), ("Captions", "captions")], value="images", label="Find", scale=1)
        rerank = gr.Checkbox(label="Re-rank by matching", info="Reads words and picture together; slower", scale=1)
    with gr.Accordion("Options", open=False):
        with gr.Row():
            top = gr.Slider(1, limits.RESULTS, 12, step=1, label="Results")
            floor = gr.Slider(-1, 1, -1, step=0.05, label="Smallest similarity")
            weight = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the words", info="Where words and picture mix")
        with gr.Row():
            less = gr.Textbox(label="Less of", max_length=limits.TEXT)
            contains = gr.Textbox(label="Only where a caption contains", max_length=limits.TEXT)
            tags = gr.Dropdown([], multiselect=True, label="Only with all of these tags")
    line = gr.Markdown("Type some words, give a picture, or click an example.", elem_classes="quiet", elem_id="line")
    gallery = gr.Gallery(label="Results", columns=6, object_fit="contain", allow_preview=False, height="auto",
                         elem_id="results", elem_classes=["results", "pixelated"], show_label=False, buttons=[],
                         visible=False)
    table = gr.Dataframe(headers=COLUMNS, datatype=["number", "str", "number", "number", "number"], visible=False,
                         interactive=False, wrap=True, label="Captions found", elem_id="captions", show_label=False)
    with gr.Row(visible=False, elem_id="chosen") as panel:
        with gr.Column(scale=2, min_width=240):
            shown_picture = gr.Image(label="Chosen picture", interactive=False, height=320, elem_classes="pixelated",
                                     elem_id="chosen-picture", buttons=[])
        with gr.Column(scale=3, min_width=280):
            said = gr.Textbox(label="Its captions", interactive=False, lines=5, max_lines=8)
            with gr.Row():
                similar = gr.Button("Pictures like this", elem_id="similar")
                described = gr.Button("Captions for this", elem_id="described")
    place = gr.State(None)
    wish = [find, top, floor, contains, tags, rerank]
    shown = [line, gallery, table, hits, shell.query, panel]

    def answer(view, query, *wanted):
        find, top, floor, contains, tags, rerank = wanted
        found = search.search(bench, view, query, Wish(find, top, floor, contains, tuple(tags or ()), bool(rerank)))
        pictures = bench.gallery(view).pictures
        images = [(pictures.read(hit.place), label(i, hit)) for i, hit in enumerate(found.hits)]
        rows = [[i + 1, hit.text, round(hit.score, 3), None if hit.match is None else round(hit.match, 3), hit.before]
                for i, hit in enumerate(found.hits)]
        images_wanted = find == "images"
        return (search.summary(found),
                gr.Gallery(images if images_wanted else [], visible=images_wanted, selected_index=None),
                gr.Dataframe(rows if not images_wanted else [], visible=not images_wanted), found.hits, query,
                gr.Row(visible=False))

    def ask(view, query, words, image, less, weight, *wanted):
        place = query.place if query and image is None and query.place is not None else None
        return answer(view, Query(limits.text(words, "words"), limits.text(less, "less of"), place, image, weight),
                      *wanted)

    def of_gallery(view, place, find, *wanted):
        """A picture of the gallery becomes the query."""
        query = Query(place=place)
        return (*answer(view, query, find, *wanted), "", numpy.asarray(search.picture(bench, view, query)), find)

    def any_picture(view, *wanted):
        return of_gallery(view, search.any_place(bench, view), *wanted)

    def choose(view, hits, event: gr.SelectData):
        row = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        if not 0 <= row < len(hits):
            raise ValueError("these results have gone: search again")
        pictures = bench.gallery(view).pictures
        place = hits[row].place
        return (place, gr.Row(visible=True), gr.Image(pictures.read(place), label=pictures.names[place]),
                "\n".join(pictures.captions[place]) or "(none)")

    def opened(view, *wanted):
        lines = search.examples(bench, view)
        return (*answer(view, Query(lines[0]), *wanted), lines[0], None,
                gr.Dataset(samples=[[text] for text in lines]), gr.Dropdown(bench.gallery(view).tags, value=[]))

    def example(view, number, *wanted):
        text = search.examples(bench, view)[number]
        return (*answer(view, Query(text), *wanted), text, None)

    inputs = [shell.view, shell.query, words, image, less, weight, *wish]
    for event in (go.click, words.submit):
        event(plain(ask), inputs, shown, show_progress_on=line, **ASK)
    shell.view.change(plain(opened), [shell.view, *wish], [*shown, words, image, samples, tags],
                      show_progress_on=line, **ASK)
    samples.click(plain(example), [shell.view, samples, *wish], [*shown, words, image], show_progress_on=line, **ASK)
    of_place = [*shown, words, image, find]
    similar.click(plain(of_gallery), [shell.view, place, gr.State("images"), *wish[1:]], of_place, **ASK)
    described.click(plain(of_gallery), [shell.view, place, gr.State("captions"), *wish[1:]], of_place, **ASK)
    surprise.click(plain(any_picture), [shell.view, *wish], of_place, show_progress_on=line, **ASK)
    for found in (gallery, table):
        found.select(plain(choose), [shell.view, hits], [place, panel, shown_picture, said],
                     show_progress="hidden", **ASK)
    clear.click(lambda: ("", None, "", None), None, [words, image, less, shell.query], **ASK)


def label(i: int, hit: search.Hit) -> str:
    """What stands under a result: its rank, its similarity, its match and where it came from."""
    parts = [f"{i + 1}", f"{hit.score:.2f}"]
    if hit.match is not None:
        parts += [f"match {hit.match:.2f}", f"was {hit.before}"]
    return " · ".join(parts) + f"\n{hit.text or hit.name}"
