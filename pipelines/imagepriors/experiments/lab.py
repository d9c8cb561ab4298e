"""What the experiments share: tokenizers, shards and priors, each made once and found again by the next call.

RUN/tokenizer, RUN/tokenizer-segmentation, …   as `make` leaves them
RUN/experiments/shards                         one set of shards with all conditions and scales
RUN/experiments/NAME/                          priors, results.json, figures of one experiment
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from codeprior.checkpoint import load_summary
from codeprior.config import SampleConfig
from codeprior.config import TrainConfig as PriorConfig
from codeprior.train import train_prior
from codeshards.config import TokenizeConfig
from codeshards.format import ShardDataset, ShardError, atomic_write, atomic_write_json
from codeshards.job import tokenize
from codeshards.pool import connected
from imagepriors.config import ExperimentConfig
from imagepriors.decode import load_shard_tokenizer
from imagepriors.figures import png_bytes
from imagepriors.presets import load_preset
from vqgan.checkpoint import load_config
from vqgan.config import TrainConfig, from_dict
from vqgan.datasets import open_splits
from vqgan.errors import InputError
from vqgan.palette import fit_palette
from vqgan.tokenizer import Tokenizer
from vqgan.train import train

log = logging.getLogger(__name__)


class Lab:
    """One preset of experiments on one dataset, in one run folder."""

    def __init__(self, config: ExperimentConfig, run: Path, data: Path, name: str) -> None:
        self.config, self.run, self.data, self.name = config, run, data, name
        self.shared = run / "experiments"
        self.out = self.shared / name
        self.out.mkdir(parents=True, exist_ok=True)

    # Stage 1 and the shards.

    def tokenizer(self, name: str, preset: str) -> Path:
        """The folder of a trained tokenizer, RUN/`name`; trained now unless it is there.

        Raises:
            InputError: one that was trained otherwise is there.
        """
        folder = self.run / name
        table = load_preset(preset, "vqgan")
        config: TrainConfig = from_dict(TrainConfig, table)
        if self.config.tokenizer_steps:
            config = replace(
                config, steps=self.config.tokenizer_steps, warmup_steps=min(config.warmup_steps, 10),
                batch_size=self.config.tokenizer_batch or config.batch_size,
            )  # fmt: skip
        if self.config.perceptual and config.loss.perceptual != "none":
            config = replace(config, loss=replace(config.loss, perceptual=self.config.perceptual))
        if (folder / "summary.json").exists():
            found = load_config(folder)
            for part in ("steps", "batch_size", "model", "loss"):
                if getattr(found, part) != getattr(config, part):
                    raise InputError(
                        f"{folder} was trained with {part} = {getattr(found, part)}, the experiment asks for "
                        f"{getattr(config, part)}: pass another --run, or its settings"
                    )
        else:
            train(config, open_splits(self.config.dataset, self.data), folder)
        return folder

    def conditions(self) -> tuple[str, ...]:
        """Picture conditions of the preset that the dataset has."""
        have = open_splits(self.config.dataset, self.data)["train"].conditions
        return tuple(name for name in self.config.conditions if name in have)

    def shards(self) -> Path:
        """Shards of the dataset with all its conditions and scales."""
        tokenizers = {"image": self.tokenizer("tokenizer", self.config.tokenizer)}
        for name in self.conditions():
            tokenizers[name] = self.tokenizer(f"tokenizer-{name}", self.config.conditions[name])
        return self._tokenize(tokenizers, self.shared / "shards", self.config.scales)

    def palette_shards(self) -> Path:
        """Shards of palette indices: the paper's pixels."""
        folder = self.out / "palette"
        if not (folder / "config.json").exists():
            split = open_splits(self.config.dataset, self.data)["train"]
            fit_palette(split, folder, colours=512, resolution=32, images=2000, seed=0)
        return self._tokenize({"image": folder}, self.out / "shards-palette", ())

    def code_shards(self) -> Path:
        """Shards of the same pictures' codes, a quarter as many."""
        folder = self.tokenizer("tokenizer-f2", self.config.small_tokenizer)
        return self._tokenize({"image": folder}, self.out / "shards-codes", ())

    def _tokenize(self, tokenizers: Mapping[str, Path], out: Path, scales: tuple[Any, ...]) -> Path:
        config: TokenizeConfig = from_dict(TokenizeConfig, load_preset(self.config.tokenizer, "tokenize"))
        config = replace(config, scales=scales, workers=self.config.workers)
        tokenize(config, dataset=self.config.dataset, data=self.data, tokenizers=tokenizers, out=out)
        return out

    def decoder(self, shards: Path) -> Tokenizer:
        """The image tokenizer beside shards."""
        fingerprint = ShardDataset.open(shards).spec.image.fingerprint
        return load_shard_tokenizer(shards, "tokenizer", fingerprint)

    # Stage 2.

    def prior(self, **changes: Any) -> PriorConfig:
        """The preset's prior with these fields changed."""
        table = {**load_preset(self.config.prior, "prior"), "condition": "none"}
        config: PriorConfig = from_dict(PriorConfig, table)
        if self.config.prior_steps:
            changes.setdefault("steps", self.config.prior_steps)
        if self.config.prior_batch:
            changes.setdefault("batch_size", self.config.prior_batch)
        steps = changes.get("steps", config.steps)
        every = max(1, steps // self.config.evaluations)
        changes = {"warmup_steps": min(config.warmup_steps, steps // 8), **changes}
        return replace(config, eval_every=every, checkpoint_every=steps, **changes)

    def train(self, configs: Mapping[str, PriorConfig], shards: Path | Mapping[str, Path]) -> dict[str, Path]:
        """Train priors side by side on Ray, on the same shards or each on its own; none that is finished runs again.

        Raises:
            ShardError: a run failed, or its folder holds another run, or one of another length.
        """
        folders = {name: self.out / name for name in configs}
        sources = dict.fromkeys(configs, shards) if isinstance(shards, Path) else shards
        left = {}
        for name, config in configs.items():
            summary = load_summary(folders[name])
            if summary is None:
                left[name] = config
            elif summary["steps"] == config.steps:
                train_prior(config, sources[name], folders[name])  # finished: makes sure that it is this run
            else:  # going on with a schedule that was over is not a longer run
                raise ShardError(
                    f"{folders[name]} was trained for {summary['steps']} steps, {config.steps} are asked for: pass "
                    "another --run, or remove it"
                )
        if left:
            _train_on_ray(left, sources, folders, self.config.threads)
        return folders

    def sampling(self, **changes: Any) -> SampleConfig:
        """The preset's way to draw samples."""
        config: SampleConfig = from_dict(SampleConfig, load_preset(self.config.prior, "sample"))
        return replace(config, **changes)

    # What is kept.

    def save(
        self, title: str, text: str, results: Mapping[str, Any], pictures: Mapping[Any, Figure | Image.Image]
    ) -> None:
        """Write the experiment's results.json and PNGs; the page of all experiments is made of them."""
        for name, picture in pictures.items():
            with atomic_write(self.out / f"{name}.png") as file:
                file.write(png_bytes(picture))
        facts = {"preset": self.config.name, "dataset": self.config.dataset}
        report = {"title": title, "text": text, **facts, "pictures": list(pictures), **results}
        atomic_write_json(self.out / "results.json", report)


def _train_on_ray(
    configs: Mapping[str, PriorConfig], shards: Mapping[str, Path], folders: Mapping[str, Path], threads: int
) -> None:
    from codeprior.optim import resolve_device

    device = resolve_device("auto")

    def work(config: PriorConfig, shards: Path, out: Path) -> None:
        import torch

        torch.set_num_threads(threads)
        train_prior(config, shards, out)

    with connected(threads) as ray:
        size = {"num_gpus": 1} if device.type == "cuda" else {"num_cpus": threads}
        remote = ray.remote(max_retries=2, **size)(work)
        waiting = {
            remote.remote(config, shards[name].resolve(), folders[name].resolve()): name
            for name, config in configs.items()
        }
        with tqdm(total=len(waiting), desc="train priors", disable=None) as bar:
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                name = waiting.pop(done)
                try:
                    ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, (ShardError, InputError)):
                        raise ShardError(f"prior {name}: {error.cause}") from error
                    raise
                bar.update()


def val_curve(folder: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Steps and validation losses in nats per code of a run."""
    import json

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    points = [(line["step"], line["val_nll_nats"]) for line in lines if "val_nll_nats" in line]
    return np.array([step for step, _ in points]), np.array([nll for _, nll in points])
