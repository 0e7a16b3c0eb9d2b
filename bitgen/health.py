"""Is the run learning? Verdicts on a run's metric history, while it trains (`Doctor`) and after (`bitgen doctor RUN`).

`diagnose` is a pure function of the history and of the run's facts: `run_facts.json` (`steps`, `parameters`, `data`,
`machine`) with `config`, the nested dict of `run.json`. What is not known is read off the history or left out.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitgen.checkpoint import replace_text
from bitgen.checks import CHECKLIST, CHECKS
from bitgen.logs import read_metrics
from bitgen.signs import Check, Facts, Row, Seen

HEALTH = "health.json"
GUIDE_STEPS = 2000  # in a shorter run the guide's steps come proportionally sooner,
SOONEST = 0.2       # but never sooner than this share of them: learning takes steps, not shares of a run
PERSISTENT = 3      # rows with the verdict BAD, one after the other, before a run is called hopeless

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What one check found. `value` is None where it was not measured, and the verdict then OK."""

    check: str
    value: float | None
    verdict: str
    """`OK`, `WATCH` or `BAD`."""
    rule: str
    meaning: str
    remedy: str
    chance: float | None
    due: int | None
    """Step from which the check is judged; None for one that does not apply, or whose epochs are not known."""
    judged: bool
    """False before `due`: the verdict is then OK because nothing can be said yet."""

    def line(self) -> str:
        """`BAD contrast: 4.98 (chance 5.05). What it usually means. What to do.`"""
        chance = "" if self.chance is None else f" (chance {self.chance:.3g})"
        value = "" if self.value is None else f": {self.value:.3g}{chance}"
        if self.verdict == "OK":
            return f"{self.verdict} {self.check}{value}"
        return f"{self.verdict} {self.check}{value}. Rule: {self.rule}. Usually: {self.meaning}. Try: {self.remedy}"


def diagnose(history: list[Row], facts: Facts | None = None) -> list[Verdict]:
    """A verdict for every check of the table, in its order.

    A check whose step has not come is OK and not `judged`. While the learning rate warms up nothing is worse than
    WATCH. Raises `ValueError` for an empty history.
    """
    if not history:
        raise ValueError("no metrics to judge: the history is empty")
    facts = _completed(facts or {}, history)
    return [_verdict(check, check.measure(history, facts), history[-1]["step"], facts) for check in CHECKS]


def _verdict(check: Check, seen: Seen | None, step: int, facts: Facts) -> Verdict:
    start = due(check, facts)
    judged = seen is not None and step >= start
    verdict = check.judge(seen.score) if judged else "OK"
    if verdict == "BAD" and step <= facts["warmup"]:
        verdict = "WATCH"
    value = seen.value if seen and math.isfinite(seen.value) else None
    return Verdict(check.name, value, verdict, check.rule, check.meaning, check.remedy,
                   seen.chance if seen else None, int(start) if seen and math.isfinite(start) else None, judged)


def due(check: Check, facts: Facts) -> float:
    """The step from which `check` is judged; infinite where it waits for an epoch of unknown length."""
    share = min(max(facts["steps"] / GUIDE_STEPS, SOONEST), 1.0)
    return max(math.ceil(check.step * share), check.epoch * facts["epoch_steps"] if check.epoch else 1)


