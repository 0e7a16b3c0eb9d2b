"""Command lines: options as a dataclass, one line for a word that is none of those that there are, files to write.

tyro reads them. It prints a box of up to ten lines for what it refuses, and names what is nearest only where that is
very near; commands, settings, choices and numbers are therefore looked at before, and of its boxes a line is kept.
"""

from __future__ import annotations

import contextlib
import io
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
NUMBERS = {int: "a whole number", float: "a number"}


def positional(kind: Any, name: str) -> Any:
    """The type of an argument that is told by its place, and what help calls it."""
    return tyro.conf.Positional[Annotated[kind, tyro.conf.arg(metavar=name)]]


RUN = positional(str, "RUN")


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
    return read(options, prog, argv, **more)


def read(options: type, prog: str, argv: Sequence[str], **more: Any) -> Any:
    """`tyro.cli`, which ends the process with status 2 and one line for what it refuses."""
    with contextlib.redirect_stderr(io.StringIO()) as refused:
        try:
            return tyro.cli(options, prog=prog, args=argv, **more)
        except SystemExit as end:
            if end.code != 2:
                raise
    refuse(f"{_reason(refused.getvalue())}; `{prog} --help` lists all")


def _reason(box: str) -> str:
    """What tyro's box says between title and help, as one line; its rules and frame are of Unicode or ASCII."""
    inside = box.partition("\n")[2].replace("│", " ")
    parts = [" ".join(part.split()) for part in re.split("[─-]{20,}", inside)]
    return next(filter(None, parts), box.strip()).rstrip(".")


def known_command(argv: Sequence[str], commands: Collection[str], prog: str) -> str:
    """The command that `argv` begins with. Ends the process with status 2 where it is none of those of `prog`."""
    if not argv:
        refuse(f"`{prog}` needs a command: {' or '.join(commands)}")
    if argv[0] not in commands:
        refuse(f"no command {argv[0]!r}; did you mean {nearest(argv[0], commands)!r}? `{prog} --help` lists all")
    return argv[0]


def check_settings(known: dict[str, Any], prog: str, argv: Sequence[str]) -> None:
    """Ends the process with status 2 for a setting that is not `known` (names with their types, as in `optim.lr`), for
    one without a value, and for a value that is no number or none of the words that its type allows."""
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
        if given or not following.startswith("--"):
            _check_value(flag, value if given else following, known[name])
        elif bool not in _kinds(known[name]):
            refuse(f"{flag} needs a value; `{prog} --help` lists all")


def _check_value(flag: str, value: str, hint: Any) -> None:
    """Ends the process for a `value` that a setting of this type cannot have; other types are left to tyro."""
    kinds = _kinds(hint)
    numbers, words = [kind for kind in kinds if kind in NUMBERS], sum(map(_words, kinds), [])
    if not all(kind in NUMBERS or _words(kind) for kind in kinds):
        return
    if value in words or any(_reads(value, kind) for kind in numbers):
        return
    if numbers:
        refuse(f"{flag}: expected {' or '.join([NUMBERS[kind] for kind in numbers] + words)}, got {value!r}")
    refuse(f"{flag}: expected one of {', '.join(words)}, got {value!r}; did you mean {nearest(value, words)!r}?")


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


def _kinds(hint: Any) -> tuple:
    """The types that a setting may be of."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _words(kind: Any) -> list[str]:
    """All that a setting of this type may be, as it is written; none where it may be any number, word or path."""
    if kind is types.NoneType:
        return ["None"]
    return [str(word) for word in typing.get_args(kind)] if typing.get_origin(kind) is Literal else []


def _reads(value: str, kind: type) -> bool:
    """Whether a word is a number of this kind."""
    try:
        kind(value)
    except ValueError:
        return False
    return True
