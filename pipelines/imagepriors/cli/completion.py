"""`imagepriors completion`."""

import contextlib
import functools
import io
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union

import tyro

from imagepriors.cli.common import Subcommands, summary_of


def completion(shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]) -> str:
    """Print a script that completes commands, flags and choices in a shell.

    Args:
        shell: bash: add `eval "$(imagepriors completion bash)"` to ~/.bashrc. zsh: `imagepriors completion zsh >
            _imagepriors` in a folder of $fpath. fish: add `imagepriors completion fish | source` to
            ~/.config/fish/config.fish.

    Example:
        imagepriors completion bash
    """
    from imagepriors.cli.commands import COMMANDS

    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):  # it ends the process after printing
        tyro.cli(_tree(COMMANDS), prog="imagepriors", args=["--tyro-write-completion", shell, "-"])
    return script.getvalue()


def _tree(commands: Mapping[str, "Callable[..., str] | Subcommands"]) -> Any:
    """The commands as one type, with which the parser completes all of them."""
    from imagepriors.cli.defaults import CONFIGS, default_config

    parts: list[Any] = []
    for name, command in commands.items():
        if isinstance(command, Subcommands):
            constructor = _tree(command.commands)
        elif name in CONFIGS:
            constructor = functools.partial(command, config=default_config(name, ["--help"]))
        else:
            constructor = command
        settings = tyro.conf.subcommand(name=name, description=summary_of(command), constructor=constructor)
        parts.append(Annotated[Any, settings])
    return Union[tuple(parts)]  # noqa: UP007 - of a tuple
