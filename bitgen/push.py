"""Checkpoints on their way to the Hub, while training goes on as if there were none.

A thread sends the newest entry of the outbox (`bitgen.outbox`) by a process of its own (`bitgen.upload`), which it can
kill. Entries that were overtaken are dropped, the last one never is; what is left when a run is killed is sent when
it starts again. When to try again, and how often to commit, is decided here and by `repository.Limits` alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from bitgen import card, checkpoint, record
from bitgen.config import HubConfig
from bitgen.outbox import ROOT, STATE, Outbox, State, step_of
from bitgen.repository import NAME, Limits, blob_id
from bitgen.upload import Job, Outcome

RETRIED = ("transient", "conflict")
"""Kinds of failure after which the same checkpoint is tried again; the others wait for the next one."""
CHECK_DEADLINE = 60.0


@dataclass(frozen=True)
class PushStatus:
    """Which checkpoint of a run is on the Hub (`landed`), which should be (`wanted`; steps or None), and whether all
    that was offered is there (`complete`)."""

    repo: str
    wanted: int | None
    landed: int | None
    complete: bool
    reason: str = ""

    def __str__(self) -> str:
        there = "no checkpoint of this run" if self.landed is None else f"checkpoint-{self.landed}"
        lacking = "" if self.complete else f", not checkpoint-{self.wanted}: {self.reason or 'no time was left'}"
        return f"{self.repo} on the Hub holds {there}{lacking}"


class Publisher:
    """Pushes the checkpoints of one run; nothing that happens on the way reaches training.

    Raises `ValueError` for a name that is none, a damaged record of pushes, or a run that another process pushes.
    """

    def __init__(self, run_folder: str | Path, hub: HubConfig, limits: Limits | None = None,
                 tell: Callable[[str], None] | None = None):
        if not NAME.fullmatch(hub.repo or ""):
            raise ValueError(f"hub.repo {hub.repo!r}: expected ORG/NAME, such as 'ann/scenes'")
        self.run, self.hub, self.limits = Path(run_folder), hub, limits or Limits()
        self.tell = tell or (lambda line: tqdm.write(line, file=sys.stderr))
        self.where = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{hub.repo}"
        self.state = State.read(self.run / STATE, self.where)
        self.outbox = Outbox(self.run, self.where)
        self._changed = threading.Condition()  # guards state, outbox and all below
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen | None = None
        self._sending: Path | None = None
        self._given_up: Path | None = None
        self._offered: int | None = None
        self._unqueued = ""
        self._failures, self._not_before = 0, 0.0
        self._closing = self._over = False

    def check(self) -> None:
        """Asks the Hub, once, whether this run will be able to push; makes the repository where it is missing.

        Raises `ValueError` with the reason where it will not: not logged in, no right to write, storage full. A Hub
        that does not answer is a warning, since it may by the first push. Sends what an earlier process left.
        """
        limits = dataclasses.replace(self.limits, deadline=min(self.limits.deadline, CHECK_DEADLINE))
        outcome = self._ask(Job(self.hub.repo, self.hub.private, limits=limits))
        if outcome.kind in RETRIED:
            self.tell(f"warning: the Hub cannot be asked about {self.hub.repo} now ({outcome.reason}); pushes will be "
                      "tried all the same")
        elif outcome.kind != "done":
            raise ValueError(f"hub.repo {self.hub.repo!r}: {outcome.reason}")
        self._start()

    def offer(self, step: int, best_step: int | None = None) -> None:
        """Queues `checkpoint-{step}`, which stands; returns at once. `best_step` does not rotate out on the Hub.

        Where the outbox cannot be written it is a warning, and the status tells.
        """
        with self._changed:
            self._offered = step
            try:
                overtaken = [entry for entry in self.outbox.entries() if entry != self._sending]
                self.outbox.add(step)
                self.outbox.drop(overtaken)
                self._unqueued = ""
            except OSError as error:
                self._unqueued = f"checkpoint-{step} could not be queued: {error}"
                self.tell(f"warning: {self._unqueued}")
            self.state.best, self._given_up = best_step, None
            self._remember()
            self._changed.notify_all()
        self._start()

    def pushed(self) -> dict:
        """What a checkpoint keeps of this, so that the run can go on elsewhere: where it pushed to, and what."""
        with self._changed:
            return {"repository": self.where, "steps": list(self.state.pushed),
                    "manifests": dict(self.state.manifests)}

    def adopt(self, pushed: dict, resumed: Path | None) -> None:
        """Take over what the run `pushed` to this repository from another folder, and the checkpoint that it was
        `resumed` with, where that came from there: they are its own, and rotate out."""
        with self._changed:
            if self.state.pushed or pushed["repository"] != self.where:
                return
            self.state.pushed, self.state.manifests = list(pushed["steps"]), dict(pushed["manifests"])
            if resumed is not None:
                self.state.pushed.append(int(checkpoint.NAME.fullmatch(resumed.name)[1]))
                self.state.manifests[resumed.name] = blob_id((resumed / checkpoint.MANIFEST).read_bytes())
            self._remember()

    def close(self, timeout: float = 900.0) -> PushStatus:
        """Waits until the last checkpoint is on the Hub, or cannot be, at most `timeout` seconds.

        What is not there stays in the outbox, for the next start of the run or `bitgen push`.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self.outbox.entries():
            self._start()
        if self._thread is not None:
            self._thread.join(timeout)
            with self._changed:
                self._over = True
                self._changed.notify_all()
                if self._process is not None:
                    self._process.kill()
            self._thread.join()
        self.outbox.close()
        return self.status()

    def status(self) -> PushStatus:
        """Where things stand now."""
        with self._changed:
            waiting, last = self.outbox.entries(), self.state.last
            landed = self.state.pushed[-1] if self.state.pushed else None
            failed = last.get("reason", "") if waiting and last.get("kind") != "done" else ""
            wanted = step_of(waiting[-1]) if waiting else landed if self._offered is None else self._offered
            lost = f"it is gone from {self.outbox.folder}" if not waiting and wanted != landed else ""
            reason = self._unqueued or failed or lost
            return PushStatus(self.hub.repo, wanted, landed, not waiting and not reason, reason)

    # The thread -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="push", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            steps = [step for step in self.state.pushed if step != step_of(entry)] + [step_of(entry)]
            doomed = [step for step in steps[: -self.hub.keep] if step != self.state.best]
            outcome = self._ask(Job(self.hub.repo, self.hub.private, str(entry), limits=self.limits,
                                    doomed=tuple(f"checkpoint-{step}" for step in doomed),
                                    owned=self.state.manifests, create=not self.state.pushed))
            with self._changed:
                self._sending = None
                if not self._over or outcome.kind == "done":
                    self._record(entry, outcome, [step for step in steps if step not in doomed])

    def _next(self) -> Path | None:
        """The entry to send now, once its time has come; None when all is done that can be."""
        with self._changed:
            while not self._over:
                waiting = self.outbox.entries()
                entry = waiting[-1] if waiting and waiting[-1] != self._given_up else None
                if entry is None and self._closing:
                    return None
                pause = self._pause() if entry else None
                if entry and pause <= 0:
                    self._sending = entry
                    return entry
                self._changed.wait(pause)
        return None

    def _pause(self) -> float:
        """Seconds until a try may begin. The last commit of an hour is kept for the end of the run."""
        now = time.time()
        self.state.commits = [moment for moment in self.state.commits if moment > now - 3600]
        allowed = self.limits.commits_per_hour - (not self._closing)
        recent = self.state.commits
        until = recent[-allowed] + 3600 if len(recent) >= allowed else 0.0
        return max(until - now, self._not_before - time.monotonic())

    def _record(self, entry: Path, outcome: Outcome, pushed: list[int]) -> None:
        """The outcome of a try: in the state and on disk, and in one line where it is news."""
        step, state, before = step_of(entry), self.state, self.state.last
        tries = before["tries"] + 1 if before.get("step") == step and before["kind"] != "done" else 1
        state.last = {"step": step, "kind": outcome.kind, "reason": outcome.reason, "commit": outcome.commit,
                      "time": time.time(), "tries": tries}
        if outcome.kind == "done":
            self._landed(entry, outcome, pushed)
        else:
            self._failed(entry, outcome)
            if tries == 1 or outcome.kind != before["kind"]:
                self.tell(f"warning: checkpoint-{step} is not on the Hub ({outcome.kind}): {outcome.reason}")
        self._remember()
        if outcome.kind == "done":
            self.outbox.drop([other for other in self.outbox.entries() if other <= entry])

    def _remember(self) -> None:
        # A full disk, or a file that was damaged meanwhile: the record is behind, and the tree on the Hub tells.
        with suppress(OSError, ValueError):
            self.state.write(self.run / STATE, self.where)

    def _landed(self, entry: Path, outcome: Outcome, pushed: list[int]) -> None:
        known = self.state.manifests | {f"checkpoint-{step_of(entry)}": outcome.manifest}
        self.state.pushed = pushed
        self.state.manifests = {name: known[name] for step in pushed if (name := f"checkpoint-{step}") in known}
        self.state.commits += [time.time()] * outcome.new
        self._failures, self._not_before, self._given_up = 0, 0.0, entry
        note = f"; {outcome.reason}" if outcome.reason else ""
        self.tell(f"pushed checkpoint-{step_of(entry)} to {self.hub.repo} (commit {outcome.commit[:12]}){note}")

    def _failed(self, entry: Path, outcome: Outcome) -> None:
        if outcome.kind not in RETRIED:
            self._given_up = entry
            return
        wait = max(self.limits.first_wait * 2 ** min(self._failures, 16), outcome.wait)
        self._not_before = time.monotonic() + min(wait, self.limits.longest_wait)
        self._failures += 1

    def _ask(self, job: Job) -> Outcome:
        """Runs one try in a process of its own, at most `job.limits.deadline` seconds."""
        environment = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | os.environ
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        try:
            process = subprocess.Popen([sys.executable, "-m", "bitgen.upload"], text=True, start_new_session=True,
                                       env=environment, **pipes)
        except OSError as error:  # no memory for another process, or no more of them
            return Outcome("transient", f"no process to push with: {error}")
        with self._changed:
            self._process = process
            if self._over:  # closed meanwhile
                process.kill()
        try:
            output, errors = process.communicate(json.dumps(asdict(job)), timeout=job.limits.deadline)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Outcome("transient", f"no end after {job.limits.deadline:.0f} s")
        finally:
            self._process = None
        if process.returncode == 0:
            return Outcome(**json.loads(output.splitlines()[-1]))
        if process.returncode < 0:
            return Outcome("transient", f"the pushing process was killed by signal {-process.returncode}")
        return Outcome("bug", f"the pushing process failed: {(errors.strip().splitlines() or ['no word'])[-1]}")


