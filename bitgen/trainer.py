"""The training loop: set up, then for each step backward, clip, step, and the writes that follow it.

B images a batch; a step is one optimizer update of `accumulation` batches. Everything that a run is, is in
`Trainer.state_dict()`: a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from safetensors.torch import save_model
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from bitgen import checkpoint
from bitgen.config import Config, VisionConfig, from_dict, to_dict
from bitgen.data import Batch, BatchSampler, Collator, open_data
from bitgen.evaluate import Gallery, picture
from bitgen.images import augment, normalise
from bitgen.logs import RunLog
from bitgen.losses import smoothing_floor
from bitgen.memory import address_perplexity, utilization
from bitgen.model import BitGen
from bitgen.objective import Objective
from bitgen.optimizer import gradient_norms, parameter_groups, schedule
from bitgen.processing import Processor
from bitgen.randomness import random_state, restore_random_state
from bitgen.ranges import check_config
from bitgen.retrieval import recall_at_k
from bitgen.tokenizer import Tokenizer
from bitgen.vision import resolve_tower

EXIT_DISK = 74
EXIT_NUMBERS = 76
FAILED_SAVES = 3


class Stop(Exception):
    """The run ends before its last step. `code` is the process's exit status, `args[0]` what to tell the user."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Batches(Dataset):
    """Batch number n of the run, a pure function of (seed, n): item n is `Batch` n, whichever worker makes it."""

    def __init__(self, sampler: BatchSampler, collator: Collator):
        self.sampler, self.collator = sampler, collator

    def __getitem__(self, number: int) -> Batch:
        epoch, step = divmod(number, self.sampler.epoch_steps)
        return self.collator(self.sampler.batch(epoch, step), epoch)


