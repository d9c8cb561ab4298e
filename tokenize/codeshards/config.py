"""Settings of the tokenize job. Imports neither torch nor ray, so that the CLI can build its flags in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from codeshards.format import (
    ORDER_NAMES,
    SCALE_SIDES,
    UNKNOWN_LICENSE,
    OrderName,
    ShardError,
    ShardFormat,
    check_formats,
)
from runkit.configs import check_fields

_BOUNDS: dict[str, tuple[float, float]] = {
    "shard_rows": (1, 2**20),  # what a killed worker loses, and readers hold in memory
    "shuffle_seed": (0, 2**63 - 1),
    "batch_size": (1, 65_536),
    "threads": (1, 1024),
    "workers": (0, 65_536),
    "decode_threads": (0, 1024),
    "max_failure_rate": (0, 1),
    "max_attempts": (1, 1000),
}
"""Least and most of each number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeConfig:
    """How a dataset becomes shards of codes.

    What decides bytes is part of the plan (see :meth:`plan_settings`) and cannot change when a job is resumed;
    the rest only decides how fast and where, and may.
    """

    orders: tuple[OrderName, ...] = ORDER_NAMES
    """Sequence orders, one column each."""
    scales: tuple[Literal[1, 2, 4, 8], ...] = ()
    """Sides of coarser grids of codes, e.g. 1 2 4 8 for the multiscale prior, a column each. Part of the plan."""
    scales_from: Literal["quantised", "continuous"] = "quantised"
    """What is pooled for the scales: the quantised latent, so that they follow from the codes, or the continuous one,
    which is what plans that do not say mean. Part of the plan."""
    formats: tuple[ShardFormat, ...] = ("parquet",)
    """What shards are written as: parquet, webdataset, or both in one pass. Part of the plan."""
    views: Literal[1, 2, 12] = 1
    """Rows of a sample: 1 is the picture as the tokenizer's geometry has it, 2 adds its mirror, 12 adds the ten-crop.
    Part of the plan."""
    draft: bool = False
    """Let the JPEG decoder shrink large photos: faster from twice the resolution on, other pixels. Part of the plan."""
    shard_rows: int = 4096
    """Rows of a shard, the unit of work and of what a killed worker loses. Part of the plan."""
    shuffle_seed: int = 0
    """Seed of the train split's shuffle. Part of the plan."""
    batch_size: int = 32
    """Pictures encoded at once. Part of the plan: sums may round differently in another batch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the tokenizers. Part of the plan: bfloat16 changes a few per cent of the codes."""
    compile: bool = False
    """Compile the encoders: minutes at each worker's start, faster afterwards. Part of the plan."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to encode; auto takes a GPU where this machine has one. What it resolves to is part of the plan.
    Name it where the cluster has GPUs and this machine has none."""
    threads: int = 2
    """Torch threads of a worker. Part of the plan: sums may round differently with another number."""
    workers: int = 0
    """Worker processes; 0: one per GPU, or on the CPU one per ``threads`` cores, on all nodes, also on those that
    join later. An autoscaling cluster is asked for room for this many."""
    decode_threads: int = 0
    """Threads of a worker that read and decode images while it encodes; 0: as many as its share of the node has
    cores, at least 2."""
    license: str = UNKNOWN_LICENSE
    """Licence of the pictures for the dataset card, as the Hugging Face hub names it (cc-by-4.0, other, …)."""
    max_failure_rate: float = 0.01
    """Share of samples that may fail before the job refuses to finish the dataset."""
    max_attempts: int = 3
    """Times that a shard may lose its worker process, or its input or output be away, before the job gives up."""

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
        """Samples of a batch, each with all its views."""
        return max(1, self.batch_size // self.views)

    def plan_settings(self, device: Literal["cpu", "cuda"]) -> dict[str, Any]:
        """What decides bytes and is not already an argument of the plan, as JSON values.

        A setting that a later version adds is here only where it is not what earlier versions did, whose plans lack it.

        Args:
            device: What ``device`` resolved to.
        """
        later = {"scales_from": self.scales_from} if self.scales and self.scales_from != "continuous" else {}
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
