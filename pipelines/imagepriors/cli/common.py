"""What several commands share."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from runkit.errors import UserError
from runkit.suggestions import choose_one_of

FLAT = tyro.conf.arg(name="")
"""Fields of a config as flags without a prefix."""


def shown(path: Path | str) -> str:
    """A path as a person writes it: relative to the working folder if it is in it."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else str(path)


def figures(summary: Mapping[str, Any]) -> str:
    """The numbers of a run's summary in one line."""
    return ", ".join(f"{key} {value:.4g}" for key, value in summary.items() if isinstance(value, int | float))


@dataclass(frozen=True)
class Subcommands:
    """The second words of a command of two words, such as `shards verify`."""

    summary: str
    """What they do, in one line."""
    commands: dict[str, Callable[..., str]]
    """Second word → function, as in COMMANDS."""


def summary_of(command: "Callable[..., str] | Subcommands") -> str:
    """What a command does: the first paragraph of its docstring."""
    if isinstance(command, Subcommands):
        return command.summary
    return (inspect.getdoc(command) or "").partition("\n\n")[0].replace("\n", " ")


def example_of(command: Callable[..., str]) -> str:
    """The example in a command's docstring."""
    return (inspect.getdoc(command) or "").partition("Example:")[2].strip()


@contextlib.contextmanager
def near_choices() -> Iterator[None]:
    """Report a flag's value that is none of its choices with the nearest one; the parser lists them only."""
    errors: Any = getattr(tyro, "_errors", None)  # unstable: without it the parser reports the value itself

    def report(event: Any) -> None:
        if isinstance(event, errors.InvalidChoice):
            flag = event.argument.display_name()
            raise UserError(f"{flag} is {event.value!r}: {choose_one_of(event.value, event.choices)}")

    with errors.on_parse_error(report) if hasattr(errors, "on_parse_error") else contextlib.nullcontext():
        yield
