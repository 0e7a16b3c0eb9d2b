"""What becomes of a run that is killed, told to stop, refused the disk or damaged? It ends as if nothing had been.

    python benchmarks/faults.py                                         # 200 kills and all the rest
    python benchmarks/faults.py --kills 20 --steps 40 --json out.json   # what the test suite asks for

A toy run (dropout, queue, momentum and memory on, so that every bit of its state counts) is compared with
the same run uninterrupted: weights, training state, each logged loss, TensorBoard. Each attempt is `bitgen train` in a
child that is forked from here, so that the libraries are imported once.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a process with a pool of threads cannot be forked
os.environ.update(TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", MPLBACKEND="Agg")

import measure  # noqa: E402
import torch  # noqa: E402
import torch.utils.tensorboard  # noqa: E402
from PIL import Image  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from bitgen import boards, card, checkpoint, cli, facts  # noqa: E402
from bitgen.config import Config, load_preset  # noqa: E402
from bitgen.logs import read_metrics  # noqa: E402
from bitgen.scenes import render  # noqa: E402
from bitgen.trainer import Trainer  # noqa: E402

EVERY = 5  # steps from save to save
TOY = """
data: {{root: {data}, vocab_size: 300}}
vision: {{image_size: 32, tower: {{model_type: dinov2, patch_size: 8, hidden_size: 32, num_hidden_layers: 1,
         num_attention_heads: 2, mlp_ratio: 2}}}}
model: {{hidden_size: 32, text_layers: 1, decoder_layers: 1, fusion_layers: 1, intermediate_size: 64, memory_slots: 8,
        max_tokens: 32, dropout: 0.1}}
