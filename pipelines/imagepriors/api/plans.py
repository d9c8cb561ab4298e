"""Plans of jobs: what they would do, with sizes, memory and time. Nothing is written."""

from collections.abc import Sequence
from typing import Any

from codeprior.config import TrainConfig as PriorConfig
from codeprior.sample_config import SampleConfig
from codeshards.config import TokenizeConfig
from imagepriors.api.datasets import ImageDataset
from imagepriors.api.defaults import PathLike, as_path
from imagepriors.api.memory import keep_freed_memory
from imagepriors.api.priors import ImagePrior, sampling_config
from imagepriors.api.samples import sample_count
from imagepriors.api.shards import tokenize_job
from imagepriors.api.tokenizers import ImageTokenizer, tokenizer_training
from imagepriors.api.training import AnyShards, prior_training
from runkit.plans import WorkPlan
from vqgan.config import TrainConfig as TokenizerConfig


def plan_tokenizer(
    data: PathLike | ImageDataset,
    *,
    out: PathLike | None = None,
    dataset: str = "auto",
    preset: PathLike = "auto",
    workers: int = 0,
    config: TokenizerConfig | None = None,
    **fields: Any,
) -> WorkPlan:
    """Plan a call of :func:`train_tokenizer`: steps, parameters, memory, time and sizes. Nothing is written.

    Arguments and errors are those of :func:`train_tokenizer`. A few steps are tried, on one process.
    """
    settings, splits, folder = tokenizer_training(data, out, dataset, preset, config, fields)
    if workers:
        from imagepriors.cluster import check_workers

        check_workers(workers, settings.batch_size)
    keep_freed_memory()
    from vqgan.plan import plan_training

    return plan_training(settings, splits, folder)


def plan_tokenize(
    data: PathLike | ImageDataset,
    tokenizer: PathLike | ImageTokenizer | None = None,
    *,
    out: PathLike | None = None,
    conditions: PathLike | ImageTokenizer | Sequence[PathLike | ImageTokenizer] = (),
    dataset: str = "auto",
    preset: PathLike = "auto",
    overwrite: bool = False,
    retry_failed: bool = False,
    config: TokenizeConfig | None = None,
    **fields: Any,
) -> WorkPlan:
    """Plan a call of :func:`tokenize`: shards to make, memory, time and sizes. Nothing is written, and no Ray starts.

    Arguments and errors are those of :func:`tokenize`. A few batches are tried in this process.
    """
    settings, job = tokenize_job(data, tokenizer, out, conditions, dataset, preset, config, fields)
    from codeshards.job.dry_run import plan_tokenize as plan

    return plan(settings, **job, overwrite=overwrite, retry_failed=retry_failed)


def plan_prior(
    shards: AnyShards,
    *,
    out: PathLike | None = None,
    preset: PathLike = "auto",
    workers: int = 0,
    config: PriorConfig | None = None,
    **fields: Any,
) -> WorkPlan:
    """Plan a call of :func:`train_prior`: steps, parameters, memory, time and sizes. Nothing is written.

    Arguments and errors are those of :func:`train_prior`. A few steps are tried, on one process.
    """
    settings, given, folder = prior_training(shards, out, preset, config, fields)
    if workers:
        from imagepriors.cluster import check_workers

        check_workers(workers, settings.batch_size)
    keep_freed_memory()
    from codeprior.plan import plan_training

    return plan_training(settings, given, folder)


def plan_samples(
    prior: PathLike | ImagePrior,
    out: PathLike,
    n: int,
    *,
    condition: Any = None,
    given: Any = 0,
    workers: int = 0,
    threads: int = 2,
    preset: PathLike | None = None,
    config: SampleConfig | None = None,
    **fields: Any,
) -> WorkPlan:
    """Plan a call of :meth:`ImagePrior.save_samples`: parts, memory, time and sizes. Nothing is written.

    Arguments and errors are those of the method. A batch is tried in this process.
    """
    trained = prior if isinstance(prior, ImagePrior) else ImagePrior(as_path(prior))
    settings = sampling_config(fields, config, preset, plan_samples)
    drawing = trained._drawing(as_path(out), sample_count(n), condition, given, workers, threads, settings)
    from imagepriors.decode.dry_run import plan_drawing

    return plan_drawing(drawing, trained.loaded, trained.decoder)
