"""The good and bad signs of a run: what a check is, and what each measures; the table of them is `checks`.

A check measures one number on the recent rows of `metrics.jsonl` and holds it against two limits. The numbers are the
training guide's where those hold at any scale; where they do not, the measure takes a quantity that does, and its
docstring says what the guide said. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any, NamedTuple

Row = dict[str, float]
Facts = dict[str, Any]

RECENT = 10  # rows that a measure looks at, of a young run half of what there is
LOSSES = ("itc", "itm", "text", "memory_kl", "total")
NUMBERS = (*LOSSES, "grad_norm", "weight_norm", "logit_scale")
SIZES = {64: (3e6, 5e6), 128: (5e6, 10e6), 256: (15e6, 25e6)}  # parameters outside the tower with GPT-2's vocabulary
GPT2_VOCABULARY = 50257


class Seen(NamedTuple):
    """What a check found: `value` to show, `chance` beside it (if there is one), `score` to judge."""

    value: float
    score: float
    chance: float | None = None


@dataclass(frozen=True)
class Check:
    """One line of the table. `rule`, `meaning` and `remedy` are sentences for whoever trains."""

    name: str
    measure: Callable[[list[Row], Facts], Seen | None]
    """None where there is nothing to measure: not logged, or not part of this run."""
    better: str
    """`high` or `low`: which way the score is good."""
    watch: float
    """Limit on the score: beyond it WATCH."""
    bad: float | None
    """Beyond it BAD; None for what is never worse than WATCH."""
    rule: str
    meaning: str
    """What a bad verdict usually means."""
    remedy: str
    step: int = 1
    """Judged from here on; of a run of 2,000 steps or more, of a shorter one proportionally sooner."""
    epoch: int = 0
    """Judged after this many epochs, whatever `step` says."""

    def judge(self, score: float) -> str:
        """OK, WATCH or BAD."""
        worse = (lambda limit: score < limit) if self.better == "high" else (lambda limit: score > limit)
        if self.bad is not None and worse(self.bad):
            return "BAD"
        return "WATCH" if worse(self.watch) else "OK"


# What is measured -------------------------------------------------------------------------------------------


def recent(history: list[Row], *names: str, such: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """The last rows that hold finite numbers under all `names` (and are `such`), in their order."""
    rows = list(islice((row for row in reversed(history) if _finite(row, names) and such(row)), 2 * RECENT))
    return rows[:math.ceil(len(rows) / 2)][::-1]


def _finite(row: Row, names: Iterable[str]) -> bool:
    return all(math.isfinite(row.get(name, math.nan)) for name in names)


def _with_parts(row: Row) -> bool:
    """Whether a row has the gradient norms of the model's parts."""
    return any(name.startswith("grad_norm/") for name in row)


def _mean(rows: list[Row], name: str) -> float:
    return fmean(row[name] for row in rows)


def parameters(history: list[Row], facts: Facts) -> Seen | None:
    """Parameters outside the tower as they would be with GPT-2's vocabulary; score 0 inside the size's range.

    The guide: 5-10 M, which holds for a width of 128 and 50,257 words. A smaller vocabulary is set right here.
    """
    width, vocab = (facts.get("config", {}).get("model", {}).get(key) for key in ("hidden_size", "vocab_size"))
    if width not in SIZES or "parameters" not in facts:
        return None
    low, high = SIZES[width]
    count = facts["parameters"]["outside_tower"]
    whole = count + (GPT2_VOCABULARY - vocab) * width
    return Seen(count, float(not low <= whole <= high))


def numbers(history: list[Row], facts: Facts) -> Seen | None:
    """How many of the last rows in a row tell of NaN or infinity: in a loss, gradient, weights or temperature, or by a
    step that was skipped since the row before."""
    rows = [row for row in history if "grad_norm" in row]
    skipped = [0.0, *(row.get("skipped_in_all", 0.0) for row in rows)]
    sound = [now == before and all(math.isfinite(row.get(name, 0.0)) for name in NUMBERS)
             for row, before, now in zip(rows, skipped, skipped[1:])]
    broken = next((count for count, well in enumerate(reversed(sound)) if well), len(sound))
    return Seen(broken, broken)


def temperature(history: list[Row], facts: Facts) -> Seen | None:
    """The logit scale, 1 / temperature. At its ceiling of 100 small gradients and overconfident logits follow."""
    rows = recent(history, "logit_scale")
    return Seen(rows[-1]["logit_scale"], rows[-1]["logit_scale"]) if rows else None


