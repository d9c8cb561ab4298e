"""A prior of any order beside priors of one order, and many codes per step.

All priors of a seed have the same shards, size, batches and number of steps. That of any order has in addition an
embedding of the code that a token predicts; in a single order the place of the token names it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from codeprior.checkpoint import CONFIG, RunConfig, load_prior
from codeprior.config import TrainConfig
from codeprior.data import CodeData
from codeprior.model import Prior
from codeprior.sample import prepare, sample_codes
from codeprior.sample_config import SampleConfig
from codeprior.train import evaluate
from codeshards.format import ORDER_NAMES, ShardDataset
from imagepriors.experiments import orders
from imagepriors.experiments.paired import Difference, Values, difference, intervals_figure, listed
from imagepriors.experiments.quality import Quality, seconds_in_turn
from imagepriors.experiments.workspace import PriorRuns, Workspace
from imagepriors.reports.figures import picture_grid
from runkit.devices import make_autocast, pick_device

_ONE_ORDER = "row_major"
"""The order of the prior that many codes per step are compared with."""
_CODES_PER_STEP = (32, 16, 8, 4, 2, 1)
_CHOICE = 8
"""Codes per step with which the ways to choose them are compared."""
_ROUNDS = 15
_SHOWN = 8
_EVALUATED = 32
"""Sequences per batch while the likelihood is computed."""
shards = orders.shards


def priors(workspace: Workspace) -> PriorRuns:
    """The priors of `orders`, and those of any order."""
    return orders.priors(workspace) | any_order_priors(workspace)


def any_order_priors(workspace: Workspace) -> PriorRuns:
    """A prior of any order per seed."""
    config: TrainConfig = workspace.prior_config(order=_ONE_ORDER, objective="any_order", **_known_targets(workspace))
    seeds = range(workspace.config.seeds)
    return {run_folder(workspace, seed): (replace(config, seed=seed), workspace.shards()) for seed in seeds}


def _known_targets(workspace: Workspace) -> dict[str, Any]:
    """The model of the preset, whose tokens know which code they predict."""
    model = workspace.prior_config().model
    return {"model": replace(model, target_positions=model.position != "grid")}


def run_folder(workspace: Workspace, seed: int) -> Path:
    """Run folder of a prior of any order."""
    return workspace.out("any-order") / f"seed{seed}"


def run(workspace: Workspace) -> None:
    """Measure likelihood in each order, and quality and time by the number of steps."""
    likelihoods: dict[str, tuple[Values, Values]] = {name: _likelihoods(workspace, name) for name in ORDER_NAMES}
    behind = {name: difference(any_S, one_S, len(likelihoods)) for name, (any_S, one_S) in likelihoods.items()}
    codes = RunConfig.load(run_folder(workspace, 0) / CONFIG).sequence.length
    ways = drawing_ways(workspace.sampling(batch_size=64), codes)
    quality = Quality(workspace)
    distances, tiles = _draw(workspace, ways, quality)
    seconds = _seconds(workspace, {name: ways[name] for name in ways if "," not in name})
    text = (
        f"{describe_likelihoods(likelihoods, behind)} Drawing {codes} codes per picture; {quality.name} of "
        f"{workspace.config.n} samples to decoded training pictures ({quality.note}; of decoded validation pictures: "
        f"{'unknown, too few' if quality.floor is None else f'{quality.floor:.1f}'}), and seconds to draw and decode "
        f"one picture: {describe_steps(distances, seconds)} {describe_choices(distances)} Pictures: difference of NLL "
        "by order; distance and seconds by steps; difference of distance by choice; samples, one row per way: "
        f"{'; '.join(ways)}."
    )
    results = {
        "val_nll_nats": {
            name: {"any_order": any_S.tolist(), "one_order": one_S.tolist(), "difference": asdict(behind[name])}
            for name, (any_S, one_S) in likelihoods.items()
        },
        "distance": {name: found.tolist() for name, found in distances.items()}, "floor": quality.floor,
        "seconds_per_picture": seconds, "codes": codes,
    }  # fmt: skip
    pictures: dict[str, Any] = {
        "likelihood": intervals_figure(behind, "any order - that order alone: validation NLL, nats per code"),
        "steps": steps_figure(distances, seconds, quality),
        "choices": intervals_figure(_choices(distances), f"difference of {quality.name}"),
        "samples": picture_grid(tiles, _SHOWN, scale=max(1, 64 // tiles.shape[1])),
    }
    workspace.save("any-order", text, results, pictures)


def _likelihoods(workspace: Workspace, order_name: Any) -> tuple[Values, Values]:
    """Validation NLL of the priors of any order, read in an order, and of those trained on it, in nats per code."""
    dataset, device = ShardDataset.open(workspace.shards()), pick_device("auto")
    found: list[list[float]] = [[], []]
    for seed in range(workspace.config.seeds):
        folders = (run_folder(workspace, seed), orders.run_folder(workspace, order_name, seed))
        for folder, order, values in zip(folders, (order_name, None), found, strict=True):
            prior = load_prior(folder, device=device)
            data = CodeData.open(dataset, "val", prior.sequence)
            autocast = make_autocast(device, "float32")
            values.append(float(evaluate(prior, data, batch_size=_EVALUATED, autocast=autocast, order=order).mean()))
    return np.array(found[0]), np.array(found[1])


def drawing_ways(config: SampleConfig, codes: int) -> dict[str, SampleConfig]:
    """Ways to draw pictures, by name: the first with the prior of one order, the others with that of any order."""
    some = max(1, codes // _CHOICE)
    by_steps = {f"{steps} steps": replace(config, steps=steps) for steps in _steps(codes)}
    by_steps[f"{some} steps"] = default = replace(config, steps=some)
    choices: dict[str, dict[str, Any]] = {
        "constant schedule": {"schedule": "constant"},
        "subsample": {"order": "subsample"},
        "confidence": {"order": "confidence", "choice_temperature": 0.0},
        "confidence with noise 4.5": {"order": "confidence", "choice_temperature": 4.5},
    }
    return {
        _ONE_ORDER: config,
        **by_steps,
        **{f"{some} steps, {name}": replace(default, **fields) for name, fields in choices.items()},
    }


def _steps(codes: int) -> list[int]:
    return [codes // share for share in _CODES_PER_STEP if codes // share >= 4]


def _draw(workspace: Workspace, ways: Mapping[str, SampleConfig], quality: Quality) -> tuple[dict[str, Values], Any]:
    """Distance of the samples of each way and seed, and some samples of each way."""
    decoder, device = workspace.decoder(), pick_device("auto")
    distances: dict[str, list[float]] = {name: [] for name in ways}
    tiles = []
    for seed in range(workspace.config.seeds):
        one_order = load_prior(orders.run_folder(workspace, _ONE_ORDER, seed), device=device)
        any_order = load_prior(run_folder(workspace, seed), device=device)
        for name, config in ways.items():
            prior = one_order if name == _ONE_ORDER else any_order
            drawn = sample_codes(prior, workspace.config.n, config=replace(config, seed=seed))
            pictures = decoder.decode(drawn.numpy())
            distances[name].append(quality.distance(pictures))
            tiles += [pictures[:_SHOWN]] if seed == 0 else []
    return {name: np.array(values) for name, values in distances.items()}, np.concatenate(tiles)


def _seconds(workspace: Workspace, ways: Mapping[str, SampleConfig]) -> dict[str, list[float]]:
    """Seconds to draw and decode one picture in each way, with weights that are prepared once for all pictures."""
    decoder, device = workspace.decoder(), pick_device("auto")
    one_order, any_order = (
        prepare(load_prior(folder, device=device), ways[_ONE_ORDER])
        for folder in (orders.run_folder(workspace, _ONE_ORDER, 0), run_folder(workspace, 0))
    )

    def task(prior: Prior, config: SampleConfig) -> Any:
        return lambda: decoder.decode(sample_codes(prior, 1, config=config).numpy())

    tasks = {name: task(one_order if name == _ONE_ORDER else any_order, config) for name, config in ways.items()}
    return seconds_in_turn(tasks, _ROUNDS)


def describe_likelihoods(likelihoods: Mapping[str, tuple[Values, Values]], behind: Mapping[str, Difference]) -> str:
    """Describe the loss in each order beside that of a prior of this order alone."""
    seeds = len(next(iter(likelihoods.values()))[0])
    rows = "; ".join(
        f"{name} {any_S.mean():.3f} and {one_S.mean():.3f}, {behind[name]}"
        for name, (any_S, one_S) in likelihoods.items()
    )
    worse, better = (
        [name for name, found in behind.items() if found.shown and sign * found.mean > 0] for sign in (1, -1)
    )
    return (
        "Validation NLL in nats per code of one prior of any order, read in each order, and of the priors of that "
        f"order alone, mean of {seeds} seed{'s' if seeds > 1 else ''}, and their difference (± half of the 95% "
        f"interval for all {len(behind)} at once): {rows}. Shown to be worse than the prior of that order: "
        f"{listed(worse)}; better: {listed(better)}."
    )


def _by_steps(names: Iterable[str]) -> list[str]:
    """The ways with the prior of any order, the fewest steps first."""
    return sorted((name for name in names if name != _ONE_ORDER), key=lambda name: int(name.split()[0]))


def describe_steps(distances: Mapping[str, Values], seconds: Mapping[str, list[float]]) -> str:
    """Describe how fast and how good the samples of each number of steps are."""
    steps = _by_steps(seconds)
    comparisons = 2 * len(steps) - 1  # each with the prior of one order, all but the last with the last
    one_order = float(np.median(seconds[_ONE_ORDER]))
    rows = []
    for name in steps:
        ratios = np.array(seconds[_ONE_ORDER]) / np.array(seconds[name])
        losses = [difference(distances[name], distances[other], comparisons) for other in (_ONE_ORDER, steps[-1])]
        against = "; ".join(
            f"{loss}{'' if loss.shown else ', not shown'}" for loss in losses[: 1 if name == steps[-1] else 2]
        )
        rows.append(
            f"{name} {np.median(seconds[name]):.3f} s, {np.median(ratios):.1f}× as fast ({ratios.min():.1f}–"
            f"{ratios.max():.1f}), distance {distances[name].mean():.1f} ({against})"
        )
    return (
        f"the cached prior of {_ONE_ORDER}, one code per step: {one_order:.3f} s, distance "
        f"{distances[_ONE_ORDER].mean():.1f}. The prior of any order, in random order with the cosine schedule, "
        f"against it, then against its own {steps[-1]} (± half of the 95% interval for all {comparisons} at once): "
        f"{'; '.join(rows)}."
    )


def _choices(distances: Mapping[str, Values]) -> dict[str, Difference]:
    """Difference of each way to choose the codes to random order and the cosine schedule, with as many steps."""
    names = [name for name in distances if "," in name]
    return {name: difference(distances[name], distances[name.split(",")[0]], len(names)) for name in names}


def describe_choices(distances: Mapping[str, Values]) -> str:
    """Describe which ways to choose the codes of a step differ."""
    found = _choices(distances)
    rows = "; ".join(f"{name} {one}{'' if one.shown else ' (not shown)'}" for name, one in found.items())
    return f"Other ways against these, difference of the distance for as many steps: {rows}."


def steps_figure(distances: Mapping[str, Values], seconds: Mapping[str, list[float]], quality: Quality) -> Figure:
    """Distance and seconds per picture by the number of steps, with 95% intervals and ranges."""
    names = _by_steps(seconds)
    steps = [int(name.split()[0]) for name in names]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    means = [difference(distances[name], np.zeros_like(distances[name])) for name in names]
    left.errorbar(
        steps, [one.mean for one in means], yerr=[one.half for one in means], marker="o", capsize=3, label="any order"
    )
    base = difference(distances[_ONE_ORDER], np.zeros_like(distances[_ONE_ORDER]))
    left.axhline(base.mean, color="tab:orange", linestyle="--", label=f"{_ONE_ORDER}, one code per step")
    left.axhspan(base.mean - base.half, base.mean + base.half, color="tab:orange", alpha=0.15)
    if quality.floor is not None:
        left.axhline(quality.floor, color="grey", linestyle=":", label="validation pictures")
    left.set(xscale="log", xlabel="steps", ylabel=quality.name, ylim=(0, None))
    times = np.array([seconds[name] for name in names])
    middle = np.median(times, axis=1)
    right.errorbar(
        steps, middle, yerr=np.stack((middle - times.min(1), times.max(1) - middle)), marker="o", capsize=3,
        label="any order",
    )  # fmt: skip
    right.axhline(float(np.median(seconds[_ONE_ORDER])), color="tab:orange", linestyle="--", label=_ONE_ORDER)
    right.set(xscale="log", xlabel="steps", ylabel="seconds per picture", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(steps, [str(count) for count in steps], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure
