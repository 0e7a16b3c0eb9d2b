"""The Memory tab: layout and wiring of `app.memory`."""

from __future__ import annotations

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache

from app import memory, saved, slots
from app.memory import Edits, Told
from app.pages import ASK, LOAD, WAIT, Shell, in_place, picture, plain, thumbnail
from app.pages.figure import figure
from bitgen.memory import used

TITLE, ID = "Memory", "memory"


class Page:
    """Writing on top, what it changes below it; then the slots, what each stands for, and how alike they are."""

    def __init__(self, shell: Shell):
        self.bench, self.view, self.query = shell.bench, shell.view, shell.query
        self.edits = gr.State(Edits())
        self._telling()
        self._keeping()
        self._slots()
        self._wire_facts()
        self._wire_slots()

    def _telling(self) -> None:
        """Where something is told, and what that changes."""
        gr.Markdown("### Tell it something\nA picture with words becomes a fact in the memory. It stays in your "
                    "session; the model and other visitors never see it.")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=260):
                self.image = picture(230, "fact-picture")
                self.words = gr.Textbox(label="Words", placeholder="my neighbour's red ring", lines=1, max_lines=3,
                                        max_length=memory.WORDS, elem_id="fact-words")
                with gr.Row(elem_classes="actions"):
                    self.write = gr.Button("Write", variant="primary", size="sm", min_width=80, elem_id="write")
                    self.ask = gr.Button("Only ask", size="sm", min_width=80, elem_id="ask")
                    self.example = gr.Button("An example", size="sm", min_width=80, elem_id="example-fact")
            with gr.Column(scale=3, min_width=280):
                with gr.Row():
                    self.sides = [_side(name) for name in ("Before", "After")]
                self.note = gr.Markdown(elem_classes="quiet", elem_id="memory-note")

    def _keeping(self) -> None:
        """What was told, and how it is kept."""
        self.facts = gr.Radio([], label="Facts, as they come back when their picture is shown", elem_id="facts",
                              visible=False)
        with gr.Row(elem_classes="actions"):
            self.forget = gr.Button("Forget the chosen", size="sm", min_width=80, elem_id="forget", interactive=False)
            self.undo = gr.Button("Undo", size="sm", min_width=80, elem_id="undo", interactive=False)
            self.save = gr.Button("Prepare a download", size="sm", min_width=80, elem_id="save")
            self.file = gr.DownloadButton("Download memory.safetensors", size="sm", visible=False,
                                          elem_id="memory-file")
        with gr.Row(visible=self.bench.save_to is not None, equal_height=False, elem_id="keep"):
            self.name = gr.Textbox(label="Name of a new folder", placeholder="with-my-facts", lines=1, max_lines=1,
                                   max_length=64, scale=2, min_width=200, elem_id="keep-name")
            self.keep = gr.Button("Save the model with this memory", size="sm", min_width=80, elem_id="keep-button")
            self.kept = gr.Textbox(label="Saved as", interactive=False, lines=1, scale=3, min_width=200, elem_id="kept")

    def _slots(self) -> None:
        """The grid, what a slot stands for, and what is drawn only when asked for."""
        gr.Markdown("### Its slots")
        self.by = gr.Radio([(title, way) for way, title in slots.WAYS.items()], value="usage", label="Show",
                           elem_id="slots-by")
        self.fills = gr.HTML(elem_classes="unseen")
        self.grid = gr.Radio([], label="Slots: choose one to see what it stands for", elem_id="slots")
        self.slots_note = gr.Markdown(elem_classes="quiet", elem_id="slots-note")
        self.said = gr.Markdown("Choose a slot.", elem_classes="quiet", elem_id="slot-said")
        self.pictures = gr.Gallery(label="Pictures that use this slot most", columns=6, object_fit="contain",
                                   allow_preview=False, height="auto", show_label=False, buttons=[], visible=False,
                                   elem_id="slot-pictures", elem_classes=["results", "pixelated"])
        with gr.Accordion("How much does it hold?", open=False, elem_id="capacity") as self.full:
            self.holds = gr.Markdown(WAIT, elem_classes="quiet", elem_id="capacity-line")
            self.curve = gr.HTML(label="Facts that come back first, by how many were written")
        with gr.Accordion("How alike are the slots?", open=False, elem_id="alike") as self.alike:
            self.alike_line = gr.Markdown(WAIT, elem_classes="quiet")
            self.drawn = gr.HTML(label="Similarity between slots")

    def listed(self, view, edits):
        rows, edits = memory.read_back(self.bench, view, edits), memory.of(self.bench, view, edits)
        choices = [(f"{i}. {text}  ·  {'comes back first' if rank == 1 else f'comes back at rank {rank}'}"
                    f"{'  ·  saved with the model' if fact.saved else ''}", i)
                   for i, ((text, rank, *_), fact) in enumerate(zip(rows, edits.facts), 1)]
        return (gr.Radio(choices, value=None, visible=bool(rows)), memory.summary(rows, memory.saved_of(edits)),
                gr.Button(interactive=bool(rows)), gr.Button(interactive=bool(edits.past)),
                gr.DownloadButton(visible=False))

    def written(self, view, edits, image, words):
        edits = memory.write(self.bench, view, edits, image, words)
        return (edits, *self.listed(view, edits), *self.sides_of(view, edits, image))

    def forgotten(self, view, edits, number, image):
        edits = memory.forget(self.bench, view, edits, number)
        return (edits, *self.listed(view, edits), *self.sides_of(view, edits, image))

    def undone(self, view, edits, image):
        edits = memory.undo(self.bench, view, edits)
        return (edits, *self.listed(view, edits), *self.sides_of(view, edits, image))

    def any_fact(self, view):
        return memory.any_fact(self.bench, view)

    def asked(self, view, edits, image):
        return [part for side in memory.tell(self.bench, view, edits, image) for part in _shown(side)]

    def sides_of(self, view, edits, image):
        return self.asked(view, edits, image) if image else [""] * 6

    def opened(self, view, edits):
        edits = memory.of(self.bench, view, edits)
        return (edits, *self.listed(view, edits))

    def prepared(self, view, edits):
        data = saved.download(self.bench, view, edits)
        path = save_bytes_to_cache(data, "memory.safetensors", cache_dir=self.file.GRADIO_CACHE)
        return gr.DownloadButton(value=path, visible=True)

    def kept_as(self, view, edits, name):
        return str(saved.save(self.bench, view, edits, name))

    def drawn_slots(self, view, edits, query, by):
        values = getattr(slots.look(self.bench, view, edits, query), by)
        return (gr.Radio([(f"{i}\n{_value(x, by)}", i) for i, x in enumerate(values)], value=None),
                _fills(values, by), _explained(values, by), "Choose a slot.", gr.Gallery([], visible=False))

    def chosen(self, view, slot):
        found, lifts = slots.stands_for(self.bench, view, slot)
        gallery = self.bench.gallery(view)
        shown = [(thumbnail(gallery, name), f"{share:.1%} of its address\n{text}") for name, text, share in found]
        line = f"Slot {slot}: words that put more on it than others: {', '.join(lifts)}" if lifts else \
            f"Slot {slot}: nothing of this gallery stands out." if found else "This gallery has no captions."
        return line, gr.Gallery(shown, visible=bool(shown), selected_index=None)

    def alike_drawn(self, view):
        return ("Dark off the diagonal are slots that do the same work, or the opposite.",
                figure(slots.likeness(self.bench, view), "Similarity between slots"))

    def capacity_drawn(self, view):
        drawn, line = slots.capacity(self.bench, view)
        return line, figure(drawn, line)

    def _wire_facts(self) -> None:
        view, image, ask = self.view, self.image, {"show_progress_on": self.note, **ASK}
        state = [self.edits, self.facts, self.note, self.forget, self.undo, self.file]
        sides = [part for side in self.sides for part in side]
        self.write.click(plain(self.written), [view, self.edits, image, self.words], [*state, *sides], **ask)
        self.ask.click(plain(self.asked), [view, self.edits, image], sides, **ask)
        image.change(lambda: [""] * 6, None, sides, show_progress="hidden", **ASK)  # they were of another one
        self.forget.click(plain(self.forgotten), [view, self.edits, self.facts, image], [*state, *sides], **ask)
        self.undo.click(plain(self.undone), [view, self.edits, image], [*state, *sides], **ask)
        self.save.click(plain(self.prepared), [view, self.edits], self.file, **ASK)
        self.keep.click(plain(self.kept_as), [view, self.edits, self.name], self.kept, **LOAD)
        self.example.click(plain(self.any_fact), view, [image, self.words], **ASK)
        view.change(plain(self.opened), [view, self.edits], state, show_progress="hidden", **ASK)

    def _wire_slots(self) -> None:
        view, hidden = self.view, {"show_progress": "hidden", **ASK}
        shown = [self.grid, self.fills, self.slots_note, self.said, self.pictures]
        for event in (self.edits.change, self.by.input, self.query.change):
            event(plain(self.drawn_slots), [view, self.edits, self.query, self.by], shown, **hidden)
        self.grid.input(plain(self.chosen), [view, self.grid], [self.said, self.pictures],
                        show_progress_on=self.said, **ASK)
        self.full.expand(in_place(self.capacity_drawn), view, [self.holds, self.curve], show_progress_on=self.holds,
                         **ASK)
        self.alike.expand(in_place(self.alike_drawn), view, [self.alike_line, self.drawn],
                          show_progress_on=self.alike_line, **ASK)
        view.change(lambda: [gr.Accordion(open=False), "", WAIT] * 2, None,  # what was drawn of another model
                    [self.full, self.curve, self.holds, self.alike, self.drawn, self.alike_line], **hidden)


