"""`imagepriors evaluate-tokenizer`."""

from pathlib import Path
from typing import Annotated

from imagepriors.api.defaults import DEMO_DATA, results_folder, run_folder
from imagepriors.cli.common import FLAT
from imagepriors.evaluate.config import EvaluateConfig

_DEFAULTS = EvaluateConfig()


def evaluate_tokenizer(
    config: Annotated[EvaluateConfig, FLAT] = _DEFAULTS,
    *,
    tokenizer: Path | None = None,
    dataset: str = "auto",
    data: Path = DEMO_DATA,
    out: Path | None = None,
) -> str:
    """Measure reconstructions: PSNR, SSIM, LPIPS, Fréchet distance, codebook usage.

    Args:
        config: Metrics to compute, and the images.
        tokenizer: Folder of the tokenizer, or its address on the Hub (hf://OWNER/NAME); default: runs/NAME/tokenizer,
            where NAME is the name of the data's folder.
        dataset: Layout of the data, as for train-vqgan.
        data: Folder or URL of the dataset.
        out: JSON file to write; default: evaluation.json in the tokenizer's folder.

    Example:
        imagepriors evaluate-tokenizer --data data/photos --limit 500
    """
    import imagepriors as ip
    from imagepriors.evaluate.tokenizer import as_table

    folder = tokenizer or run_folder(data) / "tokenizer"
    path = out or results_folder(folder) / "evaluation.json"
    found = ip.evaluate_tokenizer(folder, data, out=path, dataset=dataset, config=config)
    return f"{as_table(found)}\nwritten to {path}"
