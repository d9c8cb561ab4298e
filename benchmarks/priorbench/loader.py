"""Loading shuffled batches of codes, compared with widely used loaders: `python -m priorbench loader`.

Each contender has the same sequences in its own format and runs in a separate process, timed from opening the data to
int64 torch batches [256, 256]: on one core without worker processes, first with a cold and then with a warm page cache;
if it supports worker processes, then with one and two of them on two cores.
"""

import itertools
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from priorbench import harness, peers, processes
from priorbench.shards import skewed_codes, write

if TYPE_CHECKING:
    from codeprior.data import CodeBatches

ROWS = 50_000
_BATCH, _LENGTH = 256, 256
SECONDS = 3.0
"""Duration of each measurement."""
_COLD_SECONDS = 2.0
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "IMAGEPRIORS_CACHE": ""}
_WORKERS = (1, 2)
RIVALS = ("webdataset", "litdata", "streaming", "datasets")
"""Modules of the rivals."""
Codes = NDArray[np.uint16]


def _long(codes: Any) -> torch.Tensor:
    return torch.as_tensor(codes).long()


def write_numpy(folder: Path, codes_NL: Codes) -> None:
    """Write one array of all codes."""
    folder.mkdir()
    np.save(folder / "codes.npy", codes_NL)


def read_numpy(folder: Path, workers: int) -> Iterator[Any]:
    """Read random rows from a memory map and nothing else, which is the upper bound."""
    codes = np.asarray(np.load(folder / "codes.npy", mmap_mode="r"))
    rng = np.random.default_rng(0)
    for _ in itertools.count():
        order = rng.permutation(len(codes))
        for start in range(0, len(codes) - _BATCH + 1, _BATCH):
            yield torch.from_numpy(codes[order[start : start + _BATCH]].astype(np.int64))


def write_ours(folder: Path, codes_NL: Codes) -> None:
    """Write shards with row_major only, so that all formats have each code once."""
    write(folder, codes_NL.reshape(-1, 16, 16))


class _Steps(torch.utils.data.Dataset[torch.Tensor]):
    """Batch t by its index."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> torch.Tensor:
        codes_BT: torch.Tensor = self._batches.at(step).codes_BT
        return codes_BT


def open_ours(folder: Path, batch_size: int) -> "CodeBatches":
    """Shuffled batches of the shards that `write_ours` writes."""
    from codeprior.data import CodeBatches, CodeData, sequence_from_dataset
    from codeshards.format import ShardDataset

    dataset = ShardDataset.open(folder)
    data = CodeData.open(dataset, "train", sequence_from_dataset(dataset, "row_major", "none"))
    return CodeBatches(data, batch_size=batch_size, seed=0)


def read_ours(folder: Path, workers: int) -> Iterator[Any]:
    """Read by random access; worker processes are those of a DataLoader over the batches."""
    batches = open_ours(folder, _BATCH)
    if not workers:
        return (batch.codes_BT for batch in batches)
    steps = itertools.count()
    return iter(torch.utils.data.DataLoader(_Steps(batches), batch_size=None, sampler=steps, num_workers=workers))


def read_first(folder: Path, workers: int) -> Iterator[Any]:
    """Read for the first time, which decodes the shards."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return read_ours(folder, workers)


def read_stream(folder: Path, workers: int) -> Iterator[Any]:
    """Read as a stream, which decodes the shards in each epoch."""
    from codeprior.data import sequence_from_dataset
    from codeprior.stream import StreamBatches
    from codeshards.format import ShardDataset

    dataset = ShardDataset.open(folder)
    sequence = sequence_from_dataset(dataset, "row_major", "none")
    batches = StreamBatches(dataset, "train", sequence, shuffle_rows=65_536, batch_size=_BATCH, seed=0)
    return (batch.codes_BT for batch in batches)


def write_webdataset(folder: Path, codes_NL: Codes) -> None:
    """Write tars of .npy members."""
    import webdataset as wds

    folder.mkdir()
    with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=10_000, verbose=0) as writer:
        for i, row in enumerate(codes_NL):
            writer.write({"__key__": f"{i:06d}", "codes.npy": row})


def read_webdataset(folder: Path, workers: int) -> Iterator[Any]:
    """Read by its usual pipeline; worker processes are those of its WebLoader."""
    import webdataset as wds

    urls = sorted(map(str, folder.glob("*.tar")))
    data = wds.WebDataset(urls, shardshuffle=100, empty_check=False).shuffle(5000).decode().to_tuple("codes.npy")
    data = data.repeat().batched(_BATCH, partial=False)
    return (
        _long(codes) for (codes,) in (wds.WebLoader(data, batch_size=None, num_workers=workers) if workers else data)
    )


def write_datasets(folder: Path, codes_NL: Codes) -> None:
    """Write an Arrow table."""
    import datasets

    features = datasets.Features({"codes": datasets.Sequence(datasets.Value("uint16"), length=_LENGTH)})
    datasets.Dataset.from_dict({"codes": codes_NL}, features=features).save_to_disk(str(folder))


