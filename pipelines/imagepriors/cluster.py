"""Training on a Ray cluster: the trainer of one process, started once per worker by Ray Train."""

import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from codeprior.config import TrainConfig as PriorConfig
from codeshards.format import ShardDataset
from vqgan.config import TrainConfig
from vqgan.datasets import open_splits
from vqgan.errors import InputError

log = logging.getLogger(__name__)


def train_vqgan_on_ray(config: TrainConfig, dataset: str, data: Path, out: Path, workers: int) -> dict[str, Any]:
    """Stage 1 with `workers` processes; returns the run's summary. See :func:`train_on_ray`."""
    open_splits(dataset, data)  # a wrong path is found here, not on the cluster
    data, out = data.resolve(), out.resolve()

    def worker() -> None:
        from vqgan.train import train

        train(config, open_splits(dataset, data), out)

    return train_on_ray(worker, out, workers, name="train-vqgan", gpus=config.device != "cpu")


def train_prior_on_ray(config: PriorConfig, shards: Path, out: Path, workers: int) -> dict[str, Any]:
    """Stage 2 with `workers` processes; returns the run's summary. See :func:`train_on_ray`."""
    ShardDataset.open(shards)
    shards, out = shards.resolve(), out.resolve()

    def worker() -> None:
        from codeprior.train import train_prior

        train_prior(config, shards, out)

    return train_on_ray(worker, out, workers, name="train-prior", gpus=config.device != "cpu")


def train_on_ray(worker: Callable[[], None], out: Path, workers: int, *, name: str, gpus: bool) -> dict[str, Any]:
    """Run `worker` in as many processes of one group, one GPU each where there are GPUs; returns OUT/summary.json.

    What the worker reads and writes must be on storage that all nodes share. RAY_ADDRESS names the cluster; without
    it Ray runs here.

    Raises:
        InputError: a worker failed.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise InputError(f"--workers needs Ray Train: pip install 'ray[train]' ({error})") from error

    started_here = not ray.is_initialized()
    if started_here:
        _start_ray(ray, workers)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    use_gpu = resources.get("GPU", 0) >= workers and gpus
    if not use_gpu and torch.cuda.is_available():
        log.warning("the cluster has fewer than %d GPUs: training on CPUs", workers)
    try:
        TorchTrainer(
            worker,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            run_config=RunConfig(storage_path=str(out / "ray"), name=name),
        ).fit()
    except Exception as error:
        reasons = getattr(error, "worker_failures", None) or {0: error}
        raise InputError(f"training on {workers} Ray workers failed: {next(iter(reasons.values()))}") from error
    finally:
        if started_here:
            ray.shutdown()
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def _start_ray(ray: Any, workers: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if os.environ.get("RAY_ADDRESS"):
            import codeprior
            import codeshards
            import imagepriors
            import vqgan

            packages = (codeprior, codeshards, imagepriors, vqgan)
            modules = [str(Path(str(package.__file__)).parent) for package in packages]
            ray.init(runtime_env={"py_modules": modules}, **quiet)
        else:
            cores = max(os.cpu_count() or 1, workers + 1)
            ray.init(num_cpus=cores, include_dashboard=False, object_store_memory=128 * 2**20, **quiet)
