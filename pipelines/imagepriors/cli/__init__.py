"""The command line: a thin layer over the Python API. A command's signature is its flags.

Heavy imports are inside the functions, so that `--help` answers in well under a second.
"""

import functools
import inspect
import io
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from imagepriors.cli.commands import COMMANDS
from imagepriors.cli.defaults import CONFIGS, default_config
from imagepriors.presets import preset_names
from runkit.errors import UserError, user_message
from runkit.signals import StoppedError, exit_when_stopped

__all__ = ["COMMANDS", "main", "print_answer"]
_MIN_COLUMNS = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    if argv is None:
        exit_when_stopped()
        argv = sys.argv[1:]
    _prepare_streams()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    name = f" {argv[0]}" if argv and argv[0] in COMMANDS else ""
    return print_answer(functools.partial(_answer, argv), f"imagepriors{name}")


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


def _answer(argv: Sequence[str]) -> str:
    """What a command answers, or the usage."""
    if not argv or argv[0] in ("-h", "--help"):
        return _usage()
    name = argv[0]
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}: choose one of {', '.join(COMMANDS)}")
    _check_working_folder()
    function = COMMANDS[name]
    if name == "shards":  # it has subcommands
        return function(argv[1:])
    description = (inspect.getdoc(function) or "").partition("\n\n")[0]
    if name in CONFIGS:
        function = functools.partial(function, config=default_config(name, argv[1:]))
    return str(tyro.cli(function, prog=f"imagepriors {name}", description=description, args=list(argv[1:])))


def _usage() -> str:
    docs = {name: (function.__doc__ or "").strip().partition("\n")[0] for name, function in COMMANDS.items()}
    return "\n".join(
        [
            "usage: imagepriors COMMAND [FLAGS]; each command has --help",
            "",
            *(f"  {name:18} {doc}" for name, doc in docs.items()),
            "",
            f"presets: {', '.join(preset_names())}",
        ]
    )


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
