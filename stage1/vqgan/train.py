"""Training a tokenizer: the loop around the step, with its metrics and evaluation."""

import contextlib
import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from runkit.files import write_file, write_json
from runkit.ranks import process_group, rank, world_size
from runkit.tensors import save_tensors
from runkit.trackers import check_tracker
from runkit.training import TrainingLoop, run_training
from vqgan import checkpoint
from vqgan.batches import prefetched
from vqgan.config import TrainConfig
from vqgan.data import Split, spread
from vqgan.errors import InputError
from vqgan.finetune import completed
from vqgan.metrics import TokenizerMetrics
from vqgan.modalities import reconstruction_loss, to_input, to_pictures
from vqgan.trainer import NonFiniteLossError, Trainer

log = logging.getLogger(__name__)
_GRID_IMAGES = 8
_LOG_EVERY = 10
_EVAL_BATCH = 32
_VECTORS = "restart_every = 50, loss.codebook_decay = 0.99, or model.quantizer = 'l2' with model.embed_dim = 8"
_ENTROPY = "loss.entropy_weight = 0.1"
_USAGE_REMEDIES = {"vq": _VECTORS, "l2": _VECTORS, "ibq": _ENTROPY, "lfq": _ENTROPY, "bsq": _ENTROPY}


@torch.inference_mode()
def evaluate(
    trainer: Trainer, split: Split, before_batch: Callable[[], None] = lambda: None
) -> tuple[TokenizerMetrics, npt.NDArray[Any], npt.NDArray[Any]]:
    """Return metrics over the validation images in float32, and some originals and reconstructions.

    Each rank evaluates its part of the images; the metrics are the same on all ranks.

    Args:
        trainer: The model, as it is shipped.
        split: The images.
        before_batch: Called before every batch; an exception that it raises on all ranks ends the evaluation.
    """
    config = trainer.config
    metrics = TokenizerMetrics(config.model.modality, config.model.codebook_size, config.model.n_labels)
    indices = spread(len(split), config.eval_images or len(split))
    mine = indices[rank() :: world_size()]
    with ThreadPoolExecutor(config.reader_threads) as pool:
        for batch in range(math.ceil(len(indices) / (world_size() * _EVAL_BATCH))):
            before_batch()  # also on a rank whose images have run out
            if not (part := mine[batch * _EVAL_BATCH : (batch + 1) * _EVAL_BATCH]):
                continue
            x, decoded, codes = _reconstruct(trainer, split, part, pool)
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
    """Return the input, the reconstruction and the codes of a few validation images."""
    net, model = trainer.config.model, trainer.shipped.eval()
    wanted = () if net.modality == "rgb" else (net.modality,)

    def read(index: int) -> npt.NDArray[Any]:
        return split.read_good(index, net.resolution, conditions=wanted, geometry=net.geometry).picture(net.modality)

    pictures = pool.map(read, indices)
    x = to_input(list(pictures), net, trainer.device).contiguous(memory_format=trainer.layout)
    codes = model.encode(x)
    return x, model.decode(codes), codes


def save_grid(path: Path, originals: npt.NDArray[Any], outputs: npt.NDArray[Any]) -> None:
    """Write originals above reconstructions, as a PNG."""
    rows = []
    for pictures in (originals, outputs):
        row = np.concatenate(list(pictures), axis=1)
        if row.ndim == 2:  # depth is in [0, 1]; labels are scaled to grey levels
            top = 1.0 if row.dtype.kind == "f" else max(1, row.max())
            row = np.repeat((row / top * 255).astype(np.uint8)[..., None], 3, axis=2)
        rows.append(row)
    content = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(content, "png")
    write_file(path, content.getvalue())


