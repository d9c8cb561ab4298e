"""Train on a Ray cluster: Ray Train starts the trainer once per worker process."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codeprior.config import TrainConfig as PriorConfig
from codeshards.format.files import read_json
from runkit.devices import Device
from runkit.errors import UserError, user_message
from runkit.folders import check_apart
from runkit.ray_session import connected
from vqgan.config import TrainConfig
from vqgan.data import open_splits
from vqgan.errors import InputError

if TYPE_CHECKING:
    from codeprior.blend import Shards

log = logging.getLogger(__name__)

PACKAGES = ("vqgan", "codeshards", "codeprior", "imagepriors")
"""Packages that the nodes of a cluster get from this process."""


def train_vqgan_on_ray(config: TrainConfig, dataset: str, data: Path, out: Path, workers: int) -> dict[str, Any]:
    """Train stage 1 with `workers` processes; returns the summary of the run. See :func:`train_on_ray`."""
    check_workers(workers, config.batch_size)
    open_splits(dataset, data)  # raises here, not on the cluster, where the path is wrong
    data, out = data.resolve(), out.resolve()

    def worker(device: Device) -> None:
        from vqgan.train import train_tokenizer

        train_tokenizer(replace(config, device=device), open_splits(dataset, data), out)

    return train_on_ray(worker, out, workers, name="train-vqgan", device=config.device)


def train_prior_on_ray(config: PriorConfig, shards: "Shards", out: Path, workers: int) -> dict[str, Any]:
    """Train stage 2 with `workers` processes; returns the summary of the run. See :func:`train_on_ray`."""
    from codeprior.blend import Blend, absolute_shards, places

    check_workers(workers, config.batch_size)
    check_apart(out, shards=places(shards))
    Blend.open(shards)
    given, out = absolute_shards(shards), out.resolve()

    def worker(device: Device) -> None:
        from codeprior.train import train_prior

        train_prior(replace(config, device=device), given, out)

    return train_on_ray(worker, out, workers, name="train-prior", device=config.device)


def check_workers(workers: int, batch_size: int) -> None:
    """Refuse a number of workers that cannot share a batch equally.

    Raises:
        InputError: naming the number and the batch size.
    """
    if workers < 1 or batch_size % workers:
        raise InputError(f"workers is {workers}: choose a divisor of the batch size, which is {batch_size}")


def train_on_ray(
    worker: Callable[[Device], None], out: Path, workers: int, *, name: str, device: Device
) -> dict[str, Any]:
    """Run `worker` in a group of processes, with one GPU each where there are GPUs; returns OUT/summary.json.

    `worker` is called with the resolved device, because a process without a GPU of its own would use the first GPU of
    its node. Its inputs and outputs must be on storage that all nodes share. RAY_ADDRESS names the cluster; without it
    Ray runs on this machine.

    Raises:
        InputError: There are not enough GPUs for device = "cuda"; a worker died, or raised an error that a person can
            fix.
        UserError: Ray cannot start, or has died on this machine.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise InputError(f"training with workers requires Ray Train: pip install 'ray[train]' ({error})") from error

    with connected(workers + 1, PACKAGES) as session:  # one core for the controller of Ray Train
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
        except UserError:
            raise
        except Exception as error:
            if (reason := _reason(error)) is None:
                raise  # a bug keeps its traceback
            raise InputError(f"training on {workers} Ray workers failed: {reason}") from error
    return read_json(out / "summary.json")


def _reason(error: Exception) -> str | None:
    """The message of a failed training; None for a bug.

    Where one worker fails the others fail too, because they wait for each other: any of them may have the reason.
    """
    from ray.exceptions import RayActorError

    failures = getattr(error, "worker_failures", None) or {0: error}
    causes = [getattr(found, "_base_exc", found) for found in failures.values()]
    messages = [message for cause in causes if (message := user_message(cause)) is not None]
    dead = [str(cause) for cause in causes if isinstance(cause, RayActorError)]
    return next(iter(messages + dead), None)
