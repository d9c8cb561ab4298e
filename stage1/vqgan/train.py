"""Stage-1 training: a plain step function and the loop around it.

Axes: B batch, C channels, H W pixels, N latent rows, D code dimension.
"""

import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from vqgan import checkpoint
from vqgan.config import TrainConfig
from vqgan.datasets import Split
from vqgan.errors import InputError
from vqgan.losses import PatchDiscriminator, adaptive_weight, hinge_loss, perceptual_loss
from vqgan.metrics import TokenizerMetrics
from vqgan.modalities import reconstruction_loss, to_input, to_pictures
from vqgan.model import VQGAN
from vqgan.tokenizer import pick_device, pick_dtype

log = logging.getLogger(__name__)
_FREE_TO_CHANGE = ("steps", "eval_every", "eval_images", "checkpoint_every", "keep_checkpoints", "device")
_WORKERS = 2
_GRID_IMAGES = 8
_LOG_EVERY = 10


class Trainer:
    """Model, discriminator, losses and optimisers of one run, with everything that a step changes."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.precision, self.device)
        layout = {"device": self.device, "memory_format": torch.channels_last}
        self.model = VQGAN(config.model, config.loss.beta).to(**layout)  # type: ignore[call-overload]
        self.perceptual = perceptual_loss(config.loss, config.model)
        if self.perceptual is not None:
            self.perceptual.to(**layout)  # type: ignore[call-overload]
        loss = config.loss
        self.disc = PatchDiscriminator(config.model.channels, loss.disc_ch, loss.disc_layers).to(**layout)  # type: ignore[call-overload]
        adam: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "fused": True}
        self.optimizer = torch.optim.Adam(self.model.parameters(), **adam)
        self.disc_optimizer = torch.optim.Adam(self.disc.parameters(), **adam)
        self.step_done = 0

    def learning_rate(self) -> float:
        """Learning rate of the coming step."""
        config, step = self.config, self.step_done
        warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        cosine = 0.55 + 0.45 * math.cos(math.pi * min(1.0, step / config.steps)) if config.decay else 1.0
        return config.learning_rate * warm * cosine

    def step(self, x_BCHW: Tensor) -> dict[str, float]:
        """One update of the autoencoder and, from `disc_start` on, of the discriminator, from one forward pass.

        Raises:
            InputError: the loss is not finite.
        """
        config = self.config.loss
        for group in (*self.optimizer.param_groups, *self.disc_optimizer.param_groups):
            group["lr"] = self.learning_rate()
        x_BCHW = x_BCHW.to(self.device, memory_format=torch.channels_last)
        self.model.train()
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            output, quantization, z_BDhw = self.model(x_BCHW)
            reconstruction = reconstruction_loss(output, x_BCHW, self.config.model)
            terms = {"reconstruction": reconstruction, "quantization": quantization}
        if self.perceptual is not None:
            # Depthwise convolutions are twice as slow in bfloat16 on a CPU: there the trunk stays in float32.
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.device.type == "cuda"):
                terms["perceptual"] = self.perceptual(output.float(), x_BCHW)
        loss = reconstruction + config.perceptual_weight * terms.get("perceptual", torch.zeros(()))
        total = loss + config.codebook_weight * quantization
        if config.disc_weight and self.step_done >= config.disc_start:
            total = total + self._adversarial(x_BCHW, output, loss, terms)
        if not torch.isfinite(total):
            bad = [name for name, value in terms.items() if not torch.isfinite(value)]
            raise InputError(f"loss is not finite at step {self.step_done} ({', '.join(bad)}): lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.step_done += 1
        every = self.config.restart_every
        # The last quarter runs without restarts, so that the decoder settles on the codebook it is shipped with.
        if every and self.step_done % every == 0 and self.step_done < 0.75 * self.config.steps:
            self.model.quantize.restart_unused(z_BDhw.detach().permute(0, 2, 3, 1).flatten(0, 2))
        return {
            "loss": float(total.detach()),
            **{name: float(value.detach()) for name, value in terms.items()},
        }

    def _adversarial(self, x_BCHW: Tensor, output: Tensor, loss: Tensor, terms: dict[str, Tensor]) -> Tensor:
        """Update the discriminator on the detached reconstruction; return the generator's weighted term."""
        config = self.config.loss
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            terms["discriminator"] = hinge_loss(self.disc(x_BCHW).float(), self.disc(output.detach()).float())
        self.disc_optimizer.zero_grad(set_to_none=True)
        terms["discriminator"].backward()  # type: ignore[no-untyped-call]
        self.disc_optimizer.step()
        self.disc.requires_grad_(False)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            terms["adversarial"] = -self.disc(output).float().mean()
        self.disc.requires_grad_(True)
        weight = adaptive_weight(loss, terms["adversarial"], self.model.decoder.conv_out.weight)
        ramp = min(1.0, (self.step_done - config.disc_start + 1) / config.disc_ramp)
        return ramp * config.disc_weight * weight * terms["adversarial"]

    def save(self, run: Path) -> None:
        """Write a checkpoint after the last finished step."""
        tensors = {
            **checkpoint.optimizer_tensors("optimizer", self.optimizer),
            **checkpoint.optimizer_tensors("disc_optimizer", self.disc_optimizer),
            "rng": torch.get_rng_state(),
            "used": self.model.quantize.used_K,
        }
        checkpoint.save_checkpoint(run, self.step_done, self.config, self.model, {"disc": self.disc}, tensors)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint, exactly.

        Raises:
            InputError: the run's config differs in a field that decides the result.
        """
        before, now = asdict(checkpoint.load_config(folder)), asdict(self.config)
        changed = [name for name in now if name not in _FREE_TO_CHANGE and before[name] != now[name]]
        if changed:
            parts = ", ".join(f"{name}: {before[name]} → {now[name]}" for name in changed)
            raise InputError(f"{folder.parent.parent} was started with another config ({parts}): choose another --out")
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        tensors = load_file(folder / "state.safetensors")
        part = {key.removeprefix("disc."): value for key, value in tensors.items() if key.startswith("disc.")}
        self.disc.load_state_dict(part)
        checkpoint.restore_optimizer("optimizer", self.optimizer, tensors)
        checkpoint.restore_optimizer("disc_optimizer", self.disc_optimizer, tensors)
        torch.set_rng_state(tensors["rng"])
        self.model.quantize.used_K.copy_(tensors["used"])
        self.step_done = int(json.loads((folder / "state.json").read_text())["step"])


def training_pictures(split: Split, config: TrainConfig, step: int, pool: ThreadPoolExecutor) -> list[npt.NDArray[Any]]:
    """The batch of one step: a pure function of (seed, step), so that resuming is exact and free.

    Raises:
        InputError: a file cannot be decoded.
    """
    per_epoch = max(1, len(split) // config.batch_size)
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng((config.seed, epoch)).permutation(len(split))
    indices = order[position * config.batch_size : (position + 1) * config.batch_size]
    if len(indices) < config.batch_size:
        indices = np.resize(order, config.batch_size)
    rng = np.random.default_rng((config.seed, 1, step))
    mirrored = (rng.random(len(indices)) < 0.5) & config.mirror
    corners = rng.random((len(indices), 2))
    model = config.model
    wanted = () if model.modality == "rgb" else (model.modality,)

    def read(task: tuple[int, bool, npt.NDArray[np.float64]]) -> npt.NDArray[Any]:
        index, mirror, corner = task
        picture = split.read(index, model.resolution, mirror=mirror, conditions=wanted).picture(model.modality)
        if not config.crop:
            return picture
        top, left = (int(c * (model.resolution - config.crop + 1)) for c in corner)
        return picture[top : top + config.crop, left : left + config.crop]

    return list(pool.map(read, zip(indices.tolist(), mirrored.tolist(), corners, strict=True)))


def _prefetched(split: Split, config: TrainConfig, first: int) -> Iterator[Tensor]:
    """Batches from step `first` on, the next one decoded while the current one trains."""
    with ThreadPoolExecutor(_WORKERS) as pool, ThreadPoolExecutor(1) as ahead:

        def load(step: int) -> Tensor:
            return to_input(training_pictures(split, config, step, pool), config.model)

        future = ahead.submit(load, first)
        for step in range(first, config.steps):
            batch = future.result()
            if step + 1 < config.steps:
                future = ahead.submit(load, step + 1)
            yield batch


@torch.inference_mode()
def evaluate(
    model: VQGAN, split: Split, config: TrainConfig, device: torch.device
) -> tuple[TokenizerMetrics, Any, Any]:
    """Metrics over the first `eval_images` validation images in float32; the first few originals and outputs."""
    metrics = TokenizerMetrics(config.model.modality, config.model.codebook_size, config.model.n_labels)
    wanted = () if config.model.modality == "rgb" else (config.model.modality,)
    shown: list[npt.NDArray[Any]] = []
    model.eval()

    def read(index: int) -> npt.NDArray[Any]:
        return split.read(index, config.model.resolution, conditions=wanted).picture(config.model.modality)

    count = min(len(split), config.eval_images)
    with ThreadPoolExecutor(_WORKERS) as pool:
        for start in range(0, count, 32):
            pictures = list(pool.map(read, range(start, min(count, start + 32))))
            x = to_input(pictures, config.model).to(device, memory_format=torch.channels_last)
            codes = model.encode(x)
            output, target = to_pictures(model.decode(codes), config.model), to_pictures(x, config.model)
            metrics.add(output, target, codes.cpu().numpy())
            if not shown:
                shown = [target[:_GRID_IMAGES], output[:_GRID_IMAGES]]
    return metrics, shown[0], shown[1]


def save_grid(path: Path, originals: npt.NDArray[Any], outputs: npt.NDArray[Any]) -> None:
    """Originals above reconstructions, as a PNG."""
    rows = []
    for pictures in (originals, outputs):
        row = np.concatenate(list(pictures), axis=1)
        if row.ndim == 2:  # labels or depth: stretched to grey levels
            row = np.repeat((row / max(1e-9, row.max()) * 255).astype(np.uint8)[..., None], 3, axis=2)
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def train(config: TrainConfig, splits: dict[str, Split], run: Path) -> dict[str, Any]:
    """Train a VQGAN in `run`, continuing from its last checkpoint if there is one; returns the summary.

    Writes metrics.jsonl, reconstructions/, checkpoints/ and at the end model.safetensors, config.json and, last,
    summary.json. SIGTERM saves a checkpoint and raises KeyboardInterrupt.

    Raises:
        InputError: bad data or a config that contradicts the run; the loss is not finite.
    """
    run.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config)
    found = checkpoint.list_checkpoints(run)
    if found:
        trainer.restore(found[-1])
        log.info("continuing %s from step %d", run, trainer.step_done)
    _truncate_log(run / "metrics.jsonl", trainer.step_done)
    stop: list[int] = []
    previous = {
        name: signal.signal(name, lambda number, _: stop.append(number)) for name in (signal.SIGTERM, signal.SIGINT)
    }
    started = time.monotonic()
    figures: dict[str, Any] = {}
    try:
        bar = tqdm(total=config.steps, initial=trainer.step_done, desc="train-vqgan", unit="step", disable=None)
        with (run / "metrics.jsonl").open("a", buffering=1) as lines, bar:
            last = time.monotonic()
            for batch in _prefetched(splits["train"], config, trainer.step_done):
                terms = trainer.step(batch)
                step = trainer.step_done
                bar.update()
                if step % _LOG_EVERY == 0:
                    rate = _LOG_EVERY * config.batch_size / (time.monotonic() - last)
                    last = time.monotonic()
                    lines.write(json.dumps({"step": step, **terms, "images_per_s": rate}) + "\n")
                    bar.set_postfix(loss=f"{terms['loss']:.3f}", images_per_s=f"{rate:.1f}")
                if step % config.eval_every == 0 or step == config.steps:
                    figures = _evaluate_and_log(trainer, splits["val"], run, lines)
                    last = time.monotonic()
                if stop or step % config.checkpoint_every == 0 or step == config.steps:
                    trainer.save(run)
                if stop:
                    raise KeyboardInterrupt(f"stopped at step {step}; run again to continue")
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
    figures = figures or _evaluate_and_log(trainer, splits["val"], run, None)
    checkpoint.save_model(run, config, trainer.model)
    summary = {"steps": trainer.step_done, "wall_s": round(time.monotonic() - started, 1), **figures}
    checkpoint.write_json(run / "summary.json", summary)
    return summary


def _evaluate_and_log(trainer: Trainer, split: Split, run: Path, lines: Any) -> dict[str, Any]:
    metrics, originals, outputs = evaluate(trainer.model, split, trainer.config, trainer.device)
    save_grid(run / "reconstructions" / f"step-{trainer.step_done:08d}.png", originals, outputs)
    figures = metrics.result()
    if lines is not None:
        lines.write(json.dumps({"step": trainer.step_done, **figures}) + "\n")
    log.info("step %d: %s", trainer.step_done, ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
    if figures["val_usage"] < 0.25:
        log.warning("only %.0f%% of the codes are used: try --restart-every 50", 100 * figures["val_usage"])
    return {**figures, "code_counts": metrics.counts_K.tolist()}


def _truncate_log(path: Path, step: int) -> None:
    """Drop lines past the checkpoint that a run continues from, so that no step is logged twice."""
    if path.is_file():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))
