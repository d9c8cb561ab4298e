"""Presets: plain TOML files, one table per stage, whose keys are the fields of that stage's config.

`base = "NAME"` at the top takes everything from another preset, or TOML file beside it, that the file does not say.
"""

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
    tables = _tables(name, Path())
    if not isinstance(tables.get(table), dict):
        raise ShardError(f"preset {name!r} has no table [{table}]; it has {', '.join(f'[{part}]' for part in tables)}")
    return dict(tables[table])


def _tables(name: str, beside: Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """All tables of a preset; a path is looked up from the folder `beside`, `above` are those built on it."""
    source = (beside / name).resolve() if name.endswith(".toml") else files(__package__) / f"{name}.toml"
    if not source.is_file():
        where = f"preset {above[-1]}: base: " if above else ""
        raise ShardError(
            f"{where}unknown preset {name!r}: choose one of {', '.join(preset_names())}, or a path ending in .toml"
        )
    try:
        tables = tomllib.loads(source.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ShardError(f"preset {source}: {error}") from error
    if "base" not in tables:
        return tables
    base, below = str(tables.pop("base")), (*above, str(source))
    if str(source) in above:
        raise ShardError(f"preset {source}: base = {base!r} leads back to itself, through {', '.join(above)}")
    return _merged(_tables(base, Path(str(source)).parent, below), tables)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Tables with others laid over them, key by key."""
    both = [key for key in changes if isinstance(base.get(key), dict) and isinstance(changes[key], dict)]
    return {**base, **changes, **{key: _merged(base[key], changes[key]) for key in both}}
