"""The Search tab: layout and wiring of `app.search`."""

from __future__ import annotations

import gradio as gr

from app import limits, search
from app.pages import ASK, Shell, looking, picture, plain, thumbnail
from app.search import Answer, Hit, Query, Wish

TITLE, ID = "Search", "search"
COLUMNS = {"Rank": "13%", "Caption": "65%", "Cosine": "22%"}
READ = {"Rank": "13%", "Caption": "33%", "Cosine": "15%", "Match": "13%", "Words": "15%", "Was": "11%"}
SHOW = "() => document.querySelector('#{}').scrollIntoView({{behavior: 'smooth'}})"  # on a phone it may be far away
HIGH = 2400  # pixels; the table of captions does not scroll by itself


def build(shell: Shell) -> None:
    """Query on top with examples to click, results below, then the chosen result and where the model looks in it."""
    bench, view, query = shell.bench, shell.view, shell.query
    hits, name, taken = gr.State([]), gr.State(None), gr.State(None)  # the chosen result; the gallery's own as query
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=280):
            words = gr.Textbox(label="Words", placeholder="a red ring above a blue square", lines=1, max_lines=3,
                               max_length=limits.TEXT, elem_id="words", submit_btn="Search")
            samples = gr.Dataset(components=[words], samples=[], label="Examples", type="index", elem_id="examples")
            with gr.Row(equal_height=True):
                find = gr.Radio([("Pictures", "images"), ("Captions", "captions")], value="images", label="Find",
                                min_width=200, elem_id="find")
                rerank = gr.Checkbox(label="Re-rank", info="Words and picture are read together",
                                     min_width=200, elem_id="rerank")
        with gr.Column(scale=2, min_width=220, elem_id="ask-picture"):
            image = picture(176, "picture")
            with gr.Row(elem_classes="actions"):
                surprise = gr.Button("One of the gallery", size="sm", min_width=80, elem_id="surprise")
                clear = gr.Button("Clear", size="sm", min_width=80, elem_id="clear")
    with gr.Accordion("Options", open=False):
        with gr.Row():
            top = gr.Slider(1, limits.RESULTS, 12, step=1, label="Results")
            floor = gr.Slider(-1, 1, -1, step=0.05, label="Smallest similarity")
            weight = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the words, where words and picture mix")
        with gr.Row():
            less = gr.Textbox(label="Less of", placeholder="words for what should not be there",
                              max_length=limits.TEXT)
            contains = gr.Textbox(label="Only where a caption contains", max_length=limits.TEXT)
            tags = gr.Dropdown([], multiselect=True, label="Only with one of these tags")
        distinct = gr.Checkbox(label="Near-duplicates once", elem_id="distinct")
    line = gr.Markdown("Type some words, give a picture, or click an example.", elem_classes="quiet", elem_id="line")
    gallery = gr.Gallery(label="Results", columns=6, object_fit="contain", allow_preview=False, height="auto",
                         elem_id="results", elem_classes=["results", "pixelated"], show_label=False, buttons=[],
                         visible=False)
    table = gr.Dataframe(headers=list(COLUMNS), datatype="str", visible=False, interactive=False, wrap=True,
                         label="Captions found", elem_id="captions", show_label=False, buttons=[], max_height=HIGH,
                         column_widths=list(COLUMNS.values()))
    with gr.Column(visible=False, elem_id="chosen") as panel:
        gr.Markdown("### The chosen result")
        with gr.Row(elem_classes="actions"):
            similar = gr.Button("Pictures like this", size="sm", elem_id="similar")
            described = gr.Button("Captions for this", size="sm", elem_id="described")
        looker = looking.build(shell, name)
    wish = [find, top, floor, contains, tags, rerank, distinct]
    shown = [line, gallery, table, hits, query, panel]

    def answer(view, query, *wanted):
        find, top, floor, contains, tags, rerank, distinct = wanted
        found = search.search(bench, view, query, Wish(find, top, floor, contains, tuple(tags or ()), bool(rerank),
                                                       bool(distinct)))
        return (search.summary(found), *results(bench.gallery(view), found), found.hits, query,
                gr.Column(visible=False))

    def ask(view, taken, words, image, less, weight, *wanted):
        words, less = limits.text(words, "words"), limits.text(less, "less of")
        return answer(view, Query(words, less, taken, None if taken else image, weight), *wanted)

    def take(view, name, *wanted):
        return (*answer(view, Query(name=name), *wanted), "", bench.gallery(view).picture(name), name, wanted[0])

    def take_any(view, *wanted):
        return take(view, search.any_picture(bench, view), *wanted)

    def opened(view, *wanted):
        lines = search.examples(bench, view)
        return (*answer(view, Query(lines[0]), *wanted), lines[0], None, None,
                gr.Dataset(samples=[[text] for text in lines]), gr.Dropdown(bench.gallery(view).tags, value=[]))

    def example(view, number, *wanted):
        text = search.examples(bench, view)[number]
        return (*answer(view, Query(text), *wanted), text, None, None)

    def sent(view, wanted, *wish):
        """What another tab asks for: a picture of the gallery, or words."""
        if wanted is None:
            return [gr.skip()] * len(fresh)
        if wanted.name is not None:
            return take(view, wanted.name, *wish)[:-1]
        return (*answer(view, wanted, *wish), wanted.words, None, None)

    def choose(view, query, hits, by, event: gr.SelectData):
        row = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        if not 0 <= row < len(hits):
            raise ValueError("these results have gone: search again")
        hit = hits[row]
        text = (query.words if query else "") or hit.text
        return (hit.name, gr.Column(visible=True), *looker.open(view, hit.name, text, by))

    wish_of = [view, *wish]
    asked = [view, taken, words, image, less, weight, *wish]
    fresh = [*shown, words, image, taken]
    how = {"show_progress_on": line, **ASK}
    for event in (words.submit, find.input, rerank.input, distinct.input):
        event(plain(ask), asked, shown, **how)
    image.upload(lambda: None, None, taken, **ASK).then(plain(ask), asked, shown, **how)
    image.clear(lambda: None, None, taken, **ASK)
    view.change(plain(opened), wish_of, [*fresh, samples, tags], **how)
    samples.click(plain(example), [view, samples, *wish], fresh, **how)
    shell.wanted.change(plain(sent), [view, shell.wanted, *wish], fresh, **how).then(
        lambda: None, None, shell.wanted, show_progress="hidden", **ASK)   # so that the same point can be asked again
    surprise.click(plain(take_any), wish_of, [*fresh, find], **how)
    similar.click(plain(take), [view, name, gr.State("images"), *wish[1:]], [*fresh, find], **how).success(
        None, js=SHOW.format("line"))
    described.click(plain(take), [view, name, gr.State("captions"), *wish[1:]], [*fresh, find], **how).success(
        None, js=SHOW.format("line"))
    for found in (gallery, table):
        found.select(plain(choose), [view, query, hits, looker.by], [name, panel, *looker.outputs],
                     show_progress="hidden", **ASK).success(None, js=SHOW.format("chosen"))
    clear.click(lambda: ("", None, None, "", None), None, [words, image, taken, less, query], **ASK)


