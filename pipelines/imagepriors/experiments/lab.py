"""What the experiments share: tokenizers, shards and priors, each made once and found again by the next call.

RUN/tokenizer, RUN/tokenizer-segmentation, …   as `make` leaves them
RUN/experiments/shards, …                      one set of shards with all conditions, others of small pictures
RUN/experiments/NAME/                          priors, results.json, figures of one experiment
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from codeprior.checkpoint import CONFIG, RunConfig, load_summary
from codeprior.config import SampleConfig
from codeprior.config import TrainConfig as PriorConfig
from codeprior.data import sequence_from_dataset
from codeprior.train import train_prior
from codeshards.config import TokenizeConfig
from codeshards.format import ShardDataset, ShardError, load_plan
from codeshards.format.plan import PLAN_FILE
from codeshards.job.tokenize import tokenize
from imagepriors.cluster import PACKAGES
from imagepriors.decode.samples import load_shard_tokenizer
from imagepriors.evaluate.config import EvaluatePriorConfig
from imagepriors.experiments.config import ExperimentConfig, ShardKind
from imagepriors.presets import load_preset
from imagepriors.reports.figures import png_bytes
from imagepriors.reports.run import curve
from runkit.configs import from_dict
from runkit.errors import user_message
from runkit.files import pretty_json
from runkit.folders import publish
from runkit.jsonfiles import finite_or_none
from runkit.machine import usable_cores
from runkit.progress import tqdm
from runkit.ray_session import connected
from vqgan.checkpoint import FREE_ON_RESUME, load_config
from vqgan.config import Geometry, TrainConfig, dataset_geometry
from vqgan.data import open_splits
from vqgan.errors import InputError
from vqgan.palette import fit_palette
from vqgan.tokenizer import Tokenizer
from vqgan.train import train_tokenizer

log = logging.getLogger(__name__)

Plan = dict[Path, tuple[PriorConfig, Path]]
"""Run folder of a prior → how it is trained, and on which shards."""
Training = Callable[[Literal["cpu", "cuda"]], Any]
"""What trains a network on the device that it gets."""
_POLL_S = 2.0
"""Seconds between two looks whether Ray is alive."""


class Lab:
    """One preset of experiments on one dataset, in one run folder."""

    def __init__(self, config: ExperimentConfig, run: Path, data: Path) -> None:
        # Workers on Ray have working folders of their own.
        self.config, self.run, self.data = config, run.resolve(), data.resolve()
        self.home = self.run / "experiments"

    @property
    def geometry(self) -> Geometry:
        """How pictures become square: in one way for image and conditions, the one that suits the dataset."""
        return dataset_geometry(self.config.dataset)

    def out(self, name: str) -> Path:
        """The folder of an experiment."""
        folder = self.home / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def device(self) -> Literal["cpu", "cuda"]:
        """Where networks are trained and used, and codes made: GPUs, if any node of the Ray cluster has one.

        Raises:
            InputError: a GPU is asked for, and there is none and no cluster that could bring one.
        """
        with connected(1, PACKAGES) as session:
            found = any(node["Resources"].get("GPU") for node in session.nodes())
        if self.config.device == "cuda" and not found and session.is_local:
            raise InputError(
                "device = 'cuda': Ray finds no GPU on this machine; name a cluster in RAY_ADDRESS, or use cpu"
            )
        wanted: Literal["cpu", "cuda"] = "cuda" if found else "cpu"
        return wanted if self.config.device == "auto" else self.config.device

    def tokenize_config(self, kind: ShardKind = "shards") -> TokenizeConfig:
        """How shards of a kind are made."""
        config: TokenizeConfig = from_dict(TokenizeConfig, load_preset(self.config.tokenizer, "tokenize"))
        scales: Any = self.config.scales if kind == self.config.scales_of else ()
        return replace(config, scales=scales, workers=self.config.workers)

    def draw(self, run: Callable[[Lab], None]) -> None:
        """Let an experiment draw and measure: here, or where the networks are on GPUs on one of the cluster's."""
        if self.device() == "cpu":
            run(self)
        else:
            side_by_side({"samples": lambda _: run(self)}, "draw", device="cuda", threads=1)

    # Stage 1 and the shards.

    def conditions(self) -> tuple[str, ...]:
        """Picture conditions of the preset that the dataset has."""
        have = open_splits(self.config.dataset, self.data)["train"].conditions
        return tuple(name for name in self.config.conditions if name in have)

    def shards(self, kind: ShardKind = "shards") -> Path:
        """Where shards lie that :meth:`prepare` makes."""
        return self.home / kind

    def prepare(self, kinds: Collection[ShardKind]) -> None:
        """Train the tokenizers that these shards want, side by side, and encode the dataset.

        Raises:
            InputError: a tokenizer that was trained otherwise is there.
        """
        wanted = {kind: self._tokenizers(kind) for kind in sorted(kinds)}
        presets = {folder: preset for parts in wanted.values() for folder, preset in parts.values()}
        # The longest first, so that none is left for the end.
        steps = {folder: self._tokenizer_config(preset).steps if preset else 0 for folder, preset in presets.items()}
        folders = sorted(presets, key=lambda folder: -steps[folder])
        found = {folder.name: self._training(folder, presets[folder]) for folder in folders}
        tasks = {name: task for name, task in found.items() if task}
        networks = sum(bool(preset) for folder, preset in presets.items() if folder.name in tasks)
        threads = max(self.config.threads, usable_cores() // max(1, networks))
        device = self.device()
        side_by_side(tasks, "train tokenizers", device=device, threads=threads)
        for kind, parts in wanted.items():
            out, config = self.shards(kind), replace(self.tokenize_config(kind), device=device)
            if (out / PLAN_FILE).exists():  # begun, perhaps where there were GPUs; their codes are not all a CPU's
                config = replace(config, device=load_plan(out).settings["device"])
            made_by = {name: folder for name, (folder, _) in parts.items()}
            tokenize(config, dataset=self.config.dataset, data=self.data, tokenizers=made_by, out=out)

    def _tokenizers(self, kind: ShardKind) -> dict[str, tuple[Path, str]]:
        """What is encoded → its tokenizer's folder and preset; a palette has none."""
        if kind == "shards-palette":
            return {"image": (self.home / "palette", "")}
        if kind == "shards-codes":
            return {"image": (self.run / "tokenizer-f2", self.config.small_tokenizer)}
        conditions = {
            name: (self.run / f"tokenizer-{name}", self.config.conditions[name]) for name in self.conditions()
        }
        return {"image": (self.run / "tokenizer", self.config.tokenizer), **conditions}

    def _training(self, folder: Path, preset: str) -> Training | None:
        """What trains a tokenizer in its folder; None where a finished one is there."""
        dataset, data = self.config.dataset, self.data
        if not preset:
            if (folder / "config.json").exists():
                return None
            return lambda _: fit_palette(
                open_splits(dataset, data)["train"],
                folder,
                colours=512,
                resolution=32,
                geometry=self.geometry,
                images=2000,
                seed=0,
            )
        config = self._tokenizer_config(preset)
        if not (folder / "summary.json").exists():
            return lambda device: train_tokenizer(replace(config, device=device), open_splits(dataset, data), folder)
        found = load_config(folder)
        for part in (field.name for field in fields(config) if field.name not in FREE_ON_RESUME - {"steps"}):
            if getattr(found, part) != getattr(config, part):
                raise InputError(
                    f"{folder} was trained with {part} = {getattr(found, part)}, the experiment asks for "
                    f"{getattr(config, part)}: pass another --run, or its settings"
                )
        return None

    def _tokenizer_config(self, preset: str) -> TrainConfig:
        config: TrainConfig = from_dict(TrainConfig, load_preset(preset, "vqgan"))
        changes: dict[str, Any] = {"model": replace(config.model, geometry=self.geometry)}
        if self.config.tokenizer_steps:
            changes |= {"steps": self.config.tokenizer_steps, "warmup_steps": min(config.warmup_steps, 10)}
        if self.config.tokenizer_batch:
            changes["batch_size"] = self.config.tokenizer_batch
        if self.config.perceptual and config.loss.perceptual != "none":
            changes["loss"] = replace(config.loss, perceptual=self.config.perceptual)
        return replace(config, **changes)

    def decoder(self, kind: ShardKind = "shards") -> Tokenizer:
        """The image tokenizer beside shards."""
        fingerprint = ShardDataset.open(self.shards(kind)).spec.image.fingerprint
        return load_shard_tokenizer(self.shards(kind), "tokenizer", fingerprint)

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
        defaults = {
            "warmup_steps": min(config.warmup_steps, steps // 8),
            "eval_every": steps,
            "checkpoint_every": min(config.checkpoint_every, steps),
        }
        return replace(config, **{**defaults, **changes})

    def learning_rate(self, batch: int) -> float:
        """The preset's for its batch, in proportion for another, as the paper has it."""
        config: PriorConfig = from_dict(PriorConfig, load_preset(self.config.prior, "prior"))
        return config.learning_rate * batch / config.batch_size

    def train(self, plan: Plan) -> None:
        """Train priors side by side on Ray; none that is finished runs again.

        Raises:
            ShardError: a run failed, or its folder holds another run, or one of another length.
        """
        left: dict[str, Training] = {}
        # The longest first, so that none is left for the end.
        for folder, (config, shards) in sorted(plan.items(), key=lambda item: -_tokens(*item[1])):
            if load_summary(folder) is None:
                left[f"{folder.parent.name}/{folder.name}"] = _prior_training(config, shards, folder)
                continue
            found = RunConfig.load(folder / CONFIG).train
            for what in ("steps", "eval_every"):  # which a run may change as it goes on, but these are compared
                if getattr(found, what) != getattr(config, what):
                    raise ShardError(
                        f"{folder} was trained with {what} = {getattr(found, what)}, {getattr(config, what)} is asked "
                        "for: pass another --run, or remove it"
                    )
            train_prior(config, shards, folder)  # finished: makes sure that it is this run
        side_by_side(left, "train priors", device=self.device(), threads=self.config.threads)

    def sampling(self, **changes: Any) -> SampleConfig:
        """The preset's way to draw samples."""
        config: SampleConfig = from_dict(SampleConfig, load_preset(self.config.prior, "sample"))
        return replace(config, **changes)

    def measures(self) -> EvaluatePriorConfig:
        """The preset's way to measure samples."""
        config = self.config
        return EvaluatePriorConfig(
            n=config.n, reference_limit=config.n, reader_steps=config.reader_steps, features=config.features,
            inception=config.inception,
        )  # fmt: skip

    # What is kept.

    def save(
        self,
        name: str,
        text: str,
        results: Mapping[str, Any],
        pictures: Mapping[Any, Figure | Image.Image],
    ) -> None:
        """Write an experiment's results.json and PNGs; the page of all experiments is made of them."""
        facts = {"preset": self.config.name, "dataset": self.config.dataset}
        report = {"title": name.capitalize(), "text": text, **facts, "pictures": list(pictures), **results}
        files = {f"{picture}.png": png_bytes(content) for picture, content in pictures.items()}
        files["results.json"] = pretty_json(finite_or_none(report))
        publish(self.out(name), files, "experiment", last="results.json")


def _tokens(config: PriorConfig, shards: Path) -> int:
    """Tokens that a prior reads in all its training."""
    sequence = sequence_from_dataset(
        ShardDataset.open(shards), config.order, config.condition, scales=config.multiscale
    )
    return config.steps * config.batch_size * (sequence.condition_length + sequence.length)


def _prior_training(config: PriorConfig, shards: Path, out: Path) -> Training:
    return lambda device: train_prior(replace(config, device=device), shards, out)


def side_by_side(tasks: Mapping[str, Training], what: str, *, device: Literal["cpu", "cuda"], threads: int) -> None:
    """Run trainings on Ray, on a GPU or on `threads` cores each.

    Args:
        tasks: By name, in the sequence in which they start.
        what: Name of the progress bar.
        device: What each is given.
        threads: Cores of a training without a GPU.

    Raises:
        ShardError: a training refused its input, or ran out of memory.
    """

    def work(task: Training) -> None:
        import torch

        if device == "cpu":
            torch.set_num_threads(threads)
        task(device)

    if not tasks:
        return
    with connected(threads, PACKAGES) as session:
        ray, nodes = session.ray, session.nodes()
        # This machine may have more cores than the nodes that work.
        threads = min(threads, max([1, *(int(node["Resources"].get("CPU", 0)) for node in nodes)]))
        size = {"num_gpus": 1} if device == "cuda" else {"num_cpus": threads}
        kind, need = ("GPU", 1) if device == "cuda" else ("CPU", threads)
        if session.is_local and not any(node["Resources"].get(kind, 0) >= need for node in nodes):
            raise ShardError(f"{what}: this machine has no {need} {kind} for Ray: choose another device")
        if ray.available_resources().get(kind, 0) < need:
            log.warning("%s: no node has %d %s free, waiting for one", what, need, kind)
        remote = ray.remote(max_retries=2, **size)(work)
        waiting = {remote.remote(task): name for name, task in tasks.items()}
        with tqdm(total=len(waiting), desc=what, disable=None) as bar:
            while waiting:
                session.nodes()  # raises where Ray has died, which no task would say
                for done in ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)[0]:
                    _take(ray, done, waiting.pop(done))
                    bar.update()


def _take(ray: Any, done: Any, name: str) -> None:
    """Raise what went wrong in a training."""
    try:
        ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if (message := user_message(error.cause)) is not None:
            raise ShardError(f"{name}: {message}") from error
        raise
    except ray.exceptions.RayError as error:
        raise ShardError(
            f"{name}: its process died, perhaps because memory was short; the same command resumes ({error})"
        ) from error


def val_curve(folder: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Steps and validation losses in nats per code of a run."""
    steps, losses = curve(folder, "val_nll_nats")
    return np.array(steps), np.array(losses)
