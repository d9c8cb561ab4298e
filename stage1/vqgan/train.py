"""Stage-1 training: the loop around the step, with evaluation, logs, checkpoints and clean stops."""

import contextlib
import io
import json
import logging
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from runkit.checkpoints import newest_intact, remove_old
from runkit.compiling import check_compiler
from runkit.files import write_file
from runkit.folders import held
from runkit.progress import tqdm
from runkit.runlog import RunLog
from runkit.tensors import save_tensors
from vqgan import checkpoint, distributed
from vqgan.batches import prefetched
from vqgan.config import TrainConfig
from vqgan.data import Split, spread
from vqgan.errors import InputError
from vqgan.metrics import TokenizerMetrics
from vqgan.modalities import reconstruction_loss, to_input, to_pictures
from vqgan.tokenizer import pick_device
from vqgan.trainer import NonFiniteLossError, Trainer

log = logging.getLogger(__name__)
_GRID_IMAGES = 8
_LOG_EVERY = 10
_EVAL_BATCH = 32


@torch.inference_mode()
def evaluate(trainer: Trainer, split: Split) -> tuple[TokenizerMetrics, Any, Any]:
    """Metrics over the validation images in float32, shared out over the ranks; some originals and outputs."""
    config = trainer.config
    metrics = TokenizerMetrics(config.model.modality, config.model.codebook_size, config.model.n_labels)
    mine = spread(len(split), config.eval_images or len(split))[distributed.rank() :: distributed.world()]
    with ThreadPoolExecutor(config.reader_threads) as pool:
        for start in range(0, len(mine), _EVAL_BATCH):
            x, decoded, codes = _reconstruct(trainer, split, mine[start : start + _EVAL_BATCH], pool)
            loss = reconstruction_loss(decoded, x, config.model, config.loss.l2_weight)
            if trainer.perceptual is not None:
                loss = loss + config.loss.perceptual_weight * trainer.perceptual(decoded, x)
            output, target = to_pictures(decoded, config.model), to_pictures(x, config.model)
            metrics.add(output, target, codes.cpu().numpy(), loss=float(loss))
        x, decoded, _ = _reconstruct(trainer, split, spread(len(split), _GRID_IMAGES), pool)
    metrics.reduce(trainer.device)
    return metrics, to_pictures(x, config.model), to_pictures(decoded, config.model)


