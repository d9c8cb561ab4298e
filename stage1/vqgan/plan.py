"""The plan of a training run: what it would do, its sizes, its memory and its time. Nothing is written."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from runkit.muon import moments_of
from runkit.plans import Trial, WorkPlan, changed_settings, evaluations, try_step
from runkit.trackers import check_tracker
from vqgan import checkpoint
from vqgan.batches import training_pictures
from vqgan.config import TrainConfig
from vqgan.data import Split
from vqgan.errors import InputError
from vqgan.finetune import completed
from vqgan.losses import TRUNK_FILES
from vqgan.modalities import to_input
from vqgan.train import usable_splits
from vqgan.trainer import Trainer


def plan_training(config: TrainConfig, splits: Mapping[str, Split], run: Path) -> WorkPlan:
    """Return what :func:`vqgan.train.train_tokenizer` would do; it finds the same errors, and writes nothing.

    Time and memory are those of a few steps on the first pictures.

    Raises:
        InputError: As the training.
    """
    check_tracker(config.tracker, InputError)
    config = completed(config)
    splits = usable_splits(config, splits)
    done = checkpoint.run_folder(run).planned_step(config, config.steps)
    steps, notes = config.steps - done, ["time is that of trial steps, in one process here, without checkpoints"]
    tried = replace(config, accumulate=1, compile=False)
    if config.compile:
        notes.append("the trial does not compile: training is faster, after minutes of compilation")
    if _is_uncached(config):
        tried = replace(tried, loss=replace(config.loss, perceptual="none"))
        notes.append("time and memory are without LPIPS, whose weights training downloads first")
    with torch.random.fork_rng(devices=[]):
        trainer = Trainer(tried)
        found = _try(trainer, splits["train"], config.batch_size // config.accumulate) if steps else None
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in _parts(trainer).items()}
    adversarial = _adversarial_steps(config, done)
    images = min(config.eval_images or len(splits["val"]), len(splits["val"]))
    model = 4 * sizes["autoencoder"]
    moments = moments_of(trainer.optimizer)
    saved = model * (2 if config.ema_decay else 1) + 12 * sizes["discriminator"]
    saved += 4 * sum(parameter.numel() * len(kept) for parameter, kept in moments.items())
    figures = {
        "steps": steps, "steps_done": done, "adversarial_steps": adversarial,
        "images": {name: len(split) for name, split in splits.items()},
        "epochs": round(steps * config.batch_size / len(splits["train"]), 2),
        "resolution": config.model.resolution, "grid": config.model.grid[0],
        "codebook_size": config.model.codebook_size,
        "parameters": sizes, "device": trainer.device.type, "precision": trainer.precision,
        "memory_bytes": found and max(found["step"].memory_bytes, found["adversarial_step"].memory_bytes),
        "step_s": found and round(found["step"].seconds, 4),
        "adversarial_step_s": found and round(found["adversarial_step"].seconds, 4),
        "time_s": found and (
            (steps - adversarial) * found["step"].seconds + adversarial * found["adversarial_step"].seconds
            + evaluations(steps, config.eval_every) * images * found["evaluation"].seconds
        ),
        "checkpoint_bytes": saved, "run_folder_bytes": config.keep_checkpoints * saved + 2 * model,
    }  # fmt: skip
    work = f"continue {run} from step {done}" if done else f"train a tokenizer in {run}"
    return WorkPlan(
        work=work if steps else f"{run} is complete: nothing to do", figures=figures,
        notes=tuple(notes) if steps else (), settings=changed_settings(config),
    )  # fmt: skip


def _parts(trainer: Trainer) -> dict[str, torch.nn.Module]:
    return {"autoencoder": trainer.model, "discriminator": trainer.disc}


def _adversarial_steps(config: TrainConfig, done: int) -> int:
    """Number of further steps that train the discriminator."""
    first = max(done, config.loss.disc_start)
    return max(0, config.steps - first) if config.loss.disc_weight else 0


def _is_uncached(config: TrainConfig) -> bool:
    loss = config.loss
    if not loss.perceptual.startswith("lpips-") or loss.trunk or not loss.perceptual_weight:
        return False
    file = TRUNK_FILES[loss.perceptual.removeprefix("lpips-")]
    return not (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file()


def _try(trainer: Trainer, split: Split, part: int) -> dict[str, Trial]:
    """Time a step without and with the discriminator, `part` pictures at once, and the evaluation of one picture."""
    config = trainer.config
    with ThreadPoolExecutor(config.reader_threads) as pool:
        training_pictures(split, config, 0, pool)
        start = time.perf_counter()
        pictures = training_pictures(split, config, 1, pool)
        read_s = (time.perf_counter() - start) / len(pictures)

    def step(rows: int) -> None:
        trainer.step(to_input(pictures[:rows], config.model, trainer.device))

    @torch.inference_mode()
    def evaluate(rows: int) -> None:
        x = to_input(pictures[:rows], config.model, trainer.device).contiguous(memory_format=trainer.layout)
        trainer.model.decode(trainer.model.encode(x))

    found = {}
    for name, start_step in (("step", 0), ("adversarial_step", max(1, config.loss.disc_start))):
        trainer.step_done = start_step
        trial = try_step(step, config.batch_size, part, trainer.device)
        # On a CPU the pictures are decoded by the cores that train.
        busy_s = read_s * config.batch_size * (trainer.device.type == "cpu")
        found[name] = trial._replace(seconds=trial.seconds + busy_s)
    trainer.model.eval()
    evaluation = try_step(evaluate, 1, part, trainer.device)
    return {**found, "evaluation": evaluation._replace(seconds=evaluation.seconds + read_s)}