def gradient(history: list[Row], facts: Facts) -> Seen | None:
    """The gradient norm now; judged by the part of the model whose own norm fell furthest from where it began.

    The guide: 0.05-0.5 is healthy and below 0.01 vanishing. A norm scales with losses and width (a healthy `scenes` run
    has 1 to 40), a fall to a hundredth does not; and the parts are looked at apart, since a dead tower hides behind a
    decoder that learns.
    """
    first, last = list(islice(filter(_with_parts, history), 3)), recent(history, such=_with_parts)
    now = recent(history, "grad_norm")
    if len(first) < 2 or not now:
        return None
    parts = [name for name in first[0] if name.startswith("grad_norm/") and 0 < first[0][name] < math.inf]
    falls = [fmean(row.get(part, 0.0) for row in last) / fmean(row.get(part, 0.0) for row in first) for part in parts]
    return Seen(_mean(now, "grad_norm"), min((x for x in falls if math.isfinite(x)), default=1.0))


def tower(history: list[Row], facts: Facts) -> Seen | None:
    """Share of the gradient that reaches the vision tower. A pretrained tower may be frozen on purpose.

    The guide: "check DINOv2 is trainable (should see 'Trainable' in logs)".
    """
    vision = facts.get("config", {}).get("vision", {})
    rows = recent(history, "grad_norm", such=_with_parts)
    if not rows or vision.get("pretrained") and vision.get("trainable") == "none":
        return None
    share = fmean(row.get("grad_norm/vision", 0.0) / max(row["grad_norm"], 1e-30) for row in rows)
    return Seen(share, share) if math.isfinite(share) else None


def explosion(history: list[Row], facts: Facts) -> Seen | None:
    """The worst of the losses as a multiple of what guessing gives."""
    found = [_mean(rows, loss) / chance for loss, chance, rows in _against_chance(history) if rows and chance]
    return Seen(max(found), max(found), 1.0) if found else None


def _against_chance(history: list[Row]):
    """(loss, its value when guessing, recent rows) for every loss that has one."""
    for loss, level in (("itc", "itc_chance"), ("itm", "itm_acc_chance"), ("text_nll", "text_chance")):
        rows = recent(history, loss, level)
        chance = _mean(rows, level) if rows else 0.0
        yield loss, _entropy(chance) if loss == "itm" else chance, rows


def _entropy(share: float) -> float:
    """Of a coin that shows heads with this probability, in nats; 0.6365 for two thirds."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def contrast(history: list[Row], facts: Facts) -> Seen | None:
    """The contrast as a share of its chance level.

    The guide: falling from 4.85, stuck at 4.85. That is ln 128, chance in a batch of 128 without a queue; with a full
    queue it is ln(128 + 4096) = 8.35. `itc_chance` is computed for the candidates really present.
    """
    rows = recent(history, "itc", "itc_chance")
    if not rows:
        return None
    return Seen(_mean(rows, "itc"), fmean(r["itc"] / max(r["itc_chance"], 1e-9) for r in rows),
                _mean(rows, "itc_chance"))


def _found(rows: list[Row], prefix: str = "", suffix: str = "") -> float:
    """The worse direction of retrieval."""
    return min(_mean(rows, f"{prefix}{way}{suffix}") for way in ("t2i", "i2t"))


def _over_chance(value: float, chance: float) -> float:
    """1 at three times chance, or halfway from chance to 1 where three times is out of reach."""
    return value / max(min(3 * chance, (1 + chance) / 2), 1e-9)


def retrieval(history: list[Row], facts: Facts) -> Seen | None:
    """Accuracy in the batch, the worse of t2i and i2t, in multiples of three times chance.

    The guide: above 0.01 by step 1000. In a batch of 128 chance is 0.008 and in one of 64 it is 0.016.
    """
    rows = recent(history, "t2i", "i2t", "t2i_chance")
    if not rows:
        return None
    value, chance = _found(rows), _mean(rows, "t2i_chance")
    return Seen(value, _over_chance(value, chance), chance)


def accuracy(history: list[Row], facts: Facts) -> Seen | None:
    """The same accuracy as it is: the guide's 0.3-0.5 for batches of 128 after 5-10 epochs."""
    seen = retrieval(history, facts)
    return seen and seen._replace(score=seen.value)


def held_out(history: list[Row], facts: Facts) -> Seen | None:
    """Recall at 1 over the whole validation split, the worse direction, in multiples of three times chance."""
    rows = recent(history, "val_t2i_r1", "val_i2t_r1", "val_chance_t2i_r1")[-1:]
    if not rows:
        return None
    value, chance = _found(rows, "val_", "_r1"), _mean(rows, "val_chance_t2i_r1")
    return Seen(value, _over_chance(value, chance), chance)


def queue(history: list[Row], facts: Facts) -> Seen | None:
    """How far the loss over the full queue stands over what the loss in the batch explains, in nats.

    If queued negatives are like those of the batch, the odds of a wrong answer grow with their number: from a loss in
    the batch of ln(1 + o) and r times as many candidates follows about ln(1 + r o). A queue that holds the positive
    itself d times as a negative cannot fall under ln(1 + d), however well the batch is told apart, unless keys betray
    their age. The first BitGen's 4.85 had this cause too: ln(1 + 4096 / 32) with 32 pairs in 4096 slots. A single false
    negative an image, ln 2, is too little to be seen here.
    """
    full = max((row.get("queue_size", 0) for row in history), default=0)
    names = ("itc", "itc_batch", "itc_chance", "t2i_chance")
    rows = recent(history, *names, such=lambda row: full and row.get("queue_size") == full)
    if len(rows) < 2:
        return None
    batch = _mean(rows, "itc_batch")
    queued = 2 * _mean(rows, "itc") - batch                        # itc is the mean of the two
    more = math.exp(2 * (_mean(rows, "itc_chance") + math.log(_mean(rows, "t2i_chance"))))
    return Seen(excess := queued - math.log1p(more * math.expm1(batch)), excess)


