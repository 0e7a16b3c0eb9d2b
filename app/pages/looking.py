"""Where it looks, as a part of a tab: a picture with heat, words to choose, and words by place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from app import limits, look
from app.pages import ASK, Shell, plain

ALL = -1  # the choice of all words together


@dataclass
class Looker:
    """What a tab needs of it: `open(view, name, text, by)` gives values for `outputs`; `by` is an input."""

    open: Callable
    by: gr.Radio
    outputs: list


def build(shell: Shell, name: gr.State) -> Looker:
    """The components; `name` holds the gallery's picture that is looked at."""
    bench, view = shell.bench, shell.view
    sight = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            shown = gr.Image(label="Where it looks", show_label=False, interactive=False, container=False, buttons=[],
                             elem_id="heat", elem_classes="sight")
            note = gr.Markdown(elem_classes="quiet")
        with gr.Column(scale=3, min_width=280):
            text = gr.Textbox(label="Words to look for in it", max_length=limits.TEXT, lines=1, max_lines=3,
                              submit_btn="Look", elem_id="look-words")
            word = gr.Radio([("all", ALL)], value=ALL, label="A word: where does it look?", elem_id="word")
            by = gr.Radio([("What word and place cost together", "maps"),
                           ("Attention of the fusion, gradient-weighted", "attention")], value="maps",
                          label="Measured by", elem_id="by")
            place = gr.HighlightedText(label="Click on the picture: which words are about this place?",
                                       combine_adjacent=False, show_legend=False, interactive=False, elem_id="place")
            said = gr.Textbox(label="Captions of the picture", interactive=False, lines=5, max_lines=12, elem_id="said")

    def fresh(view, name, text, by):
        seen = look.look(bench, view, name, None, text)
        choices = [("all", ALL), *((word, i) for i, word in enumerate(seen.words))]
        return (seen, look.heat(seen, by=by), gr.Radio(choices, value=ALL), look.strengths(seen, by),
                f"These words and this picture belong together with probability **{seen.match:.2f}**.")

    def opened(view, name, text, by):
        captions = bench.gallery(view).captions(name)
        text = text or next(iter(captions), "")
        said = "\n".join(captions) or "(none)"
        if text:
            return (*fresh(view, name, text, by), text, said)
        return (None, bench.gallery(view).picture(name), gr.Radio([("all", ALL)], value=ALL), None,
                "Type words to see where the model looks.", "", said)

    def redraw(sight, word, by):
        if sight is None:
            return None, None
        return look.heat(sight, None if word == ALL else word, by), look.strengths(sight, by)

    def of_place(sight, by, event: gr.SelectData):
        return None if sight is None else look.at(sight, *event.index, by)

    parts = [sight, shown, word, place, note]
    text.submit(plain(fresh), [view, name, text, by], parts, show_progress_on=note, **ASK)
    for event in (word.input, by.input):
        event(plain(redraw), [sight, word, by], [shown, place], show_progress="hidden", **ASK)
    shown.select(plain(of_place), [sight, by], place, show_progress="hidden", **ASK)
    return Looker(opened, by, [*parts, text, said])
