"""The Training tab: layout and wiring of `app.training`."""

from __future__ import annotations

import gradio as gr

from app import training
from app.pages import ASK, LOAD, WAIT, Shell, in_place, plain, watched
from app.pages.figure import figure

TITLE, ID = "Training", "training"
COLUMNS = ["Verdict", "Check", "What it means", "Value", "What to do"]


def build(shell: Shell) -> None:
    """Which runs; their curves; of the first one the verdicts, gradients and card."""
    bench, view = shell.bench, shell.view
    offered = training.offered(bench)
    runs = gr.Dropdown(offered, value=[run for _, run in offered[:1]], multiselect=True, max_choices=training.RUNS,
                       label="Runs", info="Several are drawn over each other; the rest of this page is about the first",
                       elem_id="runs")
    gr.Markdown("No run of this computer has metrics to show: `bitgen train` writes them.",
                visible=not offered, elem_classes="quiet")
    curves = gr.HTML(label="Training curves", elem_id="curves", padding=False)
    gr.Markdown("### What the doctor says")
    line = gr.Markdown(elem_classes="quiet", elem_id="doctor-line")
    doctor = gr.Dataframe(headers=COLUMNS, datatype="str", interactive=False, wrap=True, label="Verdicts",
                          show_label=False, elem_id="doctor", buttons=[], max_height=420,
                          column_widths=["90px", "150px", "380px", "160px", "400px"])
    with gr.Accordion("Worst retrievals", open=False, elem_id="worst") as wrong:
        worst_line = gr.Markdown(WAIT, elem_classes="quiet", elem_id="worst-line")
        worst = gr.HTML(label="Captions whose picture comes last", padding=False)
    with gr.Accordion("Gradient norms by module", open=False, elem_id="more") as more:
        gradients = gr.HTML(label="Gradient norms by module", padding=False, elem_id="gradients")
    with gr.Accordion("Model card", open=False) as about:
        card = gr.Markdown(elem_id="card")

    def drawn(runs):
        return figure(training.curves(bench, runs), "Training curves, chance levels dashed")

    def judged(runs):
        found = training.verdicts(bench, first(runs))
        return training.summary(found), training.table(found)

    def gradients_of(runs):
        return figure(training.gradients(bench, first(runs)), "Gradient norms by module")

    def worst_of(view, runs, progress=gr.Progress()):  # noqa: B008 - gradio's way
        drawn, line = training.worst(bench, view, first(runs), watched(progress))
        return line.replace("`", ""), figure(drawn, "Captions whose picture comes last, with what they find instead")

    def card_of(runs):
        return training.card(bench, first(runs))

    def opened(view, runs, event: gr.SelectData):
        """When this tab is opened: the run that is looked at comes first, where there is something to show of it."""
        source = view.choice.source if view else None
        if event.value != TITLE or not offered:
            return [gr.skip()] * 4
        if source in dict(map(reversed, offered)):
            runs = [source, *(run for run in runs or [] if run != source)][:training.RUNS]
        return runs, drawn(runs), *judged(runs)

    def changed(runs):
        return drawn(runs), *judged(runs)

    how = {"show_progress_on": line, **ASK}
    shell.tabs.select(plain(opened), [view, runs], [runs, curves, line, doctor], **how)
    runs.input(plain(changed), runs, [curves, line, doctor], **how)
    wrong.expand(in_place(worst_of), [view, runs], [worst_line, worst], show_progress_on=worst_line, **LOAD)
    for event in (view.change, runs.input):
        event(lambda: [gr.Accordion(open=False)] * 3 + ["", WAIT], None, [wrong, more, about, worst, worst_line],
              show_progress="hidden", **ASK)  # what is in them was of another run
    more.expand(plain(gradients_of), runs, gradients, **ASK)
    about.expand(plain(card_of), runs, card, **ASK)


def first(runs: list[str]) -> str:
    """The run that the page is about. Raises `ValueError` where none is chosen."""
    if not runs:
        raise ValueError("choose a run")
    return runs[0]
