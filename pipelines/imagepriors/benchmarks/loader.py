"""Loading shuffled batches of codes against the loaders people use: `imagepriors bench loader`.

The same 50,000 sequences in each one's own format; each contender in a process of its own, from opening its data to
int64 torch batches [256, 256]. Alone on one core; and with two workers on two cores where the loader knows workers.
"""

import importlib.util
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagepriors.benchmarks import harness
from vqgan.errors import InputError

_ROWS, _LENGTH, _BATCH, _CODEBOOK = 50_000, 256, 256, 1024
_SECONDS = 3.0
_OURS, _FLOOR = "imagepriors, memory map (exact shuffle)", "numpy memmap, random rows: the limit"
_WEBDATASET = "webdataset, tar of .npy, 5,000-row shuffle"
CONTENDERS = {
    _FLOOR: "memmap",
    _OURS: "memory_map",
    "imagepriors, stream (65,536-row shuffle)": "stream",
    "Hugging Face datasets, random rows": "datasets",
    "litdata, shuffled": "litdata",
    "mosaicml-streaming, shuffled": "mosaicml",
    _WEBDATASET: "webdataset",
}
_WITH_WORKERS = ("datasets", "litdata", "mosaicml", "webdataset")
_RIVALS = ("webdataset", "datasets", "litdata", "streaming")


def _codes() -> Any:
    """Codes with the skew of real ones: [rows, length] uint16."""
    import numpy as np

    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, _CODEBOOK + 1)
    return rng.choice(_CODEBOOK, (_ROWS, _LENGTH), p=share / share.sum()).astype(np.uint16)


def write_shards(folder: Path, rows: int = _ROWS, side: int = 16) -> None:
    """Our shards, row_major only: every format then holds each code once. Every shard holds the same codes."""
    import numpy as np

    from codeshards.format import GridSpec, Manifest, ShardSpec, Sidecar, build_plan, sidecar_path, write_shard

    image = GridSpec(height=side, width=side, codebook_size=_CODEBOOK, fingerprint="benchmark")
    spec = ShardSpec(image=image, orders=("row_major",))
    plan = build_plan(
        samples={"train": [f"row-{i:08d}" for i in range(rows)]}, source_hashes={"train": "benchmark"}, settings={},
        views=1, shard_rows=8192, shuffle_seed=None,
    )  # fmt: skip
    codes, sidecars = _codes()[:, : side * side].reshape(-1, side, side), []
    for shard in plan.shards:
        count = shard.samples
        table = spec.rows_to_table(list(plan.sample_keys(shard)), np.zeros(count), None, codes[:count])
        sidecar = Sidecar(
            plan_hash=plan.hash, split=shard.split, index=shard.index, rows=count, samples=count,
            files=write_shard(folder, shard, table),
        )  # fmt: skip
        sidecar.save(sidecar_path(folder, shard))
        sidecars.append(sidecar)
    Manifest.build(plan=plan, sidecars=sidecars, spec=spec).save(folder)


def memmap(folder: Path, workers: int) -> Iterator[Any]:
    """Codes in a flat file, random rows, nothing else: what no loader can pass."""
    import numpy as np
    import torch

    if not folder.exists():
        folder.mkdir()
        _codes().tofile(folder / "codes")
    rows = np.memmap(folder / "codes", np.uint16, "r", shape=(_ROWS, _LENGTH))
    rng = np.random.default_rng(0)
    for _ in itertools.count():
        order = rng.permutation(_ROWS)
        for start in range(0, _ROWS - _BATCH + 1, _BATCH):
            yield torch.from_numpy(rows[order[start : start + _BATCH]].astype(np.int64))


def memory_map(folder: Path, workers: int) -> Iterator[Any]:
    """Our random access."""
    from codeprior.data import CodeBatches, CodeData, sequence_from_dataset
    from codeshards.format import ShardDataset

    if not folder.exists():
        write_shards(folder)
    dataset = ShardDataset.open(folder)
    data = CodeData.open(dataset, "train", sequence_from_dataset(dataset, "row_major", "none"))
    return (batch.codes_BT for batch in CodeBatches(data, batch_size=_BATCH, seed=0))


