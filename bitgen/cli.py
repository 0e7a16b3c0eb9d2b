"""The command line: each command is a function of its name, here or in a module of `*_commands`.

Help texts are the functions' docstrings and those of the dataclasses that say what they take (through tyro). Exit
status 0 means that what was asked for was done; 1 is a verdict of `doctor --strict` that is BAD, 2 a bad command line,
130 an interruption (128 and the number of the signal), and the rest stands in `exits`: 3 no checkpoint that is whole,
65 bad input, 70 a process lost that makes batches, 74 a disk that cannot be written, 75 a last checkpoint that is not
on the Hub, 76 numbers that are not finite, 77 a run ended as hopeless.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass

import tyro

from bitgen.arguments import check_settings, known_command, parse, positional, read, refuse
from bitgen.checkpoint import CheckpointError
from bitgen.config import Config, load_preset, preset_names, settings
from bitgen.data_commands import data
from bitgen.exits import DISK, INPUT, SIGNAL
from bitgen.hub_commands import hub, pull, push
from bitgen.run_commands import card, diagnose, doctor, evaluate


@dataclass
class App:
    """Search, caption and look inside a model in the browser; served to this computer only unless told otherwise."""

    run: positional(str | None, "[RUN]") = None
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
    return read(Config, "bitgen train", _spelled(rest), default=config, description=description,
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
