"""The command line: each command is a function of its name, and a dataclass of what it takes.

Help texts are the functions' docstrings and the dataclasses' (through tyro). Exit status 0 means that what was asked
for was done; 1 is a verdict of `doctor --strict` that is BAD, 2 a bad command line, 130 an interruption (128 and the
number of the signal), and the rest stands in `exits`: 3 no checkpoint that is whole, 65 bad input, 70 a process lost
that makes batches, 74 a disk that cannot be written, 75 a last checkpoint that is not on the Hub, 76 numbers that are
not finite, 77 a run ended as hopeless.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from bitgen.arguments import check_settings, known_command, parse, placed, refuse
from bitgen.checkpoint import CheckpointError
from bitgen.config import Config, DataConfig, Format, load_preset, preset_names, settings
from bitgen.exits import DISK, INPUT, SIGNAL

PICTURES = ("sheet", "picture")
"""Options that name a picture to write."""
RUN, ANY_RUN, DATA = placed(str, "RUN"), placed(str | None, "[RUN]"), placed(str, "DATA")
REPOSITORY = placed(str, "ORG/NAME")


@dataclass
class Evaluate:
    """Retrieval, re-ranked retrieval and caption quality of a trained model on held-out images."""

    run: RUN
    """Run folder, checkpoint folder or Hub id."""
    data: str | None = None
    """Data set, as `data.root` of training takes it; by default the run's own, `scenes` where that is not known."""
    split: Literal["train", "val", "test"] = "test"
    """Which part of it."""
    json: str | None = None
    """File that receives all numbers."""
    picture: str | None = None
    """PNG that receives best, typical and worst retrievals; by default `retrievals.png` in the run folder."""
    checkpoint: str | None = None
    """A checkpoint of the run, such as checkpoint-1000, instead of its newest weights."""
    rerank: int = 32
    """Candidates that are read together with the query and put into a new order; 0 leaves that out."""
    device: str = "cpu"
    """Device to compute on."""


@dataclass
class Source:
    """A data set."""

    root: DATA
    """Data set, as `data.root` of training takes it."""
    format: Format = "auto"
    """How it is laid out."""
    image_root: str | None = None
    """Folder of the image files where it is not beside the captions."""


@dataclass
class Check(Source):
    """Count images, captions, duplicates, unreadable files and images without captions; draw a contact sheet."""

    sheet: str = "contact-sheet.png"
    """PNG that receives the contact sheet."""
    json: str | None = None
    """File that receives the report."""


@dataclass
class Prepare(Source):
    """Decode the images once into a uint8 cache, from which training with the same settings reads without waiting."""

    image_size: int = 224
    """Side of the prepared images, pixels."""
    cache: str | None = DataConfig.cache
    """Folder of the prepared images, as `data.cache` of training; by default `~/.cache/bitgen`."""
    val_fraction: float = DataConfig.val_fraction
    """Share of the training images that validation gets, as `data.val_fraction` of training."""
    limit: int | None = DataConfig.limit
    """Prepare only the first n training images (rows, of `hub://`), as `data.limit` of training."""
    max_bad_fraction: float = DataConfig.max_bad_fraction
    """Share of unreadable images above which it stops, as `data.max_bad_fraction` of training."""


@dataclass
class Pull:
    """Fetch a checkpoint from the Hub, verified, with what `bitgen train --resume` takes to go on from it."""

    repo: REPOSITORY
    """`ORG/NAME`, or `ORG/NAME@REV` with a branch, tag or commit."""
    checkpoint: str | None = None
    """Which one, such as 2000; the newest where not given."""
    output_dir: str | None = None
    """Run folder that receives it; by default `runs/NAME`."""


@dataclass
class Card:
    """Write the model card of a run, `README.md` and `curves.png` in its folder, from its own files."""

    run: RUN
    """Run folder."""


@dataclass
class Doctor:
    """Say whether a run is learning: the training guide's good and bad signs, and what to do about the bad ones."""

    run: RUN
    """Run folder."""
    json: bool = False
    """Print everything as JSON."""
    strict: bool = False
    """End with exit status 1 where a verdict is BAD."""


