"""Presets: plain TOML files, one table per stage, whose keys are the fields of that stage's config."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from codeshards.format import ShardError


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(
        path.name.removesuffix(".toml") for path in files(__package__).iterdir() if path.name.endswith(".toml")
    )


def load_preset(name: str, table: str) -> dict[str, Any]:
    """Read the table of one stage from a preset, by name or from a TOML file of your own.

    Raises:
        ShardError: no such preset, or it has no such table.
    """
    source = Path(name) if name.endswith(".toml") else files(__package__) / f"{name}.toml"
    if not source.is_file():
        raise ShardError(
            f"unknown preset {name!r}: choose one of {', '.join(preset_names())}, or a path ending in .toml"
        )
    try:
        tables = tomllib.loads(source.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ShardError(f"preset {source}: {error}") from error
    if table not in tables:
        raise ShardError(f"preset {name!r} has no table [{table}]; it has {', '.join(f'[{part}]' for part in tables)}")
    return dict(tables[table])