def _completed(facts: Facts, history: list[Row]) -> Facts:
    """Facts with `config`, `steps`, `epoch_steps` and `warmup`, as far as facts and history tell them."""
    config = facts.get("config", {})
    optim = config.get("optim", {})
    known = {"config", "data", "machine"} <= facts.keys() and {"batch_size", "accumulation"} <= optim.keys()
    if known:
        batch = optim["batch_size"] * facts["machine"]["processes"] * optim["accumulation"]
        epoch = max(facts["data"]["train"]["images"] // batch, 1)
    else:  # a validation once an epoch, unless it was told otherwise
        validated = next((row["step"] for row in history if "val_total" in row), math.inf)
        epoch = math.inf if config.get("validate_every") else validated
    planned = min(optim.get("max_steps") or math.inf, optim.get("epochs", math.inf) * epoch)
    steps = facts.get("steps") or (planned if math.isfinite(planned) else GUIDE_STEPS)
    warmup = min(optim.get("warmup_steps", 0), max(steps // 10, 1))
    return {**facts, "config": config, "steps": steps, "epoch_steps": epoch, "warmup": warmup}


def worst(verdicts: list[Verdict]) -> str:
    """OK, WATCH or BAD."""
    return max((v.verdict for v in verdicts), key=("OK", "WATCH", "BAD").index, default="OK")


def checklist(verdicts: list[Verdict]) -> dict[str, bool | None]:
    """The guide's testing checklist: whether each item is passed; None for one whose step has not come."""
    by_name = {v.check: v for v in verdicts}
    return {what: by_name[check].verdict == "OK" if by_name[check].judged else None for what, check in CHECKLIST}


# A run folder -----------------------------------------------------------------------------------------------


def read_history(run_folder: str | Path) -> list[Row]:
    """The rows of a run's `metrics.jsonl`. Raises `ValueError` where there is no such folder, or no row in it."""
    if not Path(run_folder).is_dir():
        raise ValueError(f"{run_folder}: no such run folder")
    rows = read_metrics(run_folder)
    if not rows:
        raise ValueError(f"{run_folder}: no metrics.jsonl with rows in it; a run writes it while it trains")
    return rows


def read_facts(run_folder: str | Path) -> Facts:
    """What a run's `run.json` and `run_facts.json` say about it, as far as they are there."""
    facts: Facts = {}
    for name in ("run.json", "run_facts.json"):
        path = Path(run_folder) / name
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}: no JSON ({error}); move it away to go on without it") from None
            if not isinstance(found, dict):
                raise ValueError(f"{path}: no object but {str(found)[:40]!r}; move it away to go on without it")
            facts |= {"config": found} if name == "run.json" else found
    return facts


class Doctor:
    """Follows a run: verdicts after every logged row, `health.json` in its folder.

    `facts`: see the module; by default what `read_facts` finds in the folder. What `metrics.jsonl` holds already (of a
    resumed run) counts, silently.
    """

    def __init__(self, run_folder: str | Path, facts: Facts | None = None):
        self.folder = Path(run_folder)
        self.facts = read_facts(run_folder) if facts is None else facts
        self.history = read_metrics(self.folder)
        self.verdicts = diagnose(self.history, self.facts) if self.history else []
        self.ticked = self._passed()
        self.news: list[str] = []
        """Items of the checklist that the last update passed."""
        self._bad_for: dict[str, int] = {}
        self._writes = True

    def update(self, step: int, row: Row) -> list[Verdict]:
        """Take in the numbers of a step; returns the verdicts that changed. Writes `health.json`.

        A second call for a step adds to its row. A disk that refuses is warned of once and stops nothing.
        """
        new = not self.history or self.history[-1]["step"] != step
        if new:
            self.history.append({"step": step})
        self.history[-1] = self.history[-1] | row
        before = {v.check: v.verdict for v in self.verdicts}
        self.verdicts = diagnose(self.history, self.facts)
        bad = [v.check for v in self.verdicts if v.verdict == "BAD"]
        self._bad_for = {check: self._bad_for.get(check, 1 - new) + new for check in bad}
        self.news = [what for what in self._passed() if what not in self.ticked]
        self.ticked += self.news
        self._write(step)
        return [v for v in self.verdicts if v.verdict != before.get(v.check, "OK")]

    @property
    def hopeless(self) -> Verdict | None:
        """The first check that has been BAD for several rows, one after the other: reason enough to stop a run."""
        return next((v for v in self.verdicts if self._bad_for.get(v.check, 0) >= PERSISTENT), None)

    def _passed(self) -> list[str]:
        return [what for what, passed in checklist(self.verdicts).items() if passed] if self.verdicts else []

    def _write(self, step: int) -> None:
        try:
            replace_text(self.folder / HEALTH, report(step, self.verdicts))
            self._writes = True
        except OSError as error:
            if self._writes:
                log.warning("%s is not up to date: %s", self.folder / HEALTH, error)
            self._writes = False


# What is shown ----------------------------------------------------------------------------------------------


def report(step: int, verdicts: list[Verdict]) -> str:
    """`health.json`: step, worst verdict, all verdicts, checklist."""
    content: dict[str, Any] = {"step": step, "worst": worst(verdicts), "verdicts": [asdict(v) for v in verdicts],
                               "checklist": checklist(verdicts)}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def summary(verdicts: list[Verdict]) -> str:
    """For the terminal: a line a check, what to do for those that are not OK, then the checklist."""
    lines = []
    for v in verdicts:
        value = "-" if v.value is None else f"{v.value:.4g}"
        chance = "" if v.chance is None else f"chance {v.chance:.4g}"
        when = "" if v.judged else "not in this run" if v.due is None else f"from step {v.due}"
        lines.append(f"{v.verdict:<6}{v.check:<22}{value:>10}  {chance:<15}{when}".rstrip())
        if v.verdict != "OK":
            lines += [f"      rule: {v.rule}", f"      usually: {v.meaning}", f"      try: {v.remedy}"]
    marks = {True: "x", False: "!", None: " "}
    items = [f"[{marks[passed]}] {what}" for what, passed in checklist(verdicts).items()]
    return "\n".join([*lines, "", *items])
