"""The Training tab's callbacks: curves, gradients, the doctor's verdicts, worst retrievals and the card. No gradio.

A run is one of those that the owner of the app offers; what a visitor may name is checked against that list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from app.bench import Bench
from app.gallery import Progress, silent
from app.models import Choice, View
from bitgen import mistakes
from bitgen.health import Verdict, diagnose, read_facts, read_history
from bitgen.retrieval import recall_at_k

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = 6
"""Runs whose curves are drawn together."""
WORST, SHOWN = 6, 5  # captions whose picture comes last, and pictures that each finds instead
GRAVE = ("BAD", "WATCH", "OK")


def offered(bench: Bench) -> list[tuple[str, str]]:
    """(name, run) of the runs that have something to show: those with metrics."""
    return [(Path(run).name, run) for run in bench.models.runs if (Path(run) / "metrics.jsonl").is_file()]


def curves(bench: Bench, runs: Sequence[str]) -> Figure:
    """Training curves: all panels of one run, or several runs held against each other.

    Raises `ValueError` for no run, too many, one that is not offered, and where nothing was logged.
    """
    from bitgen import figures

    histories = {name: read_history(run) for name, run in _named(bench, runs).items()}
    return figures.curves(*histories.values()) if len(histories) == 1 else figures.compared(histories)


def gradients(bench: Bench, run: str) -> Figure:
    """The norm of the gradient, of all weights and by module. Raises `ValueError` where it was not logged."""
    from bitgen.network_figures import gradient_norms

    return gradient_norms(read_history(_offered(bench, run)))


def verdicts(bench: Bench, run: str) -> list[Verdict]:
    """The doctor's verdicts on the run as its files are now, the gravest first."""
    folder = _offered(bench, run)
    found = diagnose(read_history(folder), read_facts(folder))
    return sorted(found, key=lambda verdict: (GRAVE.index(verdict.verdict), not verdict.judged))


def table(found: Sequence[Verdict]) -> list[list[str]]:
    """Verdicts as rows: verdict, check, what it usually means, value beside chance, what to do."""
    rows = []
    for one in found:
        value = "–" if one.value is None else f"{one.value:.3g}"
        beside = "" if one.chance is None else f" (chance {one.chance:.3g})"
        if not one.judged:
            when = "not in this run" if one.due is None else f"judged from step {one.due:,}"
            rows.append(["not yet", one.check, when, value + beside, ""])
        elif one.verdict == "OK":
            rows.append(["OK", one.check, one.rule, value + beside, ""])
        else:
            rows.append([one.verdict, one.check, one.meaning, value + beside, one.remedy])
    return rows


def summary(found: Sequence[Verdict]) -> str:
    """One line: how many checks are how."""
    counts = {name: sum(one.judged and one.verdict == name for one in found) for name in GRAVE}
    waiting = sum(not one.judged for one in found)
    parts = [f"{counts['BAD']} bad", f"{counts['WATCH']} to watch", f"{counts['OK']} in order"]
    return " · ".join(parts + [f"{waiting} not judged"] * bool(waiting))


def worst(bench: Bench, view: View, run: str, progress: Progress = silent) -> tuple[Figure, str]:
    """The captions that find their picture last, as a figure, and a line about how many find it first.

    Of the run's newest weights, or of the checkpoint that is looked at if it is of this run; among a sample of the
    gallery's pictures with their first captions. Raises `ValueError` for a gallery without captions, and where every
    caption finds its picture first.
    """
    from bitgen import figures

    bench.model(view)
    here = view if view.choice.source == run else replace(view, choice=Choice(str(_offered(bench, run))))
    gallery = bench.gallery(bench.open(here, progress))
    names = gallery.captioned
    if len(names) < 2:
        raise ValueError("this gallery has no captions: what they find cannot be shown")
    images, words = (torch.as_tensor(x).float() for x in (gallery.index.features(names), gallery.sample_captions))
    owner = torch.arange(len(names))
    found = mistakes.worst(images, words, owner, WORST, SHOWN)
    recall = recall_at_k(images, words, owner, (1,), intervals=(1,))
    line = (f"{here.choice.title}: {recall['t2i_r1']:.0%} of {len(names):,} captions find their picture first "
            f"(95 % interval {recall['t2i_r1_low']:.0%} to {recall['t2i_r1_high']:.0%}, by chance "
            f"{recall['chance_t2i_r1']:.1%}).")
    if not found:
        raise ValueError(f"nothing to show. {line}")
    rows = [figures.Query(gallery.caption(names[one.caption]),
                          [np.asarray(gallery.picture(names[i])).transpose(2, 0, 1) for i in one.found],
                          [i == one.image for i in one.found], one.rank) for one in found]
    return figures.retrievals(rows), line


def card(bench: Bench, run: str) -> str:
    """The model card as Markdown, without its front matter. Raises `ValueError` where the run has no settings."""
    from bitgen.card import render
    from bitgen.record import read

    return render(read(_offered(bench, run))).partition("\n---\n")[2].strip()


def _named(bench: Bench, runs: Sequence[str]) -> dict[str, Path]:
    """Runs by their names; those that share one get their folder's too."""
    runs = list(dict.fromkeys(runs or []))
    if not runs:
        raise ValueError("choose a run")
    if len(runs) > RUNS:
        raise ValueError(f"{len(runs)} runs; at most {RUNS} are drawn together")
    folders = [_offered(bench, run) for run in runs]
    names = [folder.name for folder in folders]
    return {name if names.count(name) == 1 else f"{folder.parent.name}/{name}": folder
            for name, folder in zip(names, folders)}


def _offered(bench: Bench, run: str) -> Path:
    if run not in bench.models.runs:
        raise ValueError(f"run {str(run)[:100]!r}: choose one of the list")
    return Path(run)