class Run(TrainingLoop):
    """The loop of one tokenizer's run."""

    def __init__(self, trainer: Trainer, splits: Mapping[str, Split], path: Path) -> None:
        self.trainer, self.config, self.splits = trainer, trainer.config, splits
        config = trainer.config
        super().__init__(
            checkpoint.run_folder(path), steps=config.steps, log_every=_LOG_EVERY, eval_every=config.eval_every,
            checkpoint_every=config.checkpoint_every, keep=config.keep_checkpoints, tracker=config.tracker,
        )  # fmt: skip
        self._started_s = time.monotonic()
        self._timed_steps, self._interval_s = 0, 0.0
        self._terms: dict[str, float] = {}
        self._results: dict[str, Any] = {}

    @property
    def step(self) -> int:
        """Number of steps that are done."""
        return self.trainer.step_done

    def check(self, path: Path) -> None:
        """Refuse a checkpoint from which the run cannot continue; see :meth:`Trainer.check`."""
        self.trainer.check(path, self.folder)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        self.trainer.restore(path)

    def resume(self, checkpoint: Path | None, config: Any) -> None:
        """Continue from a checkpoint, or start."""
        if checkpoint is None:
            self.trainer.start()
        super().resume(checkpoint, config)

    def state(self) -> dict[str, Any]:
        """Return the config, weights, tensors and scalars of a checkpoint."""
        return self.trainer.state()

    def fit(self) -> None:
        """Train up to the last step.

        Raises:
            NonFiniteLossError: A loss is not finite.
            StoppedError: after a signal, with a checkpoint saved.
        """
        with contextlib.closing(prefetched(self.splits["train"], self.config, self.step)) as self._batches:
            super().fit()

    def advance(self) -> None:
        """Do one step."""
        start = time.monotonic()
        batch = to_input(next(self._batches), self.config.model, self.trainer.device)
        try:
            self._terms = self.trainer.step(batch)
        except NonFiniteLossError as error:
            evidence = _save_evidence(self.trainer, batch, self.folder.path)
            raise NonFiniteLossError(f"{error}; the batch and the weights are in {evidence}") from error
        self._timed_steps += 1
        self._interval_s += time.monotonic() - start

    def metrics(self) -> tuple[Mapping[str, float], Mapping[str, str]]:
        """Return the loss terms of the last step and the speed since the last call; and those for the progress bar."""
        images_per_s = self._timed_steps * self.config.batch_size / self._interval_s
        self._timed_steps, self._interval_s = 0, 0.0
        figures = {**self._terms, "learning_rate": self.trainer.learning_rate(), "images_per_s": images_per_s}
        return figures, {"loss": f"{self._terms['loss']:.3f}", "images_per_s": f"{images_per_s:.1f}"}

    def evaluate(self, check_stop: Callable[[], None]) -> None:
        """Evaluate on the validation split, write reconstructions, and keep the weights if they are the best."""
        metrics, originals, outputs = evaluate(self.trainer, self.splits["val"], check_stop)
        figures = metrics.result()
        if self.log is not None:
            self.log.write(self.step, figures)
            run = self.folder.path
            save_grid(run / checkpoint.PICTURES / f"step-{self.step:08d}.png", originals, outputs)
            log.info("step %d: %s", self.step, ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
            if figures["val_usage"] < 0.25 and (remedy := _USAGE_REMEDIES.get(self.config.model.quantizer)):
                log.warning("only %.0f%% of the codes are used: try %s", 100 * figures["val_usage"], remedy)
            checkpoint.save_best(run, self.config, self.trainer.shipped, {"step": self.step, **figures})
        self._results = {**figures, "code_counts": metrics.counts_K.tolist()}

    def finish(self) -> dict[str, Any]:
        """Publish the final weights and the summary, and return the summary."""
        wall_s = round(time.monotonic() - self._started_s, 1)
        summary = {"steps": self.step, "wall_s": wall_s, **self._results}
        if self.first:
            checkpoint.save_model(self.folder.path, self.config, self.trainer.shipped)
            write_json(self.folder.path / checkpoint.SUMMARY, summary)
        return summary


def _save_evidence(trainer: Trainer, batch: Tensor, run: Path) -> Path:
    """Write the batch of a step that failed, and the weights, which it has not changed; return the folder."""
    folder = run / f"non-finite-step-{trainer.step_done:08d}" / f"rank-{rank()}"
    checkpoint.save_model(folder, trainer.config, trainer.model)
    save_tensors(folder / "batch.safetensors", {"batch": batch})
    return folder


def usable_splits(config: TrainConfig, splits: Mapping[str, Split]) -> Mapping[str, Split]:
    """Return the samples that a config can train on.

    Raises:
        InputError: There are none, or they cannot be mirrored.
    """
    if config.model.modality != "rgb":
        splits = {name: split.having(config.model.modality) for name, split in splits.items()}
    if config.mirror:
        splits["train"].check_mirror((config.model.modality,), "set mirror = false")
    if config.model.modality == "segmentation":
        splits = {name: split.within(config.model.n_labels) for name, split in splits.items()}
    return splits


def train_tokenizer(config: TrainConfig, splits: Mapping[str, Split], run: Path) -> dict[str, Any]:
    """Train a VQGAN, or resume a run that was stopped.

    Writes metrics.jsonl, tensorboard/, reconstructions/, checkpoints/, best/ (the tokenizer with the lowest validation
    loss) and at the end model.safetensors, config.json and, last, summary.json. Under `torchrun`, or in a process
    group that exists already, each process trains on its part of every batch.

    Args:
        config: The run. On resume only the fields in `checkpoint.FREE_ON_RESUME` may differ.
        splits: The splits "train" and "val".
        run: The run's folder; all processes must see it.

    Returns:
        The summary, which is also RUN/summary.json. A run that is complete is not run again.

    Raises:
        InputError: The data are unusable, or the config contradicts the run; the loss is not finite; another process
            trains in `run`, or it holds files of these names that were not made by training.
        StoppedError: after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    check_tracker(config.tracker, InputError)
    config = completed(config)
    with process_group():
        splits = usable_splits(config, splits)
        folder = checkpoint.run_folder(run)
        return run_training(folder, config, config.steps, lambda: Run(Trainer(config), splits, run))
