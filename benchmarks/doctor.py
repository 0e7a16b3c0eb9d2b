"""Does the doctor see what is wrong? Runs that are really broken, and healthy ones, on a small `scenes`.

    python benchmarks/doctor.py                      # 7 broken kinds x 3 seeds and 10 healthy seeds, about 30 minutes
    python benchmarks/doctor.py --kinds "lr x 100" --seeds 0

Every breakage is made here, on the trainer and objective that `bitgen train` uses. A broken run is judged right where
the check that names its cause is BAD at the end; a healthy one where no check was BAD after any logged row. Runs that
are done are not done again. Prints a table: kind x seed -> verdict, and the step since which it stood.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import measure
import torch
import torch.nn.functional as F

from bitgen import health, objective
from bitgen.config import Config, from_dict, load_preset
from bitgen.logs import read_metrics
from bitgen.trainer import Trainer

SMALL = {
    "precision": "float32", "log_every": 5, "save_every": 10**6, "validate_every": 10**6,
    "data": {"scenes_train": 4000},
    "vision": {"image_size": 48, "tower": {"model_type": "dinov2", "patch_size": 8, "hidden_size": 96, "mlp_ratio": 2,
                                           "num_hidden_layers": 3, "num_attention_heads": 4, "initializer_range": 0.1}},
    "model": {"fusion_layers": 1, "text_layers": 1, "decoder_layers": 1},
    "loss": {"queue": 512, "queue_start": 60, "episode": 16},
    "optim": {"batch_size": 32, "lr": 2e-3, "warmup_steps": 20, "epochs": 10**6},
}


# Breakages: each changes a trainer that is about to run, and may hold a patch while it runs ------------------------


def frozen_tower(trainer: Trainer) -> AbstractContextManager:
    """The tower keeps its random weights."""
    trainer.model.vision.requires_grad_(False)
    return nullcontext()


def shuffled_captions(trainer: Trainer) -> AbstractContextManager:
    """Every image has the captions of another."""
    for data in (trainer.train_data, trainer.val_data):
        order = torch.randperm(len(data)).tolist()
        data.captions = [data.captions[i] for i in order]
    return nullcontext()


def leaked_decoder(trainer: Trainer) -> AbstractContextManager:
    """The word to predict reaches the decoder's state by a door of its own, as large as the state itself."""
    loss = objective.text_loss

    def leaky(states, weight, targets, smoothing):
        words = F.normalize(weight[targets], dim=-1) * states.shape[-1] ** 0.5
        return loss(states + words, weight, targets, smoothing)
    return patch.object(objective, "text_loss", leaky)


def memory_written_once(trainer: Trainer) -> AbstractContextManager:
    """After the first step every image is left out of its episode."""
    after_step = trainer.objective.after_step

    def once(*done):
        after_step(*done)
        trainer.objective.config.left_out = 1.0
    return patch.object(trainer.objective, "after_step", once)


def queue_without_ids(trainer: Trainer) -> AbstractContextManager:
    """The queue forgets whose keys it holds, so that an image's own older keys are its negatives."""
    held = trainer.objective.queue.held

    def nameless():
        image, text, image_ids, caption_ids = held()
        return image, text, torch.zeros_like(image_ids), torch.zeros_like(caption_ids)
    return patch.object(trainer.objective.queue, "held", nameless)


def random_labels(trainer: Trainer) -> AbstractContextManager:
    """Which pairs belong together is drawn by lot."""
    loss = objective.matching_loss
    return patch.object(objective, "matching_loss", lambda logits, matched: loss(logits, matched[
        torch.randperm(len(matched))]))


class Kind(NamedTuple):
    """One way to be ill: the check that should name it, after how many steps, and how it is done."""

    check: str | None
    steps: int
    breaks: Callable[[Trainer], AbstractContextManager] = lambda trainer: nullcontext()
    changes: dict = {}


KINDS = {
    "frozen random tower": Kind("vision tower", 60, frozen_tower),
    "shuffled captions": Kind("contrast", 160, shuffled_captions),
    "lr x 100": Kind("gradient", 100, changes={"optim": {"lr": 0.2}}),
    "leaked decoder": Kind("text collapse", 280, leaked_decoder),
    "memory written once": Kind("memory quality", 160, memory_written_once),
    "queue false negatives": Kind("queue", 280, queue_without_ids, {"data": {"limit": 32}}),
    "label-free ITM": Kind("matching", 1600, random_labels),
    "healthy": Kind(None, 320),
}


class Outcome(NamedTuple):
    """What the doctor said."""

    bad: list[str]
    """Checks that were BAD: at the end of a broken run, at any time of a healthy one."""
    since: int | None
    """Step since which the first check of a broken run's `bad` that names its cause stood."""


def run(name: str, seed: int, folder: Path, changes: dict | None = None) -> Outcome:
    """Train one patient, unless that was done to its last step before, and judge it row by row."""
    kind = KINDS[name]
    config = load_preset("nano", load_preset("scenes"))
    settings = {"seed": seed, "output_dir": str(folder), "optim": {"max_steps": kind.steps}}
    for layer in (SMALL, settings, kind.changes, changes or {}):
        config = from_dict(Config, layer, config)
    history = read_metrics(folder)
    if not history or history[-1]["step"] < config.optim.max_steps:
        trainer = Trainer(config)
        if kind.check is not None:
            trainer._validated = lambda: False      # takes as long as 60 steps, and what is broken shows before
        with kind.breaks(trainer):
            trainer.fit()
    return judged(kind, folder)


def judged(kind: Kind, folder: Path) -> Outcome:
    """The outcome of a run, as the doctor would have told it while it trained."""
    history, facts = health.read_history(folder), health.read_facts(folder)
    bad = [{v.check for v in health.diagnose(history[:end], facts) if v.verdict == "BAD"}
           for end in range(1, len(history) + 1)]
    if kind.check is None:
        return Outcome(sorted(set().union(*bad)), None)
    standing = next((i for i in reversed(range(len(bad))) if kind.check not in bad[i]), -1) + 1
    return Outcome(sorted(bad[-1]), history[standing]["step"] if standing < len(bad) else None)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the broken runs")
    parser.add_argument("--healthy-seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--out", type=Path, default=Path("runs/doctor"))
    options = parser.parse_args()
    where = measure.begin()
    rows, right, false = [], 0, 0
    for name in options.kinds:
        kind = KINDS[name]
        for seed in options.healthy_seeds if kind.check is None else options.seeds:
            found = run(name, seed, options.out / f"{name.replace(' ', '-')}-{seed}")
            well = not found.bad if kind.check is None else kind.check in found.bad
            right, false = right + (well and kind.check is not None), false + (not well and kind.check is None)
            since = "" if found.since is None else str(found.since)
            rows.append((name, seed, kind.check or "-", since, ", ".join(found.bad) or "none", "yes" if well else "NO"))
            print(json.dumps(rows[-1]), flush=True)
    broken = sum(kind != "healthy" for kind, *_ in rows)
    print("\n" + measure.table(["kind", "seed", "expected BAD", "BAD since step", "all that is BAD", "right"], rows))
    print(f"right verdicts {right}/{broken}, healthy runs called BAD {false}/{len(rows) - broken}")
    measure.write(options.json, {"environment": where, "rows": rows, "right": right, "broken": broken,
                                 "healthy called BAD": false, "healthy": len(rows) - broken})


if __name__ == "__main__":
    main()
