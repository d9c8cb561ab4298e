"""The public Python API: train tokenizers and priors, write token shards, sample images.

>>> import imagepriors as ip
>>> tokenizer = ip.train_tokenizer("photos", steps=2000)
>>> shards = ip.tokenize("photos", tokenizer)
>>> prior = ip.train_prior(shards, order="zcurve")
>>> prior.sample(16).grid().save("samples.png")

Paths are str or Path. Fields of a config are keyword arguments. Errors that the caller can correct are `UserError`.
Names are loaded on first use, so that the import itself takes milliseconds.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagepriors.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Import a public name, or the list of them, on first use (PEP 562)."""
    if name == "__version__":
        return importlib.metadata.version("imagepriors")
    if name == "__all__" or not name.startswith("_"):
        api = importlib.import_module("imagepriors.api")
        if name == "__all__" or name in api.__all__:
            globals()[name] = value = getattr(api, name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
