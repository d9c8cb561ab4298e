"""The tokenize job, compared with the encoder alone and LlamaGen's extraction loop: `python -m priorbench tokenize`.

All contenders have the same random weights and the same photos at 256×256, and each runs in a separate process. The
network is f16/1024; or, if LLAMAGEN names a checkout of its repository, LlamaGen's VQ-16, whose codes are compared
first. Ratios are taken within a round; that of the job is over the mean of the encoder before and after it.
"""

import functools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from codeshards.config import TokenizeConfig
from codeshards.job.progress import read_events
from priorbench import harness, peers, processes
from priorbench.train_vqgan import published, random_weights
from runkit.devices import pick_device
from runkit.machine import ALLOCATOR, usable_cores
from vqgan.checkpoint import load_model, save_model
from vqgan.compat.diffusers import export_diffusers
from vqgan.compat.tokenizers import import_tokenizer
from vqgan.config import TrainConfig
from vqgan.cpu_kernels import resolve_precision
from vqgan.data import open_splits
from vqgan.errors import InputError
from vqgan.tokenizer import Tokenizer

_SIZE = 256
_CHECKPOINT = "llamagen.pt"
_COMPARED = 4
"""Photos whose codes are compared with LlamaGen's."""
_BATCH = {"cpu": 8, "cuda": 128}
# Pictures per measurement, which takes tens of seconds.
_PICTURES = {"cpu": {"loop": 16, "bare": 64, "job": 192}, "cuda": {"loop": 600, "bare": 10_240, "job": 24_000}}
_EXACT_SHARE = 6
"""Reduction of the number of pictures for float32 without TF32 on a GPU, which is about ten times as slow."""
_SHARDS = 6
_AS_IS, _AGAIN = ", as it is", ", again"
_LOOP = "LlamaGen's loop around the same network, float32"
_PUBLISHED = "LlamaGen's loop and network, float32"
_RIVALS = {
    "that loop around taming's network, float32": ("taming", ("taming", "einops")),
    "that loop around diffusers' network, float32": ("diffusers", ("taming", "einops", "diffusers")),
}
"""Name → owner of the network, and required modules."""
# Name → (measurement, precision, with the allocator settings of this project).
CONTENDERS = {
    _LOOP + _AS_IS: ("loop", "float32", False),
    _LOOP: ("loop", "float32", True),
    _PUBLISHED + _AS_IS: ("loop llamagen", "float32", False),
    _PUBLISHED: ("loop llamagen", "float32", True),
    **{name: (f"loop {who}", "float32", True) for name, (who, _) in _RIVALS.items()},
    "bare encoder, float32": ("bare", "float32", True),
    "job, float32": ("job", "float32", True),
    f"bare encoder, float32{_AGAIN}": ("bare", "float32", True),  # because the speed of the machine drifts
    "bare encoder, bfloat16": ("bare", "bfloat16", True),
    "job, bfloat16": ("job", "bfloat16", True),
    f"bare encoder, bfloat16{_AGAIN}": ("bare", "bfloat16", True),
}


def contenders() -> list[str]:
    """Contenders on this device: bfloat16 only where it is faster, one allocator setting on a GPU."""
    native = resolve_precision("auto", pick_device("auto")) == "bfloat16"
    gpu = harness.device() == "cuda"
    return [
        name for name, (_, precision, _) in CONTENDERS.items()
        if (native or precision == "float32") and not (gpu and name in (_LOOP, _PUBLISHED)) and _present(name)
    ]  # fmt: skip


def _present(name: str) -> bool:
    """Whether a contender can run: LlamaGen's network replaces the others, whose codes are not on the unit sphere."""
    llamagen = peers.llamagen_folder() is not None
    if name.startswith(_PUBLISHED):
        return llamagen
    return name not in _RIVALS or (not llamagen and peers.installed(*_RIVALS[name][1]))


def pictures_of(what: str, precision: str) -> int:
    """Number of pictures per measurement on this device."""
    device = harness.device()
    few = device == "cuda" and precision == "float32" and what != "loop"
    return _PICTURES[device][what] // (_EXACT_SHARE if few else 1)


