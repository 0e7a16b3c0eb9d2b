"""The Caption and match tab: layout and wiring of `app.caption`."""

from __future__ import annotations

import gradio as gr

from app import caption, limits
from app.pages import ASK, Shell, picture, plain

TITLE, ID = "Caption and match", "caption"
COLUMNS = ["Text", "Cosine", "Match", "Share"]
LABELS = "circle, square, triangle, star, cross, ring, heart, diamond"


def build(shell: Shell) -> None:
    """A picture on the left; what the model says of it, how texts fit it, and labels to choose from on the right."""
    bench, view = shell.bench, shell.view
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            image = picture(300, "caption-picture")
            with gr.Row(elem_classes="actions"):
                another = gr.Button("One of the gallery", size="sm", elem_id="another")
        with gr.Column(scale=3, min_width=280):
            with gr.Group():
                way = gr.Radio([("Greedy", "greedy"), ("Beam search", "beam"), ("Nucleus sampling", "nucleus")],
                               value="greedy", label="Caption by", elem_id="way")
                temperature = gr.Slider(0.1, 2, 1, step=0.1, label="Temperature of sampling", visible=False)
                said = gr.Textbox(label="Caption", interactive=False, lines=1, max_lines=12, elem_id="said-of-it",
                                  placeholder="Give a picture, or take one of the gallery")
            with gr.Row(elem_classes="actions"):
                go = gr.Button("Caption", variant="primary", size="sm", elem_id="go-caption")
    gr.Markdown("### How well do texts fit this picture?")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            texts = gr.Textbox(label="Texts, one a line", lines=3, max_lines=8, max_length=limits.TEXT,
                               value="a red ring above a blue square\na green star", elem_id="texts")
            with gr.Row(elem_classes="actions"):
                match = gr.Button("Score", variant="primary", size="sm", elem_id="match")
        with gr.Column(scale=3, min_width=280):
            fits = table("Texts by how well they fit", "fits")
    gr.Markdown("### Which of your labels is it?")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            labels = gr.Textbox(label="Labels, one a line or between commas", lines=2, max_lines=8, value=LABELS,
                                max_length=limits.TEXT, elem_id="labels")
            template = gr.Textbox(label="Sentence, with {} for the label", value="a picture of a {}", max_length=200)
            with gr.Row(elem_classes="actions"):
                classify = gr.Button("Classify", variant="primary", size="sm", elem_id="classify")
        with gr.Column(scale=3, min_width=280):
            classes = gr.Label(label="Share of each label", num_top_classes=8, show_heading=False, elem_id="classes")
            chance = gr.Markdown(elem_classes="quiet")

    def told(view, image, way, temperature):
        return "\n".join(text or "(nothing)" for text in caption.caption(bench, view, image, way, temperature))

    def scored(view, image, texts):
        found = caption.scores(bench, view, image, texts.splitlines())
        return [[row.text, *(f"{value:.2f}" for value in row[1:])] for row in found]

    def chosen(view, image, labels, template):
        found = caption.classify(bench, view, image, labels, template)
        return {row.text: row.share for row in found}, f"By chance each would have {1 / len(found):.1%}."

    def take(view):
        return caption.any_picture(bench, view)

    def sampling(way):
        return gr.Slider(visible=way == "nucleus")

    asked = [view, image, way, temperature]
    go.click(plain(told), asked, said, **ASK)
    way.input(sampling, way, temperature, show_progress="hidden", **ASK)
    image.upload(plain(told), asked, said, **ASK)
    another.click(plain(take), view, image, **ASK).success(plain(told), asked, said, **ASK)
    image.change(lambda: ([], None, ""), None, [fits, classes, chance], show_progress="hidden", **ASK)  # of another one
    match.click(plain(scored), [view, image, texts], fits, **ASK)
    classify.click(plain(chosen), [view, image, labels, template], [classes, chance], **ASK)


def table(label: str, elem_id: str) -> gr.Dataframe:
    """A table of scores: plain text and numbers."""
    return gr.Dataframe(headers=COLUMNS, datatype="str", interactive=False, wrap=True,
                        label=label, show_label=False, elem_id=elem_id,
                        column_widths=["40%", "20%", "20%", "20%"], buttons=[])
