"""`imagepriors evaluate-prior`."""

from pathlib import Path
from typing import Annotated

from codeprior.sample_config import SampleConfig
from imagepriors.cli.common import FLAT
from imagepriors.evaluate.config import EvaluatePriorConfig

_DEFAULTS = EvaluatePriorConfig()
_SAMPLING = SampleConfig()


def evaluate_prior(
    config: Annotated[EvaluatePriorConfig, FLAT] = _DEFAULTS,
    *,
    prior: Path = Path("runs/demo/prior-row_major"),
    shards: Path | None = None,
    dataset: str = "auto",
    data: Path | None = None,
    out: Path | None = None,
    sampling: SampleConfig = _SAMPLING,
) -> str:
    """Measure a prior: likelihood, Fréchet distance, precision, recall, conditions.

    Args:
        config: Metrics to compute.
        prior: Run folder of the trained prior, or its address on the Hub (hf://OWNER/NAME).
        shards: Folder of token shards, with the tokenizer and the conditions of a conditional prior. Default: shards
            beside the prior.
        dataset: Layout of the data.
        data: Folder of pictures to compare samples with; default: decoded codes.
        out: JSON file; default: PRIOR/evaluation.json.
        sampling: How to sample.

    Example:
        imagepriors evaluate-prior --prior runs/photos/prior-zcurve-class --n 1000
    """
    import imagepriors as ip
    from imagepriors.api.defaults import results_folder
    from imagepriors.evaluate.prior import as_table

    path = out or results_folder(prior) / "evaluation.json"
    found = ip.evaluate_prior(
        prior, shards=shards, data=data, dataset=dataset, out=path, sampling=sampling, config=config
    )
    return f"{as_table(found)}\nwritten to {path}"
