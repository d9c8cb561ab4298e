"""Codes against pixels (the paper's section 2): the same transformer on 32×32 palette indices and on 16×16 codes.

Both are trained for the same number of floating-point operations. Sampling is timed without a cache, as in the paper,
and with one; distances are to the training pictures.
"""

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codeprior.checkpoint import load_prior
from codeprior.config import SampleConfig
from codeprior.model import Prior
from codeprior.optim import resolve_device
from codeprior.sample import draw, sample_keys, sample_sequences
from codeprior.speed import step_flops_per_sequence
from codeshards.format import ShardDataset
from imagepriors.config import EvaluatePriorConfig
from imagepriors.decode import draw_samples
from imagepriors.evaluate_prior import distances
from imagepriors.experiments.lab import Lab
from imagepriors.figures import picture_grid
from vqgan.datasets import open_splits, spread

PAPER = {"sampling": 14.08, "fid": 0.1863}
"""Sampling is 14.08× as fast and FID 18.63% lower with codes (section 2)."""
_TIMED = 4
"""Pictures that are timed at once."""
_SHOWN = 16


def run(lab: Lab) -> None:
    """Train both, time both, compare."""
    shards = {"pixels": lab.palette_shards(), "codes": lab.code_shards()}
    flops = {name: _sequence_flops(lab, folder) for name, folder in shards.items()}
    base = lab.prior(batch_size=lab.config.prior_batch or 16)
    pixel_steps = lab.config.pixel_steps or base.steps
    configs = {
        # Steps of pixels; codes get as many more as their sequences cost less.
        name: lab.prior(batch_size=base.batch_size, steps=round(pixel_steps * flops["pixels"] / flops[name]))
        for name in shards
    }
    folders = lab.train(configs, shards)
    found: dict[str, dict[str, Any]] = {}
    pictures = []
    reference = _training_pictures(lab)
    measured = EvaluatePriorConfig(n=lab.config.n)
    for name, folder in folders.items():
        prior = load_prior(folder, device=resolve_device("auto"))
        samples = draw_samples(folder, shards[name], lab.config.n, config=lab.sampling(batch_size=64)).pictures
        pictures.append(samples[:_SHOWN])
        found[name] = {
            "tokens": prior.sequence.length,
            "steps": configs[name].steps,
            "seconds_per_image_uncached": _seconds(functools.partial(sample_uncached, prior, _TIMED), 1) / _TIMED,
            "seconds_per_image_cached": _seconds(functools.partial(_cached, prior), 3) / _TIMED,
            **distances(samples, reference, measured),
        }
    ratios = {
        f"sampling {kind}": found["pixels"][f"seconds_per_image_{kind}"] / found["codes"][f"seconds_per_image_{kind}"]
        for kind in ("uncached", "cached")
    }
    frechet = [found[name]["frechet_efficientnet_lite0"] for name in ("codes", "pixels")]
    ratios["frechet_lower_by"] = 1 - frechet[0] / frechet[1]
    text = (
        f"Same transformer, same training FLOPs. Pixels: {found['pixels']['tokens']} palette indices; codes: "
        f"{found['codes']['tokens']}. Sampling without a cache is {ratios['sampling uncached']:.2f}× as fast with "
        f"codes (paper: {PAPER['sampling']}×), with a cache {ratios['sampling cached']:.2f}×. The Fréchet distance on "
        f"EfficientNet-Lite0 features (not FID), {lab.config.n} samples against {len(reference)} training pictures, "
        f"is {frechet[0]:.1f} for codes and {frechet[1]:.1f} for pixels: {ratios['frechet_lower_by']:.1%} lower "
        f"(paper, FID: {PAPER['fid']:.2%} lower). Samples: two rows of pixels, then two of codes."
    )
    grid = picture_grid(np.concatenate(pictures), _SHOWN // 2, scale=2)
    lab.save("Efficiency", text, {"figures": found, "ratios": ratios, "paper": PAPER}, {"samples": grid})


def _sequence_flops(lab: Lab, shards: Path) -> float:
    """Training FLOPs of one sequence."""
    from codeprior.data import sequence_from_dataset

    sequence = sequence_from_dataset(ShardDataset.open(shards), "row_major", "none")
    return step_flops_per_sequence(Prior(lab.prior().model, sequence))


def _training_pictures(lab: Lab) -> Any:
    split = open_splits(lab.config.dataset, lab.data)["train"]
    return np.stack([split.read_good(index, 32).image for index in spread(len(split), min(len(split), lab.config.n))])


def _seconds(work: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _cached(prior: Prior) -> Tensor:
    return sample_sequences(prior, _TIMED, config=SampleConfig(batch_size=_TIMED))


@torch.inference_mode()
def sample_uncached(prior: Prior, n: int, config: SampleConfig | None = None) -> Tensor:
    """Sequences [n, T] of an unconditional prior, all of what was drawn so far read again for every code."""
    config = config or SampleConfig()
    condition = torch.zeros((n, 1), dtype=torch.int64, device=prior.device)
    codes = torch.empty((n, 0), dtype=torch.int64, device=prior.device)
    keys = sample_keys(config.seed, 0, n).to(prior.device)
    for t in range(prior.sequence.length):
        logits = prior(condition, codes)[:, -1].float()
        t_1 = torch.full((1,), t, device=prior.device)
        codes = torch.cat((codes, draw(logits, config, keys, t_1)[:, None]), dim=1)
    return codes.cpu()