@dataclass
class Diagnose:
    """Look inside a model: training, retrieval, features, memory and network on one page that carries everything."""

    run: RUN
    """Run folder, checkpoint folder or Hub id."""
    out: str = "report.html"
    """HTML file that receives the page."""
    data: str | None = None
    """Data set to look through, as `data.root` of training takes it; by default the run's own."""
    split: Literal["train", "val", "test"] = "val"
    """Which part of it."""
    images: int = 200
    """How many of its images."""
    checkpoint: str | None = None
    """A checkpoint of the run, such as checkpoint-1000, instead of its newest weights."""
    device: str = "cpu"
    """Device to compute on."""


@dataclass
class Push:
    """Push the newest checkpoint of a run to the Hub, with its weights at the root and its model card."""

    run: RUN
    """Run folder."""
    repo: str
    """`ORG/NAME`; made where it is missing."""
    private: bool = False
    """Make the repository private where it is made."""


@dataclass
class Listed:
    """What a repository holds, by checkpoint."""

    repo: REPOSITORY
    """`ORG/NAME`."""


@dataclass
class Squash:
    """Make one commit of a repository's history, so that the Hub can free what only older commits hold."""

    repo: REPOSITORY
    """`ORG/NAME`."""
    yes: bool = False
    """Do not ask."""


