"""The command line: a thin layer over the Python API. A command's signature is its flags.

Heavy imports are inside the functions, so that `--help` answers in well under a second.
"""

import functools
import io
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

import imagepriors
from imagepriors.cli.commands import COMMANDS, GROUPS
from imagepriors.cli.common import Subcommands, example_of, near_choices, summary_of
from imagepriors.cli.defaults import CONFIGS, default_config
from imagepriors.presets import preset_names
from runkit.errors import UserError, user_message
from runkit.signals import StoppedError, exit_when_stopped
from runkit.suggestions import choose_one_of

__all__ = ["COMMANDS", "main", "parse", "print_answer"]
_Command = Callable[..., str] | Subcommands
_MIN_COLUMNS = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    if argv is None:
        exit_when_stopped()
        argv = sys.argv[1:]
    _prepare_streams()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    name = f" {argv[0]}" if argv and argv[0] in COMMANDS else ""
    return print_answer(lambda: parse(argv)(), f"imagepriors{name}")


def print_answer(answer: Callable[[], str], program: str) -> int:
    """Print what a function returns, or its error in one message; returns the exit code.

    Args:
        answer: The work.
        program: What error messages begin with.

    Raises:
        Exception: A bug, which keeps its traceback.
    """
    try:
        print(answer(), flush=True)
    except BrokenPipeError:  # the reader has left, so that nothing more can be reported
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except StoppedError as stopped:  # the trainer has logged where the run resumes
        return stopped.exit_code
    except KeyboardInterrupt as error:
        print(f"{program}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"{program}: {message}", file=sys.stderr)
        return 2
    return 0


def parse(argv: Sequence[str]) -> Callable[[], str]:
    """The call that a command line asks for. After `--help` and wrong flags the parser ends the process.

    Raises:
        UserError: The command is unknown, or its defaults cannot be found.
    """
    if argv and argv[0] == "--version":
        return lambda: f"imagepriors {imagepriors.__version__}"
    if not argv or argv[0] in ("-h", "--help"):
        return lambda: _usage("imagepriors", GROUPS, f"presets: {', '.join(preset_names())}")
    (name, *rest), command = argv, _find(COMMANDS, argv[0], "imagepriors")
    program = f"imagepriors {name}"
    if isinstance(command, Subcommands):
        table = {"": command.commands}
        if not rest or rest[0] in ("-h", "--help"):
            return lambda: _usage(program, table, "")
        command = _find(command.commands, rest[0], program)
        program, rest = f"{program} {rest[0]}", rest[1:]
    _check_working_folder()
    description = f"{summary_of(command)}\n\nExample: {example_of(command)}"
    bound = _bound(command)
    if name in CONFIGS:
        bound = functools.partial(bound, config=default_config(name, rest))
    with near_choices():
        call: Callable[[], str] = tyro.cli(bound, prog=program, description=description, args=rest)
    return call


def _find(commands: Mapping[str, _Command], name: str, program: str) -> Any:
    if name not in commands:
        raise UserError(f"unknown command {name!r}: {choose_one_of(name, commands)}; see {program} --help")
    return commands[name]


def _bound(function: Callable[..., str]) -> Callable[..., Callable[[], str]]:
    """A function with the same flags that returns the call, so that parsing is apart from the work."""

    @functools.wraps(function)
    def bind(*values: Any, **named: Any) -> Callable[[], str]:
        return functools.partial(function, *values, **named)

    return bind


def _usage(program: str, groups: Mapping[str, Mapping[str, _Command]], end: str) -> str:
    lines = [f"usage: {program} COMMAND [FLAGS]; each command has --help with an example"]
    for title, commands in groups.items():
        lines += ["", *([title] if title else [])]
        lines += [f"  {name:18} {summary_of(command)}" for name, command in commands.items()]
    return "\n".join([*lines, *(["", end] if end else [])])


def _prepare_streams() -> None:
    """Make the three streams such that nothing written to them raises, hangs or ends in another file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would become this stream
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - for the process
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - for the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    if shutil.get_terminal_size().columns < _MIN_COLUMNS:
        os.environ["COLUMNS"] = str(_MIN_COLUMNS)  # in a narrower terminal the help formatter does not terminate


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working folder is deleted: change into another") from None
