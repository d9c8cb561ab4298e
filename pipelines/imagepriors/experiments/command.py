"""The command that runs experiments. Imports no torch, because the CLI builds its flags from the signature."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import tyro

from codeshards.format import ShardError
from imagepriors.experiments import EXPERIMENTS
from imagepriors.experiments.config import ExperimentConfig
from imagepriors.presets import read_preset
from runkit.configs import from_dict
from runkit.folders import check_apart
from runkit.suggestions import choose_one_of


def load_config(preset: str) -> ExperimentConfig:
    """Load a preset by its name or from a TOML file.

    Raises:
        ShardError: the preset does not exist.
    """
    table = {"name": Path(preset).stem, **read_preset(preset, __package__)}
    config: ExperimentConfig = from_dict(ExperimentConfig, table)
    return config


def experiment(
    names: tyro.conf.Positional[tuple[str, ...]],
    *,
    preset: str = "small",
    data: Path | None = None,
    dataset: str = "",
    run: Path | None = None,
    seeds: int = 0,
    n: int = 0,
    prior_steps: int = 0,
    prior_batch: int = 0,
    tokenizer_steps: int = 0,
    tokenizer_batch: int = 0,
    perceptual: Literal["", "none", "efficientnet-lite0", "lpips-vgg"] = "",
    features: Literal["", "inception", "efficientnet-lite0"] = "",
    inception: str = "",
    device: Literal["", "cpu", "cuda"] = "",
    workers: int = 0,
) -> str:
    """Run or resume experiments of the paper, and write one page about them.

    Args:
        names: orders, any-order, inpainting, efficiency, scales, conditional, evaluation; or all.
        preset: small (demo scenes, minutes on two cores), small-256 (the same scenes in 256 codes), cifar10, paper
            (GPUs), or a TOML file.
        data: Folder in which the dataset is; default: data/ and the preset's dataset.
        dataset: Layout of the data; default: the preset's, or with --data the one that is recognised.
        run: Run folder; existing tokenizers in it are used; default: runs/NAME, where NAME is the name of the data's
            folder.
        seeds: Seeds per order, in place of the preset's.
        n: Samples, in place of the preset's.
        prior_steps: Steps per prior, in place of the preset's; they also apply to the prior over pixels.
        prior_batch: Batch of each prior.
        tokenizer_steps: Steps per tokenizer.
        tokenizer_batch: Batch of each tokenizer.
        perceptual: Perceptual loss of the image tokenizers, where the weights of LPIPS are not available.
        features: Features of Fréchet distances, in place of the preset's; inception gives FID.
        inception: Path of the Inception weights (torch-fidelity's); empty: its own cache or download.
        device: Where networks are trained; default: a GPU each if any node of the cluster has one now.
        workers: Workers of the tokenize job; 0: as many as fit.

    Example:
        imagepriors experiment orders scales --preset small --seeds 3
    """
    selected = tuple(EXPERIMENTS) if names == ("all",) else names
    unknown = [name for name in selected if name not in EXPERIMENTS]
    if unknown or not selected:
        name = (unknown or ["(none)"])[0]
        raise ShardError(f"unknown experiment {name!r}: {choose_one_of(name, [*EXPERIMENTS, 'all'])}")
    changes: dict[str, Any] = {
        "seeds": seeds, "n": n, "prior_steps": prior_steps, "prior_batch": prior_batch, "pixel_steps": prior_steps,
        "tokenizer_steps": tokenizer_steps, "tokenizer_batch": tokenizer_batch, "workers": workers, "device": device,
        "perceptual": perceptual, "features": features, "inception": inception,
    }  # fmt: skip
    config = replace(load_config(preset), **{name: value for name, value in changes.items() if value})
    return _run(selected, config, data, dataset, run)


def _run(names: tuple[str, ...], config: ExperimentConfig, data: Path | None, dataset: str, run: Path | None) -> str:
    from imagepriors.api.defaults import run_folder
    from imagepriors.cluster import PACKAGES
    from imagepriors.evaluate.networks import check_features
    from imagepriors.experiments import training
    from imagepriors.experiments.page import read_results, write_page
    from imagepriors.experiments.workspace import Workspace
    from runkit.ray_session import connected
    from vqgan.data import AUTO, open_splits, resolve, sources_of

    source = data or Path("data") / config.dataset
    run = run or run_folder(source)
    config = replace(config, dataset=resolve(dataset or (AUTO if data else config.dataset), source))
    check_apart(run, data=sources_of(open_splits(config.dataset, source), source))
    modules = [importlib.import_module(f"{__package__}.{name.replace('-', '_')}") for name in names]
    workspace = Workspace(config, run, source)
    if {"efficiency", "evaluation", "any-order", "inpainting"} & {*names}:
        check_features(config.features, config.inception)  # missing weights are reported before days of training
    with connected(max(config.threads, config.workers * workspace.tokenize_config().threads), PACKAGES):
        # The priors of all experiments share one queue: no experiment waits for the last prior of another.
        training.prepare(workspace, {kind for module in modules for kind in module.shards(workspace)})
        runs = {folder: how for module in modules for folder, how in module.priors(workspace).items()}
        training.train_priors(workspace, runs)
        for module in modules:
            training.run_experiment(workspace, module.run)
    texts = [f"{name}: {read_results(run, name)['text']}" for name in names]
    return "\n".join([*texts, f"open {write_page(run)}"])
