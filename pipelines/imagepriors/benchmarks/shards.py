"""What the shard format costs: five orders against one, Parquet against WebDataset: `imagepriors bench shards`.

The codes are drawn independently from a skewed distribution over 1,024 entries (16×16 a picture), which no
compressor can shrink below their entropy: real pictures are not harder. The contenders take turns in one process on one
core, with files in the page cache.
"""

import sys
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

ROWS = 16_384
_SHARD_ROWS, _CODEBOOK = 4096, 1024
_ONE: tuple[OrderName, ...] = ("row_major",)
CONTENDERS: dict[str, tuple[tuple[OrderName, ...], ShardFormat]] = {
    "Parquet, one order": (_ONE, "parquet"),
    "Parquet, five orders": (ORDER_NAMES, "parquet"),
    "WebDataset, one order": (_ONE, "webdataset"),
    "WebDataset, five orders": (ORDER_NAMES, "webdataset"),
}


def skewed_codes(rows: int, side: int = 16) -> Any:
    """uint16 [rows, side, side]: code k of 1,024 with a probability that falls as 1/(k + 10)."""
    p_K = 1 / (np.arange(_CODEBOOK) + 10)
    rng = np.random.default_rng(0)
    return rng.choice(_CODEBOOK, (rows, side, side), p=p_K / p_K.sum()).astype(np.uint16)


def write(
    folder: Path, codes_NHW: Any, orders: tuple[OrderName, ...] = _ONE, format_name: ShardFormat = "parquet"
) -> None:
    """One split of shards, laid out and written as the job does."""
    height, width = codes_NHW.shape[1:]
    grid = GridSpec(height=height, width=width, codebook_size=_CODEBOOK, fingerprint="benchmark")
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


def run(repeats: int, *, out: Path = harness.RESULTS) -> str:
    """Measure all contenders in turns, write the report, and return it as Markdown."""
    return _report(harness.spawn("shards", str(repeats), str(ROWS)), out)


def measure(repeats: int, rows: int) -> dict[str, Any]:
    """Seconds of every task and round, bytes of every contender, and bytes a second of a plain copy."""
    harness.pin(1)
    pa.set_cpu_count(1)
    codes_NHW = skewed_codes(rows)
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in CONTENDERS}
    nbytes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as root:
        for repeat in range(repeats):
            for name, (orders, format_name) in CONTENDERS.items():
                folder = Path(root) / f"{name}-{repeat}"
                for task, work in _tasks(folder, codes_NHW, orders, format_name):
                    seconds[name].setdefault(task, []).append(harness.seconds(work))
                nbytes[name] = sum(path.stat().st_size for path in (folder / "train").glob("shard-*[!n]"))
    return {"rows": rows, "codes": codes_NHW.size, "bytes": nbytes, "seconds": seconds, "copy": harness.copy_floor()}


def _tasks(
    folder: Path, codes_NHW: Any, orders: tuple[OrderName, ...], format_name: ShardFormat
) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "write_s", lambda: write(folder, codes_NHW, orders, format_name)
    yield "read_s", lambda: read_ours(folder)
    if format_name == "webdataset":
        yield "read_webdataset_s", lambda: read_webdataset(folder)


def _report(figures: dict[str, Any], out: Path) -> str:
    count, codes, nbytes, found = figures["rows"], figures["codes"], figures["bytes"], figures["seconds"]
    one, five, tars = "Parquet, one order", "Parquet, five orders", "WebDataset, five orders"
    rows = []
    for name, seconds in found.items():
        write_s, read_s = harness.median(seconds["write_s"]), harness.median(seconds["read_s"])
        theirs = seconds.get("read_webdataset_s")
        rows.append([
            name, f"{nbytes[name] / 1e6:.1f}", f"{nbytes[name] / count:,.0f}", f"{nbytes[name] / nbytes[one]:.2f}",
            f"{count / write_s:,.0f}", harness.ratio(seconds["write_s"], found[one]["write_s"]),
            f"{codes / read_s / 1e6:.1f}", f"{2 * codes / read_s / figures['copy']:.2g}",
            f"{codes / harness.median(theirs) / 1e6:.1f}" if theirs else "",
        ])  # fmt: skip
    text = (
        f"Shards of {count:,} rows of 16×16 skewed codes of {_CODEBOOK:,}, one core, {len(found[one]['write_s'])} "
        "rounds. Write: permute, check, compress, hash, fsync. Read: one order of every row, here and by plain "
        "`webdataset`; share of a copy: of the same codes, two bytes each, from memory to memory."
    )
    columns = [
        "", "MB", "bytes a row", "× bytes", "rows/s written", "× write time", "M codes/s read", "share of a copy",
        "by `webdataset`",
    ]  # fmt: skip
    theirs = found[tars]["read_webdataset_s"]
    headlines = {
        "bytes of five orders: WebDataset tars over our Parquet": f"{nbytes[tars] / nbytes[five]:.3g}",
        "reading one of five orders: our Parquet over plain webdataset": harness.ratio(theirs, found[five]["read_s"]),
    }
    return harness.save(
        out, "shards", command="imagepriors bench shards", text=text, columns=columns, rows=rows, figures=figures,
        headlines=headlines, packages=("pyarrow", "webdataset"),
    )  # fmt: skip


if __name__ == "__main__":
    harness.answer(lambda: measure(int(sys.argv[1]), int(sys.argv[2])))
