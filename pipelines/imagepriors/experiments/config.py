"""Presets of the paper's experiments. Imports no torch, so that the command line builds its flags in milliseconds."""

from dataclasses import dataclass, field
from typing import Literal

from runkit.configs import check_fields
from vqgan.config import Device
from vqgan.errors import InputError

ShardKind = Literal["shards", "shards-palette", "shards-codes"]
"""Shards of a dataset with all its conditions; of its small pictures as palette indices, the paper's pixels; of the
codes of the same small pictures, a quarter as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentConfig:
    """A preset of the paper's experiments."""

    name: str
    """The preset."""
    dataset: str
    """Layout of the data."""
    tokenizer: str
    """Preset of the image tokenizer, and of the tokenize job."""
    small_tokenizer: str
    """Preset of the 32×32 → 16×16 tokenizer that `efficiency` compares with pixels."""
    prior: str
    """Preset of the priors and of sampling."""
    conditions: dict[str, str] = field(default_factory=dict)
    """Picture condition → preset of its tokenizer; used where the dataset has it."""
    scales: tuple[int, ...] = ()
    """Coarser scales of the multiscale prior."""
    scales_of: Literal["shards", "shards-codes"] = "shards"
    """Shards that have them: small pictures may have more codes than those of a small preset's dataset."""
    seeds: int = 1
    """Runs of every order."""
    n: int = 1000
    """Samples that distances and scores are computed over."""
    prior_steps: int = 0
    """Steps of every prior; 0: its preset's."""
    prior_batch: int = 0
    """Batch of every prior; 0: its preset's."""
    pixel_steps: int = 0
    """Steps of the prior over pixels that `efficiency` compares with, whose sequences are long; 0: as every prior."""
    tokenizer_steps: int = 0
    """Steps of every tokenizer; 0: its preset's."""
    tokenizer_batch: int = 0
    """Batch of every tokenizer; 0: its preset's."""
    perceptual: Literal["", "none", "efficientnet-lite0", "lpips-vgg"] = ""
    """Perceptual loss of the tokenizers in place of their presets': LPIPS wants VGG's weights."""
    evaluations: int = 10
    """Points on the validation curves of `orders`."""
    features: Literal["inception", "efficientnet-lite0"] = "efficientnet-lite0"
    """Features of Fréchet distance, precision and recall: see EvaluatePriorConfig."""
    inception: str = ""
    """Path of Inception's weights; empty: torch-fidelity's own cache or download."""
    reader_steps: int = 2000
    """Steps of the network that reads conditions back from samples."""
    device: Device = "auto"
    """Where tokenizers and priors are trained; auto: on a GPU each if any node of the Ray cluster has one now."""
    threads: int = 1
    """Cores of one training on a machine without GPUs: small priors side by side beat one on all cores."""
    workers: int = 0
    """Workers of the tokenize job; 0: as many as fit."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self, InputError)
        for name in ("seeds", "evaluations", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: choose 1 or more")
        for name in ("n", "reader_steps"):
            if getattr(self, name) < 2:
                raise InputError(f"{name} is {getattr(self, name)}: choose 2 or more")
        counts = ("prior_steps", "prior_batch", "pixel_steps", "tokenizer_steps", "tokenizer_batch", "workers")
        for name in counts:
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: choose 0, for the default, or more")
