"""The Caption and match tab: layout and wiring of `app.caption`."""

from __future__ import annotations

import gradio as gr

from app import caption, limits
from app.pages import ASK, Shell, picture, plain

TITLE, ID = "Caption and match", "caption"
COLUMNS = ["Text", "Cosine", "Match", "Share"]
LABELS = "circle, square, triangle, star, cross, ring, heart, diamond"


class Page:
    """A picture on the left; what the model says of it, how texts fit it, and labels to choose from on the right."""

    def __init__(self, shell: Shell):
        self.bench, self.view = shell.bench, shell.view
        self._captions()
        self._texts()
        self._labels()
        self._wire()

    def _captions(self) -> None:
        """A picture, and what the model says of it."""
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=260):
                self.image = picture(300, "caption-picture")
                with gr.Row(elem_classes="actions"):
                    self.another = gr.Button("One of the gallery", size="sm", elem_id="another")
            with gr.Column(scale=3, min_width=280):
                with gr.Group():
                    self.way = gr.Radio([("Greedy", "greedy"), ("Beam search", "beam"),
                                         ("Nucleus sampling", "nucleus")], value="greedy", label="Caption by",
                                        elem_id="way")
                    self.temperature = gr.Slider(0.1, 2, 1, step=0.1, label="Temperature of sampling", visible=False)
                    self.said = gr.Textbox(label="Caption", interactive=False, lines=1, max_lines=12,
                                           elem_id="said-of-it",
                                           placeholder="Give a picture, or take one of the gallery")
                with gr.Row(elem_classes="actions"):
                    self.go = gr.Button("Caption", variant="primary", size="sm", elem_id="go-caption")

    def _texts(self) -> None:
        gr.Markdown("### How well do texts fit this picture?")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=260):
                self.texts = gr.Textbox(label="Texts, one a line", lines=3, max_lines=8, max_length=limits.TEXT,
                                        value="a red ring above a blue square\na green star", elem_id="texts")
                with gr.Row(elem_classes="actions"):
                    self.match = gr.Button("Score", variant="primary", size="sm", elem_id="match")
            with gr.Column(scale=3, min_width=280):
                self.fits = table("Texts by how well they fit", "fits")

    def _labels(self) -> None:
        gr.Markdown("### Which of your labels is it?")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=260):
                self.labels = gr.Textbox(label="Labels, one a line or between commas", lines=2, max_lines=8,
                                         value=LABELS, max_length=limits.TEXT, elem_id="labels")
                self.template = gr.Textbox(label="Sentence, with {} for the label", value="a picture of a {}",
                                           max_length=200)
                with gr.Row(elem_classes="actions"):
                    self.classify = gr.Button("Classify", variant="primary", size="sm", elem_id="classify")
            with gr.Column(scale=3, min_width=280):
                self.classes = gr.Label(label="Share of each label", num_top_classes=8, show_heading=False,
                                        elem_id="classes")
                self.chance = gr.Markdown(elem_classes="quiet")

    def told(self, view, image, way, temperature):
        return "\n".join(text or "(nothing)" for text in caption.caption(self.bench, view, image, way, temperature))

    def scored(self, view, image, texts):
        found = caption.scores(self.bench, view, image, texts.splitlines())
        return [[row.text, *(f"{value:.2f}" for value in row[1:])] for row in found]

    def chosen(self, view, image, labels, template):
        found = caption.classify(self.bench, view, image, labels, template)
        return {row.text: row.share for row in found}, f"By chance each would have {1 / len(found):.1%}."

    def take(self, view):
        return caption.any_picture(self.bench, view)

    def sampling(self, way):
        return gr.Slider(visible=way == "nucleus")

    def _wire(self) -> None:
        asked = [self.view, self.image, self.way, self.temperature]
        self.go.click(plain(self.told), asked, self.said, **ASK)
        self.way.input(self.sampling, self.way, self.temperature, show_progress="hidden", **ASK)
        self.image.upload(plain(self.told), asked, self.said, **ASK)
        self.another.click(plain(self.take), self.view, self.image, **ASK).success(plain(self.told), asked, self.said,
                                                                                   **ASK)
        self.image.change(lambda: ([], None, ""), None, [self.fits, self.classes, self.chance],  # of another one
                          show_progress="hidden", **ASK)
        self.match.click(plain(self.scored), [self.view, self.image, self.texts], self.fits, **ASK)
        self.classify.click(plain(self.chosen), [self.view, self.image, self.labels, self.template],
                            [self.classes, self.chance], **ASK)


def table(label: str, elem_id: str) -> gr.Dataframe:
    """A table of scores: plain text and numbers."""
    return gr.Dataframe(headers=COLUMNS, datatype="str", interactive=False, wrap=True,
                        label=label, show_label=False, elem_id=elem_id,
                        column_widths=["40%", "20%", "20%", "20%"], buttons=[])
