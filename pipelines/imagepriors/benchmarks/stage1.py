"""Stage 1 against taming-transformers at the same config (f16/1024, 72.1 M parameters, 256×256): `make bench`.

Each contender runs in a process of its own, so that peak memory and the allocator's settings are its own. The rival is
measured as published and with our allocator settings, since those alone are worth a third.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from codeshards.pool import ALLOCATOR
from vqgan.checkpoint import save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.model import VQGAN
from vqgan.quantize import VectorQuantizer
from vqgan.tokenizer import Tokenizer

_RESULTS = Path(__file__).parent / "results"
_TRAIN_BATCH = {"cpu": 1, "cuda": 8}
_ENCODE_BATCH = {"cpu": 4, "cuda": 64}
# Name → (job, precision, with our allocator settings); the first of a job is what the others are compared with.
CONTENDERS = {
    "train, taming as published, float32": ("train_taming", "float32", False),
    "train, taming, float32, our allocator settings": ("train_taming", "float32", True),
    "train, taming, bfloat16 autocast": ("train_taming", "bfloat16", False),
    "train, imagepriors, float32": ("train_ours", "float32", True),
    "train, imagepriors, bfloat16": ("train_ours", "bfloat16", True),
    "encode, taming as published, float32": ("encode_taming", "float32", False),
    "encode, taming, float32, our allocator settings": ("encode_taming", "float32", True),
    "encode, taming, bfloat16 autocast": ("encode_taming", "bfloat16", False),
    "encode, imagepriors, float32": ("encode_ours", "float32", True),
    "encode, imagepriors, bfloat16": ("encode_ours", "bfloat16", True),
}
_DDCONFIG = {
    "double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip


def _pictures(count: int, seed: int = 0) -> list[Any]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8))


def _seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call of `work`, after two calls that are not counted."""
    seconds = []
    for _ in range(repeats + 2):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def _matmul_share(work: Callable[[], Any], seconds: float, device: str, precision: str) -> float:
    """FLOPs per second of `work` over those of a large matrix product in the same process and precision."""
    with FlopCounterMode(display=False) as counter:
        work()
    size = 8192 if device == "cuda" else 3072
    matrix = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    product = min(_seconds(lambda: matrix @ matrix, 5))
    return float(counter.get_total_flops() / seconds / (2 * size**3 / product))