def stream(folder: Path, workers: int) -> Iterator[Any]:
    """Our stream, which decodes the shards again each epoch."""
    from codeprior.data import sequence_from_dataset
    from codeprior.stream import StreamBatches
    from codeshards.format import ShardDataset

    if not folder.exists():
        write_shards(folder)
    dataset = ShardDataset.open(folder)
    sequence = sequence_from_dataset(dataset, "row_major", "none")
    batches = StreamBatches(dataset, "train", sequence, shuffle_rows=65_536, batch_size=_BATCH, seed=0)
    return (batch.codes_BT for batch in batches)


def webdataset(folder: Path, workers: int) -> Iterator[Any]:
    """A tar of .npy members, read by its usual pipeline."""
    import numpy as np
    import torch
    import webdataset as wds

    if not folder.exists():
        folder.mkdir()
        with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=-(-_ROWS // 5), verbose=0) as writer:
            for i, row in enumerate(_codes()):
                writer.write({"__key__": f"{i:06d}", "codes.npy": row})
    urls = sorted(map(str, folder.glob("*.tar")))
    data = wds.WebDataset(urls, shardshuffle=100, empty_check=False).shuffle(5000).decode().to_tuple("codes.npy")
    data = data.repeat().batched(_BATCH, partial=False)
    loader = wds.WebLoader(data, batch_size=None, num_workers=workers)
    return (torch.from_numpy(np.asarray(codes).astype(np.int64)) for (codes,) in loader)


def datasets(folder: Path, workers: int) -> Iterator[Any]:
    """An Arrow table on disk, rows at random: the fastest of its formats that was found (numpy)."""
    import datasets as hf
    import numpy as np
    import torch

    if not folder.exists():
        features = hf.Features({"codes": hf.Sequence(hf.Value("uint16"), length=_LENGTH)})
        hf.Dataset.from_dict({"codes": _codes()}, features=features).save_to_disk(str(folder))
    table = hf.load_from_disk(str(folder)).with_format("numpy")
    if workers:
        batches = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(table), _BATCH, drop_last=True)
        loader = torch.utils.data.DataLoader(
            table, batch_size=None, sampler=batches, num_workers=workers, persistent_workers=True
        )
        yield from (batch["codes"].long() for _ in itertools.count() for batch in loader)
    rng = np.random.default_rng(0)
    for _ in itertools.count():
        order = rng.permutation(_ROWS)
        for start in range(0, _ROWS - _BATCH + 1, _BATCH):
            yield torch.from_numpy(table[order[start : start + _BATCH]]["codes"].astype(np.int64))


