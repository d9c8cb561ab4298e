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
    """Give a dataset's images depth maps or masks from a pretrained network, in parallel on Ray.

    Args:
        kind: What to make.
        config: Model and settings.
        dataset: Layout of the data, as for train-vqgan.
        data: Folder in which the dataset is.
        out: Folder for the maps, which archives and tables need; default: beside the images, train_depth/ by train/.
        overwrite: Delete the maps that this command made there first, and nothing else.
        retry_failed: Make again what holds failures, e.g. after mending images.
    """
    from imagepriors.annotate.job import annotate as run

    made = run(config, kind=kind, dataset=dataset, data=data, out=out, overwrite=overwrite, retry_failed=retry_failed)
    left_out = f", {made.failures} images left out (named in {made.book})" if made.failures else ""
    return (
        f"{made.maps} {kind} maps in {', '.join(map(str, made.folders))}{left_out}; "
        f"read them with --dataset {made.reader} --data {made.root}"
    )
