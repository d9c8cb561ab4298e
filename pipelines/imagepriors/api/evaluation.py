"""Evaluation of priors."""

from typing import Any

from codeprior.sample_config import SampleConfig
from codeshards.format import ShardDataset
from imagepriors.api.datasets import ImageDataset, dataset_of
from imagepriors.api.defaults import PathLike, as_path, results_folder
from imagepriors.api.priors import ImagePrior
from imagepriors.api.settings import build_config
from imagepriors.api.shards import location
from imagepriors.evaluate.config import EvaluatePriorConfig


def evaluate_prior(
    prior: PathLike | ImagePrior,
    *,
    shards: PathLike | ShardDataset | None = None,
    data: PathLike | ImageDataset | None = None,
    dataset: str = "auto",
    out: PathLike | None = None,
    sampling: SampleConfig | None = None,
    config: EvaluatePriorConfig | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Measure a prior: likelihood, distance of its samples to pictures, precision, recall, agreement with conditions.

    Args:
        prior: The prior or its run folder.
        shards: Token shards with the tokenizer and the conditions; default: "shards" beside the prior.
        data: Pictures to compare samples with; default: decoded validation codes.
        dataset: Layout of `data`; "auto" recognises it.
        out: JSON file to write; default: evaluation.json in the prior's folder.
        sampling: How to sample.
        config: A complete config in place of the default one.
        **fields: Fields of EvaluatePriorConfig to override, such as ``n=500``.

    Returns:
        The content of the JSON file; "figures" has the metrics.
    """
    settings = build_config(EvaluatePriorConfig, fields, config=config, function=evaluate_prior)
    from imagepriors.evaluate.prior import evaluate_prior as evaluate

    trained = prior if isinstance(prior, ImagePrior) else ImagePrior(as_path(prior))
    _ = trained.tokenizer  # refuses one that was given and does not fit
    place = location(shards) if shards is not None else trained.shards
    path, layout = dataset_of(data, dataset) if data is not None else (None, dataset)
    target = as_path(out) if out else results_folder(trained.folder) / "evaluation.json"
    return evaluate(trained.folder, place, target, settings, sampling or SampleConfig(), dataset=layout, data=path)
