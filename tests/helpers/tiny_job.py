"""A tokenize job that takes a second: small noise pictures and a small random tokenizer."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from codeshards.config import TokenizeConfig
from codeshards.format.files import sha256_file
from codeshards.format.manifest import MANIFEST_FILE
from vqgan.checkpoint import save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.model import VQGAN

MODEL = ModelConfig(
    resolution=32, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=16, embed_dim=8,
    codebook_size=64,
)  # fmt: skip
CONFIG = TokenizeConfig(shard_rows=8, batch_size=4, threads=1, workers=1)
FLAGS = ["--preset", "demo", "--shard-rows", "8", "--batch-size", "4", "--threads", "1", "--workers", "1"]
"""CONFIG as the command line has it."""


def write_images(root: Path, train: int = 60, val: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            folder = root / split / f"class{index % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(5, 0).repeat(6, 1)
            Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return root


MORTAL = """
class Mortal(job.Worker):
    \"\"\"A worker that dies in its fourth shard, as if killed for its memory, if no other has died before.\"\"\"

    def run(self, task):
        if task.shard.index == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), 9)
        return super().run(task)

job.Worker = Mortal
"""
"""Text of a program in which `job` is the module of the tokenize job, and `marker` a file for the death."""


def write_tokenizer(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random tokenizer; `changes` are fields of its model."""
    torch.manual_seed(seed)
    config = replace(MODEL, **changes)
    model = VQGAN(config)
    torch.nn.init.normal_(model.quantize.embedding.weight)
    save_model(folder, TrainConfig(model=config, loss=LossConfig(perceptual="none")), model)
    return folder


def words(data: Path, tokenizer: Path, out: Path) -> list[str]:
    """The job as arguments of the command line."""
    return [
        "tokenize", "--dataset", "folder", "--data", str(data), "--tokenizer", str(tokenizer), "--out", str(out), *FLAGS
    ]  # fmt: skip


def command(data: Path, tokenizer: Path, out: Path) -> list[str]:
    """The job as a process."""
    return [sys.executable, "-m", "imagepriors", *words(data, tokenizer, out)]


def hashes(out: Path) -> dict[str, str]:
    files = [*out.rglob("*.parquet"), out / MANIFEST_FILE, out / "plan.json"]
    return {path.relative_to(out).as_posix(): sha256_file(path) for path in sorted(files)}
