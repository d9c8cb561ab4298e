"""Presets: plain TOML files, one table per stage, whose keys are the fields of that stage's config.

`base = "NAME"` at the top names another preset, or a TOML file in the same folder. Its fields hold where the file sets
none.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from codeshards.format import ShardError
from runkit.suggestions import choose_one_of


def preset_names(package: str = __package__) -> list[str]:
    """Names of the presets that are in a package: these here, or those of the experiments."""
    found = (path.name for path in files(package).iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def load_preset(name: str, table: str) -> dict[str, Any]:
    """Read the table of one stage from a preset, by name or from a TOML file.

    Raises:
        ShardError: The preset does not exist, or has no such table.
    """
    tables = read_preset(name)
    if not isinstance(tables.get(table), dict):
        others = [other for other in preset_names() if isinstance(read_preset(other).get(table), dict)]
        raise ShardError(
            f"preset {name!r} has no table [{table}]; it has {', '.join(f'[{part}]' for part in tables)}. "
            f"Choose a preset that has one: {', '.join(others)}"
        )
    return dict(tables[table])


def read_preset(
    name: str, package: str = __package__, *, folder: Path = Path(), users: tuple[str, ...] = ()
) -> dict[str, Any]:
    """All tables of a preset, completed by those of its base.

    Args:
        name: A preset of the package, or a path ending in .toml.
        package: The package that holds the presets.
        folder: Folder that relative paths start from.
        users: The presets whose base this one is, the first one first.

    Raises:
        ShardError: The preset or its base does not exist, cannot be read, or is its own base.
    """
    own = name.endswith(".toml")
    source = (folder / Path(name).expanduser()).resolve() if own else files(package) / f"{name}.toml"
    if not source.is_file():
        where = f"preset {users[-1]}: base: " if users else ""
        if own and not users:
            raise ShardError(f"the preset {source} does not exist")
        raise ShardError(
            f"{where}unknown preset {name!r}: {choose_one_of(name, preset_names(package))}, or a path ending in .toml"
        )
    try:
        tables = tomllib.loads(source.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ShardError(f"preset {source}: {error}") from error
    if "base" not in tables:
        return tables
    base = str(tables.pop("base"))
    if str(source) in users:
        raise ShardError(f"preset {source}: base = {base!r} leads back to itself, through {', '.join(users)}")
    inherited = read_preset(base, package, folder=Path(str(source)).parent, users=(*users, str(source)))
    return merged(inherited, tables)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested tables with the values of others in place of their own."""
    both = [key for key in changes if isinstance(base.get(key), dict) and isinstance(changes[key], dict)]
    return {**base, **changes, **{key: merged(base[key], changes[key]) for key in both}}
