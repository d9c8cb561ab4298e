"""The tokenize job against the bare encoder and against one image at a time: `imagepriors bench tokenize`.

All contenders have the same weights (f16/1024, random) and the same photos at 256×256. They take turns, each in a
process of its own, so that what else the machine does meets all of them; a round's ratios are taken within the round,
and the job's over the mean of the bare encoder before and after it.
"""

import json
import os
import platform
import shutil
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
from tqdm import tqdm

from codeshards.config import TokenizeConfig
from codeshards.pool import ALLOCATOR
from codeshards.progress import read_events
from imagepriors.benchmarks.train_vqgan import random_weights
from vqgan.checkpoint import load_model, save_model
from vqgan.config import TrainConfig
from vqgan.datasets import open_splits
from vqgan.errors import InputError
from vqgan.tokenizer import Tokenizer, pick_device, pick_dtype

RESULTS = Path(__file__).parent / "results"
_SIZE = 256
_BATCH = {"cpu": 8, "cuda": 128}
# Images of one measurement: enough for tens of seconds.
_BARE, _JOB, _SINGLE = {"cpu": 64, "cuda": 20_000}, {"cpu": 192, "cuda": 40_000}, {"cpu": 16, "cuda": 500}
_SHARDS = 6
# Name → (job, precision, with our allocator settings).
CONTENDERS = {
    "one image at a time, float32, a .npy each": ("single", "float32", False),
    "bare encoder, float32": ("bare", "float32", True),
    "job, float32": ("job", "float32", True),
    "bare encoder, bfloat16": ("bare", "bfloat16", True),
    "job, bfloat16": ("job", "bfloat16", True),
}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _cores() -> int:
    return os.cpu_count() or 1


