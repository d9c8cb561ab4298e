"""Presets: plain TOML files, one table per stage, whose keys are the fields of that stage's config.

`base = "NAME"` at the top takes everything from another preset, or TOML file beside it, that the file does not say.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from codeshards.format import ShardError


def preset_names(package: str = __package__) -> list[str]:
    """Names of the presets that ship with a package: these here, or the experiments'."""
    found = (path.name for path in files(package).iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def load_preset(name: str, table: str) -> dict[str, Any]:
    """Read the table of one stage from a preset, by name or from a TOML file of your own.

    Raises:
        ShardError: no such preset, or it has no such table.
    """
    tables = read_preset(name)
    if not isinstance(tables.get(table), dict):
        raise ShardError(f"preset {name!r} has no table [{table}]; it has {', '.join(f'[{part}]' for part in tables)}")
    return dict(tables[table])


def read_preset(
    name: str, package: str = __package__, *, beside: Path = Path(), above: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Everything that a preset says, over what its base says.

    Args:
        name: Of a preset that ships with the package, or a path ending in .toml.
        package: Whose presets are meant.
        beside: Where a path is looked up.
        above: The presets that are built on this one.

    Raises:
        ShardError: it or its base is not there, cannot be read, or is its own base.
    """
    source = (beside / name).resolve() if name.endswith(".toml") else files(package) / f"{name}.toml"
    if not source.is_file():
        where = f"preset {above[-1]}: base: " if above else ""
        raise ShardError(
            f"{where}unknown preset {name!r}: choose one of {', '.join(preset_names(package))}, "
            "or a path ending in .toml"
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
    return merged(read_preset(base, package, beside=Path(str(source)).parent, above=below), tables)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested tables with the values of others in place of their own."""
    both = [key for key in changes if isinstance(base.get(key), dict) and isinstance(changes[key], dict)]
    return {**base, **changes, **{key: merged(base[key], changes[key]) for key in both}}
