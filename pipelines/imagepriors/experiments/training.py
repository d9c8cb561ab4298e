"""Train the tokenizers and priors of experiments in parallel on Ray; finished ones are reused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from codeprior.checkpoint import CONFIG, RunConfig, load_summary
from codeprior.config import TrainConfig as PriorConfig
from codeprior.data import sequence_from_dataset
from codeprior.train import train_prior
from codeshards.format import ShardDataset, ShardError, load_plan
from codeshards.format.plan import PLAN_FILE
from codeshards.job.tokenize import tokenize
from imagepriors.cluster import PACKAGES
from imagepriors.experiments.config import ShardKind
from imagepriors.experiments.workspace import PriorRuns, Workspace
from runkit.errors import user_message
from runkit.machine import usable_cores
from runkit.progress import tqdm
from runkit.ray_session import connected
from vqgan.checkpoint import FREE_ON_RESUME, load_config
from vqgan.data import open_splits
from vqgan.errors import InputError
from vqgan.palette import fit_palette
from vqgan.train import train_tokenizer

log = logging.getLogger(__name__)

Task = Callable[[Literal["cpu", "cuda"]], Any]
"""A training that runs on the given device."""
_POLL_S = 2.0
"""Seconds between checks of Ray."""


def pick_device(workspace: Workspace) -> Literal["cpu", "cuda"]:
    """The device of all trainings: cuda if any node of the Ray cluster has a GPU.

    Raises:
        InputError: a GPU is requested, but neither this machine nor a cluster has one.
    """
    requested = workspace.config.device
    with connected(1, PACKAGES) as session:
        found = any(node["Resources"].get("GPU") for node in session.nodes())
    if requested == "cuda" and not found and session.is_local:
        raise InputError("device = 'cuda': Ray finds no GPU on this machine; name a cluster in RAY_ADDRESS, or use cpu")
    if requested != "auto":
        return requested
    return "cuda" if found else "cpu"


def prepare(workspace: Workspace, kinds: Collection[ShardKind]) -> None:
    """Train the tokenizers of these shards in parallel, and encode the dataset.

    Raises:
        InputError: an existing tokenizer was trained with another configuration.
    """
    tokenizers = {kind: workspace.tokenizers(kind) for kind in sorted(kinds)}
    presets = {folder: preset for parts in tokenizers.values() for folder, preset in parts.values()}
    steps = {folder: workspace.tokenizer_config(preset).steps if preset else 0 for folder, preset in presets.items()}
    folders = sorted(presets, key=lambda folder: -steps[folder])  # the longest first, so that none is left for the end
    found = {folder.name: _tokenizer_task(workspace, folder, presets[folder]) for folder in folders}
    tasks = {name: task for name, task in found.items() if task}
    networks = sum(bool(preset) for folder, preset in presets.items() if folder.name in tasks)
    threads = max(workspace.config.threads, usable_cores() // max(1, networks))
    device = pick_device(workspace)
    run_parallel(tasks, "train tokenizers", device=device, threads=threads)
    for kind, parts in tokenizers.items():
        out, config = workspace.shards(kind), replace(workspace.tokenize_config(kind), device=device)
        if (out / PLAN_FILE).exists():  # resume on the same device, because codes of a GPU may differ from a CPU's
            config = replace(config, device=load_plan(out).settings["device"])
        made_by = {name: folder for name, (folder, _) in parts.items()}
        tokenize(config, dataset=workspace.config.dataset, data=workspace.data, tokenizers=made_by, out=out)


def _tokenizer_task(workspace: Workspace, folder: Path, preset: str) -> Task | None:
    """The training of a tokenizer; None if a finished one with the same configuration exists."""
    dataset, data, geometry = workspace.config.dataset, workspace.data, workspace.geometry
    if not preset:
        if (folder / "config.json").exists():
            return None
        return lambda _: fit_palette(
            open_splits(dataset, data)["train"], folder, colours=512, resolution=32, geometry=geometry, images=2000,
            seed=0,
        )  # fmt: skip
    config = workspace.tokenizer_config(preset)
    if not (folder / "summary.json").exists():
        return lambda device: train_tokenizer(replace(config, device=device), open_splits(dataset, data), folder)
    found = load_config(folder)
    for name in (field.name for field in fields(config) if field.name not in FREE_ON_RESUME - {"steps"}):
        if getattr(found, name) != getattr(config, name):
            raise InputError(
                f"{folder} was trained with {name} = {getattr(found, name)}, the experiment asks for "
                f"{getattr(config, name)}: pass another --run, or its settings"
            )
    return None


def train_priors(workspace: Workspace, runs: PriorRuns) -> None:
    """Train priors in parallel; finished ones are not trained again.

    Raises:
        ShardError: a training failed, or a folder contains a run with another configuration.
    """
    tasks: dict[str, Task] = {}
    # The longest first, so that none is left for the end.
    for folder, (config, shards) in sorted(runs.items(), key=lambda item: -_training_tokens(*item[1])):
        if load_summary(folder) is None:
            tasks[f"{folder.parent.name}/{folder.name}"] = _prior_task(config, shards, folder)
            continue
        found = RunConfig.load(folder / CONFIG).train
        for name in ("steps", "eval_every"):  # a resumed run may change these, but the experiments compare them
            if getattr(found, name) != getattr(config, name):
                raise ShardError(
                    f"{folder} was trained with {name} = {getattr(found, name)}, {getattr(config, name)} is asked "
                    "for: pass another --run, or remove it"
                )
        train_prior(config, shards, folder)  # a finished run: checks that the configuration is the same
    run_parallel(tasks, "train priors", device=pick_device(workspace), threads=workspace.config.threads)


def _training_tokens(config: PriorConfig, shards: Path) -> int:
    """Number of tokens in all training batches of a prior."""
    sequence = sequence_from_dataset(
        ShardDataset.open(shards), config.order, config.condition, scales=config.multiscale
    )
    return config.steps * config.batch_size * (sequence.condition_length + sequence.length)


def _prior_task(config: PriorConfig, shards: Path, out: Path) -> Task:
    return lambda device: train_prior(replace(config, device=device), shards, out)


def run_experiment(workspace: Workspace, run: Callable[[Workspace], None]) -> None:
    """Let an experiment draw and measure: in this process, or on a GPU of the cluster."""
    if pick_device(workspace) == "cpu":
        run(workspace)
    else:
        run_parallel({"samples": lambda _: run(workspace)}, "draw", device="cuda", threads=1)


def run_parallel(tasks: Mapping[str, Task], description: str, *, device: Literal["cpu", "cuda"], threads: int) -> None:
    """Run tasks in parallel on Ray, each on a GPU or on `threads` cores.

    Args:
        tasks: Name → task, in the order in which they start.
        description: Label of the progress bar.
        device: Device of each task.
        threads: Cores per task without a GPU.

    Raises:
        ShardError: a task refused its input, or its process died.
    """

    def work(task: Task) -> None:
        import torch

        if device == "cpu":
            torch.set_num_threads(threads)
        task(device)

    if not tasks:
        return
    with connected(threads, PACKAGES) as session:
        ray, nodes = session.ray, session.nodes()
        # This machine may have more cores than the nodes that do the work.
        threads = min(threads, max([1, *(int(node["Resources"].get("CPU", 0)) for node in nodes)]))
        size = {"num_gpus": 1} if device == "cuda" else {"num_cpus": threads}
        kind, need = ("GPU", 1) if device == "cuda" else ("CPU", threads)
        if session.is_local and not any(node["Resources"].get(kind, 0) >= need for node in nodes):
            raise ShardError(f"{description}: this machine has no {need} {kind} for Ray: choose another device")
        if ray.available_resources().get(kind, 0) < need:
            log.warning("%s: no node has %d %s free, waiting for one", description, need, kind)
        remote = ray.remote(max_retries=2, **size)(work)
        waiting = {remote.remote(task): name for name, task in tasks.items()}
        with tqdm(total=len(waiting), desc=description, disable=None) as bar:
            while waiting:
                session.nodes()  # raises an error if Ray has died, which no task reports
                for done in ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)[0]:
                    _check_result(ray, done, waiting.pop(done))
                    bar.update()


def _check_result(ray: Any, done: Any, name: str) -> None:
    """Raise the error of a task, if any."""
    try:
        ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if (message := user_message(error.cause)) is not None:
            raise ShardError(f"{name}: {message}") from error
        raise
    except ray.exceptions.RayError as error:
        raise ShardError(
            f"{name}: its process died, perhaps because memory was short; the same command resumes ({error})"
        ) from error
