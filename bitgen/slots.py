"""What the memory's slots are used for, how much they hold, and how sure the memory is of what it returns.

N facts (an image with its first caption), K slots, D width, C labels, T checkpoints. `facts` encodes them once; the
rest are functions of them. Each number stands beside what a memory that tells nothing would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from bitgen.encoded import Gallery
from bitgen.memory import EpisodicMemory, address_perplexity, used, utilization
from bitgen.model import BitGen, Encoded
from bitgen.retrieval import firsts

BATCH = 64


class Facts(NamedTuple):
    """What the memory would be asked to hold."""

    key: Tensor
    """(N, D), between image and caption: what a fact is written under."""
    image: Tensor
    """(N, D), the image's feature alone: what it is read with."""
    value: Tensor
    """(N, D), the fused code."""


@torch.no_grad()
def facts(model: BitGen, gallery: Gallery) -> Facts:
    """Each image of a gallery with its first caption. Raises `ValueError` for a model without memory."""
    if model.memory is None:
        raise ValueError("this model has no memory: model.memory_slots is 0")
    device = next(model.parameters()).device
    first, found = firsts(gallery.owner, len(gallery.image_features)), []
    for rows in torch.arange(len(first)).split(BATCH):
        said = first[rows]
        image = Encoded(gallery.image_tokens[rows].float().to(device), gallery.image_features[rows].to(device))
        text = Encoded(gallery.text_tokens[said].float().to(device), gallery.text_features[said].to(device))
        found.append([x.float().cpu() for x in model.fact(image, text, gallery.attention_mask[said].to(device))])
    key, value = map(torch.cat, zip(*found))
    return Facts(key, gallery.image_features.float().cpu(), value)


# Usage ----------------------------------------------------------------------------------------------------


def mass(address: Tensor) -> Tensor:
    """Addresses (N, K) as shares of each fact's mass, rows that sum to one."""
    return F.normalize(address.abs().float(), p=1, dim=-1)


def usage(address: Tensor) -> dict[str, float]:
    """How slots are used by facts with addresses (N, K).

    `utilization`: share of slots that are `used` by the mean mass; `dead`: how many are not;
    `perplexity`: of the mean address, from 1 to K; `slots_a_fact`: the mean perplexity of single addresses; `slots`: K.
    Where every fact takes the same slots the last two but one agree; where each takes its own, they differ most.
    """
    shares = mass(address)
    mean = shares.mean(0)
    return {"utilization": utilization(mean).item(), "dead": int((~used(mean)).sum()),
            "perplexity": address_perplexity(mean).item(),
            "slots_a_fact": torch.special.entr(shares).sum(1).exp().mean().item(), "slots": len(mean)}


def by_label(address: Tensor, labels: Tensor) -> Tensor:
    """log2 of how much more mass (C, K) facts with a label put on a slot than those without; 0 where it tells nothing.

    address (N, K), labels (N, C) bool.
    """
    shares, labels = mass(address), labels.float()
    with_it = labels.T @ shares / labels.sum(0)[:, None].clamp(min=1)
    without = (1 - labels).T @ shares / (1 - labels).sum(0)[:, None].clamp(min=1)
    return (with_it.clamp(min=1e-6) / without.clamp(min=1e-6)).log2()


