"""The slots of the Memory tab: how they are used, what each stands for, how much they hold. No gradio.

What is shown is of the visitor's session (`app.memory.Edits`). K slots, n pictures, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from app import limits, memory, search, vocabulary
from app.bench import Bench
from app.memory import Edits
from app.models import View
from bitgen import memory_figures
from bitgen import slots as slots_module
from bitgen.slots import mass

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WAYS = {"usage": "Usage in training", "norm": "Norm of its content", "address": "Address of the query",
        "age": "Age of the last write"}
OFTEN, SELDOM = 0.9, 0.05  # a word that is said of more, or of fewer of the pictures, tells nothing about a slot
COUNTS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 200)  # facts written together
ENOUGH = 0.9  # share of facts that come back first, below which the memory is called full


class Slots(NamedTuple):
    """One number a slot (K,); NaN where it is not known."""

    usage: np.ndarray
    """Share of the address mass in the last training steps."""
    norm: np.ndarray
    """Length of what the slot holds, less the mean over slots."""
    address: np.ndarray
    """Share of the query's address mass."""
    age: np.ndarray
    """Facts written since the slot last took more than the uniform share of one."""


def look(bench: Bench, view: View, edits: Edits, query: search.Query | None = None) -> Slots:
    """Usage, norm, address of the query and age of every slot, with the session's facts."""
    model, edits = memory.with_memory(bench, view).model, memory.of(bench, view, edits)
    held, address = memory.belief(model, edits).mean(), model.memory.address
    unknown = torch.full((model.memory.slots,), torch.nan)
    asked, age = unknown, unknown.clone()
    with torch.no_grad():
        if query is not None and (query.words or query.pictured):
            asked = mass(address(torch.from_numpy(search.query_feature(bench.gallery(view), query))))[0]
        for ago, fact in enumerate(reversed(edits.facts)):
            touched = mass(address(fact.key[None]))[0] > 1 / len(age)
            age[touched & age.isnan()] = ago
    norm = (held - held.mean(0)).norm(dim=1).detach()
    return Slots(*(x.float().cpu().numpy() for x in (model.memory.usage, norm, asked, age)))


def stands_for(bench: Bench, view: View, slot: int, top: int = 6) -> tuple[list[tuple[str, str, float]], list[str]]:
    """What a slot stands for: the gallery's pictures that use it most, and the words said of them above others.

    Returns (id, caption, share of the picture's address mass) and words with how many times more mass their pictures
    put on the slot. Both are empty for a gallery without captions. Raises `ValueError` where there is no such slot.
    """
    known, count = memory.known_of(bench, view), bench.model(view).model.memory.slots
    slot = limits.whole(slot, "slot", 0, count - 1)
    if not known.names:
        return [], []
    address = _addresses(bench, view)
    shares = mass(address)[:, slot]
    found = [(known.names[i], known.texts[i], float(shares[i])) for i in shares.argsort(descending=True)[:top].tolist()]
    names, labels = _said(known.texts)
    if not names:
        return found, []
    lift = slots_module.by_label(address, labels)[:, slot]
    best = lift.argsort(descending=True)[:8].tolist()
    return found, [f"{names[i]} ×{2 ** float(lift[i]):.1f}" for i in best if lift[i] > 0]


def likeness(bench: Bench, view: View) -> Figure:
    """A figure of how alike slots are: used together, and holding alike. Raises `ValueError` for no captions."""
    address = _addresses(bench, view)
    together, held = slots_module.similarity(bench.model(view).model.memory, address)
    return memory_figures.slot_similarity(together.numpy(), held.numpy())


def capacity(bench: Bench, view: View) -> tuple[Figure, str]:
    """A figure of how many facts the memory holds, and what it says in words.

    Facts are pictures of the gallery with their first captions, written together to the empty memory; one is found
    where what is read is nearest to its own value. Raises `ValueError` for fewer than two captions.
    """
    known, held = memory.known_of(bench, view), bench.model(view).model.memory
    if len(known.names) < 2:
        raise ValueError("this gallery has fewer than two captions: how much the memory holds cannot be measured")
    counts = [count for count in COUNTS if count <= len(known.names)]
    curves = slots_module.capacity(held, known.facts, counts)
    enough = [count for count, share in zip(counts, curves["image"]) if share >= ENOUGH]
    most = "Not even two facts" if not enough else f"Up to {enough[-1]} facts"
    line = (f"{most} written together come back first for {ENOUGH:.0%} of their pictures; of {counts[-1]}, "
            f"{curves['image'][-1]:.0%} do (by chance {1 / counts[-1]:.1%}).")
    return memory_figures.capacity(counts, curves, held.slots), line


@torch.no_grad()
def _addresses(bench: Bench, view: View) -> Tensor:
    """(n, K) addresses of the gallery's known facts. Raises `ValueError` where there is none."""
    known = memory.known_of(bench, view)
    if not known.names:
        raise ValueError("this gallery has no captions: which slots are used together cannot be told")
    return bench.model(view).model.memory.address(known.facts.key)


def _said(texts: list[str]) -> tuple[list[str], Tensor]:
    """Words that are said of some of the texts, and (n, words) bool which."""
    said = vocabulary.words(texts)
    names = vocabulary.telling(said, SELDOM, OFTEN)
    return names, torch.tensor([[name in each for name in names] for each in said], dtype=torch.bool)