def _reconstruct(
    trainer: Trainer, split: Split, indices: list[int], pool: ThreadPoolExecutor
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, reconstruction and codes of a few validation images."""
    net, model = trainer.config.model, trainer.shipped.eval()
    wanted = () if net.modality == "rgb" else (net.modality,)

    def read(index: int) -> npt.NDArray[Any]:
        return split.read_good(index, net.resolution, conditions=wanted, geometry=net.geometry).picture(net.modality)

    pictures = pool.map(read, indices)
    x = to_input(list(pictures), net, trainer.device).contiguous(memory_format=trainer.layout)
    codes = model.encode(x)
    return x, model.decode(codes), codes


def save_grid(path: Path, originals: npt.NDArray[Any], outputs: npt.NDArray[Any]) -> None:
    """Originals above reconstructions, as a PNG."""
    rows = []
    for pictures in (originals, outputs):
        row = np.concatenate(list(pictures), axis=1)
        if row.ndim == 2:  # depth is in [0, 1]; labels are stretched to grey levels
            top = 1.0 if row.dtype.kind == "f" else max(1, row.max())
            row = np.repeat((row / top * 255).astype(np.uint8)[..., None], 3, axis=2)
        rows.append(row)
    content = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(content, "png")
    write_file(path, content.getvalue())


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list; only a process's main thread can."""
    stop: list[int] = []
    try:
        names = (signal.SIGTERM, signal.SIGINT)
        previous = {name: signal.signal(name, lambda number, _: stop.append(number)) for name in names}
    except ValueError:  # a Ray Train worker runs this in another thread and handles signals itself
        previous = {}
    try:
        yield stop
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def train(config: TrainConfig, splits: dict[str, Split], run: Path) -> dict[str, Any]:
    """Train a VQGAN in `run`, continuing from its newest intact checkpoint if there is one; returns the summary.

    Writes metrics.jsonl, tensorboard/, reconstructions/, checkpoints/, best/ (the tokenizer with the lowest validation
    loss) and at the end model.safetensors, config.json and, last, summary.json. Under `torchrun`, or in a process
    group that exists already, each process trains on its share of every batch. A run that is complete is not run
    again.

    Raises:
        InputError: bad data or a config that contradicts the run; the loss is not finite; another process
            trains in `run`, or it holds files of these names that no training has made.
        SystemExit: (143) stopped by SIGTERM, after a checkpoint.
        KeyboardInterrupt: stopped by Ctrl-C, after a checkpoint.
    """
    with distributed.process_group(), contextlib.ExitStack() as stack, _stop_signals() as stop:
        if config.model.modality != "rgb":
            splits = {name: split.having(config.model.modality) for name, split in splits.items()}
        if config.mirror:
            splits["train"].check_mirror((config.model.modality,), "set mirror = false")
        if config.model.modality == "segmentation":
            splits = {name: split.within(config.model.n_labels) for name, split in splits.items()}
        summary = distributed.from_first(lambda: checkpoint.finished_summary(run, config), InputError)
        if summary is not None:
            log.info("%s is complete", run)
            return summary
        if config.compile:
            check_compiler(pick_device(config.device).type, InputError)
        trainer = Trainer(config)
        distributed.from_first(lambda: stack.enter_context(_held(run)), InputError)
        found = distributed.from_first(lambda: _starting_point(trainer, run), InputError)
        if found is not None:
            trainer.restore(found)
            log.info("continuing %s from step %d", run, trainer.step_done)
        return _train(trainer, splits, run, stop)


def _held(run: Path) -> contextlib.AbstractContextManager[None]:
    return held(run, "train-vqgan", reserved=checkpoint.RESERVED, is_ours=lambda: checkpoint.is_run(run))


def _starting_point(trainer: Trainer, run: Path) -> Path | None:
    """The checkpoint to continue from, if any; what killed processes left is removed."""
    checkpoint.remove_unfinished(run)
    found = newest_intact(run, trainer.check)
    if found is None and (run / checkpoint.WEIGHTS).exists():
        raise InputError(f"{run} holds a trained tokenizer, but its checkpoints are gone: choose another output folder")
    remove_old(run, trainer.config.keep_checkpoints)  # of a run that ended between writing one and that
    return found


def _train(trainer: Trainer, splits: dict[str, Split], run: Path, stop: list[int]) -> dict[str, Any]:
    first = distributed.rank() == 0
    if first:
        (run / checkpoint.SUMMARY).unlink(missing_ok=True)
    lines = _run_log(run, trainer.step_done, trainer.config.steps) if first else None
    started = time.monotonic()
    figures = _loop(trainer, splits, run, lines, stop)
    summary = {"steps": trainer.step_done, "wall_s": round(time.monotonic() - started, 1), **figures}
    if first:
        checkpoint.save_model(run, trainer.config, trainer.shipped)
        checkpoint.write_json(run / checkpoint.SUMMARY, summary)
    distributed.barrier()
    return summary


def _loop(
    trainer: Trainer, splits: dict[str, Split], run: Path, lines: RunLog | None, stop: list[int]
) -> dict[str, Any]:
    config, first = trainer.config, distributed.rank() == 0
    figures: dict[str, Any] = {}
    bar = tqdm(
        total=config.steps, initial=trainer.step_done, desc="train-vqgan", unit="step", disable=None if first else True
    )
    with bar:
        last = time.monotonic()
        for pictures in prefetched(splits["train"], config, trainer.step_done):
            batch = to_input(pictures, config.model, trainer.device)
            try:
                terms = trainer.step(batch)
            except NonFiniteLossError as error:
                evidence = _save_evidence(trainer, batch, run)
                raise NonFiniteLossError(f"{error}; the batch and the weights are in {evidence}") from error
            step = trainer.step_done
            bar.update()
            if step % _LOG_EVERY == 0:
                rate = _LOG_EVERY * config.batch_size / (time.monotonic() - last)
                last = time.monotonic()
                if lines is not None:
                    lines.write(step, {**terms, "learning_rate": trainer.learning_rate(), "images_per_s": rate})
                bar.set_postfix(loss=f"{terms['loss']:.3f}", images_per_s=f"{rate:.1f}")
            if step % config.eval_every == 0 or step == config.steps:
                figures = _evaluate_and_log(trainer, splits["val"], run, lines)
                last = time.monotonic()
            # One process alone need not wait for its GPU to know.
            stopping = bool(stop)
            if distributed.world() > 1:
                stopping = bool(distributed.total(torch.tensor(float(stopping), device=trainer.device)))
            if first and (stopping or step % config.checkpoint_every == 0 or step == config.steps):
                trainer.save(run)
            if stopping:
                told = f"stopped at step {step}; run again to continue"
                if signal.SIGINT in stop:
                    raise KeyboardInterrupt(told)
                log.warning(told)  # batch systems tell by the exit code what may be started again
                raise SystemExit(128 + signal.SIGTERM)
    return figures or _evaluate_and_log(trainer, splits["val"], run, lines)


def _evaluate_and_log(trainer: Trainer, split: Split, run: Path, lines: RunLog | None) -> dict[str, Any]:
    step = trainer.step_done
    metrics, originals, outputs = evaluate(trainer, split)
    figures = metrics.result()
    if lines is not None:
        lines.write(step, figures)
        save_grid(run / checkpoint.PICTURES / f"step-{step:08d}.png", originals, outputs)
        log.info("step %d: %s", step, ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
        if figures["val_usage"] < 0.25:
            log.warning(
                "only %.0f%% of the codes are used: try --restart-every 50, --loss.codebook-decay 0.99 or "
                "--model.quantizer l2 --model.embed-dim 8",
                100 * figures["val_usage"],
            )
        checkpoint.save_best(run, trainer.config, trainer.shipped, {"step": step, **figures})
    return {**figures, "code_counts": metrics.counts_K.tolist()}


def _save_evidence(trainer: Trainer, batch: Tensor, run: Path) -> Path:
    """The state in which a step failed: the batch, and the weights, which the failed step left alone."""
    folder = run / f"non-finite-step-{trainer.step_done:08d}" / f"rank-{distributed.rank()}"
    checkpoint.save_model(folder, trainer.config, trainer.model)
    save_tensors(folder / "batch.safetensors", {"batch": batch})
    return folder


def _run_log(run: Path, step: int, steps: int) -> RunLog:
    """The log without the lines past the checkpoint that a run continues from, and those that a kill has damaged.

    A run that continues from its last step evaluates it once more, so that this evaluation is dropped too.
    """

    def stays(line: bytes) -> bool:
        try:
            value = json.loads(line)
            at = value["step"]
            return line.endswith(b"\n") and (at < step or (at == step and (step < steps or "val_loss" not in value)))
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    return RunLog(run / checkpoint.METRICS, run / checkpoint.CURVES, step, stays)
