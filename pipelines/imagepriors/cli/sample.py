"""`imagepriors sample`."""

from pathlib import Path
from typing import Annotated

from codeprior.config import SampleConfig
from imagepriors.cli.common import FLAT


def sample(
    config: Annotated[SampleConfig, FLAT],
    *,
    prior: Path = Path("runs/demo/prior-row_major"),
    shards: Path | None = None,
    out: Path | None = None,
    n: int = 25,
    given: str = "0",
    size: tuple[int, int] | None = None,
    frames: bool = False,
    preset: str = "auto",
) -> str:
    """Draw code sequences from a prior and decode them to pictures.

    Args:
        config: How to draw.
        prior: Run folder of the trained prior.
        shards: Folder of token shards: holds the tokenizer, and the conditions of a conditional prior. Default: shards
            beside the prior.
        out: Folder for grid.png, the single pictures, the codes and their metadata. Default: samples-PRIOR beside it.
        n: Number of pictures.
        given: Complete validation pictures from this many first codes of the prior's sequence, or from their `upper`
            half, upper left `corner`, `centre` (spiral_out), or from `scales-K`, the first K scales.
        size: Rows and columns of codes, for pictures larger than the training pictures (order row_major).
        frames: Also write frames.gif, the pictures while they are drawn.
        preset: Preset that sets the defaults of all flags below; auto chooses it by the pictures of the shards.
    """
    from imagepriors.api.priors import ImagePrior

    out = out or prior.parent / f"samples-{prior.name}"
    grid = ImagePrior(prior, shards=shards).save_samples(out, n, given=given, size=size, frames=frames, config=config)
    return f"{n} samples in {out}; look at {grid}"