class Trainer:
    """One run. `Trainer(config).fit()` trains and leaves a run folder."""

    def __init__(self, config: Config):
        check_config(config)
        if config.hub.repo is not None:
            raise ValueError(f"hub.repo {config.hub.repo!r}: training does not push to the Hub yet; leave it out and "
                             "upload the run folder afterwards, `hf upload ORG/NAME RUN`")
        self.config = config
        self.folder = Path(config.output_dir)
        self.accelerator = Accelerator(mixed_precision=precision(config.precision), kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False)])
        self.device = self.accelerator.device
        set_seed(config.seed)
        self.resume_from = self._checkpoint()
        self._open_data()
        self._build()
        self.steps = self.sampler.epoch_steps * config.optim.epochs // config.optim.accumulation
        self.steps = min(self.steps, config.optim.max_steps or self.steps)
        if self.steps < 1:
            raise ValueError(f"{len(self.train_data)} training images are fewer than one step takes: lower "
                             f"optim.batch_size ({config.optim.batch_size})")
        self.step, self.skipped, self.failed_saves = 0, 0, 0
        self.best = {"step": None, "loss": math.inf, "waited": 0}
        self.validation: dict[str, float] = {}
        self.stopped_by: int | None = None
        self.bad: dict[str, str] = {}

    # Set-up -----------------------------------------------------------------------------------------------

    def _open_data(self) -> None:
        config, size = self.config, self.config.vision.image_size
        self.train_data = open_data(config.data, "train", size, config.seed)
        self.val_data = open_data(config.data, "val", size, config.seed)
        self.tokenizer = self._tokenizer()
        config.model.vocab_size = self.tokenizer.vocab_size
        process = self.accelerator
        self.sampler = BatchSampler(len(self.train_data), config.optim.batch_size, config.seed,
                                    process.process_index, process.num_processes)
        self.collator = Collator(self.train_data, self.tokenizer, size, config.data.captions_per_image, config.seed,
                                 config.model.max_tokens)

    def _tokenizer(self) -> Tokenizer:
        """The run's own where it resumes, else as `data.tokenizer` says."""
        source = self.config.data.tokenizer
        if self.resume_from is not None:
            return Tokenizer.load(self.resume_from)
        if source == "train":
            texts = [text for captions in self.train_data.captions for text in captions]
            return Tokenizer.train(texts, self.config.data.vocab_size)
        return Tokenizer.gpt2("openai-community/gpt2") if source == "gpt2" else Tokenizer.load(source)

    def _build(self) -> None:
        config = self.config
        weights = None
        if self.resume_from is None:
            config.vision, weights = resolve_tower(config.vision)
        else:  # the tower's configuration is in the checkpoint; where it once came from may be gone
            saved = json.loads((self.resume_from / "config.json").read_text(encoding="utf-8"))
            config.vision = from_dict(VisionConfig, saved["vision"])
        self.model = BitGen(config.model, config.vision)
        if weights is not None:
            self.model.vision.load_state_dict(weights)
        self.model.tokenizer = self.tokenizer
        self.processor = Processor(self.tokenizer, config.vision, config.model.max_tokens)
        objective = Objective(self.model, config.loss)
        for tower in {self.model.vision, objective.momentum.model.vision if objective.momentum else self.model.vision}:
            tower.set_attention(precision(config.precision).replace("no", "float32"), self.device)
        groups = parameter_groups(self.model, config.optim.lr, config.optim.vision_lr, config.optim.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=config.optim.betas, fused=True)
        self.peaks = [group["lr"] for group in groups]
        self.wrapped = self.accelerator.prepare_model(objective.to(self.device))
        self.objective: Objective = self.accelerator.unwrap_model(self.wrapped)

    @property
    def weights(self) -> BitGen:
        """The weights to use: the moving average where there is one."""
        return self.objective.momentum.model if self.objective.momentum else self.model

    # The loop ---------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Train to the end; returns the last validation's numbers.

        Raises `Stop` where the run ends early for a reason that the user has to act on (signal, disk, numbers).
        """
        self._resume()
        self.log = RunLog(self.folder, self.step or None) if self.accelerator.is_main_process else None
        self._announce()
        self._name_bad({self.train_data.image_ids[i]: reason for i, reason in self.train_data.bad.items()})
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._loop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            if self.log:
                self.log.close()
        return self.validation

    def _loop(self) -> None:
        batches = self._batches()
        bar = tqdm(total=self.steps, initial=self.step, unit="step", disable=not self.accelerator.is_main_process,
                   dynamic_ncols=True, mininterval=1.0)
        started, images = time.perf_counter(), 0
        while self.step < self.steps:
            report = self._train_step(batches)
            images += self.config.optim.batch_size * self.config.optim.accumulation * self.accelerator.num_processes
            bar.update()
            last = self.step == self.steps
            if self.step % self.config.log_every == 0 or self.step == 1 or last:
                report = {name: float(value) for name, value in report.items()}
                report["images_per_second"] = images / (time.perf_counter() - started)
                bar.set_postfix({short: f"{report[name]:.3g}" for short, name in BAR.items() if name in report})
                self._log(report)
            stop = False
            if self.step % self._validate_every() == 0 or last:
                stop = self._validated()
                started, images = time.perf_counter(), 0
            if self.step % self.config.save_every == 0 or last or stop or self.stopped_by:
                self.save()
            if self.stopped_by:
                raise Stop(f"stopped by signal {self.stopped_by} after step {self.step}; `--resume auto` goes on",
                           128 + self.stopped_by)
            if stop:
                bar.write(f"early stopping at step {self.step}: no better validation loss since step "
                          f"{self.best['step']}", file=sys.stderr)
                break
        bar.close()

    def _train_step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """One optimizer update; a non-finite loss or gradient leaves weights and buffers as they were."""
        config = self.config.optim
        rate = schedule(self.step, self.steps, config.warmup_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        self.wrapped.train()
        done, report = [], {}
        for index in range(config.accumulation):
            batch = self._to_device(next(batches), self.step * config.accumulation + index)
            self._name_bad(batch.bad)
            with self.accelerator.autocast():
                losses, report, pending = self.wrapped(batch)
            self.accelerator.backward(losses["total"] / config.accumulation)
            done.append((batch, pending))
        report = {**{name: loss.detach() for name, loss in losses.items()}, **report}
        if self.step % self.config.log_every == self.config.log_every - 1 or self.step == 0:
            report |= gradient_norms(self.model)                                  # before clipping
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
        report["grad_norm"], report["lr"] = norm, self.optimizer.param_groups[0]["lr"]
        if torch.isfinite(norm) and torch.isfinite(losses["total"]):
            self.optimizer.step()
            for batch, pending in done:
                self.objective.after_step(batch, pending)
            self.skipped = 0
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        report["skipped"] = self.skipped
        if self.skipped > self.config.optim.max_skipped:
            raise Stop(f"{self.skipped} steps in a row had a non-finite loss or gradient; the last checkpoint is "
                       "intact. Try a tenth of optim.lr, --precision float32, or look for broken images with "
                       "`bitgen data check`", EXIT_NUMBERS)
        return report

    def _batches(self) -> Iterator[Batch]:
        """Batches from the current step on."""
        count = self.config.optim.accumulation
        workers = self.config.data.workers
        # A generator of its own: an iterator draws a seed, and of the common one a resumed run would draw twice.
        return iter(DataLoader(Batches(self.sampler, self.collator), batch_size=None, num_workers=workers,
                               sampler=range(self.step * count, self.steps * count), generator=torch.Generator(),
                               prefetch_factor=4 if workers else None, timeout=120 if workers else 0))

    def _to_device(self, batch: Batch, number: int) -> Batch:
        """Pixels cropped, coloured and normalised on the device; a pure function of (seed, batch number)."""
        batch = batch.to(self.device)
        config, vision = self.config.data, self.config.vision
        pixels = batch.pixel_values
        if config.augment != "off":
            seed = (self.config.seed * 1_000_003 + number) * 64 + self.accelerator.process_index
            generator = torch.Generator(self.device).manual_seed(seed)
            pixels = augment(pixels, config.crop_scale, config.flip, generator)
        return dataclasses.replace(batch, pixel_values=normalise(pixels, vision.mean, vision.std))

    # Validation -------------------------------------------------------------------------------------------

    def _validate_every(self) -> int:
        epoch = max(self.sampler.epoch_steps // self.config.optim.accumulation, 1)
        return self.config.validate_every or epoch

    def _validated(self) -> bool:
        """Validate and log; true where early stopping says that it is enough."""
        self.validation, gallery = validate(self.weights, self.config, self.val_data, self.tokenizer, self.accelerator)
        self._log({f"val_{name}": value for name, value in self.validation.items()})
        if self.log:
            size = self.config.vision.image_size
            self.log.figure("retrievals", picture(gallery, self.val_data, size), self.step)
            for name, part in self.model.named_children():
                if weights := [p.detach().flatten() for p in part.parameters()]:
                    self.log.histogram(f"weights/{name}", torch.cat(weights), self.step)
        loss = self.validation["total"]
        if loss < self.best["loss"] - self.config.optim.min_delta:
            self.best = {"step": self.step, "loss": loss, "waited": 0}
        else:
            self.best["waited"] += 1
        if self.accelerator.is_main_process:
            shown = {name: round(self.validation[name], 3) for name in ("total", "t2i_r1", "i2t_r1", "t2i_r10")}
            tqdm.write(f"step {self.step}: validation {shown} over {self.validation['images']} images, chance R@1 "
                       f"{self.validation['chance_t2i_r1']:.4f}", file=sys.stderr)
        return self.best["waited"] >= self.config.optim.patience

    # Logging ----------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        counts = self.model.parameter_counts()
        line = (f"{self.model.outside_tower() / 1e6:.2f} M parameters outside the vision tower, "
                f"{counts['vision'] / 1e6:.2f} M in it ({self.config.vision.trainable} trainable); "
                f"{len(self.train_data)} training images, {len(self.val_data)} for validation; {self.steps} steps "
                f"on {self.device} in {precision(self.config.precision).replace('no', 'float32')}")
        if self.log:
            tqdm.write(line, file=sys.stderr)
            (self.folder / "run.json").write_text(json.dumps(to_dict(self.config), indent=2), encoding="utf-8")
            self.log.text("run", line, self.step)
            self.log.layout()
            self.log.hparams(to_dict(self.config), ["val_total", "val_t2i_r1", "val_i2t_r1"])

    def _log(self, report: dict[str, float]) -> None:
        if not self.log:
            return
        extra: dict[str, float] = {}
        memory = self.model.memory
        if memory is not None and "grad_norm" in report:
            extra |= {"memory_utilization": float(utilization(memory.usage)),
                      "address_perplexity": float(address_perplexity(memory.usage))}
        if "text_nll" in report:
            extra["perplexity"] = math.exp(min(report["text_nll"], 20.0))
            extra["text_floor"] = smoothing_floor(self.config.model.vocab_size, self.config.loss.label_smoothing)
            extra["text_chance"] = math.log(self.config.model.vocab_size)
        if "grad_norm" in report:
            extra |= {f"gate/{name.removeprefix('fusion.layers.')}": p.item()
                      for name, p in self.model.named_parameters() if name.endswith("_gate")}
            extra["queue_size"] = float(self.objective.queue.size) if self.objective.queue is not None else 0.0
            extra["bad_images"] = float(len(self.bad))
        self.log.scalars(self.step, report | extra)

    def _name_bad(self, found: dict[str, str]) -> None:
        """Name each unreadable image once: in the terminal and in `bad_images.jsonl`."""
        found = {name: reason for name, reason in found.items() if name not in self.bad}
        self.bad |= found
        if self.log and found:
            with (self.folder / "bad_images.jsonl").open("a", encoding="utf-8") as file:
                for name, reason in found.items():
                    tqdm.write(f"unreadable image {name}: {reason}", file=sys.stderr)
                    file.write(json.dumps({"image": name, "reason": reason}) + "\n")

    # Checkpoints ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write `checkpoint-<step>`; a failure is a warning, three in a row end the run."""
        state = self._gathered_state()
        if self.accelerator.is_main_process:
            try:
                path = checkpoint.save(self.folder, self.step, self._writers(state), keep=self.config.keep,
                                       best_step=self.best["step"])
                checkpoint.publish(path, PUBLISHED, self.folder)
                self.failed_saves = 0
            except checkpoint.CheckpointError as error:
                self.failed_saves += 1
                tqdm.write(f"warning: {error}; training goes on", file=sys.stderr)
        self.accelerator.wait_for_everyone()
        if self.failed_saves >= FAILED_SAVES:
            raise Stop(f"{FAILED_SAVES} checkpoints in a row could not be written to {self.folder}", EXIT_DISK)

    def _writers(self, state: dict) -> dict:
        """File name -> function that writes it, of one checkpoint."""
        config = {"model": to_dict(self.config.model), "vision": to_dict(self.config.vision)}
        metrics = {"step": self.step, "epoch": self.step / self._validate_every(), **self.validation}
        return {
            "model.safetensors": lambda path: save_model(self.weights, str(path), metadata={"format": "pt"}),
            "config.json": lambda path: path.write_text(json.dumps(config, indent=2), encoding="utf-8"),
            "run.json": lambda path: path.write_text(json.dumps(to_dict(self.config), indent=2), encoding="utf-8"),
            "metrics.json": lambda path: path.write_text(json.dumps(metrics, indent=2), encoding="utf-8"),
            "tokenizer.json": lambda path: self.tokenizer.save(path.parent),
            "preprocessor_config.json": lambda path: self.processor.save(path.parent),
            f"checkpoint-{self.step}.pt": lambda path: torch.save(state, path),
        }

    def _gathered_state(self) -> dict:
        """Everything beside the published weights: tensors and plain containers only."""
        states = [random_state()]
        if self.accelerator.num_processes > 1:
            states = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(states, random_state())
        return {"step": self.step, "skipped": self.skipped, "best": dict(self.best), "validation": self.validation,
                "objective": self.objective.state_dict(), "optimizer": self.optimizer.state_dict(),
                "random": states, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}

    def _checkpoint(self) -> Path | None:
        """Where `config.resume` says to go on: `auto` is the newest checkpoint that verifies, if there is one."""
        if self.config.resume is None:
            return None
        if self.config.resume != "auto":
            path = Path(self.config.resume)
            checkpoint.verify(path)
            return path
        path, rejected = checkpoint.newest(self.folder)
        for bad, reason in rejected:
            tqdm.write(f"rejected {bad}: {reason}", file=sys.stderr)
        return path

    def _resume(self) -> None:
        """Put back everything of the checkpoint that the run goes on from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.resume_from
        if path is None:
            return
        state = torch.load(next(path.glob("checkpoint-*.pt")), map_location="cpu", weights_only=True)
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.skipped = state["step"], state["skipped"]
        self.best, self.validation = state["best"], state["validation"]
        restore_random_state(state["random"][self.accelerator.process_index % len(state["random"])])
        here = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
        changed = [f"{name} {state[name]} -> {value}" for name, value in here.items() if state[name] != value]
        exact = f"; not bit-exact: {', '.join(changed)}" if changed else ""
        tqdm.write(f"resumed from {path} at step {self.step}{exact}", file=sys.stderr)

    def _on_signal(self, number: int, _) -> None:
        if self.stopped_by:
            raise SystemExit(128 + number)
        self.stopped_by = number


BAR = {"itc": "itc", "itm": "itm", "txt": "text", "t2i": "t2i", "i2t": "i2t", "lr": "lr"}
PUBLISHED = ("model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json")


def precision(wanted: str) -> str:
    """accelerate's name for the precision; `auto` is bf16 where the processor multiplies it natively."""
    if wanted != "auto":
        return {"float32": "no"}.get(wanted, wanted)
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"


