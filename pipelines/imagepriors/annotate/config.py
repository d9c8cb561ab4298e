"""Settings of annotation. Imports no torch, so that the command line builds its flags in milliseconds."""

from dataclasses import dataclass
from typing import Literal

from runkit.configs import check_fields
from vqgan.config import Device
from vqgan.errors import InputError

Kind = Literal["depth", "segmentation"]
"""What annotation makes."""


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
