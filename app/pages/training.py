"""The Training tab: layout and wiring of `app.training`."""

from __future__ import annotations

import gradio as gr

from app import training
from app.pages import ASK, LOAD, WAIT, Shell, in_place, plain, watched
from app.pages.figure import figure

TITLE, ID = "Training", "training"
COLUMNS = ["Verdict", "Check", "What it means", "Value", "What to do"]


class Page:
    """Which runs; their curves; of the first one the verdicts, gradients and card."""

    def __init__(self, shell: Shell):
        self.shell = shell
        self.bench, self.view = shell.bench, shell.view
        self.offered = training.offered(self.bench)
        self._figures()
        self._wire()

    def _figures(self) -> None:
        self.runs = gr.Dropdown(self.offered, value=[run for _, run in self.offered[:1]], multiselect=True,
                                max_choices=training.RUNS, label="Runs",
                                info="Several are drawn over each other; the rest of this page is about the first",
                                elem_id="runs")
        gr.Markdown("No run of this computer has metrics to show: `bitgen train` writes them.",
                    visible=not self.offered, elem_classes="quiet")
        self.curves = gr.HTML(label="Training curves", elem_id="curves", padding=False)
        gr.Markdown("### What the doctor says")
        self.line = gr.Markdown(elem_classes="quiet", elem_id="doctor-line")
        self.doctor = gr.Dataframe(headers=COLUMNS, datatype="str", interactive=False, wrap=True, label="Verdicts",
                                   show_label=False, elem_id="doctor", buttons=[], max_height=420,
                                   column_widths=["90px", "150px", "380px", "160px", "400px"])
        with gr.Accordion("Worst retrievals", open=False, elem_id="worst") as self.wrong:
            self.worst_line = gr.Markdown(WAIT, elem_classes="quiet", elem_id="worst-line")
            self.worst = gr.HTML(label="Captions whose picture comes last", padding=False)
        with gr.Accordion("Gradient norms by module", open=False, elem_id="more") as self.more:
            self.gradients = gr.HTML(label="Gradient norms by module", padding=False, elem_id="gradients")
        with gr.Accordion("Model card", open=False) as self.about:
            self.card = gr.Markdown(elem_id="card")

    def drawn(self, runs):
        return figure(training.curves(self.bench, runs), "Training curves, chance levels dashed")

    def judged(self, runs):
        found = training.verdicts(self.bench, first(runs))
        return training.summary(found), training.table(found)

    def gradients_of(self, runs):
        return figure(training.gradients(self.bench, first(runs)), "Gradient norms by module")

    def worst_of(self, view, runs, progress=gr.Progress()):  # noqa: B008 - gradio's way
        drawn, line = training.worst(self.bench, view, first(runs), watched(progress))
        return line.replace("`", ""), figure(drawn, "Captions whose picture comes last, with what they find instead")

    def card_of(self, runs):
        return training.card(self.bench, first(runs))

    def opened(self, view, runs, event: gr.SelectData):
        """When this tab is opened: the run that is looked at comes first, where there is something to show of it."""
        source = view.choice.source if view else None
        if event.value != TITLE or not self.offered:
            return [gr.skip()] * 4
        if source in dict(map(reversed, self.offered)):
            runs = [source, *(run for run in runs or [] if run != source)][:training.RUNS]
        return runs, self.drawn(runs), *self.judged(runs)

    def changed(self, runs):
        return self.drawn(runs), *self.judged(runs)

    def _wire(self) -> None:
        how = {"show_progress_on": self.line, **ASK}
        self.shell.tabs.select(plain(self.opened), [self.view, self.runs],
                               [self.runs, self.curves, self.line, self.doctor], **how)
        self.runs.input(plain(self.changed), self.runs, [self.curves, self.line, self.doctor], **how)
        self.wrong.expand(in_place(self.worst_of), [self.view, self.runs], [self.worst_line, self.worst],
                          show_progress_on=self.worst_line, **LOAD)
        for event in (self.view.change, self.runs.input):
            event(lambda: [gr.Accordion(open=False)] * 3 + ["", WAIT], None,  # what is in them was of another run
                  [self.wrong, self.more, self.about, self.worst, self.worst_line], show_progress="hidden", **ASK)
        self.more.expand(plain(self.gradients_of), self.runs, self.gradients, **ASK)
        self.about.expand(plain(self.card_of), self.runs, self.card, **ASK)


def first(runs: list[str]) -> str:
    """The run that the page is about. Raises `ValueError` where none is chosen."""
    if not runs:
        raise ValueError("choose a run")
    return runs[0]
