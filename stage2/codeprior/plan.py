"""The plan of a training run: what it would do, its sizes, its memory and its time. Nothing is written.

Axes: B batch, C condition tokens, T image codes of a sequence.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from codeprior import checkpoint as ckpt
from codeprior.blend import Blend, Shards, places
from codeprior.chunked_loss import CHUNK, LARGE_CODEBOOK
from codeprior.config import PriorError, SequenceSpec, TrainConfig
from codeprior.data import Batch, check_labels, check_shards
from codeprior.masked import make_prior
from codeprior.model import Prior
from codeprior.optim import make_optimizer
from codeprior.speed import peak_flops, resolve_precision, step_flops_per_sequence
from codeprior.trainer import SequenceLoss, train_step
from codeshards.format import ShardDataset
from runkit.codes import code_dtype
from runkit.devices import Autocast, make_autocast
from runkit.folders import check_apart
from runkit.machine import memory_bytes
from runkit.muon import moments_of
from runkit.plans import Trial, WorkPlan, changed_settings, evaluations, try_step
from runkit.trackers import check_tracker
from runkit.training import place_run


def plan_training(config: TrainConfig, shards: Shards, out: str | Path) -> WorkPlan:
    """Return what :func:`codeprior.train.train_prior` would do; it finds the same errors, and writes nothing.

    Time and memory are those of a few steps on random codes.

    Raises:
        ShardError: As the training.
    """
    check_apart(out, shards=places(shards))
    check_tracker(config.tracker, PriorError)
    folder = ckpt.run_folder(Path(out))
    blend = Blend.open(shards, known=ckpt.dataset_of(Path(out)))
    sequence = blend.sequence(config)
    for dataset in blend.datasets:
        check_shards(dataset, sequence)
        _check_labels(dataset, sequence)
    run = ckpt.RunConfig(train=config, sequence=sequence, data=blend.fingerprint)
    done = folder.planned_step(run, config.steps)
    rows = {split: blend.rows(split) for split in blend.splits}
    if rows["train"] < config.batch_size:
        raise PriorError(f"batch_size = {config.batch_size}: an epoch has only {rows['train']} rows; use at most that")
    stored = code_dtype(sequence.codebook_size).itemsize
    device, precision = place_run(config, resolve_precision, PriorError)
    with torch.random.fork_rng(devices=[]):
        prior = make_prior(config.model, sequence)
        weights = 4 * prior.parameter_count
        moments = moments_of(make_optimizer(prior, config))
        saved = weights * (2 if config.ema_decay else 1)
        saved += 4 * sum(parameter.numel() * len(kept) for parameter, kept in moments.items())
        tables = [prior.code_embedding.weight, *([] if prior.head is None else [prior.head.weight])]
        codebook = sum(4 * table.numel() * (2 + len(moments[table])) for table in tables)
        steps = config.steps - done
        resident = saved + weights  # the gradients
        trial = eval_s = None
        fits = device.type == "cuda" or resident < memory_bytes()[1]
        if steps and fits:
            trial, row_s = _trial(config, sequence, prior, device, precision)
            eval_s = evaluations(steps, config.eval_every) * rows.get("val", 0) * row_s
    shares = zip(blend.datasets, blend.proportions, strict=True)
    datasets = {str(dataset.path): f"{share:.2%}" for dataset, share in shares} if len(blend.datasets) > 1 else {}
    figures = {
        **({"blend": datasets} if datasets else {}),
        "steps": steps, "steps_done": done, "rows": rows, "epochs": round(steps * config.batch_size / rows["train"], 2),
        "codes_per_sequence": sequence.length, "condition_tokens": sequence.condition_length,
        "parameters": prior.parameter_count, "device": device.type, "precision": precision,
        "codebook_bytes": codebook, "logits_bytes": _logits_bytes(config, sequence),
        "memory_bytes": trial.memory_bytes if trial else resident,
        "step_s": trial and round(trial.seconds, 4), "time_s": trial and steps * trial.seconds + (eval_s or 0.0),
        "checkpoint_bytes": saved, "run_folder_bytes": config.keep_checkpoints * saved + 2 * weights,
        "cache_bytes": sum(rows.values()) * sequence.length * stored if config.loader == "memory_map" else 0,
    }  # fmt: skip
    notes = ["time is that of trial steps on random codes, in one process here, without writing checkpoints"]
    if not fits:
        notes = ["weights and optimizer do not fit the free memory: no step was tried, and memory is theirs alone"]
    return WorkPlan(
        work=_work(str(out), done, steps), figures=figures, notes=tuple(notes) if steps else (),
        settings=changed_settings(config),
    )  # fmt: skip


def _logits_bytes(config: TrainConfig, sequence: SequenceSpec) -> int:
    """Bytes of the logits of a step that are in memory at once."""
    entries = sequence.codebook_size if sequence.codebook_size <= LARGE_CODEBOOK else CHUNK
    return 4 * (config.batch_size // config.accumulate) * sequence.length * entries


def _work(out: str, done: int, steps: int) -> str:
    if not steps:
        return f"{out} is complete: nothing to do"
    return f"continue {out} from step {done}" if done else f"train a prior in {out}"


def _check_labels(dataset: ShardDataset, sequence: SequenceSpec) -> None:
    for part in sequence.conditions:
        for split in dataset.splits if part.name == "class" else ():
            batches = [batch["label"] for batch in dataset.batches(split, ["label"])]
            check_labels(np.concatenate(batches), split, part.vocabulary)


def _trial(
    config: TrainConfig, sequence: SequenceSpec, prior: Prior, device: torch.device, precision: Autocast
) -> tuple[Trial, float]:
    """Return the measured step, and the seconds per row of an evaluation."""
    prior = prior.to(device).train()
    kept = copy.deepcopy(prior) if config.ema_decay else None  # for its memory
    loss, optimizer, autocast = (
        SequenceLoss(prior),
        make_optimizer(prior, config, precision),
        make_autocast(device, precision),
    )

    def step(rows: int) -> None:
        batch = _random_batch(sequence, rows).to(device)
        train_step(loss, optimizer, [batch], learning_rate=0.0, grad_clip=config.grad_clip, autocast=autocast)

    sample_s = step_flops_per_sequence(prior) / peak_flops(device, precision)
    step(1)  # the first one allocates
    part = config.batch_size // config.accumulate
    trial = try_step(step, config.batch_size, part, device, sample_s=sample_s)

    @torch.no_grad()
    def evaluate(rows: int) -> None:
        with autocast:
            prior.nll(**_random_batch(sequence, rows).to(device).tensors())

    row_s = try_step(evaluate, 1, part, device, sample_s=sample_s / 3).seconds
    del kept
    return trial, row_s


def _random_batch(sequence: SequenceSpec, rows: int) -> Batch:
    parts = [torch.randint(part.vocabulary, (rows, part.length)) for part in sequence.conditions]
    condition_BC = torch.cat(parts, dim=1) if parts else torch.zeros((rows, 1), dtype=torch.int64)
    return Batch(condition_BC=condition_BC, codes_BT=torch.randint(sequence.codebook_size, (rows, sequence.length)))
