# ruff: noqa: F403, F405 - type checkers read the names from imagepriors.api
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagepriors.api import *

__all__ = [
    "ImageDataset",
    "ImagePrior",
    "ImageTokenizer",
    "PriorConfig",
    "SampleConfig",
    "SampledImages",
    "TokenizeConfig",
    "TokenizerConfig",
    "UserError",
    "evaluate_prior",
    "evaluate_tokenizer",
    "import_prior",
    "import_tokenizer",
    "inspect",
    "load_prior",
    "load_tokenizer",
    "open_dataset",
    "open_shards",
    "preset_names",
    "tokenize",
    "train_palette",
    "train_prior",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module("imagepriors.api"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