def matching(history: list[Row], facts: Facts) -> Seen | None:
    """ITM's accuracy beside always saying 'no'; judged by its loss as a share of that answer's.

    The guide: stuck at 0.5. With one positive and two negatives the majority gives 0.667, and the loss sits at 0.6365.
    Matching begins to learn when the contrast already does: it is judged at eight times the step at which a quarter of
    the batch was found.
    """
    rows = recent(history, "itm", "itm_acc", "itm_acc_chance")
    found = next((row["step"] for row in history if row.get("t2i", 0) + row.get("i2t", 0) >= 0.5), math.inf)
    if not rows or history[-1]["step"] < 8 * found:
        return None
    chance = _mean(rows, "itm_acc_chance")
    return Seen(_mean(rows, "itm_acc"), _mean(rows, "itm") / max(_entropy(chance), 1e-9), chance)


def matching_accuracy(history: list[Row], facts: Facts) -> Seen | None:
    """The same accuracy as it is: the guide's 0.8-0.9 after training."""
    rows = recent(history, "itm_acc", "itm_acc_chance")
    return Seen(value := _mean(rows, "itm_acc"), value, _mean(rows, "itm_acc_chance")) if rows else None


def text(history: list[Row], facts: Facts) -> Seen | None:
    """The smoothed text loss; judged by where it stands between its floor (0) and chance (1).

    The guide: 1.0-3.0. Label smoothing of 0.1 alone puts a floor of 1.40 under it with 50,257 words, 0.95 with 512.
    """
    rows = recent(history, "text", "text_floor", "text_chance")
    if not rows:
        return None
    value, floor, chance = (_mean(rows, name) for name in ("text", "text_floor", "text_chance"))
    return Seen(value, (value - floor) / max(chance - floor, 1e-9), chance)


def collapse(history: list[Row], facts: Facts) -> Seen | None:
    """The same place between floor and chance, for a decoder that knows too much; `leak` is exact where it is logged.

    The guide: collapse to 0, "should be prevented by label smoothing". Smoothing only puts the floor in; a decoder that
    sees its targets goes down to it, while the next word of an honest caption is never certain.
    """
    return None if any("val_text_dealt" in row for row in history) else text(history, facts)


def leak(history: list[Row], facts: Facts) -> Seen | None:
    """Loss on captions whose words were shuffled, as a share of the entropy of the words' frequencies.

    Without seeing them, nothing can predict words in random order better than by their frequencies.
    """
    rows = recent(history, "val_text_dealt", "val_text_dealt_chance")[-1:]
    if not rows:
        return None
    value, chance = rows[0]["val_text_dealt"], rows[0]["val_text_dealt_chance"]
    return Seen(value, value / max(chance, 1e-9), chance)


def use(history: list[Row], facts: Facts) -> Seen | None:
    """Share of memory slots in use."""
    rows = recent(history, "memory_utilization")
    return Seen(value := _mean(rows, "memory_utilization"), value) if rows else None


def quality(history: list[Row], facts: Facts) -> Seen | None:
    """Mean cosine of what was written and what is read back, each less its mean: 0 for a memory that tells nothing."""
    rows = recent(history, "memory_quality")
    return Seen(value := _mean(rows, "memory_quality"), value, 0.0) if rows else None


def tracked(history: list[Row], facts: Facts) -> Seen | None:
    """The last validation loss; judged by how far it stands over its best, as a share of it."""
    losses = [row["val_total"] for row in history if "val_total" in row]
    due = facts.get("config", {}).get("validate_every") or facts.get("epoch_steps", 0)
    if not losses and history and history[-1]["step"] <= due:
        return None  # the row of that step comes before its validation
    if not losses or not math.isfinite(losses[-1]):
        return Seen(math.nan, math.inf)
    return Seen(losses[-1], losses[-1] / max(min(filter(math.isfinite, losses)), 1e-9) - 1)


def published(history: list[Row], facts: Facts) -> Seen | None:
    """Step of the newest checkpoint on the Hub (`hub_step` in the log); judged by how many pushes it is late."""
    hub = facts.get("config", {}).get("hub", {})
    if not hub.get("repo"):
        return None
    there = max((row["hub_step"] for row in history if "hub_step" in row), default=0)
    late = (history[-1]["step"] - there) / hub["push_every"]
    return Seen(there, late) if there or late > 2 else None  # the first is given the time of two
