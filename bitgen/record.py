"""What the files of a run say of it, read together: settings, facts, metrics, costs, health and evaluations."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from bitgen import accounting, facts
from bitgen.checkpoint import MANIFEST, file_digest
from bitgen.config import Config, from_dict
from bitgen.health import HEALTH, Verdict
from bitgen.logs import read_metrics


class Report(NamedTuple):
    """One evaluation on held-out images: what `bitgen evaluate --json` wrote."""

    file: str
    data: str
    """The data set's name, empty where the file does not say."""
    split: str
    values: dict[str, float]
    level: float | None
    """Of its confidence intervals."""


@dataclass
class Record:
    """A run as its files tell it; what is in none of them is empty or None."""

    source: str
    """What `bitgen.load` takes: the Hub id, or the folder."""
    name: str
    config: Config
    facts: dict
    history: list[dict[str, float]]
    costs: dict
    health: list[dict]
    """Verdicts, each with the fields of `health.Verdict`."""
    reports: list[Report]
    """Evaluations of the weights at the root."""
    stale: list[str]
    """Files of evaluations that are of other weights."""
    step: int | None
    """Of the checkpoint whose weights lie at the root."""

    @property
    def data(self) -> str:
        """The training data's name."""
        return data_name(self.config.data.root)

    @property
    def generated(self) -> bool:
        """Trained on scenes that were drawn for it."""
        return "scenes" in (self.config.data.root, self.config.data.format)

    @property
    def tower(self) -> str | None:
        """Where the vision tower's first weights came from, a folder by its name alone; None for random ones."""
        start = self.config.vision.pretrained
        return start if start is None or is_hub_id(start) else Path(start).name

    def fact(self, *path: str) -> Any:
        """A value of `run_facts.json`, None where it is not there."""
        value: Any = self.facts
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def latest(self, key: str) -> float | None:
        """The last logged value of a metric, None where it was never logged."""
        return next((row[key] for row in reversed(self.history) if key in row), None)

    def validation(self) -> dict[str, float]:
        """The last validation: its `step`, and its numbers without `val_`. Empty where there was none."""
        row = next((row for row in reversed(self.history) if "val_total" in row), {})
        numbers = {key.removeprefix("val_"): value for key, value in row.items() if key.startswith("val_")}
        return numbers | {"step": row["step"]} if row else {}


def read(run_folder: str | Path, repo: str | None = None) -> Record:
    """The record of a run folder; `repo` is where it goes on the Hub, by default where its settings say.

    Raises `ValueError` where `run.json` is missing or no configuration.
    """
    folder = Path(run_folder)
    config = settings(folder)
    repo = repo or config.hub.repo
    sha256 = file_digest(folder / facts.WEIGHTS) if (folder / facts.WEIGHTS).is_file() else None
    reports, stale = [], []
    for path in sorted(folder.glob("*.json")):
        values = _json(path)
        if "t2i_r1" not in values:
            continue
        of = values.pop("of", {})
        if of.get("weights", sha256) == sha256:
            reports.append(Report(path.name, data_name(of.get("data", "")), of.get("split", ""), values,
                                  of.get("level")))
        else:
            stale.append(path.name)
    history = [row for row in read_metrics(folder) if isinstance(row, dict)]
    names = {field.name for field in fields(Verdict)}
    health = [verdict for verdict in _json(folder / HEALTH).get("verdicts", []) if names <= verdict.keys()]
    return Record(repo or str(run_folder), repo or folder.resolve().name, config, _json(folder / facts.FACTS), history,
                  accounting.read(folder), health, reports, stale, _step(folder, sha256))


def settings(run_folder: str | Path) -> Config:
    """What a run was told. Raises `ValueError` where `run.json` is missing or no configuration."""
    path = Path(run_folder) / "run.json"
    if not path.is_file():
        raise ValueError(f"{path.parent}: no run here, run.json is missing; expected the folder that `bitgen train` "
                         "wrote")
    values = facts.read_settings(path)
    try:
        return from_dict(Config, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def data_name(root: str) -> str:
    """A data set by its name alone: the Hub's id, or the last part of a path."""
    return root.removeprefix("hub://") if root.startswith("hub://") else Path(root).name


def is_hub_id(name: str) -> bool:
    """Whether `name` is a repository on the Hub rather than a folder here."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def _step(folder: Path, sha256: str | None) -> int | None:
    """The step of the checkpoint with these weights."""
    for path in folder.glob(f"checkpoint-*/{MANIFEST}"):
        manifest = _json(path)
        if sha256 and sha256 in manifest.get("files", {}).get(facts.WEIGHTS, []):
            return manifest["step"]
    return None


def _json(path: Path) -> dict:
    """The mapping that a file holds; empty where it is missing, damaged or something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
