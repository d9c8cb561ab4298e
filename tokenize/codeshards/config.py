"""Settings of the tokenize job. Imports neither torch nor ray, so that help texts are built in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from codeshards.format.errors import ShardError
from codeshards.format.manifest import UNKNOWN_LICENSE
from codeshards.format.orders import ORDER_NAMES, OrderName
from codeshards.format.schema import SCALE_SIDES
from codeshards.format.shardfile import ShardFormat, check_formats
from runkit.codes import MAX_CODEBOOK_SIZE
from runkit.configs import check_fields

_BOUNDS: dict[str, tuple[float, float]] = {
    "shard_rows": (1, 2**20),  # lost with a killed worker, and held in memory by loaders
    "shuffle_seed": (0, 2**63 - 1),
    "batch_size": (1, 65_536),
    "threads": (1, 1024),
    "workers": (0, 65_536),
    "workers_per_gpu": (1, 16),
    "decode_threads": (0, 1024),
    "max_failure_rate": (0, 1),
    "max_attempts": (1, 1000),
}
"""Bounds of each number, inclusive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeConfig:
    """How a dataset is encoded into shards of codes.

    Fields that determine the bytes are part of the plan (see :meth:`plan_settings`) and cannot change when a job is
    resumed. The others only determine speed and place, and may change.
    """

    orders: tuple[OrderName, ...] = ORDER_NAMES
    """Sequence orders, one column each; all of them mean all that are defined on the grid of codes."""
    scales: tuple[Literal[1, 2, 4, 8], ...] = ()
    """Sides of coarser grids of codes, e.g. 1 2 4 8 for the multiscale prior, one column each. Part of the plan."""
    scales_from: Literal["quantised", "continuous"] = "quantised"
    """What is pooled for the scales: the quantised latent, so that the scales follow from the codes, or the continuous
    latent, as in plans without this field. Part of the plan."""
    formats: tuple[ShardFormat, ...] = ("parquet",)
    """File formats of the shards: parquet, webdataset, or both in one pass. Part of the plan."""
    views: Literal[1, 2, 12] = 1
    """Rows per sample: 1 is the picture in the tokenizer's geometry, 2 adds its mirror image, 12 adds the ten-crop.
    Part of the plan."""
    columns: tuple[str, ...] = ()
    """Columns of the source to carry into the shards, such as caption, each as NAME or NAME:TYPE (string, int64,
    float64 or bool). Without a type it is inferred from values. Part of the plan."""
    where: str = ""
    """Keep only the samples whose columns satisfy this, such as "width >= 256 and aesthetic > 5". Part of the plan."""
    draft: bool = False
    """Let the JPEG decoder downscale large photos: faster from twice the resolution, but with other pixels. Part of the
    plan."""
    resampler: Literal["pillow", "torch"] = "pillow"
    """Library that resizes pictures, bicubic and antialiased in both. torch is faster and gives slightly different
    pixels, which may depend on the kind of CPU. Part of the plan."""
    shard_rows: int = 4096
    """Rows per shard, the unit of work and of what is lost with a killed worker. Part of the plan."""
    shuffle_seed: int = 0
    """Seed of the shuffle of the train split. Part of the plan."""
    batch_size: int = 32
    """Pictures per batch. Part of the plan: sums may round differently in another batch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the tokenizers. Part of the plan: bfloat16 changes a few per cent of the codes."""
    compile: bool = False
    """Compile the encoders: takes minutes when a worker starts, faster afterwards. Part of the plan."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the encoders; auto is cuda where this machine has a GPU. The resolved device is part of the plan.
    Set it where the cluster has GPUs and this machine has none."""
    threads: int = 2
    """Torch threads per worker. Part of the plan: sums may round differently with another number."""
    workers: int = 0
    """Worker processes; 0: ``workers_per_gpu`` per GPU, or on the CPU one per ``threads`` cores, on all nodes,
    including those that join later. An autoscaling cluster is asked for resources for this many."""
    workers_per_gpu: int = 1
    """Worker processes that share a GPU and its part of the node's cores. The threads of one process read at most
    about 4,000 pictures per second on any number of cores, because Python runs one at a time. Choose 2 where the GPU
    is faster than that, and has the memory."""
    decode_threads: int = 0
    """Threads per worker that read and decode images while it encodes; 0: the number of cores in its share of the
    node, at least 2."""
    license: str = UNKNOWN_LICENSE
    """Licence of the pictures for the dataset card, by its name on the Hugging Face hub (cc-by-4.0, other, …)."""
    max_failure_rate: float = 0.01
    """Largest fraction of samples that may fail; above it the dataset is not finished."""
    max_attempts: int = 3
    """How often a shard may lose its worker process, or its input or output be unavailable, before the job fails."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self, ShardError)
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ShardError(f"{name} is {value!r}: choose {least:,} to {most:,}")
        if list(self.scales) != sorted(set(self.scales)):
            raise ShardError(f"scales is {self.scales!r}: choose sides out of {SCALE_SIDES}, ascending")
        if not self.orders or len(set(self.orders)) < len(self.orders):
            raise ShardError(f"orders is {self.orders!r}: name one or more of {', '.join(ORDER_NAMES)}, each once")
        check_formats(self.formats)

    @property
    def batch_samples(self) -> int:
        """Number of samples per batch, each with all its views."""
        return max(1, self.batch_size // self.views)

    def plan_settings(self, device: Literal["cpu", "cuda"]) -> dict[str, Any]:
        """The settings that determine bytes and are no arguments of the plan itself, as JSON values.

        Plans of earlier versions lack settings added since. Such a setting is left out where its value is what those
        versions did.

        Args:
            device: The resolved device.
        """
        later: dict[str, Any] = {"resampler": self.resampler} if self.resampler != "pillow" else {}
        if self.scales and self.scales_from != "continuous":
            later["scales_from"] = self.scales_from
        return {
            **later,
            "batch_size": self.batch_size,
            "compile": self.compile,
            "device": device,
            "draft": self.draft,
            "formats": list(check_formats(self.formats)),
            "precision": self.precision,
            "threads": self.threads,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """How a published set of tokens becomes shards. All fields but the last two are part of the plan."""

    kind: Literal["auto", "rar", "llamagen", "randar"] = "auto"
    """Layout of the set: a file of JSON lines (rar), folders of codes and labels (llamagen), or a tar or folder with
    one folder per class (randar). auto recognises it."""
    codebook_size: int = 0
    """Number of codebook entries; 0: that of the tokenizer."""
    height: int = 0
    """Rows of the grid; 0: that of the tokenizer, or a square."""
    width: int = 0
    """Columns of the grid; 0: as height."""
    lines: int = 10
    """Consecutive lines of one image in a file of JSON lines: 10 for a ten-crop, 1 if each line is an image."""
    val_every: int = 50
    """One image of so many, in source order, is held out for validation, with all its views."""
    orders: tuple[OrderName, ...] = ()
    """Sequence orders, one column each; empty: all that are defined on the grid."""
    formats: tuple[ShardFormat, ...] = ("parquet",)
    """File formats of the shards."""
    shard_rows: int = 4096
    """Rows per shard."""
    shuffle_seed: int = 0
    """Seed of the shuffle of the train split."""
    license: str = UNKNOWN_LICENSE
    """Licence of the pictures for the dataset card."""
    max_failure_rate: float = 0.01
    """Largest fraction of images that may fail; above it the dataset is not finished."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self, ShardError)
        sizes = {"codebook_size": (0, MAX_CODEBOOK_SIZE), "height": (0, 1 << 20), "width": (0, 1 << 20)}
        counts = {"lines": (1, 256), "val_every": (2, 1 << 30)}
        shared = {name: _BOUNDS[name] for name in ("shard_rows", "shuffle_seed", "max_failure_rate")}
        for name, (least, most) in {**sizes, **counts, **shared}.items():
            if not least <= getattr(self, name) <= most:
                raise ShardError(f"{name} is {getattr(self, name)!r}: choose {least:,} to {most:,}")
        check_formats(self.formats)