def read_datasets(folder: Path, workers: int) -> Iterator[Any]:
    """Read batches of random rows in its fastest format, numpy."""
    import datasets
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    table = datasets.load_from_disk(str(folder)).with_format("numpy")
    picks = BatchSampler(RandomSampler(table), _BATCH, drop_last=True)
    loader = DataLoader(table, sampler=picks, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return (_long(batch["codes"]) for _ in itertools.count() for batch in loader)


def write_mosaicml(folder: Path, codes_NL: Codes) -> None:
    """Write MDS shards."""
    import streaming

    with streaming.MDSWriter(out=str(folder), columns={"codes": f"ndarray:uint16:{_LENGTH}"}) as writer:
        for row in codes_NL:
            writer.write({"codes": row})


def read_mosaicml(folder: Path, workers: int) -> Iterator[Any]:
    """Read by its StreamingDataset and a DataLoader."""
    import streaming

    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=_BATCH)
    loader = torch.utils.data.DataLoader(
        data, batch_size=_BATCH, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return (_long(batch["codes"]) for _ in itertools.count() for batch in loader)


def write_litdata(folder: Path, codes_NL: Codes) -> None:
    """Write its optimized chunks."""
    # Its optimizer deletes the contents of two folders, by default /tmp/data and /tmp/chunks: set others.
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(folder.with_name("litdata-data"))
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(folder.with_name("litdata-chunks"))
    import litdata

    rows = [row.astype(np.int32) for row in codes_NL]  # its tensor serializer does not support uint16
    litdata.optimize(
        fn=torch.from_numpy, inputs=rows, output_dir=str(folder), chunk_bytes="16MB", num_workers=1, verbose=False
    )


def read_litdata(folder: Path, workers: int) -> Iterator[Any]:
    """Read by its StreamingDataset and StreamingDataLoader."""
    import litdata

    data = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True)
    loader = litdata.StreamingDataLoader(data, batch_size=_BATCH, num_workers=workers, persistent_workers=workers > 0)
    return (_long(batch) for _ in itertools.count() for batch in loader)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A loader and the writer of its files."""

    write: Callable[[Path, Codes], None]
    """Writes all codes to a new folder."""
    read: Callable[[Path, int], Iterator[Any]]
    """Returns endless shuffled batches of a folder, read by a number of worker processes."""
    imports: str
    """Module that is imported before the measurement."""
    workers: bool = False
    """Whether it supports worker processes."""

    @property
    def job(self) -> str:
        """Its name on the command line."""
        return self.read.__name__


_OURS, _FIRST, _BASE, _LIMIT = (
    "imagepriors, memory map (exact shuffle)", "imagepriors, first start ever", "webdataset, 5,000-row shuffle",
    "numpy memory map, random rows (the limit)",
)  # fmt: skip
CONTENDERS = {
    _LIMIT: Contender(write=write_numpy, read=read_numpy, imports="numpy"),
    _FIRST: Contender(write=write_ours, read=read_first, imports="codeprior.data"),
    _OURS: Contender(write=write_ours, read=read_ours, imports="codeprior.data", workers=True),
    "imagepriors, stream (65,536-row shuffle)": Contender(
        write=write_ours, read=read_stream, imports="codeprior.stream"
    ),
    "Hugging Face datasets, random rows": Contender(
        write=write_datasets, read=read_datasets, imports="datasets", workers=True
    ),
    "litdata, shuffled": Contender(write=write_litdata, read=read_litdata, imports="litdata", workers=True),
    "mosaicml-streaming, shuffled": Contender(
        write=write_mosaicml, read=read_mosaicml, imports="streaming", workers=True
    ),
    _BASE: Contender(write=write_webdataset, read=read_webdataset, imports="webdataset", workers=True),
}


def _contender(job: str) -> Contender:
    return next(one for one in CONTENDERS.values() if one.job == job)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _forget(folder: Path) -> None:
    """Remove a folder's files from the page cache."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # unwritten pages cannot be removed
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _rate(batches: Iterator[Any], seconds: float) -> float:
    """Million codes/s over a duration."""
    counted, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        counted += next(batches).numel()
    return counted / spent / 1e6