@torch.no_grad()
def validate(model: BitGen, config: Config, data, tokenizer: Tokenizer, accelerator: Accelerator,
             batch_size: int = 100) -> tuple[dict[str, float], Gallery]:
    """Losses without queue and without augmentation, and recall over the whole split; the same at every call.

    Nothing of the model's state changes: hard negatives and left-out images come from a fixed seed.
    """
    objective = Objective(model, dataclasses.replace(config.loss, queue=0, momentum=0.0)).eval()
    places = [i for i in range(len(data)) if i not in data.bad]
    collator = Collator(data, tokenizer, config.vision.image_size, None, config.seed, config.model.max_tokens)
    sums: dict[str, float] = {}
    images, texts, owners = [], [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for start in range(0, len(places), batch_size):
            batch = collator(places[start: start + batch_size], 0).to(accelerator.device)
            pixels = normalise(batch.pixel_values, config.vision.mean, config.vision.std)
            batch = dataclasses.replace(batch, pixel_values=pixels)
            with accelerator.autocast():
                image, text = model.image_tokens(pixels), model.text_tokens(batch.input_ids, batch.attention_mask)
                losses, report, _ = objective.score(image, text, batch)
            images.append(image.feature)
            texts.append(text.feature)
            owners.append(batch.image_index + start)
            for name, value in {**losses, **report}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(pixels) / len(places)
    gallery = Gallery(*(torch.cat(x).cpu() for x in (images, texts, owners)), indices=places)
    recall = recall_at_k(gallery.image_features, gallery.text_features, gallery.owner)
    return {**sums, **{name: float(value) for name, value in recall.items()}, "images": len(places)}, gallery
