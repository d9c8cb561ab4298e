"""Stage-1 training on a Ray cluster: the trainer of one process, started once per worker by Ray Train."""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from vqgan.config import TrainConfig
from vqgan.datasets import open_splits
from vqgan.errors import InputError

log = logging.getLogger(__name__)


def train_on_ray(config: TrainConfig, dataset: str, data: Path, out: Path, workers: int) -> dict[str, Any]:
    """Train with `workers` processes, one GPU each where there are GPUs; returns the run's summary.

    `data` and `out` must be on storage that all nodes share. RAY_ADDRESS names the cluster; without it Ray runs here.

    Raises:
        InputError: the data or the config are wrong, or a worker failed.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise InputError(f"--workers needs Ray Train: pip install 'ray[train]' ({error})") from error

    open_splits(dataset, data)  # a wrong path is found here, not on the cluster
    data, out = data.resolve(), out.resolve()

    def worker() -> None:
        from vqgan.train import train

        train(config, open_splits(dataset, data), out)

    started_here = not ray.is_initialized()
    if started_here:
        _start_ray(ray, workers)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    use_gpu = resources.get("GPU", 0) >= workers and config.device != "cpu"
    if not use_gpu and torch.cuda.is_available():
        log.warning("the cluster has fewer than %d GPUs: training on CPUs", workers)
    try:
        TorchTrainer(
            worker,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            run_config=RunConfig(storage_path=str(out / "ray"), name="train-vqgan"),
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
            import imagepriors
            import vqgan

            modules = [str(Path(str(module.__file__)).parent) for module in (imagepriors, vqgan)]
            ray.init(runtime_env={"py_modules": modules}, **quiet)
        else:
            cores = max(os.cpu_count() or 1, workers + 1)
            ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=128 * 2**20, **quiet)
