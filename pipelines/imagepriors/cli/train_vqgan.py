"""`imagepriors train-vqgan`."""

from pathlib import Path
from typing import Annotated

from imagepriors.api.defaults import DEMO_DATA
from imagepriors.cli.common import FLAT, figures, shown
from vqgan.config import TrainConfig


def train_vqgan(
    config: Annotated[TrainConfig, FLAT],
    *,
    dataset: str = "auto",
    data: Path = DEMO_DATA,
    out: Path | None = None,
    workers: int = 0,
    dry_run: bool = False,
    preset: str = "auto",
) -> str:
    """Stage 1: train a VQGAN tokenizer on pictures (also under torchrun).

    Args:
        config: Settings of the run.
        dataset: Layout of the data: ade20k, cifar10, deepfashion, demo, folder, huggingface, imagenet, imagenet-depth,
            landscapes, restricted-imagenet, webdataset; auto recognises it. Of another package: the name of
            its entry point, or package.module:function.
        data: Folder or URL of the dataset.
        out: Run folder; an interrupted run resumes. Default: runs/NAME/tokenizer, where NAME is the name of
            the data's folder.
        workers: Processes on a Ray cluster (RAY_ADDRESS names it); 0 trains in this process.
        dry_run: Print the plan with sizes, memory and time, and write nothing.
        preset: Preset that sets the defaults of all flags below; auto chooses it by the size of the pictures.

    Example:
        imagepriors train-vqgan --data data/photos --steps 2000 --model.ch 64
    """
    import imagepriors as ip

    if dry_run:
        return str(ip.plan_tokenizer(data, out=out, dataset=dataset, workers=workers, config=config))
    trained = ip.train_tokenizer(data, out=out, dataset=dataset, workers=workers, config=config)
    return f"tokenizer in {shown(trained.folder)}: {figures(trained.summary)}"