def encode_all(tokenizer: Tokenizer, batches: list[list[npt.NDArray[Any]]], count: int) -> None:
    """Encode `count` batches out of these, in turn; as in the job, one is queued while the previous one is encoded."""
    waiting: list[Callable[[], Any]] = []
    for index in range(count):
        waiting.append(tokenizer.encode_async(batches[index % len(batches)]))
        if len(waiting) > 1:
            waiting.pop(0)()
    for finish in waiting:
        finish()


def bare(work: Path, precision: str) -> dict[str, Any]:
    """Measure the encoder alone on decoded pictures in memory, with all threads of one process."""
    batch, total = _BATCH[harness.device()], pictures_of("bare", precision)
    tokenizer = Tokenizer.load(work / "tokenizer", precision=precision)  # type: ignore[arg-type]
    split = open_splits("folder", work / precision / "data")["train"]
    pictures = [split.read(index % len(split), _SIZE).image for index in range(8 * batch)]
    batches = [pictures[start : start + batch] for start in range(0, len(pictures), batch)]
    with FlopCounterMode(display=False) as counter:
        tokenizer.encode(batches[0])
    tokenizer.encode(batches[1])
    start = time.perf_counter()
    encode_all(tokenizer, batches, total // batch)
    return {
        "images_per_s": total // batch * batch / (time.perf_counter() - start),
        "flops": counter.get_total_flops() / batch,
        "floor": harness.flops_floor(precision),
    }


def job(work: Path, precision: str) -> dict[str, Any]:
    """Measure `tokenize` from JPEG files to shards, from the end of its first shard, in which its worker warms up."""
    config = TokenizeConfig(
        precision=precision,  # type: ignore[arg-type]
        batch_size=_BATCH[harness.device()],
        shard_rows=pictures_of("job", precision) // _SHARDS,
        threads=usable_cores(),
        workers=0 if harness.device() == "cuda" else 1,
    )
    return measure_job(config, work / precision / "data", work / "tokenizer", work / precision / "shards")


def measure_job(config: TokenizeConfig, data: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """Images/s of a job with these settings, warm and with its start; `out` is deleted first."""
    from codeshards.format.contents import EVENTS_FILE
    from codeshards.job.tokenize import tokenize

    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    tokenize(config, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=out)
    seconds = time.perf_counter() - start
    events = read_events(out / EVENTS_FILE)
    done = [event for event in events if event["event"] == "shard_done"]
    images = [event["samples"] for event in done]
    return {
        "images_per_s": sum(images[1:]) / (done[-1]["time_s"] - done[0]["time_s"]),
        "images_per_s_with_start": sum(images) / seconds,
    }


def loop(work: Path, precision: str, who: str = "") -> dict[str, Any]:
    """Measure LlamaGen's loop: encode one photo and its mirror, and write an .npy of codes and one of the label.

    Both pictures of a photo count, although it is decoded once. Weights and photos are those of the other contenders;
    the network is that of this project or of `who`.
    """
    device = harness.device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # LlamaGen's flags
    encode: Callable[[torch.Tensor], torch.Tensor]
    if who:
        theirs = peers.llamagen_vq16(work / _CHECKPOINT) if who == "llamagen" else published(work, who)
        theirs = theirs.to(device).eval()
        encode = lambda x: theirs.encode(x)[2][2]  # noqa: E731
    else:
        encode = load_model(work / "tokenizer")[1].to(device).encode
    split = open_splits("folder", work / precision / "data")["train"]

    class Photos(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            sample = split.read(index, _SIZE)
            return torch.from_numpy(sample.image).permute(2, 0, 1).float() / 127.5 - 1, sample.label or 0

    workers = min(24, usable_cores())
    loader = torch.utils.data.DataLoader(Photos(), batch_size=1, num_workers=workers, pin_memory=device == "cuda")
    photos, start, seconds = pictures_of("loop", precision) // 2, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for index, (x, y) in enumerate(loader):
            if index == 2:
                start = time.perf_counter()  # the first two warm up
            x = x.to(device)
            with torch.no_grad():
                codes = encode(torch.cat((x, x.flip(-1)))).reshape(1, 2, -1)
            np.save(f"{folder}/codes-{index}.npy", codes.cpu().numpy())
            np.save(f"{folder}/label-{index}.npy", y.numpy())
            if index == photos + 1:
                seconds = time.perf_counter() - start  # excludes the end of the loader's workers
                break
    return {"images_per_s": 2 * photos / seconds}


def _prepare(data: Path | None, work: Path) -> str:
    """Write links to the photos of `data`, repeated as required, and a tokenizer; return a description."""
    source = data or harness.photos(work / "photos", 32)
    photos = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in (".jpeg", ".jpg", ".png")]
    if len(photos) < 8:
        raise InputError(f"{data} has {len(photos)} photos: pass --data, a folder with some ImageNet photos below it")
    order = np.random.default_rng(0).permutation(len(photos))
    for precision in {CONTENDERS[name][1] for name in contenders()}:
        for split, count in (("train", pictures_of("job", precision)), ("val", 1)):
            folder = work / precision / "data" / split
            folder.mkdir(parents=True)
            for index in range(count):
                photo = photos[order[index % len(photos)]].resolve()
                (folder / f"{index:06d}{photo.suffix}").symlink_to(photo)
    if peers.llamagen_folder():
        _import_llamagen(work)
    else:
        save_model(work / "tokenizer", TrainConfig(), random_weights())
        if peers.installed("diffusers"):
            export_diffusers(work / "tokenizer", work / "diffusers")
    return f"{len(photos)} {'files of --data' if data else 'rendered scenes'}"


def _import_llamagen(work: Path) -> None:
    """Write a random VQ-16 of LlamaGen and the tokenizer imported from it.

    Raises:
        InputError: their codes of some photos differ in float32.
    """
    torch.manual_seed(0)
    theirs = peers.llamagen_vq16()
    torch.save({"model": theirs.state_dict()}, work / _CHECKPOINT)
    import_tokenizer(work / _CHECKPOINT, work / "tokenizer")
    split = open_splits("folder", work / "float32/data")["train"]
    pictures = np.stack([split.read(index, _SIZE).image for index in range(_COMPARED)])
    with torch.no_grad():
        x_BCHW = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        expected = theirs.encode(x_BCHW)[2][2].numpy()
    found = Tokenizer.load(work / "tokenizer", device="cpu").encode(list(pictures)).ravel()
    if not np.array_equal(found, expected):
        raise InputError(f"{np.mean(found != expected):.2%} of the codes differ from LlamaGen's: nothing is measured")


def _measure(work: Path, name: str) -> dict[str, Any]:
    what, precision, allocator = CONTENDERS[name]
    found: dict[str, Any] = processes.spawn(
        "tokenize", what, str(work), precision, env=ALLOCATOR if allocator else {}
    )  # fmt: skip
    return found


def run(repeats: int = 3, *, data: Path | None = None, out: Path = harness.RESULTS) -> str:
    """Measure all contenders, write the report, and return it as Markdown.

    Raises:
        InputError: `data` has too few photos.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        photos = _prepare(data, work)
        return harness.run_rounds(
            "bench tokenize",
            contenders(),
            lambda name: _measure(work, name),
            lambda found: _report(found, photos, out),
            repeats,
        )


def _rates(figures: dict[str, harness.Rounds]) -> dict[str, list[float]]:
    """Images/s of contenders that did not fail; of the encoder the mean of before and after."""
    rates = harness.values_of(figures, "images_per_s")
    return {
        name: [statistics.mean(pair) for pair in zip(before, rates.get(name + _AGAIN, before), strict=False)]
        for name, before in rates.items()
    }


def table(figures: dict[str, harness.Rounds]) -> harness.Table:
    """Table of images/s, shares of the encoder, ratios over the loop."""
    rates = _rates(figures)
    rows: list[list[str]] = []
    headlines: dict[str, str] = {}
    flops = max((of_one["flops"] for found in figures.values() for of_one in found if "flops" in of_one), default=0.0)
    floors = {
        precision: harness.best_floor(found for name, found in figures.items() if CONTENDERS[name][1] == precision)
        for precision in ("float32", "bfloat16")
    }
    loops = [name for name in CONTENDERS if CONTENDERS[name][0].startswith("loop") and name in figures]
    for name, found in figures.items():
        what, precision, _ = CONTENDERS[name]
        if name not in rates:
            rows.append([name, harness.failure(found)])
        elif not name.endswith(_AGAIN):
            over = [harness.ratio(rates[name], rates[rival]) if rival in rates else "" for rival in loops]
            share, whole, bare = "", "", f"bare encoder, {precision}"
            if what == "job":
                whole = f"{harness.median([of_round['images_per_s_with_start'] for of_round in found]):.3g}"
                share = harness.ratio(rates[name], rates[bare]) if bare in rates else ""
                ratios = {f"of its {bare.partition(',')[0]}'s speed": share}
                ratios |= {f"over {rival}": value for rival, value in zip(loops, over, strict=True)}
                headlines |= {f"tokenize job in {precision}, {what}": value for what, value in ratios.items() if value}
            rate = harness.median(rates[name])
            rows.append([name, f"{rate:.3g}", whole, f"{flops * rate / floors[precision]:.0%}", share, *over])
    heads = [f"× {name.replace(' around the same network', '').replace(', float32', '')}" for name in loops]
    return harness.table_of(
        ["", "images/s", "with start", "of matmul speed", "× bare encoder", *heads], rows, headlines
    )


def _report(figures: dict[str, harness.Rounds], photos: str, out: Path) -> str:
    count = max(map(len, figures.values()))
    jobs = {name: rates for name, rates in _rates(figures).items() if name.startswith("job")}
    images = ", ".join(f"{pictures_of('job', CONTENDERS[name][1]):,} in {CONTENDERS[name][1]}" for name in jobs)
    name, network, variable = "tokenize", "f16/1024", ""
    if peers.llamagen_folder():
        name, network, variable = "tokenize-llamagen", "LlamaGen's VQ-16 (16,384 codes of 8)", "LLAMAGEN=FOLDER "
    fastest = max(map(harness.median, jobs.values()), default=float("nan"))
    text = (
        f"Tokenize, {network} at 256×256, batch {_BATCH[harness.device()]}, {photos}; medians of "
        f"{harness.rounds(count)}, ratios within a round (range). Of matmul speed: the network's FLOPs over those of "
        f"a large product in the same precision, the fastest of all processes of the run. Job: JPEG files ({images}) "
        "to shards of five orders on local Ray, from the end of its first shard to that of its last; with start: the "
        "whole job. The encoder and the loop are warm too. LlamaGen's loop encodes a photo and its mirror in a batch "
        "of two and saves an .npy: both pictures count, so it decodes half as many files per picture as the job. It "
        "is also run with LlamaGen's own network, or with those of taming and diffusers if they are installed. On a "
        "GPU it uses TF32, as published; the others do not. As it is: with the default allocator settings of the C "
        "library; all others have those of imagepriors. Random weights. At the fastest job's rate ImageNet-1k, "
        "1,281,167 pictures, takes "
        f"{1_281_167 / fastest / 3600:.2g} h."
    )
    return harness.save(
        out, name, table(figures), command=variable + harness.command("tokenize", count, "--data" in photos), text=text,
        figures=figures, packages=("torch", "ray", "pyarrow"),
    )  # fmt: skip


if __name__ == "__main__":
    job_name, _, whose = sys.argv[1].partition(" ")
    jobs: dict[str, Callable[[Path, str], dict[str, Any]]] = {
        "bare": bare, "job": job, "loop": functools.partial(loop, who=whose),
    }  # fmt: skip
    processes.write_answer(lambda: jobs[job_name](Path(sys.argv[2]), sys.argv[3]))
