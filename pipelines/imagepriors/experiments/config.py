"""Presets of the paper's experiments. Imports no torch, so that the command line builds its flags in milliseconds."""

from dataclasses import dataclass, field
from typing import Literal

from runkit.configs import check_fields
from runkit.devices import Device
from vqgan.errors import InputError

ShardKind = Literal["shards", "shards-palette", "shards-codes"]
"""Shards of a dataset with all its conditions; of its small pictures as palette indices, which are the paper's pixels;
of the codes of the same small pictures, a quarter as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentConfig:
    """A preset of the paper's experiments."""

    name: str
    """Name of the preset."""
    dataset: str
    """Layout of the data."""
    tokenizer: str
    """Preset of the image tokenizer and the tokenize job."""
    small_tokenizer: str
    """Preset of the 32×32 → 16×16 tokenizer that `efficiency` compares with pixels."""
    prior: str
    """Preset of the priors and sampling."""
    conditions: dict[str, str] = field(default_factory=dict)
    """Picture condition → preset of its tokenizer; used if the dataset has the condition."""
    scales: tuple[int, ...] = ()
    """Coarser scales of the multiscale prior."""
    scales_of: Literal["shards", "shards-codes"] = "shards"
    """Shards that have these scales; small pictures can have more codes than those of a small preset."""
    seeds: int = 1
    """Number of runs per order."""
    n: int = 1000
    """Number of samples that distances and scores are computed over."""
    prior_steps: int = 0
    """Training steps per prior; 0: those of its preset."""
    prior_batch: int = 0
    """Batch size of the priors; 0: that of the preset."""
    pixel_steps: int = 0
    """Training steps of the prior over pixels, whose sequences are long; 0: as for the other priors."""
    tokenizer_steps: int = 0
    """Training steps per tokenizer; 0: those of its preset."""
    tokenizer_batch: int = 0
    """Batch size of the tokenizers; 0: that of the preset."""
    perceptual: Literal["", "none", "efficientnet-lite0", "lpips-vgg"] = ""
    """Perceptual loss of the tokenizers; empty: that of their presets. LPIPS requires the weights of VGG."""
    evaluations: int = 10
    """Points on the validation curves of `orders`."""
    features: Literal["inception", "efficientnet-lite0"] = "efficientnet-lite0"
    """Features of Fréchet distance, precision and recall: see EvaluatePriorConfig."""
    inception: str = ""
    """Path of the weights of Inception; empty: the cache of torch-fidelity, or a download."""
    reader_steps: int = 2000
    """Training steps of the network that predicts conditions from samples."""
    device: Device = "auto"
    """Device of tokenizers and priors; auto: one GPU each if any node of the Ray cluster has a GPU."""
    threads: int = 1
    """Cores per training on a machine without GPUs; small priors in parallel are faster than one on all cores."""
    workers: int = 0
    """Workers of the tokenize job; 0: as many as the cores and GPUs allow."""

    def __post_init__(self) -> None:
        """Check all fields."""
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
