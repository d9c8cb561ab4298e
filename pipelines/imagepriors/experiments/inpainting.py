"""Complete pictures of which a part is known, with a prior of any order.

The error in the unknown part is compared with that of a sample drawn from nothing and pasted in: it is lower if the
prior looks at what surrounds the hole. Where one of the orders begins with the known part, the prior of that order
completes the same pictures.
"""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from codeprior.checkpoint import load_prior
from codeprior.config import PriorError, SequenceSpec
from codeprior.given import given_region
from codeprior.model import Prior
from codeprior.sample import sample_codes
from codeprior.sample_config import SampleConfig
from codeshards.format import ORDER_NAMES, ShardDataset, inverse
from imagepriors.decode.partial import decode_partial, known_codes
from imagepriors.decode.rows import read_rows
from imagepriors.experiments import any_order, orders
from imagepriors.experiments.paired import Difference, difference, intervals_figure, listed
from imagepriors.experiments.quality import Quality
from imagepriors.experiments.workspace import Workspace
from imagepriors.reports.figures import picture_grid
from runkit.devices import pick_device
from vqgan.tokenizer import Tokenizer

KNOWN = ("upper", "not-upper", "left", "centre", "not-centre", "corner", "checkerboard", "random cells")
"""Known parts; random cells are a quarter of them."""
_DRAWN, _SHOWN = 5, 2
"""Completions per picture, and pictures per known part, that are shown."""
shards, priors = any_order.shards, any_order.priors
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Completions:
    """Completions of one known part: values of each seed, and pictures of all."""

    error: list[float] = field(default_factory=list)
    """Root mean square error in the unknown part, in levels of 255."""
    pasted_error: list[float] = field(default_factory=list)
    """That of samples from nothing, of which the unknown part is pasted in before decoding."""
    one_order_error: list[float] = field(default_factory=list)
    """That of the prior of an order that begins with the known part; empty if there is none."""
    pictures: list[Array] = field(default_factory=list)
    pasted: list[Array] = field(default_factory=list)


