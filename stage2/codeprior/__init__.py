"""Stage 2: autoregressive priors over image codes, trained from token shards alone."""

from typing import TYPE_CHECKING

from runkit.lazy import lazy_names

if TYPE_CHECKING:
    from codeprior.checkpoint import load_prior
    from codeprior.config import ModelConfig, PriorError, TrainConfig
    from codeprior.model import Prior
    from codeprior.sample import sample_codes
    from codeprior.sample_config import SampleConfig
    from codeprior.train import train_prior

__all__ = [
    "ModelConfig", "Prior", "PriorError", "SampleConfig", "TrainConfig", "load_prior", "sample_codes", "train_prior",
]  # fmt: skip

__getattr__ = lazy_names(
    __name__,
    {
        "ModelConfig": "config", "Prior": "model", "PriorError": "config", "SampleConfig": "sample_config",
        "TrainConfig": "config", "load_prior": "checkpoint", "sample_codes": "sample", "train_prior": "train",
    },
)  # fmt: skip
