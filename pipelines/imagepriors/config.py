"""Settings of evaluation and annotation. Imports no torch, so that the CLI can build its flags in milliseconds."""

from dataclasses import dataclass, field
from typing import Literal

from runkit.configs import check_fields
from runkit.devices import Device
from vqgan.errors import InputError

Kind = Literal["depth", "segmentation"]
"""What annotation makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Which figures to compute, over which images."""

    split: Literal["train", "val"] = "val"
    """Split to reconstruct."""
    limit: int = 0
    """Images at most, evenly over the split; 0: all."""
    lpips: Literal["none", "vgg", "alex", "squeeze"] = "none"
    """Trunk of LPIPS; its weights come from torchvision's cache, or from `lpips_trunk`."""
    lpips_trunk: str = ""
    """Path of the LPIPS trunk's torchvision weights, for machines without internet."""
    frechet: Literal["none", "efficientnet-lite0", "inception"] = "efficientnet-lite0"
    """Features of the Fréchet distance: inception gives rFID; efficientnet-lite0 needs no download and is not FID."""
    inception: str = ""
    """Path of torch-fidelity's weights-inception-2015-12-05-6726825d.pth; empty: its own cache or download."""
    device: Device = "auto"
    """Device; auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self, InputError)
        if self.limit < 0:
            raise InputError(f"limit is {self.limit}: choose 0, for all images, or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatePriorConfig:
    """Which figures of a prior to compute, over how many samples."""

    n: int = 1000
    """Samples; classes take turns, other conditions are those of validation rows, evenly spread."""
    features: Literal["none", "efficientnet-lite0", "inception"] = "efficientnet-lite0"
    """Features of Fréchet distance, precision and recall: inception gives FID and IS; efficientnet-lite0 needs no
    download and is not FID."""
    inception: str = ""
    """Path of torch-fidelity's weights-inception-2015-12-05-6726825d.pth; empty: its own cache or download."""
    reference: Literal["train", "val"] = "train"
    """Split of the pictures that samples are compared with."""
    reference_limit: int = 50_000
    """Pictures of it at most, evenly over the split, since they are held in memory; 0: all."""
    reader_steps: int = 2000
    """Batches of 8 pictures that the reader of conditions is taught on."""
    batch_size: int = 32
    """Sequences at once while the likelihood is computed."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self, InputError)
        if self.n > 1_000_000:
            raise InputError(f"n is {self.n}: choose at most 1,000,000 samples, all of which are held in memory")
        for name in ("n", "reader_steps", "batch_size"):
            if getattr(self, name) < 2:
                raise InputError(f"{name} is {getattr(self, name)}: choose 2 or more")
        if self.batch_size > 65_536:
            raise InputError(f"batch_size is {self.batch_size}: choose at most 65,536")
        if self.reference_limit < 0:
            raise InputError(f"reference_limit is {self.reference_limit}: choose 0, for all pictures, or more")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotateConfig:
    """How images get depth maps or masks from a pretrained network.

    What decides the maps is part of the plan and cannot change when a job is resumed; the rest may.
    """

    model: str = ""
    """Folder that transformers' save_pretrained wrote, a name on the Hugging Face hub, or for masks also a torchvision
    segmentation model (deeplabv3_resnet101, …) or its .pth file. Empty: Intel/dpt-large; deeplabv3_resnet101.
    A part of the plan."""
    format: Literal["rgba", "png16", "npy"] = "rgba"
    """Files of depth: float32 packed in RGBA PNG (as D-RIN's release), 16-bit grey PNG stretched to each map's range,
    or float32 .npy. Masks are 8-bit PNG whatever this says. A part of the plan."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network. A part of the plan."""
    device: Device = "auto"
    """Device; auto takes a GPU where this machine has one. What it resolves to is part of the plan."""
    batch_size: int = 8
    """Pictures of one input size that the network sees at once. A part of the plan: sums may round differently."""
    shard_samples: int = 256
    """Samples of the unit of work, which is what a killed worker loses. A part of the plan."""
    threads: int = 2
    """Torch threads of a worker. A part of the plan: sums may round differently with another number."""
    workers: int = 0
    """Worker processes; 0: one per GPU, or on the CPU one per `threads` cores."""
    decode_threads: int = 2
    """Threads of a worker that read images, and as many that write maps."""
    max_failure_rate: float = 0.01
    """Share of samples that may fail before the job counts as failed."""
    max_attempts: int = 3
    """Times that a shard may lose its worker process before the job gives up."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self, InputError)
        bounds = {"batch_size": 65_536, "shard_samples": 1_000_000, "threads": 1024, "decode_threads": 1024}
        for name, most in {**bounds, "max_attempts": 1000, "workers": 65_536}.items():
            least = 0 if name == "workers" else 1
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}: choose {least} … {most:,}")
        if not 0 <= self.max_failure_rate <= 1:
            raise InputError(f"max_failure_rate is {self.max_failure_rate}: choose 0 … 1")