def information(address: Tensor, labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bits (C,) that the slot tells about each label, and the same (C,) for shuffled labels.

    Mutual information of the label and a slot drawn from the fact's mass. A fact lies on many slots at once, so this
    is what a single slot gives away, not all that an address holds.
    """
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    return _bits(mass(address), labels), _bits(mass(address), shuffled)


def _bits(shares: Tensor, labels: Tensor) -> Tensor:
    shares, labels = shares.double(), labels.double()
    bits = torch.special.entr(shares.mean(0)).sum().expand(labels.shape[1])
    for part in (labels, 1 - labels):
        mean = part.T @ shares / part.sum(0)[:, None].clamp(min=1)
        bits = bits - part.mean(0) * torch.special.entr(mean).sum(1)
    return bits.clamp(min=0) / torch.log(torch.tensor(2.0, dtype=torch.float64))


def similarity(memory: EpisodicMemory, address: Tensor) -> tuple[Tensor, Tensor]:
    """How alike slots are, (K, K) each: correlation of their masses over facts (N, K), cosine of what they hold, less
    the mean over slots. Near 1 off the diagonal means two slots that do one slot's work.
    """
    shares = mass(address)
    together = F.normalize((shares - shares.mean(0)).T, dim=1, eps=1e-12)
    held = memory.persistent().mean().detach().cpu().float()
    held = F.normalize(held - held.mean(0), dim=1, eps=1e-12)
    return together @ together.T, held @ held.T


def usage_over_time(checkpoints: Sequence[str | Path]) -> tuple[list[int], Tensor]:
    """Steps and the decayed mean mass of each slot (T, K) at checkpoint folders, in the order of their steps.

    Reads one tensor of each file. Raises `ValueError` where one has no memory.
    """
    found = {}
    for folder in map(Path, checkpoints):
        with safe_open(folder / "model.safetensors", "pt") as file:
            if "memory.usage" not in file.keys():  # noqa: SIM118 - it is no dict
                raise ValueError(f"{folder}: a model without memory")
            found[int(folder.name.rpartition("-")[2])] = file.get_tensor("memory.usage")
    return sorted(found), torch.stack([found[step] for step in sorted(found)])


# What it holds --------------------------------------------------------------------------------------------


@torch.no_grad()
def capacity(memory: EpisodicMemory, held: Facts, counts: Sequence[int], episodes: int = 20,
             noise: float = 0.0, seed: int = 0) -> dict[str, list[float]]:
    """Share of facts that come back as the nearest of those written, for each number of facts written together.

    `pair`: read under the key they were written with; `image`: with the image alone; `never`: the same from a memory
    that was not written; `chance`: 1 / count. `noise`: Gaussian noise of this share of a key's length on what is read
    with. At most `episodes` disjoint sets of facts each. Raises `ValueError` for a count above the number of facts.
    """
    if not counts or min(counts) < 2 or max(counts) > len(held.key):
        raise ValueError(f"counts: expected numbers from 2 to {len(held.key)}, the facts there are, got {list(counts)}")
    generator = torch.Generator().manual_seed(seed)
    curves: dict[str, list[float]] = {"pair": [], "image": [], "never": [], "chance": []}
    held = Facts(*(x.to(memory.prior_mean.device) for x in held))
    for count in counts:
        hits = {"pair": 0.0, "image": 0.0, "never": 0.0}
        sets = torch.arange(len(held.key) // count * count).view(-1, count)[:episodes]
        for rows in sets:
            key, image, value = (x[rows] for x in held)
            belief = memory.write(memory.prior(), key, value)
            for name, state, asked in (("pair", belief, key), ("image", belief, image),
                                       ("never", memory.prior(), image)):
                hits[name] += _found(memory.read(state, _noised(asked, noise, generator)).mean, value) / len(sets)
        for name in hits:
            curves[name].append(hits[name])
        curves["chance"].append(1 / count)
    return curves


def _noised(key: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    direction = torch.randn(key.shape, generator=generator).to(key.device)
    return F.normalize(key + noise * F.normalize(direction, dim=-1), dim=-1) if noise else key


def _found(returned: Tensor, written: Tensor) -> float:
    """Share of rows (n, D) whose own written value is the nearest, by cosine less the mean; ties share the place."""
    returned, written = (F.normalize(x - x.mean(0), dim=1, eps=1e-9) for x in (returned, written))
    cosines = returned @ written.T
    best = cosines >= cosines.amax(1, keepdim=True) - 1e-6
    return (best.diagonal().float() / best.sum(1)).mean().item()


@torch.no_grad()
def certainty(memory: EpisodicMemory, held: Facts, write: int = 24) -> tuple[Tensor, Tensor]:
    """How the memory grows sure while the first `write` facts come in, one by one.

    Returns the variance (write + 1, K) of each slot's content, the diagonal of U, and the variance (write + 1, N) of
    reading each fact by its own key, observation noise included; row n is after n writes.
    """
    if not 1 <= write <= len(held.key):
        raise ValueError(f"write: expected 1 to {len(held.key)}, the facts there are, got {write}")
    key, value = (x.to(memory.prior_mean.device) for x in (held.key, held.value))
    belief, slots, readings = memory.prior(), [], []
    for n in range(write + 1):
        if n:
            belief = memory.write(belief, key[n - 1:n], value[n - 1:n])
        slots.append(torch.cholesky_inverse(torch.linalg.cholesky(belief.precision)).diagonal().cpu())
        readings.append(memory.read(belief, key).variance.cpu())
    return torch.stack(slots), torch.stack(readings)