def push_run(run_folder: str | Path, repo: str, private: bool = False, timeout: float = 900.0) -> PushStatus:
    """Pushes the newest checkpoint of a finished run, with a model card that loads it from `repo`.

    To the run's own repository as the run does: privately where it says so, and no more is deleted than it would.
    Raises `ValueError` where there is no checkpoint, no right to push, or a run that no card can be written of.
    """
    newest, rejected = checkpoint.newest(run_folder)
    if newest is None:
        reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in rejected)
        raise ValueError(f"{run_folder}: no checkpoint to push" + (f" ({reasons})" if rejected else ""))
    written = (Path(run_folder) / "run.json").is_file()  # without settings there are checkpoints, but nothing to tell
    own = record.settings(run_folder).hub if written else HubConfig()
    hub = own if own.repo == repo else HubConfig(repo)
    publisher = Publisher(run_folder, dataclasses.replace(hub, private=hub.private or private))
    try:
        publisher.check()
        checkpoint.publish(newest, ROOT, run_folder)  # a kill may have come between the two, and the card reads these
        if written:
            card.write(run_folder, repo)
        publisher.offer(int(checkpoint.NAME.fullmatch(newest.name)[1]), publisher.state.best)
    except BaseException as error:
        publisher.close(timeout=0)
        if isinstance(error, checkpoint.CheckpointError):
            raise ValueError(str(error)) from error
        raise
    return publisher.close(timeout)