def run(workspace: Workspace) -> None:
    """Complete validation pictures, each seed its own ones, and measure the error."""
    tokenizer, seeds = workspace.decoder(), workspace.config.seeds
    every_NHW = _validation_codes(workspace, max(workspace.config.n, len(KNOWN)))
    found = {name: Completions() for name in KNOWN}
    for seed in range(seeds):
        # Each seed completes all pictures, and other ones of each known part than the seeds before it.
        parts = [every_NHW[(number + seed) % len(KNOWN) :: len(KNOWN)] for number in range(len(KNOWN))]
        _complete(workspace, tokenizer, seed, dict(zip(KNOWN, parts, strict=True)), found)
    quality = Quality(workspace)
    distances = {
        name: [quality.distance(np.concatenate([getattr(one, name)[seed] for one in found.values()]))
               for seed in range(seeds)]
        for name in ("pictures", "pasted")
    }  # fmt: skip
    gains = {
        name: difference(np.array(one.error), np.array(one.pasted_error), len(KNOWN)) for name, one in found.items()
    }
    against = differences_to_one_order(found)
    text = (
        f"{len(every_NHW)} validation pictures, one in {len(KNOWN)} for each known part, completed by the priors of "
        f"any order of {seeds} seed{'s' if seeds > 1 else ''}. "
        f"{describe(found, gains, against)} {quality.name} of all completions {np.mean(distances['pictures']):.1f}, "
        f"with samples pasted in {np.mean(distances['pasted']):.1f}, of the originals "
        f"{'unknown, too few' if quality.floor is None else f'{quality.floor:.1f}'} ({quality.note}). Pictures: the "
        f"differences of the error; one row for each of {', '.join(KNOWN)}: of {_SHOWN} pictures what is given, the "
        f"original, {_DRAWN} completions."
    )
    results = {
        "error": {name: {"completed": one.error, "pasted": one.pasted_error, "one_order": one.one_order_error,
                         "difference": asdict(gains[name])} for name, one in found.items()},
        "distance": distances, "floor": quality.floor,
    }  # fmt: skip
    pictures: dict[str, Any] = {
        "errors": intervals_figure(gains, "completed - pasted: error in the unknown part, levels of 255"),
        "completions": picture_grid(
            _picture_rows(workspace, tokenizer, every_NHW[:: len(every_NHW) // _SHOWN][:_SHOWN]),
            _SHOWN * (2 + _DRAWN),
            scale=max(1, 64 // tokenizer.config.resolution),
        ),
    }
    workspace.save("inpainting", text, results, pictures)


def known_region(sequence: SequenceSpec, name: str) -> npt.NDArray[np.bool_]:
    """The known cells [H, W] of a part in `KNOWN`."""
    size = sequence.height, sequence.width
    if name == "random cells":
        return (np.random.default_rng(0).permutation(sequence.length) < sequence.length // 4).reshape(size)
    return np.asarray(known_codes(sequence, name)[inverse(sequence.order, *size)].reshape(size))


def _validation_codes(workspace: Workspace, n: int) -> Array:
    """Codes [N, H, W] of evenly spaced validation pictures, which repeat if there are too few."""
    dataset, name = ShardDataset.open(workspace.shards()), "row_major"
    codes_NT = read_rows(dataset, "val", [f"codes_{name}"], n)[f"codes_{name}"].astype(np.int64)
    grid = dataset.spec.image
    return np.resize(codes_NT, (n, grid.height, grid.width))


def _complete(
    workspace: Workspace, tokenizer: Tokenizer, seed: int, parts: Mapping[str, Array], found: Mapping[str, Completions]
) -> None:
    """Complete the pictures of each known part, given as codes [N, H, W], with the priors of a seed."""
    device, config = pick_device("auto"), workspace.sampling(batch_size=64, seed=seed)
    prior = load_prior(any_order.run_folder(workspace, seed), device=device)
    one_order = {name: load_prior(orders.run_folder(workspace, name, seed), device=device) for name in ORDER_NAMES}
    for name, codes_NHW in parts.items():
        one, region_HW = found[name], known_region(prior.sequence, name)
        samples_NHW = sample_codes(prior, len(codes_NHW), config=config).numpy()
        error = functools.partial(error_outside, tokenizer.decode(codes_NHW), region_HW)
        one.pictures.append(tokenizer.decode(_completed(prior, codes_NHW, region_HW, config)))
        one.pasted.append(tokenizer.decode(np.where(region_HW, codes_NHW, samples_NHW)))
        one.error.append(error(one.pictures[-1]))
        one.pasted_error.append(error(one.pasted[-1]))
        for other in one_order.values():
            try:
                codes = _completed(other, codes_NHW, region_HW, config)
            except PriorError:  # its order does not begin with this part
                continue
            one.one_order_error.append(error(tokenizer.decode(codes)))
            break


def error_outside(originals: Array, region_HW: Array, pictures: Array) -> float:
    """Root mean square difference of pictures [N, H, W, 3] to their originals outside the known cells."""
    rows, columns = (pixels // cells for pixels, cells in zip(originals.shape[1:], region_HW.shape, strict=False))
    hole_HW = ~region_HW.repeat(rows, 0).repeat(columns, 1)
    return float(((pictures[:, hole_HW].astype(float) - originals[:, hole_HW]) ** 2).mean() ** 0.5)


def _completed(prior: Prior, codes_NHW: Array, region_HW: Array, config: SampleConfig) -> Array:
    given_NT = given_region(prior.sequence, torch.from_numpy(codes_NHW), torch.from_numpy(region_HW))
    return sample_codes(prior, len(codes_NHW), config=config, given_NT=given_NT).numpy()


def _picture_rows(workspace: Workspace, tokenizer: Tokenizer, codes_NHW: Array) -> Array:
    """Rows of pictures: what is given, the original, completions."""
    prior = load_prior(any_order.run_folder(workspace, 0), device=pick_device("auto"))
    many_NHW, config = codes_NHW.repeat(_DRAWN, 0), workspace.sampling(batch_size=64)
    originals = tokenizer.decode(codes_NHW)
    rows = []
    for name in KNOWN:
        region_HW = known_region(prior.sequence, name)
        drawn = tokenizer.decode(_completed(prior, many_NHW, region_HW, config))
        given_NT = given_region(prior.sequence, torch.from_numpy(codes_NHW), torch.from_numpy(region_HW)).numpy()
        whole_NT = codes_NHW.reshape(len(codes_NHW), -1)[:, prior.sequence.permutation(*region_HW.shape)]
        hints = decode_partial(tokenizer, prior.sequence, given_NT, whole_NT)
        of_each = drawn.reshape(len(codes_NHW), _DRAWN, *drawn.shape[1:])
        rows.append(np.concatenate((hints[:, None], originals[:, None], of_each), axis=1))
    tiles = np.concatenate(rows)
    return tiles.reshape(-1, *tiles.shape[2:])


def differences_to_one_order(found: Mapping[str, Completions]) -> dict[str, Difference]:
    """Error of the prior of any order less that of one order, for the parts that an order begins with."""
    names = [name for name, one in found.items() if one.one_order_error]
    return {
        name: difference(np.array(found[name].error), np.array(found[name].one_order_error), len(names))
        for name in names
    }


def describe(
    found: Mapping[str, Completions], gains: Mapping[str, Difference], against: Mapping[str, Difference]
) -> str:
    """Describe the errors by known part, and which differences are shown."""
    rows = "; ".join(
        f"{name} {np.mean(one.error):.1f} and {np.mean(one.pasted_error):.1f} ({gains[name]})"
        for name, one in found.items()
    )
    lower = [name for name, gain in gains.items() if gain.shown and gain.mean < 0]
    text = (
        "Root mean square error in the unknown part, in levels of 255, of completions and of samples from nothing that "
        f"are pasted in, by known part (± half of the 95% interval for all {len(gains)} at once): {rows}. Shown to be "
        f"lower, because the prior looks at what surrounds the hole: {listed(lower)}."
    )
    if not against:
        return text
    pairs = ", ".join(f"{name} {one}" for name, one in against.items())
    return (
        f"{text} Against the prior of one order that begins with the known part: {pairs}; shown to differ: "
        f"{listed(name for name, one in against.items() if one.shown)}."
    )
