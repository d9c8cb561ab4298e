"""`imagepriors train-prior`."""

from pathlib import Path
from typing import Annotated

from codeprior.config import TrainConfig
from imagepriors.cli.common import FLAT, figures, shown, weighted


def train_prior(
    config: Annotated[TrainConfig, FLAT],
    *,
    shards: tuple[str, ...] = ("runs/demo/shards",),
    out: Path | None = None,
    workers: int = 0,
    dry_run: bool = False,
    preset: str = "auto",
) -> str:
    """Stage 2: train a transformer on token shards (also under torchrun).

    Args:
        config: Settings of the run.
        shards: Folder or URL of token shards (s3://…, hf://datasets/OWNER/NAME); or several as PATH=WEIGHT, whose
            rows each batch takes in proportion to the weights.
        out: Run folder; an interrupted run resumes. Default: prior-ORDER, or prior-ORDER-CONDITION, beside
            the shards (ORDER is any or masked with those objectives); for several shards with -blend at the end, beside
            the first.
        workers: Processes on a Ray cluster (RAY_ADDRESS names it); 0 trains in this process.
        dry_run: Print the plan with sizes, memory and time, and write nothing.
        preset: Preset that sets the defaults of all flags below; auto chooses it by the pictures of the shards.

    Example:
        imagepriors train-prior --shards runs/photos/shards --order zcurve --condition class
    """
    import imagepriors as ip

    given = weighted(shards)
    if dry_run:
        return str(ip.plan_prior(given, out=out, workers=workers, config=config))
    trained = ip.train_prior(given, out=out, workers=workers, config=config)
    return f"prior in {shown(trained.folder)}: {figures(trained.summary)}"
