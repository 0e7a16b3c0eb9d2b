"""What a run writes about itself: `metrics.jsonl` and TensorBoard events, each step once, whatever was resumed.

Events are written here record by record instead of through `SummaryWriter`: its background thread keeps up to 20 events
that a kill would lose, and raises a full disk's error into the training step.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bitgen import projector

METRICS = "metrics.jsonl"
LAYOUT = {
    "Good signs": {
        "contrast falls below chance": [r"(val_)?itc(_chance)?$"],
        "retrieval in the batch rises": [r"[ti]2[it](_chance)?$"],
        "matching accuracy rises to 0.8-0.9": [r"itm_acc(_chance)?$"],
        "matching loss": [r"(val_)?itm$"],
        "text loss and its label-smoothing floor": [r"(val_)?text(_floor|_nll)?$"],
        "gradient norm (the guide 0.05-0.5; healthy runs of scenes 1-40)": [r"grad_norm$"],
        "memory utilization above 0.5, quality above 0.7": [r"memory_(utilization|quality)$"],
        "validation loss": [r"val_total$"],
        "validation recall at 1": [r"val_(chance_)?[ti]2[it]_r1$"],
        "learning rate": [r"lr$"],
    },
    "Inside": {
        "gates of the fusion open": [r"gate/.*$"],
        "logit scale (1 / temperature) rises, below 100": [r"logit_scale$"],
        "gradient norm of each part": [r"grad_norm/.*$"],
        "update over weights, about 0.001": [r"update/.*$"],
        "slots in use (perplexity of the mean address)": [r"address_perplexity$"],
        "gap between images and captions, beside that of two halves": [r"features/gap(_noise)?$"],
        "cosine of pairs rises, of others falls": [r"features/(positive|negative)_cosine$"],
        "directions in use (effective rank)": [r"features/rank_(images|texts)$"],
        "what a linear probe reads (area under ROC, chance 0.5)": [r"probe/.*$"],
    },
}
"""TensorBoard's "Custom scalars": a page with the training guide's signs, one with what goes on inside. A chart shows
the tags that match."""

log = logging.getLogger(__name__)


class RunLog:
    """The log of one run, in its folder: `metrics.jsonl` and `tensorboard/`.

    `resume_step` is the step of the checkpoint that the run continues from: what was logged after it is forgotten.
    Without it the run is a new one, and what an earlier run logged here is forgotten. When the disk refuses (full,
    read-only), one warning is given and logging is off: it never stops training. Wrong use still raises.
    """

    def __init__(self, folder: str | Path, resume_step: int | None = None):
        self.folder = Path(folder)
        self.on = True
        self._new = resume_step is None
        self._last = -1 if resume_step is None else resume_step
        self._values: dict[str, float] = {}
        self._attempt(self._open)

    # What is logged -----------------------------------------------------------------------------------------

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """Numbers (floats or one-element tensors) of a step; a second call for the same step adds to its line.

        Not-a-number and infinities are kept, as JavaScript's `NaN` and `Infinity`. Raises `ValueError` for a step
        before the last one, or a name that the step has already.
        """
        if step < self._last or step == self._last and not self._values:
            raise ValueError(f"step {step} was logged already; the last one was {self._last}")
        if twice := values.keys() & self._values.keys() if step == self._last else ():
            raise ValueError(f"step {step}: {', '.join(sorted(twice))} logged twice")
        values = {key: float(value) for key, value in values.items()}
        self._attempt(lambda: self._write_line(step, values))
        self._curves(step, values)

    def histogram(self, tag: str, values: Any, step: int) -> None:
        """Distribution of the finite values of an array or tensor of any shape, e.g. of weights."""
        import numpy

        values = _numpy(values)
        values = values[numpy.isfinite(values)]
        if values.size:
            self._event(step, lambda s: s.histogram(tag, values, bins=64))

    def image(self, tag: str, pixels: Any, step: int) -> None:
        """One uint8 picture (3, H, W)."""
        self._event(step, lambda s: s.image(tag, _numpy(pixels), dataformats="CHW"))

    def figure(self, tag: str, figure: Any, step: int) -> None:
        """A matplotlib figure, which is left open."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self._event(step, lambda s: s.image(tag, _numpy(canvas.buffer_rgba())[..., :3], dataformats="HWC"))

    def pr_curve(self, tag: str, probabilities: Any, labels: Any, step: int) -> None:
        """Precision over recall of probabilities (n,) of being true for labels (n,) bool; NaN counts as 0."""
        import numpy

        values = numpy.clip(numpy.nan_to_num(_numpy(probabilities)), 0, 1)
        self._event(step, lambda s: s.pr_curve(tag, _numpy(labels).astype(float), values))

    def embedding(self, name: str, features: Any, columns: dict[str, Sequence[str]], thumbnails: Sequence[Any]) -> None:
        """Features (N, D) for the projector, in place of those before, as `projector.write` takes them."""
        self._attempt(lambda: projector.write(self.folder / "tensorboard", name, _numpy(features), columns, thumbnails))

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown."""
        self._event(step, lambda s: s.text(tag, text))

    def hparams(self, settings: dict, metrics: list[str]) -> None:
        """Settings (nested; `model.hidden_size` in the table) beside the named metrics; once a run, at its start."""
        flat = {key: value if isinstance(value, (bool, int, float, str)) else str(value)
                for key, value in _flat(settings).items()}
        if self._new:
            for part in range(3):  # experiment, start and end of a session
                self._event(0, lambda s, part=part: s.hparams(flat, dict.fromkeys(metrics, 0.0))[part])

    def layout(self, charts: dict[str, dict[str, list[str]]] = LAYOUT) -> None:
        """The page of charts `{page: {title: [regular expressions of tags]}}`; once a run, at its start."""
        if self._new:
            self._event(0, lambda s: s.custom_scalars(
                {page: {title: ["Multiline", tags] for title, tags in of.items()} for page, of in charts.items()}))

    def close(self) -> None:
        """Closes the files."""
        if self.on:
            self._attempt(lambda: (self._metrics.close(), self._events.close()))

    # How it reaches the disk --------------------------------------------------------------------------------

    def _attempt(self, write: Callable[[], Any]) -> None:
        """`write`, unless the disk refused before."""
        if not self.on:
            return
        try:
            write()
        except OSError as error:
            self.on = False
            log.warning("%s: logging is off from here on: %s", self.folder, error)

    def _open(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        kept = [] if self._new else [line for line in read_metrics(self.folder) if line["step"] <= self._last]
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{METRICS}.tmp"
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        partial.replace(self.folder / METRICS)
        self._metrics = (self.folder / METRICS).open("r+", encoding="utf-8")
        self._start = self._metrics.seek(0, 2)

        events = self.folder / "tensorboard"
        events.mkdir(exist_ok=True)
        # Readers take the files in the order of their names: a second restart in the same second must come later.
        stamp = max([int(time.time()), *(int(p.name.split(".")[3]) + 1 for p in events.glob("events.out.tfevents.*"))])
        alone = not any(events.glob("events.out.tfevents.*"))
        file = (events / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}").open("wb", buffering=0)
        self._events, self._event_type = RecordWriter(file), Event
        self._record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if alone:  # a run that goes on from another computer's checkpoint: its curves come along
            for line in kept:
                self._curves(line["step"], {key: value for key, value in line.items() if key != "step"})
        # A session that starts at a step makes readers forget what other files say of that step and later ones.
        self._record(Event(wall_time=time.time(), step=self._last + 1, session_log=SessionLog(status=SessionLog.START)))

    def _write_line(self, step: int, values: dict[str, float]) -> None:
        if step == self._last:  # grow the line that stands
            self._values |= values
            self._metrics.seek(self._start)
            self._metrics.truncate()
        else:
            self._start = self._metrics.seek(0, 2)
            self._last, self._values = step, values
        self._metrics.write(json.dumps({"step": step} | self._values) + "\n")
        self._metrics.flush()

    def _curves(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._event(step, lambda s, key=key, value=value: s.scalar(key, value))

    def _event(self, step: int, summary: Callable[[Any], Any]) -> None:
        """One event; `summary` makes it from torch's summary functions."""
        if self.on:
            from torch.utils.tensorboard import summary as functions

            event = self._event_type(wall_time=time.time(), step=step, summary=summary(functions))
            self._attempt(lambda: self._record(event))

    def _record(self, event: Any) -> None:
        self._events.write(event.SerializeToString())


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """The lines of a run's `metrics.jsonl`, in order; one that a crash cut off, or that is no row, is left out.

    Empty where nothing was logged.
    """
    path = Path(folder) / METRICS
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int:
            lines.append(row)
        else:
            log.warning("%s: a damaged line is left out: %.60r", path, line)
    return lines


def _flat(settings: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _numpy(values: Any) -> Any:
    """A tensor (of any device and dtype) or array as a numpy array."""
    import numpy

    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return numpy.asarray(values)
