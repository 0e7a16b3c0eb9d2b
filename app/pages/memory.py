"""The Memory tab: layout and wiring of `app.memory`."""

from __future__ import annotations

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache

from app import memory, saved, slots
from app.memory import Edits, Told
from app.pages import ASK, LOAD, WAIT, Shell, in_place, picture, plain, thumbnail
from app.pages.figure import figure

TITLE, ID = "Memory", "memory"


def build(shell: Shell) -> None:
    """Writing on top, what it changes below it; then the slots, what each stands for, and how alike they are."""
    bench, view, query = shell.bench, shell.view, shell.query
    edits = gr.State(Edits())
    gr.Markdown("### Tell it something\nA picture with words becomes a fact in the memory. It stays in your session; "
                "the model and other visitors never see it.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=260):
            image = picture(230, "fact-picture")
            words = gr.Textbox(label="Words", placeholder="my neighbour's red ring", lines=1, max_lines=3,
                               max_length=memory.WORDS, elem_id="fact-words")
            with gr.Row(elem_classes="actions"):
                write = gr.Button("Write", variant="primary", size="sm", min_width=80, elem_id="write")
                ask = gr.Button("Only ask", size="sm", min_width=80, elem_id="ask")
                example = gr.Button("An example", size="sm", min_width=80, elem_id="example-fact")
        with gr.Column(scale=3, min_width=280):
            with gr.Row():
                sides = [_side(name) for name in ("Before", "After")]
            note = gr.Markdown(elem_classes="quiet", elem_id="memory-note")
    facts = gr.Radio([], label="Facts, as they come back when their picture is shown", elem_id="facts",
                     visible=False)
    with gr.Row(elem_classes="actions"):
        forget = gr.Button("Forget the chosen", size="sm", min_width=80, elem_id="forget", interactive=False)
        undo = gr.Button("Undo", size="sm", min_width=80, elem_id="undo", interactive=False)
        save = gr.Button("Prepare a download", size="sm", min_width=80, elem_id="save")
        file = gr.DownloadButton("Download memory.safetensors", size="sm", visible=False, elem_id="memory-file")
    with gr.Row(visible=bench.save_to is not None, equal_height=False, elem_id="keep"):
        name = gr.Textbox(label="Name of a new folder", placeholder="with-my-facts", lines=1, max_lines=1,
                          max_length=64, scale=2, min_width=200, elem_id="keep-name")
        keep = gr.Button("Save the model with this memory", size="sm", min_width=80, elem_id="keep-button")
        kept = gr.Textbox(label="Saved as", interactive=False, lines=1, scale=3, min_width=200, elem_id="kept")
    gr.Markdown("### Its slots")
    by = gr.Radio([(title, way) for way, title in slots.WAYS.items()], value="usage", label="Show", elem_id="slots-by")
    fills = gr.HTML(elem_classes="unseen")
    grid = gr.Radio([], label="Slots: choose one to see what it stands for", elem_id="slots")
    slots_note = gr.Markdown(elem_classes="quiet", elem_id="slots-note")
    said = gr.Markdown("Choose a slot.", elem_classes="quiet", elem_id="slot-said")
    pictures = gr.Gallery(label="Pictures that use this slot most", columns=6, object_fit="contain",
                          allow_preview=False, height="auto", show_label=False, buttons=[], visible=False,
                          elem_id="slot-pictures", elem_classes=["results", "pixelated"])
    with gr.Accordion("How much does it hold?", open=False, elem_id="capacity") as full:
        holds = gr.Markdown(WAIT, elem_classes="quiet", elem_id="capacity-line")
        curve = gr.HTML(label="Facts that come back first, by how many were written")
    with gr.Accordion("How alike are the slots?", open=False, elem_id="alike") as alike:
        alike_line = gr.Markdown(WAIT, elem_classes="quiet")
        drawn = gr.HTML(label="Similarity between slots")

    def listed(view, edits):
        rows, edits = memory.read_back(bench, view, edits), memory.of(bench, view, edits)
        choices = [(f"{i}. {text}  ·  {'comes back first' if rank == 1 else f'comes back at rank {rank}'}"
                    f"{'  ·  saved with the model' if fact.saved else ''}", i)
                   for i, ((text, rank, *_), fact) in enumerate(zip(rows, edits.facts), 1)]
        return (gr.Radio(choices, value=None, visible=bool(rows)), memory.summary(rows, memory.saved_of(edits)),
                gr.Button(interactive=bool(rows)), gr.Button(interactive=bool(edits.past)),
                gr.DownloadButton(visible=False))

    def told(view, edits, image):
        return asked(view, edits, image) if image else [""] * 6

    def written(view, edits, image, words):
        edits = memory.write(bench, view, edits, image, words)
        return (edits, *listed(view, edits), *told(view, edits, image))

    def forgotten(view, edits, number, image):
        edits = memory.forget(bench, view, edits, number)
        return (edits, *listed(view, edits), *told(view, edits, image))

    def undone(view, edits, image):
        edits = memory.undo(bench, view, edits)
        return (edits, *listed(view, edits), *told(view, edits, image))

    def asked(view, edits, image):
        return [part for side in memory.tell(bench, view, edits, image) for part in _shown(side)]

    def opened(view, edits):
        edits = memory.of(bench, view, edits)
        return (edits, *listed(view, edits))

    def prepared(view, edits):
        data = saved.download(bench, view, edits)
        path = save_bytes_to_cache(data, "memory.safetensors", cache_dir=file.GRADIO_CACHE)
        return gr.DownloadButton(value=path, visible=True)

    def kept_as(view, edits, name):
        return str(saved.save(bench, view, edits, name))

    def drawn_slots(view, edits, query, by):
        values = getattr(slots.look(bench, view, edits, query), by)
        return (gr.Radio([(f"{i}\n{_value(x, by)}", i) for i, x in enumerate(values)], value=None),
                _fills(values, by), _explained(values, by), "Choose a slot.", gr.Gallery([], visible=False))

    def chosen(view, slot):
        found, lifts = slots.stands_for(bench, view, slot)
        gallery = bench.gallery(view)
        shown = [(thumbnail(gallery, name), f"{share:.1%} of its address\n{text}") for name, text, share in found]
        line = f"Slot {slot}: words that put more on it than others: {', '.join(lifts)}" if lifts else \
            f"Slot {slot}: nothing of this gallery stands out." if found else "This gallery has no captions."
        return line, gr.Gallery(shown, visible=bool(shown), selected_index=None)

    def alike_drawn(view):
        return ("Dark off the diagonal are slots that do the same work, or the opposite.",
                figure(slots.likeness(bench, view), "Similarity between slots"))

    def capacity_drawn(view):
        drawn, line = slots.capacity(bench, view)
        return line, figure(drawn, line)

    state = [edits, facts, note, forget, undo, file]
    both = [*state, *(part for side in sides for part in side)]
    shown = [grid, fills, slots_note, said, pictures]
    on = {"show_progress_on": note, **ASK}
    write.click(plain(written), [view, edits, image, words], both, **on)
    ask.click(plain(asked), [view, edits, image], both[len(state):], **on)
    image.change(lambda: [""] * 6, None, both[len(state):], show_progress="hidden", **ASK)  # of another one
    forget.click(plain(forgotten), [view, edits, facts, image], both, **on)
    undo.click(plain(undone), [view, edits, image], both, **on)
    save.click(plain(prepared), [view, edits], file, **ASK)
    keep.click(plain(kept_as), [view, edits, name], kept, **LOAD)
    example.click(plain(lambda view: memory.any_fact(bench, view)), view, [image, words], **ASK)
    view.change(plain(opened), [view, edits], state, show_progress="hidden", **ASK)
    for event in (edits.change, by.input, query.change):
        event(plain(drawn_slots), [view, edits, query, by], shown, show_progress="hidden", **ASK)
    grid.input(plain(chosen), [view, grid], [said, pictures], show_progress_on=said, **ASK)
    full.expand(in_place(capacity_drawn), view, [holds, curve], show_progress_on=holds, **ASK)
    view.change(lambda: [gr.Accordion(open=False), "", WAIT] * 2, None, [full, curve, holds, alike, drawn, alike_line],
                show_progress="hidden", **ASK)  # what was drawn of another model
    alike.expand(in_place(alike_drawn), view, [alike_line, drawn], show_progress_on=alike_line, **ASK)


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
                     f"that is unused: {int((values < 0.1 / len(values)).sum())} of {len(values)} slots.",
            "norm": "Length of what a slot holds beyond the mean of all slots, with the facts written.",
            "address": f"Where your last search looks in the memory; {uniform}.",
            "age": "Facts written since the slot last took more than its share of one; – where none did. When training "
                   "last wrote to a slot is not recorded."}[by]