def _autocast(device: str, precision: str) -> Any:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def train_taming(device: str, precision: str, repeats: int) -> dict[str, Any]:
    """Its training step: both optimisers in turn, each with its own forward pass, as Lightning runs them."""
    from imagepriors.benchmarks.peers import taming, taming_loss

    torch.manual_seed(0)
    model = taming().VQModel(_DDCONFIG, lossconfig={}, n_embed=1024, embed_dim=256)
    model.loss = taming_loss(disc_start=0, disc_weight=0.8)
    model.learning_rate = 4.5e-6
    model.to(device)
    optimizers, _ = model.configure_optimizers()
    x = torch.from_numpy(np.stack(_pictures(_TRAIN_BATCH[device]))).to(device).float() / 127.5 - 1

    def step() -> None:
        for index, optimizer in enumerate(optimizers):
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for other in optimizers:  # what Lightning's toggle_optimizer does
                for group in other.param_groups:
                    for parameter in group["params"]:
                        parameter.requires_grad_(id(parameter) in mine)
            with _autocast(device, precision):
                loss = model.training_step({"image": x}, 0, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return {"seconds": statistics.median(_seconds(step, repeats)), "images": len(x)}


def train_ours(device: str, precision: str, repeats: int) -> dict[str, Any]:
    """Our training step with the same terms: L1, LPIPS (VGG), hinge discriminator, adaptive weight."""
    import torchvision

    from vqgan.trainer import Trainer

    batch = _TRAIN_BATCH[device]
    with tempfile.TemporaryDirectory() as folder:
        trunk = Path(folder) / "vgg16-397923af.pth"
        torch.save(torchvision.models.vgg16(weights=None).state_dict(), trunk)
        loss = LossConfig(perceptual="lpips-vgg", trunk=str(trunk), disc_start=0)
        trainer = Trainer(TrainConfig(loss=loss, batch_size=batch, precision=precision))  # type: ignore[arg-type]
    x = torch.from_numpy(np.stack(_pictures(batch))).permute(0, 3, 1, 2).float() / 127.5 - 1
    return {"seconds": statistics.median(_seconds(lambda: trainer.step(x), repeats)), "images": batch}


def random_weights() -> VQGAN:
    """Random weights, the codebook drawn from the latents of other pictures: codes lie close, as after training."""
    torch.manual_seed(0)
    model = VQGAN(ModelConfig()).eval()
    x = torch.from_numpy(np.stack(_pictures(4, seed=1))).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        latents = model.latent(x).permute(0, 2, 3, 1).reshape(-1, 256)
        assert isinstance(model.quantize, VectorQuantizer)
        model.quantize.embedding.weight.data.copy_(latents[torch.randperm(len(latents))[:1024]])
    return model


def encode_taming(device: str, precision: str, repeats: int) -> dict[str, Any]:
    """Its `encode`, on tensors that are on the device already."""
    from imagepriors.benchmarks.peers import taming

    model = taming().VQModel(_DDCONFIG, lossconfig={}, n_embed=1024, embed_dim=256)
    model.load_state_dict(random_weights().state_dict())
    model.eval().to(device)
    batch = _ENCODE_BATCH[device]
    x = torch.from_numpy(np.stack(_pictures(batch))).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1

    @torch.inference_mode()
    def encode() -> Any:
        with _autocast(device, precision):
            return model.encode(x)[2][2]

    seconds = statistics.median(_seconds(encode, repeats))
    return {"seconds": seconds, "images": batch, "codes": encode().flatten().tolist()}


def encode_ours(device: str, precision: str, repeats: int) -> dict[str, Any]:
    """Our `Tokenizer.encode`, from uint8 pictures to codes in main memory."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), TrainConfig(), random_weights())
        tokenizer = Tokenizer.load(Path(folder), precision=precision)  # type: ignore[arg-type]
    batch = _ENCODE_BATCH[device]
    pictures = _pictures(batch)
    seconds = statistics.median(_seconds(lambda: tokenizer.encode(pictures), repeats))
    share = _matmul_share(lambda: tokenizer.encode(pictures), seconds, device, precision)
    codes = tokenizer.encode(pictures).ravel().tolist()
    return {"seconds": seconds, "images": batch, "matmul_share": share, "codes": codes}


def _contender(job: str, precision: str, repeats: int) -> None:
    """Run one contender in this process and print its figures as JSON."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sys.stdout = sys.stderr  # what the rival prints
    figures = globals()[job](device, precision, repeats)
    memory = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    sys.__stdout__.write(json.dumps({**figures, "peak_gib": memory / 2**30}))  # type: ignore[union-attr]


def run(repeats: int = 5, out: Path = _RESULTS) -> str:
    """Measure all contenders, write JSON and a Markdown table, and return the table."""
    results: dict[str, dict[str, Any]] = {}
    for name, (job, precision, allocator) in tqdm(CONTENDERS.items(), desc="bench stage 1", disable=None):
        done = subprocess.run(
            [sys.executable, "-m", "imagepriors.benchmarks.stage1", job, precision, str(repeats)],
            env={**os.environ, **(ALLOCATOR if allocator else {})},
            stdout=subprocess.PIPE,
            check=True,
        )
        results[name] = json.loads(done.stdout)
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    exact = results["encode, taming as published, float32"]["codes"]
    lines = [
        f"Stage 1, f16/1024 at 256×256 on {device}, torch {torch.__version__}, median of {repeats}; `make bench`.",
        "Of matmul speed: FLOPs per second over those of a large matrix product in the same process and precision "
        "(above 100%: convolutions that save multiplications). Random weights. Train: "
        f"batch {_TRAIN_BATCH['cuda' if cuda else 'cpu']}, autoencoder + LPIPS (VGG) + discriminator. "
        f"Encode: batch {_ENCODE_BATCH['cuda' if cuda else 'cpu']}.",
        "",
        "| | images/s | × published | of matmul speed | peak GiB | codes as published |",
        "|---|---|---|---|---|---|",
    ]
    base = {task: next(r for n, r in results.items() if n.startswith(task)) for task in ("train", "encode")}
    for name, result in results.items():
        speed = result["images"] / result["seconds"]
        ratio = base[name.partition(",")[0]]["seconds"] / result["seconds"]
        codes = result.pop("codes", None)
        share = f"{np.mean(np.equal(codes, exact)):.1%}" if codes else ""
        limit = f"{result['matmul_share']:.0%}" if "matmul_share" in result else ""
        lines.append(f"| {name} | {speed:.3g} | {ratio:.2f} | {limit} | {result['peak_gib']:.1f} | {share} |")
    table = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    stem = "stage1-" + ("".join(c if c.isalnum() else "-" for c in device.lower()) if cuda else "cpu")
    (out / f"{stem}.md").write_text(table)
    (out / f"{stem}.json").write_text(json.dumps(results, indent=2) + "\n")
    return table


if __name__ == "__main__":
    _contender(sys.argv[1], sys.argv[2], int(sys.argv[3]))
