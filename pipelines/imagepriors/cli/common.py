"""What several commands share."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from codeshards.format import open_store
from codeshards.format.manifest import MANIFEST_FILE
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


def weighted(values: Sequence[str]) -> Path | dict[Path, float]:
    """The token shards that a flag names: one dataset, or several as PATH=WEIGHT.

    A path may contain "=": a number after the last one is the weight.

    Raises:
        UserError: A weight is missing or superfluous, a dataset is named twice, or none is named.
    """
    parts = [_weight(value) for value in values]
    if len(parts) == 1:
        if parts[0][1] is None or (open_store(values[0]) / MANIFEST_FILE).size() is not None:  # such as size=64
            return Path(values[0])
        raise UserError(f"--shards {values[0]}: one dataset has no weight; write --shards {parts[0][0]}")
    found: dict[Path, float] = {}
    for path, weight in parts:
        if weight is None:
            raise UserError(
                f"--shards: {path} has no weight; write PATH=WEIGHT for each of several datasets, with equal weights, "
                "such as a=1 b=1, for equal parts"
            )
        if Path(path) in found:
            raise UserError(f"--shards: {path} is named twice; name it once, with one weight")
        found[Path(path)] = weight
    if not found:
        raise UserError("--shards is empty: name a folder or URL of token shards")
    return found


def _weight(value: str) -> tuple[str, float | None]:
    path, mark, number = value.rpartition("=")
    with contextlib.suppress(ValueError):
        if mark:
            return path, float(number)
    return value, None


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
