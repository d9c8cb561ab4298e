"""Datasets and tokenizers that other packages add, found by name.

An installed package registers them as entry points of the groups `imagepriors.datasets` and `imagepriors.tokenizers`. A
module that is not installed as a package is named as `package.module:name`. Nothing else is ever imported.
"""

import functools
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from runkit.suggestions import choose_one_of
from vqgan.errors import InputError

Kind = Literal["dataset", "tokenizer"]


def find_plugin(kind: Kind, name: str, built_in: Mapping[str, Any], *, allow_path: bool = True) -> Any:
    """Return the object with this name: a built-in, an entry point, or what `package.module:name` names.

    Args:
        kind: What it is; the entry point group is `imagepriors.` and its plural.
        name: Name of the object.
        built_in: The objects of this package.
        allow_path: Whether `package.module:name` is accepted. It is not if the name comes from a file, because a
            downloaded file must not choose what is imported.

    Raises:
        InputError: no object has the name, two packages register it or one hides a built-in, or it cannot be imported.
    """
    found = [point for point in entry_points(group=f"imagepriors.{kind}s") if point.name == name]
    packages = " and ".join(sorted(map(_package, found)))
    if name in built_in:
        if found:
            raise InputError(
                f"{packages} registers the {kind} {name!r}, a name that is built in: uninstall it, or rename it there"
            )
        return built_in[name]
    if len(found) > 1:
        raise InputError(f"{packages} both register the {kind} {name!r}: uninstall one of them")
    if found:
        return _load(f"{found[0].module}:{found[0].attr}", f"the {kind} {name!r} of the package {packages}")
    if ":" in name and allow_path:
        return _load(name, f"the {kind} {name!r}")
    installed = sorted({point.name for point in entry_points(group=f"imagepriors.{kind}s")})
    choices = [*built_in, *installed]
    if allow_path:
        remedy = f"{choose_one_of(name, choices)}, or name an importable function as package.module:function"
    else:
        remedy = f"install the package that provides it (installed: {', '.join(choices) or 'none'})"
    raise InputError(f"unknown {kind} {name!r}: {remedy}")


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module


def _load(path: str, what: str) -> Any:
    """Import the object at `package.module:name`; whatever its module raises becomes one message."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{what} cannot be imported ({error}): install the package that has it, or put its folder on PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{what} cannot be imported: {module_name} raises {type(error).__name__}: {error}. Update, repair or "
            "uninstall that package"
        ) from error
    try:
        found = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise InputError(f"{what} cannot be imported: {module_name} has no {attribute!r}") from error
    if not callable(found):
        raise InputError(f"{what} is a {type(found).__name__}: it must be a function or a class")
    return found