def bare(work: Path, precision: str) -> dict[str, Any]:
    """The encoder alone: pictures that are decoded and in memory, all threads, one process."""
    torch.set_num_threads(_cores())
    batch, total = _BATCH[_device()], _BARE[_device()]
    tokenizer = Tokenizer.load(work / "tokenizer", precision=precision)  # type: ignore[arg-type]
    split = open_splits("folder", work / "data")["train"]
    pictures = [split.read(index % len(split), _SIZE).image for index in range(8 * batch)]
    batches = [pictures[start : start + batch] for start in range(0, len(pictures), batch)]
    for few in batches[:2]:
        tokenizer.encode(few)
    start = time.perf_counter()
    waiting: list[Callable[[], Any]] = []
    for index in range(total // batch):
        waiting.append(tokenizer.start(batches[index % len(batches)]))
        if len(waiting) > 1:
            waiting.pop(0)()
    for finish in waiting:
        finish()
    return {"images_per_s": total // batch * batch / (time.perf_counter() - start)}


def job(work: Path, precision: str) -> dict[str, Any]:
    """`tokenize` from JPEG files to shards; timed from the end of its first shard, in which its worker warms up."""
    from codeshards.job import EVENTS_FILE, tokenize

    on_gpu = _device() == "cuda"
    total = _JOB[_device()]
    config = TokenizeConfig(
        precision=precision,  # type: ignore[arg-type]
        batch_size=_BATCH[_device()],
        shard_rows=total // _SHARDS,
        threads=_cores(),
        workers=0 if on_gpu else 1,
    )
    start = time.perf_counter()
    tokenize(
        config, dataset="folder", data=work / "data", tokenizers={"image": work / "tokenizer"}, out=work / precision
    )
    seconds = time.perf_counter() - start
    events = read_events(work / precision / EVENTS_FILE)
    done = [event for event in events if event["event"] == "shard_done"]
    images = [event["samples"] for event in done]
    return {
        "images_per_s": sum(images[1:]) / (done[-1]["time_s"] - done[0]["time_s"]),
        "images_per_s_with_start": sum(images) / seconds,
    }


def single(work: Path, precision: str) -> dict[str, Any]:
    """How LlamaGen extracts codes: a loader of batch 1, one forward pass an image, an .npy of codes and one of label.

    Its mirrored twin of each image is left out, as here a view is a view; weights and pictures are those of the others.
    """
    device = _device()
    _, model = load_model(work / "tokenizer")
    model.to(device)
    split = open_splits("folder", work / "data")["train"]

    class Photos(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            sample = split.read(index, _SIZE)
            return torch.from_numpy(sample.image).permute(2, 0, 1).float() / 127.5 - 1, sample.label or 0

    loader = torch.utils.data.DataLoader(Photos(), batch_size=1, num_workers=min(24, _cores()))
    total, start = _SINGLE[device], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for index, (x, y) in enumerate(loader):
            if index == 2:
                start = time.perf_counter()  # the first two warm up
            with torch.no_grad():
                codes = model.encode(x.to(device)).reshape(1, -1)
            np.save(f"{folder}/codes-{index}.npy", codes.cpu().numpy())
            np.save(f"{folder}/label-{index}.npy", y.numpy())
            if index == total + 1:
                break
        return {"images_per_s": total / (time.perf_counter() - start)}


def _prepare(data: Path, work: Path) -> None:
    """The photos of `data` as often as needed, and a tokenizer."""
    photos = [path for path in sorted(data.rglob("*")) if path.suffix.lower() in (".jpeg", ".jpg", ".png")]
    if len(photos) < 8:
        raise InputError(f"{data} has {len(photos)} photos: pass --data, a folder with some ImageNet photos below it")
    (work / "data" / "train").mkdir(parents=True)
    (work / "data" / "val").mkdir()
    total = _JOB[_device()]
    order = np.random.default_rng(0).permutation(len(photos))
    for index in range(total):
        photo = photos[order[index % len(photos)]].resolve()
        (work / "data" / "train" / f"{index:06d}{photo.suffix}").symlink_to(photo)
    (work / "data" / "val" / f"0{photos[0].suffix}").symlink_to(photos[0].resolve())
    save_model(work / "tokenizer", TrainConfig(), random_weights())


def _measure(work: Path, name: str) -> dict[str, float]:
    what, precision, allocator = CONTENDERS[name]
    done = subprocess.run(
        [sys.executable, "-m", "imagepriors.benchmarks.tokenize", what, str(work), precision],
        env={**os.environ, **(ALLOCATOR if allocator else {})},
        stdout=subprocess.PIPE,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def run(repeats: int = 5, out: Path = RESULTS, *, data: Path | None = None) -> str:
    """Measure all contenders in turns, write JSON and a Markdown table, and return the table.

    Raises:
        InputError: `data` is not given or holds too few photos.
    """
    if data is None:
        raise InputError("the tokenize suite needs photos: pass --data, e.g. a folder of ImageNet")
    rounds: list[dict[str, dict[str, float]]] = []
    # Where bfloat16 is slower nobody would choose it.
    native = pick_dtype("auto", pick_device("auto")) == torch.bfloat16
    precisions = ("float32", "bfloat16") if native else ("float32",)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _prepare(data, work)
        for _ in tqdm(range(repeats), desc="bench tokenize", disable=None):
            for precision in precisions:
                shutil.rmtree(work / precision, ignore_errors=True)
            found = {name: _measure(work, name) for name, (_, p, _) in CONTENDERS.items() if p in precisions}
            for precision in precisions:  # the encoder again, after the job: the machine drifts
                before, after = found[f"bare encoder, {precision}"], _measure(work, f"bare encoder, {precision}")
                before["images_per_s"] = statistics.mean((before["images_per_s"], after["images_per_s"]))
            rounds.append(found)
    table = _table(rounds)
    out.mkdir(parents=True, exist_ok=True)
    stem = f"tokenize-{torch.cuda.get_device_name().lower().replace(' ', '-') if _device() == 'cuda' else 'cpu'}"
    (out / f"{stem}.md").write_text(table)
    (out / f"{stem}.json").write_text(json.dumps({"rounds": rounds}, indent=2) + "\n")
    return table


def _table(rounds: list[dict[str, dict[str, float]]]) -> str:
    def median(name: str, over: str | None = None, figure: str = "images_per_s") -> float:
        return statistics.median(r[name][figure] / (r[over]["images_per_s"] if over else 1.0) for r in rounds)

    on_gpu = _device() == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"{_cores()} CPU cores, {platform.machine()}"
    lines = [
        f"Tokenize, f16/1024 at 256×256 on {device}, torch {torch.__version__}, batch {_BATCH[_device()]}; medians of "
        f"{len(rounds)} rounds, ratios within a round; `imagepriors bench tokenize --data PHOTOS`.",
        f"Job: {_JOB[_device()]:,} JPEG files to shards of five orders on local Ray, from the end of its first shard "
        "to that of its last; with start: all of it. The bare encoder and the loop are warm too. Random weights.",
        "",
        "| | images/s | with start | × bare encoder | × one at a time |",
        "|---|---|---|---|---|",
    ]
    first = next(iter(CONTENDERS))
    for name in rounds[0]:
        what, precision, _ = CONTENDERS[name]
        share = f"{median(name, f'bare encoder, {precision}'):.3f}" if what == "job" else ""
        whole = f"{median(name, figure='images_per_s_with_start'):.3g}" if what == "job" else ""
        lines.append(f"| {name} | {median(name):.3g} | {whole} | {share} | {median(name, first):.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout = sys.stderr  # what libraries print
    result = {"bare": bare, "job": job, "single": single}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
    sys.__stdout__.write(json.dumps(result))  # type: ignore[union-attr]
