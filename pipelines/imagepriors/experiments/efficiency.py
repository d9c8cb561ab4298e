"""Codes against pixels (the paper's section 2): the same transformer on 32×32 palette indices and on 16×16 codes.

Both are trained for the same number of floating-point operations, at a learning rate in proportion to the batch, as in
the paper. Sampling and decoding of single pictures is timed without a cache, as in taming-transformers, and with one.
Distances are to the training pictures.
"""

import functools
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codeprior.checkpoint import CONFIG, RunConfig, load_prior, load_summary
from codeprior.data import sequence_from_dataset
from codeprior.draw import draw, sample_keys
from codeprior.model import Prior
from codeprior.sample import sample_sequences, to_grids
from codeprior.sample_config import SampleConfig
from codeprior.speed import step_flops_per_sequence
from codeshards.format import ShardDataset
from imagepriors.decode.draw import draw_samples
from imagepriors.evaluate.distances import Judge
from imagepriors.evaluate.networks import load_network, network_notes
from imagepriors.evaluate.pictures import HeldPictures
from imagepriors.evaluate.prior import training_loss
from imagepriors.evaluate.reference import dataset_reference
from imagepriors.experiments.config import ShardKind
from imagepriors.experiments.quality import seconds_in_turn
from imagepriors.experiments.workspace import PriorRuns, Workspace
from imagepriors.reports.figures import bars_figure, picture_grid
from runkit.devices import pick_device

PAPER = {"sampling": 14.08, "frechet_lower_by": 0.1863}
"""With codes, sampling is 14.08× as fast and FID is 18.63% lower (section 2)."""
PAPER_RATE = 4.5e-6
"""Learning rate per sequence of the batch: 12 · 4.5e-6 for the paper's batch of 12."""
_KINDS: dict[str, ShardKind] = {"pixels": "shards-palette", "codes": "shards-codes"}
_BATCH = 16
"""Sequences per step if the preset does not set it; sequences of pixels are long."""
_ROUNDS = 2
"""Timed rounds, in which pixels and codes alternate; one untimed round precedes them."""
_SHOWN = 16


def shards(workspace: Workspace) -> tuple[ShardKind, ...]:
    """The shards of small pictures as palette indices and as codes."""
    return tuple(_KINDS.values())


def priors(workspace: Workspace) -> PriorRuns:
    """A prior over pixels, and a prior over codes with as many more steps as its sequences cost less."""
    flops = {name: _sequence_flops(workspace, workspace.shards(kind)) for name, kind in _KINDS.items()}
    batch = workspace.config.prior_batch or _BATCH
    pixel_steps = workspace.config.pixel_steps or workspace.prior_config().steps
    return {
        run_folder(workspace, name): (
            workspace.prior_config(
                batch_size=batch,
                steps=round(pixel_steps * flops["pixels"] / flops[name]),
                learning_rate=workspace.learning_rate(batch),
            ),
            workspace.shards(kind),
        )
        for name, kind in _KINDS.items()
    }


def run_folder(workspace: Workspace, name: str) -> Path:
    """Run folder of the prior over pixels or codes."""
    return workspace.out("efficiency") / name


