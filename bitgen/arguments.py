"""Command lines: options as a dataclass, one line for a word that is none of those that there are, files to write.

tyro reads them. It prints a box of up to ten lines for what it refuses, and names what is nearest only where that is
very near; commands, settings and choices are therefore looked at before.
"""

from __future__ import annotations

import os
import re
import sys
import types
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro

from bitgen.config import nearest

OWN = ("-h", "--help", "--tyro-")
"""How tyro's own settings begin."""
PICTURES = ("sheet", "picture")
"""Settings that name a picture to write."""


def placed(kind: Any, name: str) -> Any:
    """The type of an argument that is told by its place, and what help calls it."""
    return tyro.conf.Positional[Annotated[kind, tyro.conf.arg(metavar=name)]]


RUN = placed(str, "RUN")


def parse(options: type | dict[str, type], prog: str, argv: Sequence[str], **more: Any) -> Any:
    """`argv` as an object of the dataclass `options`, or of the one of `options` that its first word names.

    `prog`: what stands before, such as `bitgen data`; `more` goes to tyro. Ends the process with status 2 for what
    cannot be read, and with 0 where help was asked for.
    """
    if isinstance(options, dict):
        if argv and argv[0].startswith(OWN):
            return tyro.extras.subcommand_cli_from_dict(options, prog=prog, args=argv)
        command = known_command(argv, options, prog)
        return parse(options[command], f"{prog} {command}", argv[1:], **more)
    check_settings(_settings(options), prog, argv)
    return tyro.cli(options, prog=prog, args=argv, **more)


def known_command(argv: Sequence[str], commands: Collection[str], prog: str) -> str:
    """The command that `argv` begins with. Ends the process with status 2 where it is none of those of `prog`."""
    if not argv:
        refuse(f"`{prog}` needs a command: {' or '.join(commands)}")
    if argv[0] not in commands:
        refuse(f"no command {argv[0]!r}; did you mean {nearest(argv[0], commands)!r}? `{prog} --help` lists all")
    return argv[0]


def check_settings(known: dict[str, Any], prog: str, argv: Sequence[str]) -> None:
    """Ends the process with status 2 for a setting that is not `known` (names with their types, as in `optim.lr`), and
    for a value that is none of those its type allows; both times the nearest is named."""
    for argument, following in zip(argv, [*argv[1:], "--"]):
        if argument == "--":  # no settings from here on
            return
        flag, given, value = argument.partition("=")
        if not re.match("--|-[A-Za-z]$", flag) or flag.startswith(OWN):
            continue
        name = flag.lstrip("-").replace("-", "_")
        if name not in known or not flag.startswith("--"):
            near = nearest(name, known).replace("_", "-")
            refuse(f"unknown setting {flag}; did you mean --{near}? `{prog} --help` lists all")
        value, choices = value if given else following, _choices(known[name])
        if choices and value not in choices and (given or not value.startswith("--")):
            refuse(f"{flag}: expected one of {', '.join(choices)}, got {value!r}; "
                   f"did you mean {nearest(value, choices)!r}?")


def check_files(**options: str | None) -> None:
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


def write(path: str, text: str) -> None:
    """Write a text and the end of its last line. Raises `OSError`."""
    Path(path).write_text(text + "\n", encoding="utf-8")


def refuse(reason: str) -> NoReturn:
    """End the process with one line and the status of a command line that is wrong."""
    print(f"bitgen: {reason}", file=sys.stderr)
    raise SystemExit(2)


def _settings(options: type) -> dict[str, Any]:
    """What a dataclass takes by name, with its types; yes-or-no ones by `no_` too, and help, as tyro does."""
    hints = typing.get_type_hints(options, include_extras=True)
    named = {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not typing.Annotated}  # by place
    return named | {f"no_{name}": hint for name, hint in named.items() if hint is bool} | {"help": bool}


def _choices(hint: Any) -> list[str]:
    """All that a setting of this type may be, as it is written; none where it may be any number, word or path."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    words = [["None"] if kind is types.NoneType else
             [str(word) for word in typing.get_args(kind)] if typing.get_origin(kind) is Literal else []
             for kind in kinds]
    return sum(words, []) if all(words) else []
