"""What the shard format costs: five orders against one, Parquet against WebDataset: `imagepriors bench shards`.

The codes are drawn independently from a skewed distribution over 1,024 entries (16×16 a picture), which no
compressor can shrink below their entropy: real pictures are not harder. Each figure is the median of rounds in which
the contenders take turns, in one process on one core, with files in the page cache.
"""

import tempfile
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
from imagepriors.benchmarks import harness

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


def run(repeats: int = 3, *, out: Path = harness.RESULTS) -> str:
    """Measure, write the report, and return it as Markdown."""
    codes_NHW = skewed_codes(_ROWS)
    pa.set_cpu_count(1)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in CONTENDERS}
    nbytes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as root:
        for repeat in range(repeats):
            for name, (orders, format_name) in CONTENDERS.items():
                folder = Path(root) / f"{name}-{repeat}"
                for task, work in _tasks(folder, codes_NHW, orders, format_name):
                    times[name].setdefault(task, []).append(harness.seconds(work))
                nbytes[name] = sum(path.stat().st_size for path in (folder / "train").glob("shard-*[!n]"))
    return _report(nbytes, times, repeats, out)


def _tasks(
    folder: Path, codes_NHW: Any, orders: tuple[OrderName, ...], format_name: ShardFormat
) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "write_s", lambda: write(folder, codes_NHW, orders, format_name)
    yield "read_s", lambda: read_ours(folder)
    if format_name == "webdataset":
        yield "read_webdataset_s", lambda: read_webdataset(folder)


def _report(nbytes: dict[str, int], times: dict[str, dict[str, list[float]]], repeats: int, out: Path) -> str:
    codes = _ROWS * _SIDE * _SIDE
    first, five = "Parquet, one order", "Parquet, five orders"
    written = {name: harness.ratio(found["write_s"], times[first]["write_s"]) for name, found in times.items()}
    rows = []
    for name, found in times.items():
        theirs = harness.median(found["read_webdataset_s"]) if "read_webdataset_s" in found else 0.0
        rows.append(
            [
                name, f"{nbytes[name] / 1e6:.1f}", f"{nbytes[name] / _ROWS:,.0f}",
                f"{nbytes[name] / nbytes[first]:.2f}", f"{_ROWS / harness.median(found['write_s']):,.0f}",
                written[name], f"{codes / harness.median(found['read_s']) / 1e6:.1f}",
                f"{codes / theirs / 1e6:.1f}" if theirs else "",
            ]
        )  # fmt: skip
    text = (
        f"{_ROWS:,} rows of {_SIDE}×{_SIDE} independent skewed codes of {_CODEBOOK:,}, one core, {repeats} rounds. "
        "Write: permute, check, compress, hash, fsync. Read: one order of every row, here and by plain `webdataset`."
    )
    columns = [
        "", "MB", "bytes a row", "× bytes", "rows/s written", "× write time", "M codes/s read", "by `webdataset`",
    ]  # fmt: skip
    headlines = {
        "bytes of five orders over those of one": f"{nbytes[five] / nbytes[first]:.3g}",
        "time to write five orders over that of one": written[five],
    }
    return harness.save(
        out, "shards", command="imagepriors bench shards", text=text, columns=columns, rows=rows,
        figures={"bytes": nbytes, "seconds": times}, headlines=headlines, packages=("pyarrow", "webdataset"),
    )  # fmt: skip
