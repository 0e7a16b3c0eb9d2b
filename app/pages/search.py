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


class Page:
    """Query on top with examples to click, results below, then the chosen result and where the model looks in it."""

    def __init__(self, shell: Shell):
        self.shell = shell
        self.bench, self.view, self.query = shell.bench, shell.view, shell.query
        self.hits, self.name = gr.State([]), gr.State(None)  # what was found, and the chosen of it
        self.taken = gr.State(None)  # the gallery's own as query
        self._query()
        self._options()
        self._results()
        self._wire()

    def _query(self) -> None:
        """Words, examples and a picture."""
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=280):
                self.words = gr.Textbox(label="Words", placeholder="a red ring above a blue square", lines=1,
                                        max_lines=3, max_length=limits.TEXT, elem_id="words", submit_btn="Search")
                self.samples = gr.Dataset(components=[self.words], samples=[], label="Examples", type="index",
                                          elem_id="examples")
                with gr.Row(equal_height=True):
                    self.find = gr.Radio([("Pictures", "images"), ("Captions", "captions")], value="images",
                                         label="Find", min_width=200, elem_id="find")
                    self.rerank = gr.Checkbox(label="Re-rank", info="Words and picture are read together",
                                              min_width=200, elem_id="rerank")
            with gr.Column(scale=2, min_width=220, elem_id="ask-picture"):
                self.image = picture(176, "picture")
                with gr.Row(elem_classes="actions"):
                    self.surprise = gr.Button("One of the gallery", size="sm", min_width=80, elem_id="surprise")
                    self.clear = gr.Button("Clear", size="sm", min_width=80, elem_id="clear")

    def _options(self) -> None:
        with gr.Accordion("Options", open=False):
            with gr.Row():
                self.top = gr.Slider(1, limits.RESULTS, 12, step=1, label="Results")
                self.floor = gr.Slider(-1, 1, -1, step=0.05, label="Smallest similarity")
                self.weight = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the words, where words and picture mix")
            with gr.Row():
                self.less = gr.Textbox(label="Less of", placeholder="words for what should not be there",
                                       max_length=limits.TEXT)
                self.contains = gr.Textbox(label="Only where a caption contains", max_length=limits.TEXT)
                self.tags = gr.Dropdown([], multiselect=True, label="Only with one of these tags")
            self.distinct = gr.Checkbox(label="Near-duplicates once", elem_id="distinct")

    def _results(self) -> None:
        """What was found, and the chosen of it."""
        self.line = gr.Markdown("Type some words, give a picture, or click an example.", elem_classes="quiet",
                                elem_id="line")
        self.gallery = gr.Gallery(label="Results", columns=6, object_fit="contain", allow_preview=False, height="auto",
                                  elem_id="results", elem_classes=["results", "pixelated"], show_label=False,
                                  buttons=[], visible=False)
        self.table = gr.Dataframe(headers=list(COLUMNS), datatype="str", visible=False, interactive=False, wrap=True,
                                  label="Captions found", elem_id="captions", show_label=False, buttons=[],
                                  max_height=HIGH, column_widths=list(COLUMNS.values()))
        with gr.Column(visible=False, elem_id="chosen") as self.panel:
            gr.Markdown("### The chosen result")
            with gr.Row(elem_classes="actions"):
                self.similar = gr.Button("Pictures like this", size="sm", elem_id="similar")
                self.described = gr.Button("Captions for this", size="sm", elem_id="described")
            self.looker = looking.Looker(self.shell, self.name)
        self.wish = [self.find, self.top, self.floor, self.contains, self.tags, self.rerank, self.distinct]
        self.shown = [self.line, self.gallery, self.table, self.hits, self.query, self.panel]

    def answer(self, view, query, *wanted):
        find, top, floor, contains, tags, rerank, distinct = wanted
        found = search.search(self.bench, view, query, Wish(find, top, floor, contains, tuple(tags or ()), bool(rerank),
                                                            bool(distinct)))
        return (search.summary(found), *results(self.bench.gallery(view), found), found.hits, query,
                gr.Column(visible=False))

    def ask(self, view, taken, words, image, less, weight, *wanted):
        words, less = limits.text(words, "words"), limits.text(less, "less of")
        return self.answer(view, Query(words, less, taken, None if taken else image, weight), *wanted)

    def take(self, view, name, *wanted):
        return (*self.answer(view, Query(name=name), *wanted), "", self.bench.gallery(view).picture(name), name,
                wanted[0])

    def take_any(self, view, *wanted):
        return self.take(view, search.any_picture(self.bench, view), *wanted)

    def opened(self, view, *wanted):
        lines = search.examples(self.bench, view)
        return (*self.answer(view, Query(lines[0]), *wanted), lines[0], None, None,
                gr.Dataset(samples=[[text] for text in lines]), gr.Dropdown(self.bench.gallery(view).tags, value=[]))

    def example(self, view, number, *wanted):
        text = search.examples(self.bench, view)[number]
        return (*self.answer(view, Query(text), *wanted), text, None, None)

    def sent(self, view, wanted, *wish):
        """What another tab asks for: a picture of the gallery, or words."""
        if wanted is None:
            return [gr.skip()] * len(self.fresh)
        if wanted.name is not None:
            return self.take(view, wanted.name, *wish)[:-1]
        return (*self.answer(view, wanted, *wish), wanted.words, None, None)

    def choose(self, view, query, hits, by, event: gr.SelectData):
        row = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        if not 0 <= row < len(hits):
            raise ValueError("these results have gone: search again")
        hit = hits[row]
        text = (query.words if query else "") or hit.text
        return (hit.name, gr.Column(visible=True), *self.looker.open(view, hit.name, text, by))

    def _wire(self) -> None:
        wish_of = [self.view, *self.wish]
        asked = [self.view, self.taken, self.words, self.image, self.less, self.weight, *self.wish]
        self.fresh = [*self.shown, self.words, self.image, self.taken]
        how = {"show_progress_on": self.line, **ASK}
        for event in (self.words.submit, self.find.input, self.rerank.input, self.distinct.input):
            event(plain(self.ask), asked, self.shown, **how)
        self.image.upload(lambda: None, None, self.taken, **ASK).then(plain(self.ask), asked, self.shown, **how)
        self.image.clear(lambda: None, None, self.taken, **ASK)
        self.view.change(plain(self.opened), wish_of, [*self.fresh, self.samples, self.tags], **how)
        self.samples.click(plain(self.example), [self.view, self.samples, *self.wish], self.fresh, **how)
        self.shell.wanted.change(plain(self.sent), [self.view, self.shell.wanted, *self.wish], self.fresh, **how).then(
            lambda: None, None, self.shell.wanted, show_progress="hidden", **ASK)  # so that it can be asked for again
        self.surprise.click(plain(self.take_any), wish_of, [*self.fresh, self.find], **how)
        for button, find in ((self.similar, "images"), (self.described, "captions")):
            button.click(plain(self.take), [self.view, self.name, gr.State(find), *self.wish[1:]],
                         [*self.fresh, self.find], **how).success(None, js=SHOW.format("line"))
        for found in (self.gallery, self.table):
            found.select(plain(self.choose), [self.view, self.query, self.hits, self.looker.by],
                         [self.name, self.panel, *self.looker.outputs], show_progress="hidden", **ASK).success(
                None, js=SHOW.format("chosen"))
        self.clear.click(lambda: ("", None, None, "", None), None,
                         [self.words, self.image, self.taken, self.less, self.query], **ASK)


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
