"""What a run tells while it goes: a bar and lines in the terminal, its log, its health, images it could not read."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from bitgen import boards
from bitgen.config import Config, LossConfig, to_dict
from bitgen.encoded import Gallery
from bitgen.health import Doctor, Verdict
from bitgen.logs import RunLog
from bitgen.losses import smoothing_floor
from bitgen.memory import address_perplexity, utilization
from bitgen.model import BitGen
from bitgen.objective import Objective
from bitgen.precision import precision

BAR = {"itc": "itc", "itm": "itm", "txt": "text", "t2i": "t2i", "i2t": "i2t", "lr": "lr"}
BAD_IMAGES = "bad_images.jsonl"


class Journal:
    """The journal of one run; one that is off (any process but the main one) keeps silent."""

    def __init__(self, folder: Path, steps: int, step: int, on: bool = True):
        """`step`: of the checkpoint that the run goes on from; 0 for a new run. `folder` holds the run's facts."""
        self.folder, self.on = folder, on
        self.bad: dict[str, str] = {}
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=not on, dynamic_ncols=True, mininterval=1.0)
        self.log = RunLog(folder, step or None) if on else None
        self.doctor = Doctor(folder) if on else None  # reads what the log has kept
        if on:
            (folder / BAD_IMAGES).unlink(missing_ok=True)  # what was known at `step` is told again

    def say(self, line: str) -> None:
        """A line in the terminal, above the bar."""
        if self.on:
            tqdm.write(line, file=sys.stderr)

    def open(self, config: Config, model: BitGen, line: str, step: int) -> None:
        """What is told once, before the first step: the model's size, and `line`."""
        tower = model.parameter_counts()["vision"]
        line = (f"{model.outside_tower() / 1e6:.2f} M parameters outside the vision tower, {tower / 1e6:.2f} M in it "
                f"({config.vision.trainable} trainable); "
                f"{line} in {precision(config.precision)}")
        self.say(line)
        if self.on:
            self.log.text("run", line, step)
            self.log.layout()
            self.log.hparams(to_dict(config), ["val_total", "val_t2i_r1", "val_i2t_r1"])

    def step(self, step: int, row: dict[str, float]) -> None:
        """The numbers of a training step."""
        self.bar.set_postfix({short: f"{row[name]:.3g}" for short, name in BAR.items() if name in row})
        if self.on:
            self._row(step, row | {"bad_images": float(len(self.bad))})

    def validated(self, step: int, numbers: dict[str, float], gallery: Gallery, data: Any, model: BitGen) -> None:
        """A validation's numbers, and pictures of them and of the model."""
        if not self.on:
            return
        shown = {name: round(numbers[name], 3) for name in ("total", "t2i_r1", "i2t_r1", "t2i_r10")}
        self.say(f"step {step}: validation {shown} over {numbers['images']} images, chance R@1 "
                 f"{numbers['chance_t2i_r1']:.4f}")
        self._row(step, {f"val_{name}": value for name, value in numbers.items()})
        self._draw(step, lambda: boards.validated(self.log, step, model, gallery, data))

    def finished(self, step: int, data: Any, model: BitGen, loss: LossConfig) -> None:
        """Pictures of the model as it was trained last, after the last validation."""
        if self.on:
            self._draw(step, lambda: boards.finished(self.log, step, model, data, loss))

    def _draw(self, step: int, draw: Callable[[], None]) -> None:
        try:
            draw()
        except Exception as error:  # whatever drawing raises, training is worth more than its pictures
            self.say(f"warning: the pictures of step {step} are not complete: {type(error).__name__}: {error}")

    @property
    def hopeless(self) -> Verdict | None:
        """What has been bad for so long that the run might as well end."""
        return self.doctor.hopeless if self.on else None

    def unreadable(self, found: dict[str, str]) -> None:
        """Name each unreadable image once: in the terminal and in `bad_images.jsonl`."""
        found = {name: reason for name, reason in found.items() if name not in self.bad}
        self.bad |= found
        if not self.on or not found:
            return
        for name, reason in found.items():
            self.say(f"unreadable image {name}: {reason}")
        try:
            with (self.folder / BAD_IMAGES).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"image": name, "reason": reason}) + "\n" for name, reason in found.items())
        except OSError as error:
            self.say(f"warning: {self.folder / BAD_IMAGES} is not complete: {error}")

    def close(self) -> None:
        """Ends bar and log."""
        self.bar.close()
        if self.on:
            self.log.close()

    def _row(self, step: int, row: dict[str, float]) -> None:
        """Numbers of a step, into the log and before the doctor; a line where that changes a verdict."""
        self.log.scalars(step, row)
        changed = self.doctor.update(step, row)
        lines = [verdict.line() for verdict in changed] + [f"passed: {item}" for item in self.doctor.news]
        for line in lines:
            self.say(f"step {step}: {line}")
        if lines:
            self.log.text("health", "\n\n".join(lines), step)


def measurements(objective: Objective, report: dict[str, float]) -> dict[str, float]:
    """What can be read off model and queue after a step, and what the report's numbers are to be held against."""
    model, more = objective.model, {}
    if model.memory is not None:
        more |= {"memory_utilization": float(utilization(model.memory.usage)),
                 "address_perplexity": float(address_perplexity(model.memory.usage))}
    if "text_nll" in report:
        more["perplexity"] = math.exp(min(report["text_nll"], 20.0))
        more["text_floor"] = smoothing_floor(model.config.vocab_size, objective.config.label_smoothing)
        more["text_chance"] = math.log(model.config.vocab_size)
    more |= {f"gate/{name.removeprefix('fusion.layers.')}": gate.item()
             for name, gate in model.named_parameters() if name.endswith("_gate")}
    return more | {"queue_size": float(objective.queue.size) if objective.queue is not None else 0.0}
