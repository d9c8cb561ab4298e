"""Token shards: the format, the job that encodes datasets, and tools for finished datasets."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codeshards.config import TokenizeConfig
    from codeshards.format.dataset import ShardDataset
    from codeshards.job.add import add_conditions
    from codeshards.job.tokenize import tokenize
    from codeshards.tools.add_codes import add_codes
    from codeshards.tools.convert import convert
    from codeshards.tools.inspect import inspect
    from codeshards.tools.merge import merge
    from codeshards.tools.verify import verify

__all__ = [
    "ShardDataset",
    "TokenizeConfig",
    "add_codes",
    "add_conditions",
    "convert",
    "inspect",
    "merge",
    "tokenize",
    "verify",
]

_MODULES = {
    "ShardDataset": "format.dataset",
    "TokenizeConfig": "config",
    "add_codes": "tools.add_codes",
    "add_conditions": "job.add",
    "convert": "tools.convert",
    "inspect": "tools.inspect",
    "merge": "tools.merge",
    "tokenize": "job.tokenize",
    "verify": "tools.verify",
}


def __getattr__(name: str) -> Any:  # torch and ray are imported when they are used
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
