"""Training of priors: settings, shards and blends of shards, run folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codeprior.config import PriorError
from codeprior.config import TrainConfig as PriorConfig
from codeshards.format import ShardDataset
from imagepriors.api.datasets import ImageDataset
from imagepriors.api.defaults import PathLike, as_path, beside
from imagepriors.api.memory import keep_freed_memory
from imagepriors.api.priors import ImagePrior
from imagepriors.api.settings import build_config, stage_2_table
from imagepriors.api.shards import location

AnyShards = PathLike | ShardDataset | Mapping[Any, float]
"""Token shards, or a mapping from several to their weights."""


def train_prior(
    shards: AnyShards,
    *,
    out: PathLike | None = None,
    preset: PathLike = "auto",
    workers: int = 0,
    config: PriorConfig | None = None,
    **fields: Any,
) -> ImagePrior:
    """Train a transformer on token shards; an interrupted run resumes, and a finished one is not repeated.

    Args:
        shards: Token shards, or their folder or URL; or a blend, a mapping from several of them to their weights, such
            as ``{"runs/a/shards": 0.7, "runs/b/shards": 0.3}``: each batch takes their rows in these proportions.
        out: Run folder; default: prior-ORDER, or prior-ORDER-CONDITION, beside the shards, where ORDER is "any" or
            "masked" with those objectives. The name of a blend's run ends in -blend, and it is beside the first shards.
        preset: Name or TOML file of the preset; "auto" chooses it by the pictures of the (first) shards.
        workers: Processes on a Ray cluster (RAY_ADDRESS names it); 0 trains in this process.
        config: A complete config in place of a preset.
        **fields: Fields of :class:`PriorConfig` to override, such as ``order="zcurve"`` or ``model={"n_layer": 4}``.

    Raises:
        PriorError: A field is not allowed, the shards do not fit it, or `out` holds another run.
        ShardError: There are no finished shards.
    """
    settings, given, folder = prior_training(shards, out, preset, config, fields)
    keep_freed_memory()
    if workers:
        from imagepriors.cluster import train_prior_on_ray

        train_prior_on_ray(settings, given, folder, workers)
    else:
        from codeprior.train import train_prior as train

        train(settings, given, folder)
    return ImagePrior(folder, shards=_first(given))


def prior_training(
    shards: AnyShards,
    out: PathLike | None,
    preset: PathLike,
    config: PriorConfig | None,
    fields: Mapping[str, Any],
) -> tuple[PriorConfig, Path | dict[Path, float], Path]:
    """The settings, the shards with their weights if they are several, and the run folder of a training."""
    given = _located(shards)
    first = _first(given)
    base = {} if config else stage_2_table(str(preset), "prior", first)
    settings = build_config(PriorConfig, fields, config=config, base=base, function=train_prior)
    name = {"ordered": f"prior-{settings.order}", "any_order": "prior-any", "masked": "prior-masked"}[
        settings.objective
    ]
    name += "" if settings.condition == "none" else f"-{settings.condition}"
    name += "-blend" if isinstance(given, dict) else ""
    return settings, given, as_path(out) if out else beside(first) / name


def _located(shards: AnyShards) -> Path | dict[Path, float]:
    """The folder or URL of token shards, or those of several with their weights."""
    if not isinstance(shards, Mapping) or isinstance(shards, ImageDataset):  # pictures are a mapping of splits
        return location(shards)
    found: dict[Path, float] = {}
    for one, weight in shards.items():
        if (place := location(one)) in found:
            raise PriorError(f"{place} is given twice: give it once, with one weight")
        found[place] = weight
    if not found:
        raise PriorError("shards is empty: pass token shards, or a mapping from several to their weights")
    return found


def _first(given: Path | dict[Path, float]) -> Path:
    return next(iter(given)) if isinstance(given, dict) else given
