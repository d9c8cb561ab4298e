"""What the shard format costs: five orders against one, Parquet against WebDataset: `imagepriors bench shards`.

The codes are drawn independently from a skewed distribution over 1,024 entries (16×16 a picture), which no
compressor can shrink below their entropy: real pictures are not harder. Each figure is the median of rounds in which
the contenders take turns, in one process on one core, with files in the page cache.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from codeshards.format import (
    ORDER_NAMES,
    GridSpec,
    Manifest,
    OrderName,
    ShardDataset,
    ShardFormat,
    ShardSpec,
    Sidecar,
    build_plan,
    sidecar_path,
    write_shard,
)

RESULTS = Path(__file__).parent / "results"
_ROWS, _SHARD_ROWS, _SIDE, _CODEBOOK = 16_384, 4096, 16, 1024
_ONE: tuple[OrderName, ...] = ("row_major",)
CONTENDERS: dict[str, tuple[tuple[OrderName, ...], ShardFormat]] = {
    "Parquet, one order": (_ONE, "parquet"),
    "Parquet, five orders": (ORDER_NAMES, "parquet"),
    "WebDataset, one order": (_ONE, "webdataset"),
    "WebDataset, five orders": (ORDER_NAMES, "webdataset"),
}


def skewed_codes(rows: int) -> Any:
    """uint16 [rows, 16, 16]: code k with a probability that falls as 1/(k + 10)."""
    p_K = 1 / (np.arange(_CODEBOOK) + 10)
    rng = np.random.default_rng(0)
    return rng.choice(_CODEBOOK, (rows, _SIDE, _SIDE), p=p_K / p_K.sum()).astype(np.uint16)


def write(folder: Path, codes_NHW: Any, orders: tuple[OrderName, ...], format_name: ShardFormat) -> None:
    """One split of shards, laid out and written as the job does."""
    grid = GridSpec(height=_SIDE, width=_SIDE, codebook_size=_CODEBOOK, fingerprint="benchmark")
    spec = ShardSpec(image=grid, orders=orders)
    plan = build_plan(
        samples={"train": [f"n{i % 1000:04d}/picture{i:08d}" for i in range(len(codes_NHW))]},
        source_hashes={"train": "benchmark"},
        settings={},
        views=1,
        shard_rows=_SHARD_ROWS,
        shuffle_seed=None,
    )
    sidecars = []
    for shard in plan.shards:
        part, count = slice(shard.start, shard.stop), shard.samples
        table = spec.rows_to_table(plan.sample_keys(shard), np.zeros(count), np.arange(count), codes_NHW[part])
        files = write_shard(folder, shard, table, (format_name,))
        sidecars.append(
            Sidecar(plan_hash=plan.hash, split="train", index=shard.index, rows=count, samples=count, files=files)
        )
        sidecars[-1].save(sidecar_path(folder, shard))
    Manifest.build(plan=plan, sidecars=sidecars, spec=spec).save(folder)


def read_ours(folder: Path) -> int:
    """Read one order of every row; returns the number of codes."""
    return sum(
        batch["codes_row_major"].size for batch in ShardDataset.open(folder).batches("train", ["codes_row_major"])
    )


def read_webdataset(folder: Path) -> int:
    """The same by plain webdataset with its own decoders."""
    import webdataset

    urls = sorted(map(str, (folder / "train").glob("*.tar")))
    return sum(row["codes.npy"][0].size for row in webdataset.WebDataset(urls, shardshuffle=False).decode())


def run(repeats: int = 5, out: Path = RESULTS) -> str:
    """Measure, write JSON and a Markdown table, and return the table."""
    codes_NHW = skewed_codes(_ROWS)
    pa.set_cpu_count(1)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in CONTENDERS}
    nbytes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as root:
        for repeat in range(repeats):
            for name, (orders, format_name) in CONTENDERS.items():
                folder = Path(root) / f"{name}-{repeat}"
                for task, work in _tasks(folder, codes_NHW, orders, format_name):
                    times[name].setdefault(task, []).append(_seconds(work))
                nbytes[name] = sum(path.stat().st_size for path in (folder / "train").glob("shard-*[!n]"))
    results = {
        name: {"bytes": nbytes[name], **{task: statistics.median(found) for task, found in times[name].items()}}
        for name in CONTENDERS
    }
    table = _table(results, repeats)
    out.mkdir(parents=True, exist_ok=True)
    (out / "shards-cpu.md").write_text(table)
    (out / "shards-cpu.json").write_text(json.dumps(results, indent=2) + "\n")
    return table


def _tasks(
    folder: Path, codes_NHW: Any, orders: tuple[OrderName, ...], format_name: ShardFormat
) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "write_s", lambda: write(folder, codes_NHW, orders, format_name)
    yield "read_s", lambda: read_ours(folder)
    if format_name == "webdataset":
        yield "read_webdataset_s", lambda: read_webdataset(folder)


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _table(results: dict[str, dict[str, float]], repeats: int) -> str:
    codes = _ROWS * _SIDE * _SIDE
    base = results["Parquet, one order"]
    lines = [
        f"Shards of {_ROWS:,} rows of {_SIDE}×{_SIDE} skewed codes of {_CODEBOOK:,}, one core of {os.cpu_count()}, "
        f"{platform.machine()}, pyarrow {pa.__version__}, median of {repeats};",
        "`imagepriors bench shards`.",
        "Write: permute, check, compress, hash, fsync. Read: one order of every row, here and by plain `webdataset`.",
        "",
        "| | MB | bytes a row | × bytes | rows/s written | × write time | M codes/s read | by `webdataset` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        theirs = f"{codes / found['read_webdataset_s'] / 1e6:.1f}" if "read_webdataset_s" in found else ""
        size, write_s = found["bytes"], found["write_s"]
        lines.append(
            f"| {name} | {size / 1e6:.1f} | {size / _ROWS:,.0f} | {size / base['bytes']:.2f} "
            f"| {_ROWS / write_s:,.0f} | {write_s / base['write_s']:.2f} "
            f"| {codes / found['read_s'] / 1e6:.1f} | {theirs} |"
        )
    return "\n".join(lines) + "\n"
