"""Folders and configurations that the experiments share.

RUN/tokenizer, RUN/tokenizer-segmentation, …   image and condition tokenizers
RUN/experiments/shards, …                      one set of shards with all conditions, others of small pictures
RUN/experiments/NAME/                          priors, results.json, figures of one experiment
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from codeprior.config import TrainConfig as PriorConfig
from codeprior.sample_config import SampleConfig
from codeshards.config import TokenizeConfig
from codeshards.format import ShardDataset
from imagepriors.decode.rows import load_shard_tokenizer
from imagepriors.evaluate.config import EvaluatePriorConfig
from imagepriors.experiments.config import ExperimentConfig, ShardKind
from imagepriors.presets import load_preset
from imagepriors.reports.figures import png_bytes
from runkit.configs import from_dict
from runkit.files import pretty_json
from runkit.folders import publish
from runkit.jsonfiles import finite_or_none
from runkit.places import url_of
from vqgan.config import Geometry, TrainConfig, dataset_geometry
from vqgan.data import open_splits
from vqgan.tokenizer import Tokenizer

PriorRuns = dict[Path, tuple[PriorConfig, Path]]
"""Run folder of a prior → its configuration and its shards."""


class Workspace:
    """A preset of experiments on one dataset, in one run folder."""

    def __init__(self, config: ExperimentConfig, run: Path, data: Path) -> None:
        # Absolute, because Ray workers have working folders of their own.
        self.config, self.run, self.data = config, run.resolve(), data if url_of(data) else data.resolve()
        self.home = self.run / "experiments"

    @property
    def geometry(self) -> Geometry:
        """How pictures become square: the same for images and conditions, as it suits the dataset."""
        return dataset_geometry(self.config.dataset)

    def out(self, name: str) -> Path:
        """Create and return the folder of an experiment."""
        folder = self.home / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save(
        self, name: str, text: str, results: Mapping[str, Any], pictures: Mapping[Any, Figure | Image.Image]
    ) -> None:
        """Write results.json and the PNGs of an experiment, from which the page of all experiments is made."""
        facts = {"preset": self.config.name, "dataset": self.config.dataset}
        report = {"title": name.capitalize(), "text": text, **facts, "pictures": list(pictures), **results}
        files = {f"{picture}.png": png_bytes(content) for picture, content in pictures.items()}
        files["results.json"] = pretty_json(finite_or_none(report))
        publish(self.out(name), files, "experiment", last="results.json")

    # Stage 1 and the shards.

    def conditions(self) -> tuple[str, ...]:
        """Picture conditions of the preset that the dataset has."""
        available = open_splits(self.config.dataset, self.data)["train"].conditions
        return tuple(name for name in self.config.conditions if name in available)

    def tokenizers(self, kind: ShardKind) -> dict[str, tuple[Path, str]]:
        """Modality → folder and preset of its tokenizer; the preset of a palette is empty."""
        if kind == "shards-palette":
            return {"image": (self.home / "palette", "")}
        if kind == "shards-codes":
            return {"image": (self.run / "tokenizer-f2", self.config.small_tokenizer)}
        conditions = {
            name: (self.run / f"tokenizer-{name}", self.config.conditions[name]) for name in self.conditions()
        }
        return {"image": (self.run / "tokenizer", self.config.tokenizer), **conditions}

    def tokenizer_config(self, preset: str) -> TrainConfig:
        """Training configuration of a tokenizer."""
        config: TrainConfig = from_dict(TrainConfig, load_preset(preset, "vqgan"))
        changes: dict[str, Any] = {"model": replace(config.model, geometry=self.geometry)}
        if self.config.tokenizer_steps:
            changes |= {"steps": self.config.tokenizer_steps, "warmup_steps": min(config.warmup_steps, 10)}
        if self.config.tokenizer_batch:
            changes["batch_size"] = self.config.tokenizer_batch
        if self.config.perceptual and config.loss.perceptual != "none":
            changes["loss"] = replace(config.loss, perceptual=self.config.perceptual)
        return replace(config, **changes)

    def tokenize_config(self, kind: ShardKind = "shards") -> TokenizeConfig:
        """Configuration of the tokenize job for shards of a kind."""
        config: TokenizeConfig = from_dict(TokenizeConfig, load_preset(self.config.tokenizer, "tokenize"))
        scales: Any = self.config.scales if kind == self.config.scales_of else ()
        return replace(config, scales=scales, workers=self.config.workers)

    def shards(self, kind: ShardKind = "shards") -> Path:
        """Folder of the shards of a kind."""
        return self.home / kind

    def decoder(self, kind: ShardKind = "shards") -> Tokenizer:
        """Load the image tokenizer of shards."""
        fingerprint = ShardDataset.open(self.shards(kind)).spec.image.fingerprint
        return load_shard_tokenizer(self.shards(kind), "tokenizer", fingerprint)

    # Stage 2.

    def prior_config(self, **changes: Any) -> PriorConfig:
        """Training configuration of the preset's prior, with changed fields."""
        table = {**load_preset(self.config.prior, "prior"), "condition": "none"}
        config: PriorConfig = from_dict(PriorConfig, table)
        if self.config.prior_steps:
            changes.setdefault("steps", self.config.prior_steps)
        if self.config.prior_batch:
            changes.setdefault("batch_size", self.config.prior_batch)
        steps = changes.get("steps", config.steps)
        defaults = {
            "warmup_steps": min(config.warmup_steps, steps // 8),
            "eval_every": steps,
            "checkpoint_every": min(config.checkpoint_every, steps),
        }
        return replace(config, **{**defaults, **changes})

    def learning_rate(self, batch: int) -> float:
        """Learning rate of the preset, scaled in proportion to the batch as in the paper."""
        config: PriorConfig = from_dict(PriorConfig, load_preset(self.config.prior, "prior"))
        return config.learning_rate * batch / config.batch_size

    def sampling(self, **changes: Any) -> SampleConfig:
        """Sampling configuration of the preset, with changed fields."""
        config: SampleConfig = from_dict(SampleConfig, load_preset(self.config.prior, "sample"))
        return replace(config, **changes)

    def evaluation(self) -> EvaluatePriorConfig:
        """Evaluation configuration of the preset."""
        config = self.config
        return EvaluatePriorConfig(
            n=config.n, reference_limit=config.n, reader_steps=config.reader_steps, features=config.features,
            inception=config.inception,
        )  # fmt: skip
