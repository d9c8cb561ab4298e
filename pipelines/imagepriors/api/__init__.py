"""The functions and objects of `import imagepriors`; torch and Ray are imported where they are used."""

from codeprior.config import TrainConfig as PriorConfig
from codeprior.sample_config import SampleConfig
from codeshards.config import TokenizeConfig
from imagepriors.api.datasets import ImageDataset, open_dataset
from imagepriors.api.evaluation import evaluate_prior
from imagepriors.api.hub import push
from imagepriors.api.plans import plan_prior, plan_samples, plan_tokenize, plan_tokenizer
from imagepriors.api.priors import ImagePrior, import_prior, load_prior
from imagepriors.api.samples import SampledImages
from imagepriors.api.shards import add_codes, add_conditions, import_shards, inspect, open_shards, tokenize
from imagepriors.api.studio import open_studio
from imagepriors.api.tokenizers import (
    ImageTokenizer,
    evaluate_tokenizer,
    import_tokenizer,
    load_tokenizer,
    train_palette,
    train_tokenizer,
)
from imagepriors.api.training import train_prior
from imagepriors.evaluate.config import EvaluateConfig, EvaluatePriorConfig
from imagepriors.presets import preset_names
from runkit.errors import UserError
from runkit.plans import WorkPlan
from runkit.signals import StoppedError
from vqgan.config import TrainConfig as TokenizerConfig

__all__ = [
    "EvaluateConfig",
    "EvaluatePriorConfig",
    "ImageDataset",
    "ImagePrior",
    "ImageTokenizer",
    "PriorConfig",
    "SampleConfig",
    "SampledImages",
    "StoppedError",
    "TokenizeConfig",
    "TokenizerConfig",
    "UserError",
    "WorkPlan",
    "add_codes",
    "add_conditions",
    "evaluate_prior",
    "evaluate_tokenizer",
    "import_prior",
    "import_shards",
    "import_tokenizer",
    "inspect",
    "load_prior",
    "load_tokenizer",
    "open_dataset",
    "open_shards",
    "open_studio",
    "plan_prior",
    "plan_samples",
    "plan_tokenize",
    "plan_tokenizer",
    "preset_names",
    "push",
    "tokenize",
    "train_palette",
    "train_prior",
    "train_tokenizer",
]