def mosaicml(folder: Path, workers: int) -> Iterator[Any]:
    """MDS shards through its StreamingDataset and torch's DataLoader."""
    import streaming
    import torch

    if not folder.exists():
        columns = {"codes": f"ndarray:uint16:{_LENGTH}"}
        with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
            for row in _codes():
                writer.write({"codes": row})
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=_BATCH)
    loader = torch.utils.data.DataLoader(
        data, batch_size=_BATCH, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return (batch["codes"].long() for _ in itertools.count() for batch in loader)


def litdata(folder: Path, workers: int) -> Iterator[Any]:
    """Its optimized chunks through its StreamingDataset and StreamingDataLoader."""
    # Its optimizer empties these folders, by default /tmp/data and /tmp/chunks, whoever's they are.
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(folder.with_name("litdata-data"))
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(folder.with_name("litdata-chunks"))
    import litdata as lit
    import numpy as np
    import torch

    if not folder.exists():
        rows = [row.astype(np.int32) for row in _codes()]  # its tensor serializer knows no uint16
        lit.optimize(
            fn=_as_tensor, inputs=rows, output_dir=str(folder), chunk_bytes="16MB", num_workers=1, verbose=False
        )
    data = lit.StreamingDataset(str(folder), shuffle=True, drop_last=True)
    loader = lit.StreamingDataLoader(data, batch_size=_BATCH, num_workers=workers)
    return (torch.as_tensor(batch).long() for _ in itertools.count() for batch in loader)


def _as_tensor(row: Any) -> Any:
    import torch

    return torch.from_numpy(row)


def forget(folder: Path) -> None:
    """Drop the files below a folder from the page cache, so that the next reader waits for the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def contend(job: str, folder: Path, workers: int) -> dict[str, float]:
    """Seconds to the first batch, M codes/s after that, and the most memory this process held."""
    if not workers and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch  # noqa: F401  every contender needs it: its import is nobody's first batch

    start = time.perf_counter()
    batches = globals()[job](folder, workers)
    batch = next(batches)
    first_s = time.perf_counter() - start
    if batch.shape[0] != _BATCH or str(batch.dtype) != "torch.int64":
        raise RuntimeError(f"{job} gives {tuple(batch.shape)} {batch.dtype}")
    counted, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < _SECONDS:
        counted += next(batches).numel()
    return {"first_s": first_s, "m_codes_per_s": counted / seconds / 1e6, "peak_gib": harness.peak_gib()}


def run(repeats: int = 3, *, out: Path = harness.RESULTS) -> str:
    """Measure all contenders in turn, write the report, and return it as Markdown.

    Raises:
        InputError: a rival is not installed.
    """
    missing = [name for name in _RIVALS if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(f"{', '.join(missing)} not installed: use make bench, which installs the rivals")
    rounds: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for job in CONTENDERS.values():
            _measure(job, Path(folder), 0)  # writes its data
        shutil.rmtree(_place(Path(folder), CONTENDERS[_OURS]) / ".cache")
        decoding_s = _measure(CONTENDERS[_OURS], Path(folder), 0)["first_s"]
        for _ in range(repeats):
            found: dict[str, dict[str, Any]] = {}
            for name, job in CONTENDERS.items():
                forget(_place(Path(folder), job))
                cold = _measure(job, Path(folder), 0)
                found[name] = {"cold": cold, "warm": _measure(job, Path(folder), 0)}
                if job in _WITH_WORKERS:
                    found[name]["two workers"] = _measure(job, Path(folder), 2)
            rounds.append(found)
    return _report(decoding_s, rounds, out)


def _place(folder: Path, job: str) -> Path:
    return folder / ("memory_map" if job == "stream" else job)


def _measure(job: str, folder: Path, workers: int) -> Any:
    quiet = {"OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return harness.spawn("loader", job, str(_place(folder, job)), str(workers), env=quiet)


def _report(decoding_s: float, rounds: list[dict[str, dict[str, Any]]], out: Path) -> str:
    def all_of(name: str, how: str, figure: str = "m_codes_per_s") -> list[float]:
        return [found[name][how][figure] for found in rounds]

    rows, headlines = [], {}
    for name, job in CONTENDERS.items():
        warm = all_of(name, "warm")
        rate, share = f"{harness.median(warm):.3g}", harness.ratio(warm, all_of(_FLOOR, "warm"))
        workers = f"{harness.median(all_of(name, 'two workers')):.3g}" if job in _WITH_WORKERS else ""
        first = [f"{1e3 * harness.median(all_of(name, how, 'first_s')):.0f}" for how in ("cold", "warm")]
        memory = f"{1024 * harness.median(all_of(name, 'warm', 'peak_gib')):.0f}"
        over = harness.ratio(warm, all_of(_WEBDATASET, "warm"))
        rows.append([name, rate, over, share, workers, *first, memory])
        if name not in (_OURS, _FLOOR) and not name.startswith("imagepriors"):
            headlines[f"loading shuffled codes, over {name.partition(',')[0]}"] = harness.ratio(
                all_of(_OURS, "warm"), warm
            )
    text = (
        f"Shuffled batches of {_BATCH} × {_LENGTH} codes as int64 tensors out of {_ROWS:,} rows, one core, page cache "
        f"warm; {len(rounds)} rounds. Two workers: on two cores, where the loader knows workers; ours needs none. "
        "First batch: from opening the data, torch imported before; cold: files dropped from the page cache. Memory: "
        "resident, mapped files included. Ours decodes a column of the shards once: its very first batch then took "
        f"{decoding_s:.2f} s."
    )
    columns = [
        "", "M codes/s", "× webdataset", "× limit", "with two workers", "first batch, cold, ms", "warm, ms", "peak MiB",
    ]  # fmt: skip
    return harness.save(
        out, "loader", command="imagepriors bench loader", text=text, columns=columns, rows=rows,
        figures={"rounds": rounds}, headlines=headlines,
        packages=("torch", "numpy", "webdataset", "datasets", "litdata", "mosaicml-streaming"),
    )  # fmt: skip


if __name__ == "__main__":
    harness.answer(lambda: contend(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
    os._exit(0)  # some rivals leave threads behind
