"""Stage 1: everything about pixels. Datasets, the VQGAN, its losses, training and metrics."""

from typing import TYPE_CHECKING

from runkit.lazy import lazy_names

if TYPE_CHECKING:
    from vqgan.config import LossConfig, ModelConfig, TrainConfig
    from vqgan.data import Split, open_splits
    from vqgan.errors import InputError
    from vqgan.tokenizer import Tokenizer
    from vqgan.train import train_tokenizer

__all__ = [
    "InputError", "LossConfig", "ModelConfig", "Split", "Tokenizer", "TrainConfig", "open_splits", "train_tokenizer",
]  # fmt: skip

__getattr__ = lazy_names(
    __name__,
    {
        "InputError": "errors", "LossConfig": "config", "ModelConfig": "config", "Split": "data",
        "Tokenizer": "tokenizer", "TrainConfig": "config", "open_splits": "data", "train_tokenizer": "train",
    },
)  # fmt: skip
