"""Settings of annotation. Imports no torch, so that the command line builds its flags in milliseconds."""

from dataclasses import dataclass
from typing import Literal

from runkit.configs import check_fields
from runkit.devices import Device
from vqgan.errors import InputError

Kind = Literal["depth", "segmentation"]
"""Maps that annotation makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotateConfig:
    """How a pretrained network makes depth maps or masks of images.

    Settings that decide the maps are part of the plan and cannot change when a job is resumed; the others can.
    """

    model: str = ""
    """Folder that transformers' save_pretrained wrote, a name on the Hugging Face hub, or for masks also a torchvision
    segmentation model (deeplabv3_resnet101, …) or its .pth file. Empty: Intel/dpt-large for depth,
    deeplabv3_resnet101 for masks. Part of the plan."""
    format: Literal["rgba", "png16", "npy"] = "rgba"
    """Files of depth: float32 packed in RGBA PNG (as in D-RIN's release), 16-bit grey PNG stretched to the range of
    each map, or float32 .npy. Masks are always 8-bit PNG. Part of the plan."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network. Part of the plan."""
    device: Device = "auto"
    """Device; auto takes a GPU if this machine has one. The device that it resolves to is part of the plan."""
    batch_size: int = 8
    """Pictures of one input size per batch. Part of the plan, because the batch changes rounding."""
    shard_samples: int = 256
    """Samples per shard, the unit of work; a killed worker loses at most one. Part of the plan."""
    threads: int = 2
    """Torch threads per worker. Part of the plan, because their number changes rounding."""
    workers: int = 0
    """Worker processes; 0: one per GPU, or on the CPU one per `threads` cores."""
    decode_threads: int = 2
    """Threads per worker that read images; as many others write maps."""
    max_failure_rate: float = 0.01
    """Largest share of samples that may fail in a job that succeeds."""
    max_attempts: int = 3
    """Maximum number of attempts per shard; an attempt fails when its worker process dies."""

    def __post_init__(self) -> None:
        """Check all fields."""
        check_fields(self, InputError)
        bounds = {"batch_size": 65_536, "shard_samples": 1_000_000, "threads": 1024, "decode_threads": 1024}
        for name, most in {**bounds, "max_attempts": 1000, "workers": 65_536}.items():
            least = 0 if name == "workers" else 1
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}: choose {least} … {most:,}")
        if not 0 <= self.max_failure_rate <= 1:
            raise InputError(f"max_failure_rate is {self.max_failure_rate}: choose 0 … 1")
