"""Where it looks, as a part of a tab: a picture with heat, words to choose, and words by place."""

from __future__ import annotations

import gradio as gr

from app import limits, look
from app.pages import ASK, Shell, plain

ALL = -1  # the choice of all words together


class Looker:
    """The components; `name` holds the gallery's picture that is looked at.

    What a tab needs of it: `open(view, name, text, by)` gives values for `outputs`; `by` is an input.
    """

    def __init__(self, shell: Shell, name: gr.State):
        self.name = name
        self.bench, self.view = shell.bench, shell.view
        self.sight = gr.State(None)
        self._components()
        self._wire()

    def _components(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=260):
                self.shown = gr.Image(label="Where it looks", show_label=False, interactive=False, container=False,
                                      buttons=[], elem_id="heat", elem_classes="sight")
                self.note = gr.Markdown(elem_classes="quiet")
            with gr.Column(scale=3, min_width=280):
                self.text = gr.Textbox(label="Words to look for in it", max_length=limits.TEXT, lines=1, max_lines=3,
                                       submit_btn="Look", elem_id="look-words")
                self.word = gr.Radio([("all", ALL)], value=ALL, label="A word: where does it look?", elem_id="word")
                self.by = gr.Radio([("What word and place cost together", "maps"),
                                    ("Attention of the fusion, gradient-weighted", "attention")], value="maps",
                                   label="Measured by", elem_id="by")
                self.place = gr.HighlightedText(label="Click on the picture: which words are about this place?",
                                                combine_adjacent=False, show_legend=False, interactive=False,
                                                elem_id="place")
                self.said = gr.Textbox(label="Captions of the picture", interactive=False, lines=5, max_lines=12,
                                       elem_id="said")

    def fresh(self, view, name, text, by):
        seen = look.look(self.bench, view, name, None, text)
        choices = [("all", ALL), *((word, i) for i, word in enumerate(seen.words))]
        return (seen, look.heat(seen, by=by), gr.Radio(choices, value=ALL), look.strengths(seen, by),
                f"These words and this picture belong together with probability **{seen.match:.2f}**.")

    def open(self, view, name, text, by):
        captions = self.bench.gallery(view).captions(name)
        text = text or next(iter(captions), "")
        said = "\n".join(captions) or "(none)"
        if text:
            return (*self.fresh(view, name, text, by), text, said)
        return (None, self.bench.gallery(view).picture(name), gr.Radio([("all", ALL)], value=ALL), None,
                "Type words to see where the model looks.", "", said)

    def redraw(self, sight, word, by):
        if sight is None:
            return None, None
        return look.heat(sight, None if word == ALL else word, by), look.strengths(sight, by)

    def of_place(self, sight, by, event: gr.SelectData):
        return None if sight is None else look.at(sight, *event.index, by)

    def _wire(self) -> None:
        parts = [self.sight, self.shown, self.word, self.place, self.note]
        self.text.submit(plain(self.fresh), [self.view, self.name, self.text, self.by], parts,
                         show_progress_on=self.note, **ASK)
        for event in (self.word.input, self.by.input):
            event(plain(self.redraw), [self.sight, self.word, self.by], [self.shown, self.place],
                  show_progress="hidden", **ASK)
        self.shown.select(plain(self.of_place), [self.sight, self.by], self.place, show_progress="hidden", **ASK)
        self.outputs = [*parts, self.text, self.said]