def run(workspace: Workspace) -> None:
    """Measure time and quality of both priors."""
    measured = workspace.evaluation()
    reference = dataset_reference(
        workspace.config.dataset, workspace.data, 32, measured.n, measured, workspace.geometry
    )
    device = pick_device("auto")
    network = load_network(measured.features, measured.inception, device)
    assert network is not None  # the experiments' config has no features "none"
    judge = Judge(reference, network)
    seconds = seconds_per_picture({
        name: (load_prior(run_folder(workspace, name), device=device), workspace.decoder(kind).decode)
        for name, kind in _KINDS.items()
    })  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    pictures = []
    for name, kind in _KINDS.items():
        folder, config = run_folder(workspace, name), workspace.sampling(batch_size=64)
        samples = draw_samples(folder, workspace.shards(kind), workspace.config.n, config=config).pictures
        pictures.append(samples[:_SHOWN])
        found[name] = {
            **_training(folder), "seconds_per_picture": seconds[name], **judge.figures(HeldPictures(samples)),
        }  # fmt: skip
    ratios = {
        how: [a / b for a, b in zip(seconds["pixels"][how], seconds["codes"][how], strict=True)]
        for how in ("uncached", "cached")
    }
    fid = network.figures["pooled"]
    note = network_notes([fid], training_loss(ShardDataset.open(workspace.shards(_KINDS["codes"]))))[fid]
    text = (
        f"Same transformer, same training FLOPs of it. {describe_training(found)} The training of the codes' "
        "tokenizer is not counted. Sampling and decoding a picture without a cache is "
        f"{_ratio_text(ratios['uncached'])} as fast with codes (paper: {PAPER['sampling']}×), with a cache "
        f"{_ratio_text(ratios['cached'])}. "
        f"{_describe_distances(found, fid, note)} {workspace.config.n} samples against {reference.origin.pictures} "
        "training pictures. Samples: two rows of pixels, then two of codes."
    )
    grid = picture_grid(np.concatenate(pictures), _SHOWN // 2, scale=2)
    results = {"figures": found, "ratios": {**ratios, "frechet_lower_by": _lower_by(found, fid)}, "paper": PAPER}
    times = {name: {how: statistics.median(of_one) for how, of_one in seconds[name].items()} for name in _KINDS}
    bars = bars_figure(times, "seconds per picture", log=True)
    workspace.save("efficiency", text, results, {"seconds": bars, "samples": grid})


def _training(folder: Path) -> dict[str, Any]:
    """Training settings and final losses of a prior."""
    run, summary = RunConfig.load(folder / CONFIG), load_summary(folder) or {}
    train = run.train
    outcome = {name: summary[name] for name in ("epochs", "val_nll_nats", "unigram_entropy_nats")}
    return {
        "tokens": run.sequence.length, "steps": train.steps, "batch": train.batch_size,
        "learning_rate": train.learning_rate, **outcome,
    }  # fmt: skip


def describe_training(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the training of both priors, and whether it is too short for a comparison."""
    rows = "; ".join(
        f"{name}: {one['steps']} steps on sequences of {one['tokens']}, {one['epochs']:.2g} epochs, validation NLL "
        f"{one['val_nll_nats']:.2f} nats per token against the unigram's {one['unigram_entropy_nats']:.2f}"
        for name, one in found.items()
    )
    batch, rate = found["codes"]["batch"], found["codes"]["learning_rate"]
    few = [name for name, one in found.items() if one["epochs"] < 1]
    warning = (
        f" These are too few steps to say which of the two is better: {' and '.join(few)} saw less than the training "
        "set once."
        if few
        else ""
    )
    paper = f"the paper's is 4.5e-6 × batch, {PAPER_RATE * batch:.2g}"
    return f"{rows}. Batch {batch}, learning rate {rate:.2g} ({paper}).{warning}"


def _lower_by(found: dict[str, dict[str, Any]], fid: str) -> float:
    return float(1 - found["codes"][fid] / found["pixels"][fid])


def _describe_distances(found: dict[str, dict[str, Any]], fid: str, note: str) -> str:
    name = "FID" if fid == "fid" else "Fréchet distance (not FID)"
    real = found["codes"].get(f"{fid}, real")
    floor = "unknown, too few pictures" if real is None else f"{real:.1f}"
    return (
        f"{name}: {found['codes'][fid]:.1f} for codes and {found['pixels'][fid]:.1f} for pixels, "
        f"{_lower_by(found, fid):.1%} lower (paper, FID: {PAPER['frechet_lower_by']:.2%} lower); of as many other real "
        f"pictures: {floor}; {note}."
    )


def _ratio_text(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"


def _sequence_flops(workspace: Workspace, shards: Path) -> float:
    """Training FLOPs of one sequence."""
    sequence = sequence_from_dataset(ShardDataset.open(shards), "row_major", "none")
    return step_flops_per_sequence(Prior(workspace.prior_config().model, sequence))


def seconds_per_picture(
    networks: Mapping[str, tuple[Prior, Callable[[npt.NDArray[Any]], Any]]],
) -> dict[str, dict[str, list[float]]]:
    """Seconds to draw and decode a picture in each timed round: name → uncached and cached → times.

    Args:
        networks: Name → a prior, and a function that decodes its codes [N, h, w].
    """
    ways = {"uncached": sample_uncached, "cached": _sample_cached}

    def draw_one(name: str, how: str) -> None:
        prior, decode = networks[name]
        decode(to_grids(prior.sequence, ways[how](prior, 1))[-1].numpy())

    tasks = {(name, how): functools.partial(draw_one, name, how) for name in networks for how in ways}
    found = seconds_in_turn(tasks, _ROUNDS)
    return {name: {how: found[name, how] for how in ways} for name in networks}


def _sample_cached(prior: Prior, n: int) -> Tensor:
    return sample_sequences(prior, n, config=SampleConfig(batch_size=n))


@torch.inference_mode()
def sample_uncached(prior: Prior, n: int, config: SampleConfig | None = None) -> Tensor:
    """Draw sequences [n, T] of an unconditional prior; the whole prefix is processed again for each code."""
    config = config or SampleConfig()
    condition = torch.zeros((n, 1), dtype=torch.int64, device=prior.device)
    codes = torch.empty((n, 0), dtype=torch.int64, device=prior.device)
    keys = sample_keys(config.seed, 0, n).to(prior.device)
    for t in range(prior.sequence.length):
        logits = prior(condition, codes)[:, -1].float()
        t_1 = torch.full((1,), t, device=prior.device)
        drawn = draw(logits, config, keys, t_1, t / prior.sequence.length)
        codes = torch.cat((codes, drawn[:, None]), dim=1)
    return codes.cpu()
