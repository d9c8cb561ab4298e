"""`imagepriors annotate`."""

from pathlib import Path
from typing import Annotated

import tyro

from imagepriors.annotate.config import AnnotateConfig, Kind
from imagepriors.cli.common import FLAT

_DEFAULTS = AnnotateConfig()


def annotate(
    kind: tyro.conf.Positional[Kind],
    config: Annotated[AnnotateConfig, FLAT] = _DEFAULTS,
    *,
    dataset: str = "auto",
    data: Path,
    out: Path | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> str:
    """Make depth maps or masks of images with a pretrained network, on Ray.

    Args:
        kind: Maps to make.
        config: Model and settings.
        dataset: Layout of the data, as for train-vqgan.
        data: Folder or URL of the dataset.
        out: Folder for the maps, required for archives and tables; default: beside the images, train_depth/ next to
            train/.
        overwrite: First delete the maps that this command made there, and nothing else.
        retry_failed: Make shards with failures again, for example after images have been repaired.

    Example:
        imagepriors annotate depth --data data/photos --model Intel/dpt-large
    """
    from imagepriors.annotate.job import annotate as run

    made = run(config, kind=kind, dataset=dataset, data=data, out=out, overwrite=overwrite, retry_failed=retry_failed)
    left_out = f", {made.failures} images left out (named in {made.job_dir})" if made.failures else ""
    return (
        f"{made.maps} {kind} maps in {', '.join(map(str, made.folders))}{left_out}; "
        f"read them with --dataset {made.reader} --data {made.root}"
    )
