"""The tokenize job against the bare encoder and against one image at a time: `imagepriors bench tokenize`.

All contenders have the same weights (f16/1024, random) and the same photos at 256×256. They take turns, each in a
process of its own, so that what else the machine does meets all of them; a round's ratios are taken within the round,
and the job's over the mean of the bare encoder before and after it.
"""

import os
import shutil
import statistics
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
from imagepriors.benchmarks import harness
from imagepriors.benchmarks.train_vqgan import random_weights
from vqgan.checkpoint import load_model, save_model
from vqgan.config import TrainConfig
from vqgan.datasets import open_splits
from vqgan.errors import InputError
from vqgan.tokenizer import Tokenizer, pick_device, pick_dtype

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


def _cores() -> int:
    return os.cpu_count() or 1


def bare(work: Path, precision: str) -> dict[str, Any]:
    """The encoder alone: pictures that are decoded and in memory, all threads, one process."""
    torch.set_num_threads(_cores())
    batch, total = _BATCH[harness.device()], _BARE[harness.device()]
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

    on_gpu = harness.device() == "cuda"
    total = _JOB[harness.device()]
    config = TokenizeConfig(
        precision=precision,  # type: ignore[arg-type]
        batch_size=_BATCH[harness.device()],
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
    device = harness.device()
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, as in the job
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


def _prepare(data: Path | None, work: Path) -> str:
    """The photos of `data` as often as needed, and a tokenizer; what the photos are."""
    source = data or harness.photos(work / "photos", 32)
    photos = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in (".jpeg", ".jpg", ".png")]
    if len(photos) < 8:
        raise InputError(f"{data} has {len(photos)} photos: pass --data, a folder with some ImageNet photos below it")
    (work / "data" / "train").mkdir(parents=True)
    (work / "data" / "val").mkdir()
    total = _JOB[harness.device()]
    order = np.random.default_rng(0).permutation(len(photos))
    for index in range(total):
        photo = photos[order[index % len(photos)]].resolve()
        (work / "data" / "train" / f"{index:06d}{photo.suffix}").symlink_to(photo)
    (work / "data" / "val" / f"0{photos[0].suffix}").symlink_to(photos[0].resolve())
    save_model(work / "tokenizer", TrainConfig(), random_weights())
    return f"{len(photos)} {'files of --data' if data else 'rendered scenes'}"


def _measure(work: Path, name: str) -> Any:
    what, precision, allocator = CONTENDERS[name]
    return harness.spawn("tokenize", what, str(work), precision, env=ALLOCATOR if allocator else {})


def run(repeats: int = 3, *, data: Path | None = None, out: Path = harness.RESULTS) -> str:
    """Measure all contenders in turns, write the report, and return it as Markdown.

    Raises:
        InputError: `data` holds too few photos.
    """
    rounds: list[dict[str, dict[str, float]]] = []
    # Where bfloat16 is slower nobody would choose it.
    native = pick_dtype("auto", pick_device("auto")) == torch.bfloat16
    precisions = ("float32", "bfloat16") if native else ("float32",)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos = _prepare(data, work)
        for _ in tqdm(range(repeats), desc="bench tokenize", disable=None):
            for precision in precisions:
                shutil.rmtree(work / precision, ignore_errors=True)
            found = {name: _measure(work, name) for name, (_, p, _) in CONTENDERS.items() if p in precisions}
            for precision in precisions:  # the encoder again, after the job: the machine drifts
                before, after = found[f"bare encoder, {precision}"], _measure(work, f"bare encoder, {precision}")
                before["images_per_s"] = statistics.mean((before["images_per_s"], after["images_per_s"]))
            rounds.append(found)
    return _report(rounds, photos, out)


def _report(rounds: list[dict[str, dict[str, float]]], photos: str, out: Path) -> str:
    def rates(name: str, figure: str = "images_per_s") -> list[float]:
        return [found[name][figure] for found in rounds]

    device, single_s = harness.device(), rates(next(iter(CONTENDERS)))
    headlines, rows = {}, []
    for name in rounds[0]:
        what, precision, _ = CONTENDERS[name]
        over_single, share, whole = harness.ratio(rates(name), single_s), "", ""
        if what == "job":
            share = harness.ratio(rates(name), rates(f"bare encoder, {precision}"))
            whole = f"{harness.median(rates(name, 'images_per_s_with_start')):.3g}"
            headlines[f"tokenize job in {precision}, of its bare encoder's speed"] = share
            headlines[f"tokenize job in {precision}, over LlamaGen's loop in float32"] = over_single
        rows.append([name, f"{harness.median(rates(name)):.3g}", whole, share, over_single])
    imagenet_s = 1_281_167 / max(harness.median(rates(name)) for name in rounds[0] if CONTENDERS[name][0] == "job")
    text = (
        f"Tokenize, f16/1024 at 256×256, batch {_BATCH[device]}, {photos}; medians of {len(rounds)} rounds, ratios "
        f"within a round (range). Job: {_JOB[device]:,} JPEG files to shards of five orders on local Ray, from the end "
        "of its first shard to that of its last; with start: all of it. The bare encoder and the loop are warm too. "
        f"Random weights. At the fastest job's rate ImageNet-1k, 1,281,167 pictures, takes {imagenet_s / 3600:.2g} h."
    )
    columns = ["", "images/s", "with start", "× bare encoder", "× one at a time"]
    return harness.save(
        out, "tokenize", command="imagepriors bench tokenize --data PHOTOS" if "files" in photos else
        "imagepriors bench tokenize", text=text, columns=columns, rows=rows, figures={"rounds": rounds},
        headlines=headlines, packages=("torch", "ray", "pyarrow"),
    )  # fmt: skip


if __name__ == "__main__":
    work_of = {"bare": bare, "job": job, "single": single}[sys.argv[1]]
    harness.answer(lambda: work_of(Path(sys.argv[2]), sys.argv[3]))