def measure(job: str, folder: Path, workers: int, rows: int, seconds: float) -> dict[str, float]:
    """Measure one contender: `first_s`, `cold` and `warm` (M codes/s), `mib`; with workers only `warm`.

    Raises:
        RuntimeError: the batches have a wrong shape or type.
    """
    contender = _contender(job)
    harness.pin(2 if workers else 1)
    torch.set_num_threads(1)
    import_module(contender.imports)
    before_gib = harness.resident_gib("VmRSS")
    if not workers:
        _forget(folder)
    start = time.perf_counter()
    batches = contender.read(folder, workers)
    batch = next(batches)
    first_s = time.perf_counter() - start
    if (tuple(batch.shape), batch.dtype) != ((_BATCH, _LENGTH), torch.int64):
        raise RuntimeError(f"{job} gives {tuple(batch.shape)} {batch.dtype}")
    found: dict[str, float] = {}
    if not workers:
        counted = batch.numel()
        while (spent := time.perf_counter() - start) < _COLD_SECONDS and counted < (rows - _BATCH) * _LENGTH:
            counted += next(batches).numel()
        found = {"first_s": first_s, "cold": counted / spent / 1e6}
        for path in _files(folder):
            with path.open("rb") as file:
                while file.read(2**20):
                    pass
    for _ in range(5 + 20 * workers):  # skip the batches that workers have prefetched
        next(batches)
    found["warm"] = _rate(batches, seconds)
    return {**found, "mib": (harness.resident_gib() - before_gib) * 1024}


def run(repeats: int, *, out: Path = harness.RESULTS) -> str:
    """Measure all contenders, write the report, and return it as Markdown.

    Raises:
        InputError: a rival is not installed.
    """
    peers.require(*RIVALS)
    with tempfile.TemporaryDirectory() as folder:
        return harness.run_rounds(
            "bench loader",
            CONTENDERS,
            lambda name: _measure(CONTENDERS[name], Path(folder)),
            lambda found: _report(found, out),
            repeats,
        )


def _measure(one: Contender, folder: Path) -> dict[str, Any]:
    """Figures of one contender in one round; the first call writes the files."""
    place = folder / one.write.__name__
    if not place.exists():
        _spawn("write", one.job, place, 0)
    found: dict[str, Any] = _spawn("read", one.job, place, 0)
    for workers in _WORKERS if one.workers else ():
        found[f"warm, {workers} workers"] = _spawn("read", one.job, place, workers)["warm"]
    return found


def _spawn(mode: str, job: str, folder: Path, workers: int) -> Any:
    return processes.spawn("loader", mode, job, str(folder), str(workers), str(ROWS), str(SECONDS), env=_ENVIRONMENT)


def table(figures: dict[str, harness.Rounds]) -> harness.Table:
    """Table of rates with and without workers, ratios, first batch, memory."""
    found = {
        name: {figure: [of_round[figure] for of_round in of_one] for figure in of_one[0]}
        for name, of_one in harness.finished(figures).items()
    }

    def over(name: str, rival: str, figure: str = "warm") -> str:
        return harness.ratio(found[name][figure], found[rival][figure]) if {name, rival} <= found.keys() else ""

    rows = []
    for name, of_one in figures.items():
        if name not in found:
            rows.append([name, harness.failure(of_one)])
            continue
        m = {figure: harness.median(values) for figure, values in found[name].items()}
        rows.append([
            name, f"{m['warm']:.3g}", over(name, _BASE), over(name, _LIMIT).partition(" ")[0], f"{m['cold']:.3g}",
            f"{m['first_s']:.2g}", f"{m['mib']:.0f}",
            *(f"{m[key]:.3g}" if (key := f"warm, {count} workers") in m else "" for count in _WORKERS),
        ])  # fmt: skip
    columns = [
        "", "M codes/s", "× webdataset", "share of the limit", "cold, M codes/s", "first batch, s", "MiB",
        "1 worker, M codes/s", "2 workers, M codes/s",
    ]  # fmt: skip
    ratios = {
        peers.packages([one.imports])[0]: over(_OURS, name) for name, one in CONTENDERS.items() if one.imports in RIVALS
    }
    headlines = {f"loading shuffled codes, over {package}": value for package, value in ratios.items() if value}
    return harness.table_of(columns, rows, headlines)


def _report(figures: dict[str, harness.Rounds], out: Path) -> str:
    count = max(map(len, figures.values()))
    text = (
        f"Shuffled batches of {_BATCH} × {_LENGTH} codes as int64 tensors, {ROWS:,} rows, one core, "
        f"{harness.rounds(count)}. Cold: with an empty page cache (posix_fadvise), from opening the files over one "
        f"epoch, or {_COLD_SECONDS:g} s of it; the first batch is part of it. Warm: with the files in the page cache. "
        "Memory: peak resident set above that with the imported libraries, including mapped files. With workers: "
        "additional processes of a DataLoader, on two cores; the commands of imagepriors use none."
    )
    return harness.save(
        out, "loader", table(figures), command=harness.command("loader", count), text=text, figures=figures,
        packages=("torch", "numpy", *peers.packages(RIVALS)),
    )  # fmt: skip


def _serve(mode: str, job: str, folder: Path, workers: int, rows: int, seconds: float) -> None:
    """Answer one `_spawn`, and exit without waiting for processes that some rivals leave behind."""
    code = 1
    try:
        if mode == "write":
            processes.write_answer(lambda: _contender(job).write(folder, skewed_codes(rows).reshape(-1, _LENGTH)))
        else:
            processes.write_answer(lambda: measure(job, folder, workers, rows, seconds))
        code = 0
    except Exception:
        logging.exception("%s cannot %s", job, mode)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6]))