def _side(name: str) -> list:
    """Components of one state of the memory: caption, how unsure, what comes to mind."""
    with gr.Column(min_width=220):
        said = gr.Textbox(label=f"{name}: caption", interactive=False, lines=2, max_lines=5,
                          placeholder="Write a picture with words, or only ask with a picture",
                          elem_id=f"caption-{name.lower()}")
        unsure = gr.Textbox(label=f"{name}: how unsure (variance of the reading)", interactive=False, lines=1)
        recalled = gr.Textbox(label=f"{name}: what comes to mind", interactive=False, lines=5, max_lines=20,
                              elem_id=f"mind-{name.lower()}")
    return [said, unsure, recalled]


def _shown(told: Told) -> list[str]:
    lines = [f"{cosine:+.2f}  {text}{'   ← written' if source == 'written' else ''}"
             for source, text, cosine in told.recalled]
    return [told.caption or "(nothing)", f"{told.variance:.3f}", "\n".join(lines)]


def _value(x: float, by: str) -> str:
    """A slot's number, short enough for its cell."""
    if np.isnan(x):
        return "–"
    return {"usage": f"{x:.1%}", "norm": f"{x:.2f}", "address": f"{x:.1%}", "age": f"{x:.0f}"}[by]


def _fills(values: np.ndarray, by: str) -> str:
    """How full each cell is drawn: numbers only, so that nothing typed becomes part of the page."""
    if by == "age":  # the last written is the fullest; what was not written counts as older than the oldest
        ages = np.nan_to_num(values, nan=np.nanmax(values, initial=-1) + 1)
        values = ages.max() - ages
    fills = np.nan_to_num(values)
    shares = 100 * fills / max(fills.max(), 1e-9)
    rules = (f"#slots label:nth-of-type({i}) {{--fill: {share:.0f}%}}" for i, share in enumerate(shares, 1))
    return f"<style>{' '.join(rules)}</style>"


def _explained(values: np.ndarray, by: str) -> str:
    """What the numbers of the grid are."""
    uniform = f"all alike would be {1 / len(values):.1%}"
    if by == "address" and np.isnan(values).all():
        return "Search for something first: the address of your last query is shown here."
    return {"usage": f"Share of what training wrote last that went to each slot; {uniform}. Less than a tenth of "
                     f"that is unused: {int((~used(values)).sum())} of {len(values)} slots.",
            "norm": "Length of what a slot holds beyond the mean of all slots, with the facts written.",
            "address": f"Where your last search looks in the memory; {uniform}.",
            "age": "Facts written since the slot last took more than its share of one; – where none did. When training "
                   "last wrote to a slot is not recorded."}[by]
