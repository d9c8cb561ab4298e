"""The paper's experiments: `imagepriors experiment NAME --preset small|cifar10|paper`, and `make figures`."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import tyro

from codeshards.format import ShardError
from codeshards.format.files import read_json
from imagepriors.api.defaults import run_folder
from imagepriors.experiments.config import ExperimentConfig
from imagepriors.presets import read_preset
from runkit.configs import from_dict
from runkit.folders import check_apart, publish_file
from runkit.names import plain_name

EXPERIMENTS = {
    "orders": "five priors that differ in the order only (Fig. 2)",
    "efficiency": "codes against pixels (section 2)",
    "scales": "multiscale priors with the first scales fixed (Fig. 3, 7)",
    "conditional": "classes, masks, depth and poses to pictures (section 4)",
    "completion": "half a picture given, in each order",
    "evaluation": "likelihood, Fréchet distance, precision, recall",
}


def load(preset: str) -> ExperimentConfig:
    """A preset by name, or from a TOML file of your own.

    Raises:
        ShardError: there is none.
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
    """Run experiments of the paper, or go on with them, and write one page about all of a run folder.

    Args:
        names: orders, efficiency, scales, conditional, completion, evaluation; or all.
        preset: small (demo scenes, minutes on two cores), cifar10, paper (GPUs), or a TOML file.
        data: Folder in which the dataset is; default: data/ and the preset's dataset.
        dataset: Layout of the data; default: the preset's, or with --data the one that is recognised.
        run: Run folder; tokenizers are found and left there; default: runs/NAME, where NAME is the name of the data's
            folder.
        seeds: Seeds of every order, in place of the preset's.
        n: Samples, in place of the preset's.
        prior_steps: Steps of every prior, in place of the preset's; of the one over pixels where there is one.
        prior_batch: Its batch.
        tokenizer_steps: Steps of every tokenizer.
        tokenizer_batch: Its batch.
        perceptual: Perceptual loss of the image tokenizers, where LPIPS's weights are not at hand.
        features: Features of Fréchet distances, in place of the preset's; inception gives FID.
        inception: Path of Inception's weights (torch-fidelity's); empty: its own cache or download.
        device: Where networks are trained; default: a GPU each if any node of the cluster has one now.
        workers: Workers of the tokenize job, 0: as many as fit.
    """
    wanted = tuple(EXPERIMENTS) if names == ("all",) else names
    unknown = [name for name in wanted if name not in EXPERIMENTS]
    if unknown or not wanted:
        raise ShardError(
            f"unknown experiment {(unknown or ['(none)'])[0]!r}: choose among {', '.join(EXPERIMENTS)}, all"
        )
    given: dict[str, Any] = {
        "seeds": seeds, "n": n, "prior_steps": prior_steps, "prior_batch": prior_batch,
        "tokenizer_steps": tokenizer_steps, "tokenizer_batch": tokenizer_batch, "workers": workers,
        "pixel_steps": prior_steps, "perceptual": perceptual, "features": features, "inception": inception,
        "device": device,
    }  # fmt: skip
    config = replace(load(preset), **{name: value for name, value in given.items() if value})
    source = data or Path("data") / config.dataset
    place = run or run_folder(source)
    from imagepriors.cluster import PACKAGES
    from imagepriors.evaluate.prior import check_features
    from imagepriors.experiments.lab import Lab
    from runkit.ray_session import connected
    from vqgan.data import AUTO, open_splits, resolve, sources_of

    config = replace(config, dataset=resolve(dataset or (AUTO if data else config.dataset), source))
    check_apart(place, data=sources_of(open_splits(config.dataset, source), source))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in wanted}
    lab = Lab(config, place, source)
    if {"efficiency", "evaluation"} & {*wanted}:
        check_features(lab.measures())  # whose weights may be missing: before days of training
    with connected(max(config.threads, config.workers * lab.tokenize_config().threads), PACKAGES):
        # All priors of all experiments in one pool: none waits for another experiment's last.
        lab.prepare({kind for module in modules.values() for kind in module.shards(lab)})
        lab.train({folder: how for module in modules.values() for folder, how in module.priors(lab).items()})
        for module in modules.values():
            lab.draw(module.run)
    texts = [f"{name}: {_results(place / 'experiments' / name)['text']}" for name in wanted]
    return "\n".join([*texts, f"open {write_page(place)}"])


def _results(folder: Path) -> dict[str, Any]:
    return read_json(folder / "results.json")


def write_page(run: Path) -> Path:
    """Write RUN/experiments/index.html about every experiment that has results there."""
    from imagepriors.reports.run import render_page

    home = run / "experiments"
    sections, facts = [], []
    for name, what in EXPERIMENTS.items():
        if not (home / name / "results.json").is_file():
            continue
        found = _results(home / name)
        names = [plain_name(f"{picture}.png", home / name / "results.json") for picture in found["pictures"]]
        files = {picture: (home / name / picture).read_bytes() for picture in names}
        sections.append({"title": f"{found['title']}: {what}", "text": found["text"], "files": files})
        facts.append((name, f"preset {found['preset']}, dataset {found['dataset']}"))
    page = render_page(f"imagepriors: the paper's experiments on {run.name}", facts, sections)
    publish_file(home / "index.html", page, "experiment")
    return home / "index.html"