@dataclass
class App:
    """Search, caption and look inside a model in the browser; served to this computer only unless told otherwise."""

    run: ANY_RUN = None
    """Run folder or Hub id; by default the newest run under runs/, if there is one."""
    gallery: str | None = None
    """What is searched: a folder of images, or a data set as `data.root` of training takes it."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets others in."""
    port: int | None = None
    """Port; by default the first free one from 7860."""
    mcp: bool = False
    """Offer the endpoints to agents too (needs gradio[mcp])."""
    save_to: str | None = None
    """Folder below which visitors may save a model with the memory that they edited, each time as a new folder; without
    it they can download the memory. Only where nobody but this computer is listened to."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status. Bad input prints one line that says what would be right."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {each.__name__: each for each in (train, evaluate, data, pull, card, doctor, diagnose, push, index,
                                                 search, hub, app)}
    asked_for_help = argv[:1] in (["-h"], ["--help"], ["help"])
    if not argv or asked_for_help:
        lines = [f"  {name:<10} {command.__doc__}" for name, command in commands.items()]
        print("\n".join([f"usage: bitgen {{{','.join(commands)}}} …", "", *lines, "",
                         "`bitgen COMMAND --help` tells more."]), file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    command = commands[known_command(argv, commands, "bitgen")]
    try:
        return command(argv[1:])
    except KeyboardInterrupt:
        print("bitgen: interrupted", file=sys.stderr)
        return SIGNAL + signal.SIGINT
    except (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError,
            PermissionError) as error:
        print(f"bitgen: {error}", file=sys.stderr)
        return INPUT
    except BrokenPipeError:  # what reads the output has read enough, as `| head`; nothing more can be flushed to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGNAL + signal.SIGPIPE
    except (OSError, CheckpointError) as error:
        print(f"bitgen: {error}", file=sys.stderr)
        return DISK


def parse_config(argv: list[str]) -> Config:
    """The configuration that `--config NAME …` and the settings after it describe.

    Presets are laid over one another in the order given; `--data X` is short for `--data.root X`.
    """
    config, rest = Config(), []
    arguments = iter(argv)
    for argument in arguments:
        name, given, value = argument.partition("=")
        if name == "--config":
            config = load_preset(_preset_named(value if given else next(arguments, "")), config)
        else:
            rest.append(f"--data.root{given}{value}" if name == "--data" else argument)
    description = (f"Train a model. --config NAME lays a preset first: {', '.join(preset_names())}, "
                   "or the path of a YAML file.")
    check_settings(settings(), "bitgen train", rest)
    return tyro.cli(Config, prog="bitgen train", default=config, args=_spelled(rest), description=description,
                    config=(tyro.conf.FlagConversionOff,))


def _preset_named(word: str) -> str:
    if not word or word.startswith("--"):
        refuse(f"--config needs a name: {', '.join(preset_names())}, or the path of a .yaml file")
    return word


def _spelled(arguments: list[str]) -> list[str]:
    """The arguments as tyro takes them: yes-or-no settings with their value, in capitals."""
    known, spelled, switch = settings(), [], False
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--"):
            spelled += ["True"] * switch                                            # the one before had no value
            yes_or_no = known.get(name.replace("-", "_")) is bool
            switch = yes_or_no and not value
            spelled.append(f"--{name}={value.capitalize()}" if yes_or_no and value else argument)
        else:
            spelled.append(argument.capitalize() if switch else argument)
            switch = False
    return spelled + ["True"] * switch


def train(argv: list[str]) -> int:
    """Train a model: `bitgen train --config scenes`."""
    config = parse_config(argv)
    from bitgen.exits import Stop
    from bitgen.trainer import Trainer

    try:
        Trainer(config).fit()
    except Stop as stop:
        print(f"bitgen: {stop}", file=sys.stderr)
        return stop.code
    print(f"trained: {config.output_dir}")
    return 0


def evaluate(argv: list[str]) -> int:
    """Measure it: `bitgen evaluate runs/scenes --data scenes --split test`."""
    options = parse(Evaluate, "bitgen evaluate", argv)
    if options.rerank < 0:
        raise ValueError(f"rerank must be at least 0, got {options.rerank}")
    picture = options.picture or str((Path(options.run) if Path(options.run).is_dir() else Path()) / "retrievals.png")
    _check_files(json=options.json, picture=picture)
    from bitgen import evaluate as module
    from bitgen.data import open_data
    from bitgen.facts import data_settings, evaluated
    from bitgen.hub import load

    model, processor = load(options.run, checkpoint=options.checkpoint, device=options.device)
    opened = data_settings(options.run, options.checkpoint, options.data)
    dataset = open_data(opened, options.split, processor.vision.image_size)
    gallery = module.encode(model, processor, dataset, device=options.device)
    report = module.evaluate(model, processor, dataset, rerank=options.rerank, gallery=gallery)
    print(module.summary(report))
    if options.json:
        of = evaluated(options.run, options.checkpoint, opened.root, options.split)
        _write(options.json, json.dumps(report | {"of": of}, indent=2))
    module.picture(gallery, dataset, processor.vision.image_size).savefig(picture)
    print(f"best, typical and worst retrievals: {picture}")
    return 0


def data(argv: list[str]) -> int:
    """Look a data set over, or prepare it: `bitgen data check FOLDER`."""
    options = parse({"check": Check, "prepare": Prepare}, "bitgen data", argv)
    if isinstance(options, Check):
        _check_files(json=options.json, sheet=options.sheet)
    from bitgen import prepare as module

    config = DataConfig(**{name: value for name, value in vars(options).items() if hasattr(DataConfig, name)})
    if isinstance(options, Prepare):
        for split, part in module.prepare(config, options.image_size).items():
            print(f"{split}: {part['images']} images prepared at {options.image_size} px, "
                  f"{part['unreadable']} unreadable")
        return 0
    report = module.check(config)
    print(module.summary(report))
    if options.json:
        _write(options.json, json.dumps(report, indent=2))
    module.contact_sheet(module.whole(config), options.sheet)
    print(f"contact sheet: {options.sheet}")
    return 0


def pull(argv: list[str]) -> int:
    """Fetch a checkpoint from the Hub: `bitgen pull ORG/NAME --output-dir runs/NAME`."""
    options = parse(Pull, "bitgen pull", argv)
    from bitgen import hub

    repo, revision = hub.split_revision(options.repo)
    folder = Path(options.output_dir or Path("runs") / repo.rpartition("/")[2])
    checkpoint = options.checkpoint
    path = hub.pull(repo, folder, revision, f"checkpoint-{checkpoint}" if (checkpoint or "").isdigit() else checkpoint)
    print(f"pulled: {path}\ngo on from it: bitgen train … --output-dir {folder} --resume {path}")
    return 0


def card(argv: list[str]) -> int:
    """Write the model card of a run: `bitgen card runs/scenes`."""
    options = parse(Card, "bitgen card", argv)
    from bitgen.card import write

    print(f"model card: {write(options.run)}")
    return 0


def doctor(argv: list[str]) -> int:
    """Is it learning? `bitgen doctor runs/scenes`."""
    options = parse(Doctor, "bitgen doctor", argv)
    from bitgen import health

    history = health.read_history(options.run)
    verdicts = health.diagnose(history, health.read_facts(options.run))
    print(health.report(history[-1]["step"], verdicts) if options.json else health.summary(verdicts))
    return int(options.strict and health.worst(verdicts) == "BAD")


def diagnose(argv: list[str]) -> int:
    """Look inside, on one page: `bitgen diagnose runs/scenes --out report.html`."""
    options = parse(Diagnose, "bitgen diagnose", argv)
    _check_files(out=options.out)
    from bitgen.report import write

    page = write(options.run, options.out, options.data, options.split, options.images, options.checkpoint,
                 options.device)
    print(f"report: {page}")
    return 0


def push(argv: list[str]) -> int:
    """Send a run to the Hub: `bitgen push runs/scenes --repo ORG/NAME`."""
    options = parse(Push, "bitgen push", argv)
    from bitgen import exits
    from bitgen.push import push_run

    status = push_run(options.run, options.repo, options.private)
    print(status, file=sys.stdout if status.complete else sys.stderr)
    return 0 if status.complete else exits.PUSH


def hub(argv: list[str]) -> int:
    """Look over or tidy up what is there: `bitgen hub list ORG/NAME`."""
    options = parse({"list": Listed, "gc": Squash}, "bitgen hub", argv)
    from bitgen import repository

    print(repository.listing(options.repo))
    if isinstance(options, Squash):
        print("Older commits, and whoever refers to them by their sha, lose their files for good.")
        print("Make one commit of it all? [y/N]", "y" if options.yes else "", flush=True)
        if not options.yes and sys.stdin.readline().strip().lower() != "y":
            print("nothing was changed")
            return 0
        print(repository.squash(options.repo))
    return 0


def index(argv: list[str]) -> int:
    """Encode a gallery: `bitgen index photos/ --checkpoint runs/photos --out photos.index`."""
    from bitgen import index_commands

    return index_commands.index(argv)


def search(argv: list[str]) -> int:
    """Find pictures: `bitgen search photos.index "a dog on a beach"`."""
    from bitgen import index_commands

    return index_commands.search(argv)


def app(argv: list[str]) -> int:
    """Search and look inside, in the browser: `bitgen app runs/scenes`."""
    options = parse(App, "bitgen app", argv)
    try:
        from app.main import launch
    except ModuleNotFoundError as error:
        raise ValueError(f"the app needs {error.name}: pip install 'bitgen[app,index]'") from None
    launch(options.run, options.gallery, options.host, options.port, options.mcp, options.save_to)
    return 0


def _check_files(**options: str | None) -> None:
    """Raise `ValueError` for a file that cannot be written: before the work, not after it. Makes their folders."""
    for name, path in options.items():
        try:
            if path is not None:
                _check_file(Path(path), name in PICTURES)
        except (OSError, ValueError) as error:
            raise ValueError(f"--{name} {path}: cannot be written: {error}") from None


def _check_file(path: Path, picture: bool) -> None:
    """Raise `OSError` or `ValueError` where `path` cannot be written; what stands there stays as it is."""
    from bitgen.drawing import check_suffix

    if picture:
        check_suffix(path)
    if path.is_dir():
        raise ValueError("it is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch()
        path.unlink(missing_ok=True)
    elif not os.access(path, os.W_OK):
        raise ValueError("it is read-only")


def _write(path: str, text: str) -> None:
    Path(path).write_text(text + "\n", encoding="utf-8")
