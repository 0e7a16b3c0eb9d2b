"""The training loop: set up, then for each step backward, clip, step, and the writes that follow it.

B images a batch; a step is one optimizer update of `accumulation` batches. Everything that a run is, is in its
checkpoints: a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, gather_object, set_seed
from torch import Tensor
from torch.nn.utils import get_total_norm

from bitgen import checkpoint, facts, snapshot
from bitgen.accounting import Meter
from bitgen.batches import Feed
from bitgen.cache import check_bad
from bitgen.checkpoint import replace_text
from bitgen.config import Config, to_dict
from bitgen.data import Batch, open_data
from bitgen.exits import DISK, HOPELESS, NUMBERS, SIGNAL, Stop
from bitgen.journal import Journal, measurements
from bitgen.lock import locked
from bitgen.logs import read_metrics
from bitgen.model import BitGen
from bitgen.objective import Objective
from bitgen.optimizer import gradient_norms, schedule, update_ratios
from bitgen.precision import precision
from bitgen.processes import launched
from bitgen.processing import Processor
from bitgen.randomness import repeatable
from bitgen.ranges import check_config
from bitgen.saving import FAILED, LEAVING, PUSHING, Saver
from bitgen.setup import make_model, make_optimizer, make_tokenizer
from bitgen.signals import Signals
from bitgen.validation import validate

SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}
"""Ways to launch that split a model over processes."""
PROGRESS = ("step", "skipped", "skipped_in_all", "best", "validation")
"""What a run counts, in its checkpoints as it stands here."""


class Trainer:
    """One run. `Trainer(config).fit()` trains and leaves a run folder."""

    def __init__(self, config: Config):
        check_config(config)
        self.config = config
        self.folder = Path(config.output_dir)
        AcceleratorState._reset_state()  # or the precision of a process's first run would bind all later ones
        together = launched()[1] > 1 and not torch.accelerator.is_available()  # on CPUs accelerate must be told
        mixed = precision(config.precision).replace("float32", "no")
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=together, kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False,  # a loss that is off leaves its head bare
                                          find_unused_parameters=not (config.loss.itm and config.loss.text))])
        if (kind := self.accelerator.distributed_type) in SHARDED:
            raise ValueError(f"the launcher is set to {kind.value}: every process holds the whole model here, which is "
                             "far too small to be sharded; launch with torchrun, or accelerate's multi-GPU or -CPU")
        if config.loss.itc and config.optim.batch_size * self.accelerator.num_processes < 2:
            raise ValueError("optim.batch_size 1: the contrast needs at least 2 images at a time, to tell them apart")
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        set_seed(config.seed)
        self.saver = Saver(config) if self.main else None
        self.resume_from = snapshot.find(config.resume, self.folder)
        found = gather_object([self.resume_from and self.resume_from.name])
        if len(set(found)) > 1:
            raise ValueError(f"resume {config.resume!r}: the processes find different checkpoints in {self.folder} "
                             f"({', '.join(map(str, found))}): put output_dir on a disk that all of them share")
        self._prepare()
        self.steps = self.feed.epoch * config.optim.epochs // config.optim.accumulation
        self.steps = min(self.steps, config.optim.max_steps or self.steps)
        if self.steps < 1:
            raise ValueError(f"{len(self.train_data)} training images are fewer than one step takes: lower "
                             f"optim.batch_size ({config.optim.batch_size})")
        self.step, self.skipped, self.skipped_in_all = 0, 0, 0  # of the skipped steps, those in a row, and all
        self.best = {"step": None, "loss": math.inf, "waited": 0}
        self.validation: dict[str, float] = {}
        self.signals = Signals()

    def _prepare(self) -> None:
        """Data, model and all that belongs to it."""
        config, process, size = self.config, self.accelerator, self.config.vision.image_size
        self.train_data = open_data(config.data, "train", size, config.seed)
        self.val_data = open_data(config.data, "val", size, config.seed)
        self.tokenizer = make_tokenizer(config, self.train_data, self.resume_from)
        self.feed = Feed(self.train_data, self.tokenizer, config, self.device, process.process_index,
                         process.num_processes)
        self.model = make_model(config, self.tokenizer, self.train_data.captions, self.resume_from)
        self.processor = Processor(self.tokenizer, config.vision, config.model.max_tokens)
        self.optimizer = make_optimizer(self.model, config)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]  # as configured, also where it resumes
        objective = Objective(self.model, config.loss)
        for model in objective.models():
            model.vision.set_attention(precision(config.precision), self.device)
        if config.compile:
            objective.compile_encoders()
        self.wrapped = process.prepare_model(objective.to(self.device))
        if process.process_index:  # the same weights everywhere, but not the same chances: dropout, what is left out
            set_seed(config.seed + process.process_index)
        self.objective: Objective = process.unwrap_model(self.wrapped)

    @property
    def weights(self) -> BitGen:
        """The weights to use: the moving average where there is one."""
        return self.objective.momentum.model if self.objective.momentum else self.model

    # The loop ---------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Train to the end; returns the last validation's numbers.

        Raises `Stop` where the run ends for a reason that the user has to act on (signal, disk, numbers, Hub), and
        `ValueError` where another process trains into the run folder.
        """
        with self._reserved():
            return self._fit()

    def _fit(self) -> dict[str, float]:
        self._open_folder()
        unreadable = self._resume()
        self.meter = Meter(self.folder, self.device, self.step > 0, self.accelerator.num_processes,
                           read_metrics(self.folder) if self.step else ())
        self.journal = Journal(self.folder, self.steps, self.step, self.main)
        self.journal.open(self.config, self.model, f"{len(self.train_data)} training images, {len(self.val_data)} for "
                          f"validation; {self.steps} steps on {self.device}", self.step)
        self.journal.unreadable(unreadable)
        if self.resume_from is None and (old := checkpoint.course(self.folder)):
            self.journal.say(f"warning: {old[-1]} and what else an earlier run left there is replaced as this one saves"
                             "; --resume auto would go on with it")
        with closing(self.journal), self.signals, repeatable(self.device):
            try:
                if self.step < self.steps and not self._waited():
                    self._loop()
                elif self.saver:  # the run has ended before, perhaps without a Hub
                    self.saver.offer(self.step, self.best["step"])
                self.signals.leaving = True
            except BaseException as error:
                with suppress(Stop):  # the reason to end is another
                    self._close(LEAVING if isinstance(error, Stop) else 0.0)
                raise
            self._close(PUSHING)
        return self.validation

    def _loop(self) -> None:
        batches = self.feed.batches(*(step * self.config.optim.accumulation for step in (self.step, self.steps)))
        while self.step < self.steps:
            report = self._train_step(batches)
            self.journal.bar.update()
            last, enough = self.step == self.steps, False
            if last or self.step == 1 or self._due(self.config.log_every):
                self._log(report)
            if last or self._due(self._validate_every()):
                enough = self._validated()
            if last or enough:
                with self.meter.aside():
                    self.journal.finished(self.step, self.val_data, self.model, self.config.loss)
            stop, push = self._stop(), self.config.hub.repo is not None and self._due(self.config.hub.push_every)
            ends, best = bool(last or enough or stop), self.best["step"] == self.step
            if ends or push or best or self._due(self.config.save_every):  # the best can only stay if it is there
                self.save(push=ends or push, ends=ends)
            if stop:
                raise stop
            if enough:
                self.journal.say(f"early stopping at step {self.step}: no better validation loss since step "
                                 f"{self.best['step']}")
                return

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    def _stop(self) -> Stop | None:
        """A reason to end here, if there is one."""
        if number := self._agreed(self.signals.received):
            return Stop(f"stopped by signal {number} after step {self.step}; `--resume auto` goes on", SIGNAL + number)
        if self.config.stop_on == "bad" and self._agreed(self.journal.hopeless is not None):
            verdict = self.journal.hopeless
            return Stop(f"stopped after step {self.step}: {verdict.line() if verdict else 'not healthy'}", HOPELESS)
        return None

    def _train_step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """One optimizer update; a non-finite loss or gradient leaves weights and buffers as they were."""
        config = self.config.optim
        rate = schedule(self.step, self.steps, config.warmup_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        losses, report, done = self._backward(batches)
        report = {**{name: loss.detach() for name, loss in losses.items()}, **report}
        scaler = self.accelerator.scaler                                          # of fp16
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if self.step % self.config.log_every == self.config.log_every - 1 or self.step == 0:
            report |= gradient_norms(self.model)                                  # before clipping
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
        report["grad_norm"], report["lr"] = norm, config.lr * rate
        if torch.isfinite(norm) and torch.isfinite(losses["total"]):
            self.optimizer.step()
            self.objective.after_step(*done)
            self.skipped = 0
        else:
            self.skipped += 1
            self.skipped_in_all += 1
        if scaler is not None:
            scaler.update()  # less where gradients overflowed
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        report["skipped"], report["skipped_in_all"] = self.skipped, self.skipped_in_all
        if self.skipped >= self.config.optim.max_skipped:
            raise Stop(f"{self.skipped} steps in a row had a non-finite loss or gradient; the last checkpoint is "
                       "intact. Try a tenth of optim.lr, --precision float32, or look for broken images with "
                       "`bitgen data check`", NUMBERS)
        return report

    def _backward(self, batches: Iterator[Batch]) -> tuple[dict[str, Tensor], dict, list[tuple]]:
        """Adds up the gradients of one update: losses and report of its last batch, and what `after_step` takes."""
        self.wrapped.train()
        done = []
        for left in reversed(range(self.config.optim.accumulation)):
            batch = next(batches)
            self.journal.unreadable(batch.bad)
            check_bad(self.journal.bad, len(self.train_data), self.config.data.max_bad_fraction)
            alone = self.accelerator.no_sync(self.wrapped) if left else nullcontext()  # gradients are sent once a step
            with alone, self.meter.batch(len(batch.pixel_values), self._kind()):
                with self.accelerator.autocast():
                    losses, report, pending = self.wrapped(batch)
                self.accelerator.backward(losses["total"] / self.config.optim.accumulation)
            done.append((batch, pending))
        return losses, report, done

    def _kind(self) -> str:
        """Batches that cost the same have the same name."""
        begun = int(self.objective.steps) >= self.config.loss.queue_start
        return "with queue" if self.objective.queue is not None and begun else "without queue"

    def _log(self, report: dict[str, Tensor]) -> None:
        self._share_unreadable()
        if self.main:
            row = {name: float(value) for name, value in report.items()}
            moved = update_ratios(list(self.model.named_parameters()), self.optimizer.param_groups,
                                  self.optimizer.state)
            row |= {f"update/{part}": ratio for part, ratio in moved.items()}
            row["weight_norm"] = float(get_total_norm(self.model.parameters()))
            if self.saver and (landed := self.saver.landed()) is not None:
                row["hub_step"] = landed
            self.journal.step(self.step, row | measurements(self.objective, row) | self.meter.scalars())

    def _validate_every(self) -> int:
        return self.config.validate_every or max(self.feed.epoch // self.config.optim.accumulation, 1)

    def _validated(self) -> bool:
        """Validate and log; true where early stopping says that it is enough."""
        with self.meter.aside():
            self.validation, gallery = validate(self.weights, self.config, self.val_data, self.tokenizer,
                                                self.accelerator)
            self.journal.validated(self.step, self.validation, gallery, self.val_data, self.weights)
        self.validation["validated_at"] = self.step
        loss = self.validation["total"]
        if self._agreed(loss < self.best["loss"] - self.config.optim.min_delta):
            self.best = {"step": self.step, "loss": loss, "waited": 0}
        else:
            self.best["waited"] += 1
        return self._waited()

    def _waited(self) -> bool:
        """Has validation been no better for as long as early stopping waits?"""
        return self.best["waited"] >= self.config.optim.patience

    # Saving and resuming ----------------------------------------------------------------------------------

    def save(self, push: bool = False, ends: bool = False) -> None:
        """Write `checkpoint-<step>`, and `push` it. A failure is a warning; three in a row end the run, and one does
        where the run `ends` here, for nothing comes after it."""
        self._share_unreadable()
        if ends:
            self.meter.scalars()  # with the last validation, which no row of the log is left to tell of
        with self.meter.aside():
            progress = {name: getattr(self, name) for name in PROGRESS} | {
                "unreadable": dict(self.journal.bad), "pushed": self.saver and self.saver.pushed()}
            state = snapshot.take(self.folder, self.objective, self.optimizer, self.accelerator, progress)
            if self.saver:
                self._recount()
                epoch = self.step * self.config.optim.accumulation / self.feed.epoch
                metrics = {"step": self.step, "epoch": epoch, **self.validation}
                writers = snapshot.writers(self.config, self.weights, self.processor, metrics, state)
                self.saver.save(self.step, writers, self.best["step"], push, snapshot.size(state, self.weights))
        failed = self._agreed(self.saver.failed if self.saver else 0)
        if failed >= (1 if ends else FAILED):
            raise Stop(f"{failed} checkpoints in a row could not be written to {self.folder}, the last of step "
                       f"{self.step}; `--resume auto` goes on from the one before", DISK)

    @contextmanager
    def _reserved(self) -> Iterator[None]:
        """The run folder, kept from others: `ValueError` where one trains into it, `Stop` as of `_open_folder`."""
        taken = f"{self.folder}: another process trains into it; take another output_dir, or wait for its end"
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = locked(self.folder / ".lock", taken) if self.main else nullcontext()
        with lock:
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Whatever cannot be written to the run folder is a `Stop`: nothing would remain of the run."""
        try:
            yield
        except OSError as error:
            raise Stop(f"the run folder {self.folder} cannot be written: {error}", DISK) from error

    def _open_folder(self) -> None:
        """The run folder with settings and facts. Raises `Stop` where it cannot be written."""
        self.facts = facts.gather(self.config, self.model, self.train_data, self.val_data, self.steps, self.device,
                                  self.accelerator.num_processes)
        if self.main:
            with self._writing():
                replace_text(self.folder / "run.json", json.dumps(to_dict(self.config), indent=2))
                facts.write(self.folder, self.facts)

    def _recount(self) -> None:
        """The facts with the images that were found to be unreadable since."""
        train = self.facts["data"]["train"]
        if train["unreadable"] != len(self.journal.bad):
            train["unreadable"] = len(self.journal.bad)
            try:
                facts.write(self.folder, self.facts)
            except OSError as error:
                self.journal.say(f"warning: {self.folder / facts.FACTS} is not up to date: {error}")

    def _resume(self) -> dict[str, str]:
        """Put back everything of the checkpoint that the run goes on from; returns the images known as unreadable."""
        known = {self.train_data.image_ids[i]: reason for i, reason in self.train_data.bad.items()}
        if self.resume_from is None:
            return known
        progress = snapshot.restore(self.resume_from, self.folder, self.objective, self.optimizer, self.accelerator)
        for name in PROGRESS:
            setattr(self, name, progress.get(name, getattr(self, name)))  # what it does not tell begins anew
        if self.saver:
            self.saver.publish(self.resume_from)
            self.saver.adopt(progress.get("pushed"), self.resume_from, self.config.resume)
        return known | progress["unreadable"]

    def _share_unreadable(self) -> None:
        """What any process could not read is known to all, and told by the main one."""
        if self.accelerator.num_processes > 1:
            found = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(found, self.journal.bad)
            for bad in found:
                self.journal.unreadable(bad)

    # Small things -----------------------------------------------------------------------------------------

    def _close(self, patience: float) -> None:
        if self.saver:
            self.saver.close(patience)

    def _agreed(self, number: int) -> int:
        """The largest of what the processes say, so that they save and stop together."""
        if self.accelerator.num_processes == 1:
            return number
        flag = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return int(flag)