loss: {{queue: 64, queue_start: 2, episode: 4, momentum: 0.9}}
optim: {{batch_size: 8, accumulation: 1, max_steps: {steps}, epochs: 20, patience: 100}}
save_every: {every}
log_every: 1
validate_every: 20
keep: 2
"""
Hook = Callable[[int], None]


class Attempt:
    """A child that trains. It writes `(` and `)` around each save into a pipe."""

    def __init__(self, config: Config, hook: Hook | None = None):
        self.log = Path(config.output_dir).with_suffix(".log")
        self.pipe, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            _train(config, self.log, theirs, hook)
        os.close(theirs)

    def reaches(self, mark: bytes, times: int = 1) -> bool:
        """Waits for a mark; false where the child ends before."""
        while times and (seen := os.read(self.pipe, 1)):
            times -= seen == mark
        return not times

    def end(self, number: int | None = None) -> int:
        """Waits for the end, after sending a signal; the exit status, negative for a signal that killed it."""
        if number is not None:
            os.kill(self.pid, number)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(status)


def _train(config: Config, log: Path, pipe: int, hook: Hook | None) -> None:
    """The child; never returns."""
    code = 70
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        boards.validated = boards.finished = lambda *_: None  # what is drawn has no part in this
        card._draw = lambda *_: False
        facts.revision = lambda: None
        save = checkpoint.save

        def marked(*arguments, **settings):
            os.write(pipe, b"(")
            try:
                return save(*arguments, **settings)
            finally:
                os.write(pipe, b")")

        checkpoint.save = marked
        if hook:
            hook(pipe)
        cli.parse_config = lambda argv: config
        code = cli.main(["train"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class Toy:
    """The run that is disturbed, in a folder of its own."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        data = folder / "data"
        for split, count in (("train", 64), ("val", 16)):
            scenes = render(split, count, size=32)
            (data / "images").mkdir(parents=True, exist_ok=True)
            with (data / f"{split}.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["image", "caption"])
                for i in range(count):
                    name = f"{split}-{i}.png"
                    Image.fromarray(scenes.pixels[i].transpose(1, 2, 0)).save(data / "images" / name)
                    table.writerows([name, caption] for caption in scenes.captions[i])
        (folder / "toy.yaml").write_text(TOY.format(data=data, steps=steps, every=EVERY), encoding="utf-8")
        Trainer(self.config("reference"))  # whatever that imports and prepares, children need not
        started = time.perf_counter()
        attempt = self.attempt("reference")
        attempt.reaches(b"(", 2)
        saving = time.perf_counter()
        attempt.reaches(b")")
        self.save_seconds = time.perf_counter() - saving
        assert attempt.end() == 0, self.output("reference")
        self.seconds = time.perf_counter() - started
        self.expected = outcome(folder / "reference", steps)
        assert [row["step"] for row in self.expected["rows"]] == list(range(1, steps + 1))
        assert [step for step, _ in self.expected["tensorboard"]["total"]] == list(range(1, steps + 1))

    def attempt(self, name: str, hook: Hook | None = None) -> Attempt:
        """`bitgen train --resume auto` in the run folder `name`."""
        return Attempt(self.config(name), hook)

    def config(self, name: str) -> Config:
        """The settings of that run."""
        config = load_preset(str(self.folder / "toy.yaml"))
        config.output_dir, config.resume = str(self.folder / name), "auto"
        return config

    def output(self, name: str) -> str:
        """All that the attempts in a run folder printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace").replace("\r", "\n")

    def differs(self, name: str) -> list[str]:
        """In what a finished run is not the uninterrupted one; empty where it is the same to the bit."""
        found = outcome(self.folder / name, self.steps)
        return [what for what in self.expected if found[what] != self.expected[what]]


def outcome(folder: Path, steps: int) -> dict:
    """All that has to be the same at the end of a run."""
    state = torch.load(folder / f"checkpoint-{steps}/checkpoint-{steps}.pt", weights_only=True)
    rows = [{key: value for key, value in row.items() if key != "images_per_second" and not key.startswith("cost/")}
            for row in read_metrics(folder)]
    board = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    shown = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in ("total", "val_total")}
    return {"weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
            "state": digest({key: part for key, part in state.items() if key != "metrics"}), "rows": rows,
            "tensorboard": shown}


def digest(value) -> str:
    """Of nested containers of tensors, to the bit."""
    if isinstance(value, torch.Tensor):
        value = (str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        value = [(key, digest(part)) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        value = [digest(part) for part in value]
    return hashlib.sha256(repr(value).encode()).hexdigest()


# Killed -------------------------------------------------------------------------------------------------------


def kills(toy: Toy, number: int, seed: int) -> dict:
    """`kill -9` at random, every other time inside a save, and resumed until runs end."""
    rng = random.Random(seed)
    found = {"kills": 0, "inside a save": 0, "failed resumes": 0, "runs": 0, "runs that differ": 0, "differing": []}
    while found["kills"] < number and found["failed resumes"] < 3:
        name = f"killed-{found['runs']}"
        status = -signal.SIGKILL
        while status == -signal.SIGKILL:
            attempt = toy.attempt(name)
            if found["kills"] == number:
                status = attempt.end()
                continue
            inside = found["kills"] % 2 == 1
            if inside:
                attempt.reaches(b"(", rng.randint(1, 2))
                time.sleep(rng.uniform(0, toy.save_seconds))
            else:
                time.sleep(rng.uniform(0, 0.4 * toy.seconds))
            status = attempt.end(signal.SIGKILL)
            found["kills"] += status == -signal.SIGKILL
            found["inside a save"] += inside and status == -signal.SIGKILL
        found["runs"] += 1
        if status == 0:
            differing = toy.differs(name)
            found["runs that differ"] += bool(differing)
            found["differing"] += [f"{name}: {', '.join(differing)}"] * bool(differing)
        else:
            found["failed resumes"] += 1
            found["differing"].append(toy.output(name)[-2000:])
    return found


def signals(toy: Toy) -> dict:
    """SIGTERM and SIGINT, each to a run that is resumed to its end; then two to a run whose save takes a minute."""
    found = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        name = f"stopped-{number.name}"
        attempt = toy.attempt(name)
        attempt.reaches(b")", 2)
        started = time.perf_counter()
        status = attempt.end(number)
        found[number.name] = {"status": status, "seconds": time.perf_counter() - started,
                              "resumed": toy.attempt(name).end(), "differs": toy.differs(name)}

    def slow(pipe: int) -> None:
        checkpoint.save = lambda *_, **__: (os.write(pipe, b"("), time.sleep(60))

    attempt = toy.attempt("stopped-twice", slow)
    attempt.reaches(b"(")
    os.kill(attempt.pid, signal.SIGTERM)
    started = time.perf_counter()
    time.sleep(0.1)
    found["twice"] = {"status": attempt.end(signal.SIGTERM), "seconds": time.perf_counter() - started}
    return found


# The disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def too_large(run: Path) -> Iterator[None]:
    """No file may grow beyond 20 kB: what a full disk is to whoever writes (`File too large`)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def read_only(run: Path) -> Iterator[None]:
    """Nobody may write into the run folder; root becomes nobody for that."""
    mode, user = run.stat().st_mode, os.geteuid()
    run.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        run.chmod(mode)


@contextlib.contextmanager
def no_space(run: Path) -> Iterator[None]:
    """The disk says beforehand that little is free."""
    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: usage(path)._replace(free=1000)
    try:
        yield
    finally:
        shutil.disk_usage = usage


@contextlib.contextmanager
def unmounted(run: Path) -> Iterator[None]:
    """The run folder is gone, and a file in its place."""
    away = run.with_suffix(".away")
    run.rename(away)
    run.touch()
    try:
        yield
    finally:
        run.unlink()
        away.rename(run)


def disk(toy: Toy) -> dict:
    """Each refusal for two saves, after which the run goes on and ends the same; and for all after the first."""
    found = {}
    for refusal in (too_large, read_only, no_space, unmounted):
        for kind, refused in (("twice", (3, 4)), ("for good", range(2, 100))):
            name = f"{refusal.__name__}-{kind.replace(' ', '-')}"

            def hook(pipe: int, refusal=refusal, refused=refused, count=[0]) -> None:  # noqa: B006
                save = checkpoint.save

                def sometimes(run, *arguments, **settings):
                    count[0] += 1
                    with refusal(run) if count[0] in refused else contextlib.nullcontext():
                        return save(run, *arguments, **settings)

                checkpoint.save = sometimes

            status = toy.attempt(name, hook).end()
            warnings = [line for line in toy.output(name).splitlines() if line.startswith("warning")]
            kept, rejected = checkpoint.newest(toy.folder / name)
            found[f"{refusal.__name__}, {kind}"] = {
                "status": status, "warnings": warnings, "newest": kept and kept.name, "rejected": len(rejected),
                "differs": toy.differs(name) if status == 0 else []}
    return found


# Damage -------------------------------------------------------------------------------------------------------


def damage(toy: Toy) -> dict:
    """One byte of the newest checkpoint flipped, for each of its files; then one of every checkpoint."""
    found = {"files": 0, "fell back": 0, "named": 0}
    newest = toy.folder / "reference" / f"checkpoint-{toy.steps}"
    for file in sorted(newest.iterdir()):
        whole = file.read_bytes()
        flip(file)
        path, rejected = checkpoint.newest(newest.parent)
        found["files"] += 1
        found["fell back"] += path is not None and path.name == f"checkpoint-{toy.steps - EVERY}"
        found["named"] += [folder for folder, reason in rejected if file.name in reason] == [newest]
        file.write_bytes(whole)
    shutil.copytree(newest.parent, toy.folder / "flipped")
    flip(toy.folder / "flipped" / newest.name / f"{newest.name}.pt")
    found["resumed"] = toy.attempt("flipped").end()
    found["differs"] = toy.differs("flipped")
    for folder in (toy.folder / "flipped").glob("checkpoint-*"):
        flip(folder / "model.safetensors")
    before = sorted((toy.folder / "flipped").rglob("*"))
    found["all damaged"] = toy.attempt("flipped").end()
    found["deleted"] = len(set(before) - set((toy.folder / "flipped").rglob("*")))
    found["printed"] = [line for line in toy.output("flipped").splitlines() if "rejected" in line or "cannot" in line]
    return found


def flip(file: Path) -> None:
    """One bit in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def state_without(toy: Toy, part: str) -> dict:
    """A checkpoint whose state lacks a part, though its manifest agrees."""
    name = f"without-{part}"
    source = toy.folder / "reference" / f"checkpoint-{toy.steps - EVERY}"
    state = torch.load(source / f"{source.name}.pt", weights_only=True)
    del state[part]
    writers = {file.name: lambda path, file=file: shutil.copy(file, path) for file in source.iterdir()
               if file.name != checkpoint.MANIFEST} | {f"{source.name}.pt": lambda path: torch.save(state, path)}
    checkpoint.save(toy.folder / name, toy.steps - EVERY, writers)
    return {"status": toy.attempt(name).end(), "printed": toy.output(name).splitlines()[-1]}


def main() -> None:
    """Runs it all and prints what was found."""
    parser = measure.parser(__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    where = measure.begin(clock="seconds")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bitgen-faults-") as folder:
        Path(folder).chmod(0o755)  # for nobody
        toy = Toy(Path(folder), options.steps)
        parts = {"kills": lambda: kills(toy, options.kills, options.seed), "signals": lambda: signals(toy),
                 "disk": lambda: disk(toy), "damage": lambda: damage(toy),
                 "state": lambda: {part: state_without(toy, part) for part in ("random", "progress")}}
        found, rows = {}, []
        for name, part in parts.items():
            begun = time.perf_counter()
            found[name] = part()
            print(f"{name}: done in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
            rows += [[name, what, json.dumps(value)[:120]] for what, value in found[name].items()]
    rows += [["seconds", "all of it", time.perf_counter() - started],
             ["seconds", "an uninterrupted run", toy.seconds]]
    print(measure.table(["part", "what", "found"], rows))
    measure.write(options.json, {"environment": where, **found})


if __name__ == "__main__":
    main()