def results(gallery, found: Answer) -> tuple[gr.Gallery, gr.Dataframe]:
    """Pictures or a table of captions, whichever was looked for."""
    if found.wish.find == "images":
        pictures = [(thumbnail(gallery, hit.name), label(rank, hit)) for rank, hit in enumerate(found.hits, 1)]
        return gr.Gallery(pictures, visible=bool(pictures), selected_index=None), gr.Dataframe([], visible=False)
    reread = any(hit.match is not None for hit in found.hits)
    rows = [[rank, hit.text, f"{hit.score:.2f}", *((*read(hit), hit.before) if reread else ())]
            for rank, hit in enumerate(found.hits, 1)]
    columns = READ if reread else COLUMNS
    return gr.Gallery([], visible=False), gr.Dataframe(rows, headers=list(columns), visible=bool(rows),
                                                       column_widths=list(columns.values()))


def label(rank: int, hit: Hit) -> str:
    """What stands under a result: its rank and scores, where it was before, what it shows."""
    parts = [f"{rank}", f"{hit.score:.2f}"]
    if hit.match is not None:
        match, told = read(hit)
        parts += [f"match {match}", f"words {told}", f"was {hit.before}"]
    return " · ".join(parts) + f"\n{hit.text or hit.name}"


def read(hit: Hit) -> tuple[str, str]:
    """What re-ranking saw: the matching head's probability, and how many nats the words gain by the picture."""
    return f"{hit.match:.2f}", f"{hit.told:+.1f}"
