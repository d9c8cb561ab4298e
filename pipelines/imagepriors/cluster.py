"""Training on a Ray cluster: the trainer of one process, started once per worker by Ray Train."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from codeprior.config import TrainConfig as PriorConfig
from codeshards.format import ShardDataset, ShardError, Where, absolute, read_json
from codeshards.job.session import connected
from runkit.devices import Device
from runkit.errors import user_message
from runkit.folders import check_apart
from vqgan.config import TrainConfig
from vqgan.data import open_splits
from vqgan.errors import InputError

log = logging.getLogger(__name__)


def train_vqgan_on_ray(config: TrainConfig, dataset: str, data: Path, out: Path, workers: int) -> dict[str, Any]:
    """Stage 1 with `workers` processes; returns the run's summary. See :func:`train_on_ray`."""
    _check_workers(workers, config.batch_size)
    open_splits(dataset, data)  # a wrong path is found here, not on the cluster
    data, out = data.resolve(), out.resolve()

    def worker(device: Device) -> None:
        from vqgan.train import train_tokenizer

        train_tokenizer(replace(config, device=device), open_splits(dataset, data), out)

    return train_on_ray(worker, out, workers, name="train-vqgan", device=config.device)


def train_prior_on_ray(config: PriorConfig, shards: Where, out: Path, workers: int) -> dict[str, Any]:
    """Stage 2 with `workers` processes; returns the run's summary. See :func:`train_on_ray`."""
    _check_workers(workers, config.batch_size)
    check_apart(out, shards=shards)
    ShardDataset.open(shards)
    place, out = absolute(shards), out.resolve()

    def worker(device: Device) -> None:
        from codeprior.train import train_prior

        train_prior(replace(config, device=device), place, out)

    return train_on_ray(worker, out, workers, name="train-prior", device=config.device)


def _check_workers(workers: int, batch_size: int) -> None:
    if workers < 1 or batch_size % workers:
        raise InputError(f"workers is {workers}: choose a divisor of the batch size, which is {batch_size}")


def train_on_ray(
    worker: Callable[[Device], None], out: Path, workers: int, *, name: str, device: Device
) -> dict[str, Any]:
    """Run `worker` in as many processes of one group, one GPU each where there are GPUs; returns OUT/summary.json.

    It is called with the device that was found: one without a GPU of its own would see, and take, its node's first.

    What the worker reads and writes must be on storage that all nodes share. RAY_ADDRESS names the cluster; without
    it Ray runs here.

    Raises:
        InputError: there are not enough GPUs for device = "cuda"; a worker died, or raised what a person can mend.
        ShardError: Ray cannot start, or has died on this machine.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise InputError(f"--workers needs Ray Train: pip install 'ray[train]' ({error})") from error

    with connected(workers + 1) as session:  # one core for Ray Train's controller
        gpus, cores = (int(sum(node["Resources"].get(kind, 0) for node in session.nodes())) for kind in ("GPU", "CPU"))
        use_gpu = device != "cpu" and gpus >= workers
        if device == "cuda" and not use_gpu:
            raise InputError(
                f"device = 'cuda': the cluster has {gpus} GPUs for {workers} workers; start fewer, or use cpu"
            )
        if device == "auto" and gpus and not use_gpu:
            log.warning("the cluster has %d GPUs for %d workers: training on CPUs", gpus, workers)
        if cores < workers:
            log.warning("the cluster has %d cores for %d workers: waiting for nodes", cores, workers)
        chosen: Device = device if use_gpu else "cpu"
        trainer = TorchTrainer(
            lambda: worker(chosen),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            run_config=RunConfig(storage_path=str(out / "ray"), name=name),
        )
        try:
            with session.watched():
                trainer.fit()
        except ShardError:
            raise
        except Exception as error:
            if (reason := _reason(error)) is None:
                raise  # a bug: keep its traceback
            raise InputError(f"training on {workers} Ray workers failed: {reason}") from error
    return read_json(out / "summary.json")


def _reason(error: Exception) -> str | None:
    """What a person can do about a training that failed; None for a bug.

    Where one worker fails the others fail with it, for they wait for each other: any of them may say why.
    """
    from ray.exceptions import RayActorError

    failures = getattr(error, "worker_failures", None) or {0: error}
    causes = [getattr(found, "_base_exc", found) for found in failures.values()]
    messages = [message for cause in causes if (message := user_message(cause)) is not None]
    dead = [str(cause) for cause in causes if isinstance(cause, RayActorError)]
    return next(iter(messages + dead), None)
