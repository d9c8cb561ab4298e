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
    from codeprior.config import SampleConfig
    from codeprior.config import TrainConfig as PriorConfig
    from codeshards.config import TokenizeConfig
    from imagepriors.api.datasets import ImageDataset, open_dataset
    from imagepriors.api.priors import (
        ImagePrior,
        evaluate_prior,
        import_prior,
        load_prior,
        train_prior,
    )
    from imagepriors.api.samples import SampledImages
    from imagepriors.api.shards import inspect, open_shards, tokenize
    from imagepriors.api.tokenizers import (
        ImageTokenizer,
        evaluate_tokenizer,
        import_tokenizer,
        load_tokenizer,
        train_palette,
        train_tokenizer,
    )
    from imagepriors.presets import preset_names
    from runkit.errors import UserError
    from vqgan.config import TrainConfig as TokenizerConfig

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

_MODULES = {
    "imagepriors.api.datasets": ("ImageDataset", "open_dataset"),
    "imagepriors.api.priors": ("ImagePrior", "evaluate_prior", "import_prior", "load_prior", "train_prior"),
    "imagepriors.api.samples": ("SampledImages",),
    "imagepriors.api.tokenizers": (
        "ImageTokenizer", "evaluate_tokenizer", "import_tokenizer", "load_tokenizer", "train_palette",
        "train_tokenizer",
    ),
    "imagepriors.api.shards": ("inspect", "open_shards", "tokenize"),
    "imagepriors.presets": ("preset_names",),
    "codeshards.config": ("TokenizeConfig",),
    "codeprior.config": ("SampleConfig",),
    "runkit.errors": ("UserError",),
}  # fmt: skip
"""Module → public names that it defines."""
_SOURCES = {name: (module, name) for module, names in _MODULES.items() for name in names} | {
    "PriorConfig": ("codeprior.config", "TrainConfig"),
    "TokenizerConfig": ("vqgan.config", "TrainConfig"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, source = _SOURCES[name]
    value = getattr(importlib.import_module(module), source)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
