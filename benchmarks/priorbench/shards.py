"""Cost of the shard format: five orders and one, Parquet and WebDataset: `python -m priorbench shards`.

The codes (16×16 per picture) are drawn independently from a skewed distribution over 1,024 entries, so no compressor
can shrink them below their entropy; codes of real pictures are not harder. All contenders run in one process on one
core, with files in the page cache.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from codeshards.format import ORDER_NAMES, GridSpec, Manifest, OrderName, ShardDataset, ShardSpec, Sidecar, build_plan
from codeshards.format.manifest import sidecar_path
from codeshards.format.shardfile import ShardFormat, write_shard
from priorbench import harness, processes

ROWS, _WARM = 16_384, 256
_SHARD_ROWS, _CODEBOOK = 4096, 1024
_ONE: tuple[OrderName, ...] = ("row_major",)
_BASE = "Parquet, one order"
CONTENDERS: dict[str, tuple[tuple[OrderName, ...], ShardFormat]] = {
    _BASE: (_ONE, "parquet"),
    "Parquet, five orders": (ORDER_NAMES, "parquet"),
    "WebDataset, one order": (_ONE, "webdataset"),
    "WebDataset, five orders": (ORDER_NAMES, "webdataset"),
}


def skewed_codes(rows: int, side: int = 16) -> Any:
    """Codes uint16 [rows, side, side]; the probability of code k of 1,024 is proportional to 1/(k + 10)."""
    p_K = 1 / (np.arange(_CODEBOOK) + 10)
    rng = np.random.default_rng(0)
    return rng.choice(_CODEBOOK, (rows, side, side), p=p_K / p_K.sum()).astype(np.uint16)


def write(
    folder: Path, codes_NHW: Any, orders: tuple[OrderName, ...] = _ONE, format_name: ShardFormat = "parquet"
) -> None:
    """Write one split of shards as the job does."""
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
    """Read one order of all rows, and return the number of codes."""
    return sum(
        batch["codes_row_major"].size for batch in ShardDataset.open(folder).batches("train", ["codes_row_major"])
    )


def read_webdataset(folder: Path) -> int:
    """Read the same codes by webdataset with its own decoders."""
    import webdataset

    urls = sorted(map(str, (folder / "train").glob("*.tar")))
    return sum(row["codes.npy"][0].size for row in webdataset.WebDataset(urls, shardshuffle=False).decode())


def run(repeats: int, *, out: Path = harness.RESULTS) -> str:
    """Measure all contenders, write the report, and return it as Markdown.

    Raises:
        ContenderError: a round failed; earlier rounds are in the report.
    """
    found: list[dict[str, Any]] = []
    report = ""
    for _ in range(repeats):
        found.append(processes.spawn("shards", str(ROWS)))
        report = _report(_joined(found), out)
    return report


def _joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Join rounds: seconds become lists, and the fastest copy counts."""
    seconds = {
        name: {task: [of_round["seconds"][name][task] for of_round in found] for task in tasks}
        for name, tasks in found[0]["seconds"].items()
    }
    return {**found[0], "seconds": seconds, "copy": max(of_round["copy"] for of_round in found)}


def measure(rows: int) -> dict[str, Any]:
    """Seconds of each task, bytes of each contender, and bytes per second of a copy, in one round."""
    harness.pin(1)
    pa.set_cpu_count(1)
    codes_NHW = skewed_codes(rows)
    seconds: dict[str, dict[str, float]] = {}
    nbytes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as root:
        for name, (orders, format_name) in CONTENDERS.items():
            folder = Path(root) / name
            for _, work in _tasks(folder / "warm", codes_NHW[:_WARM], orders, format_name):
                work()  # imports and compiles what it requires
            seconds[name] = {
                task: harness.seconds(work) for task, work in _tasks(folder / "timed", codes_NHW, orders, format_name)
            }
            nbytes[name] = sum(path.stat().st_size for path in (folder / "timed" / "train").glob("shard-*[!n]"))
    return {"rows": rows, "codes": codes_NHW.size, "bytes": nbytes, "seconds": seconds, "copy": harness.copy_floor()}


def _tasks(
    folder: Path, codes_NHW: Any, orders: tuple[OrderName, ...], format_name: ShardFormat
) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "write_s", lambda: write(folder, codes_NHW, orders, format_name)
    yield "read_s", lambda: read_ours(folder)
    if format_name == "webdataset":
        yield "read_webdataset_s", lambda: read_webdataset(folder)


def _report(figures: dict[str, Any], out: Path) -> str:
    count = len(figures["seconds"][_BASE]["write_s"])
    text = (
        f"Shards of {figures['rows']:,} rows of 16×16 skewed codes of {_CODEBOOK:,}, one core, "
        f"{harness.rounds(count)}. Write: permute, check, compress, hash, fsync. Read: one order of all rows, by "
        "codeshards and by `webdataset`. Share of a copy: relative to a copy in memory of the same codes, two bytes "
        "each."
    )
    return harness.save(
        out, "shards", table(figures), command=harness.command("shards", count), text=text, figures=figures,
        packages=("pyarrow", "webdataset"),
    )  # fmt: skip


def table(figures: dict[str, Any]) -> harness.Table:
    """Table of bytes, rates and ratios."""
    count, codes, nbytes, found = figures["rows"], figures["codes"], figures["bytes"], figures["seconds"]
    five, tars = "Parquet, five orders", "WebDataset, five orders"
    rows = []
    for name, seconds in found.items():
        write_s, read_s = harness.median(seconds["write_s"]), harness.median(seconds["read_s"])
        theirs = seconds.get("read_webdataset_s")
        rows.append([
            name, f"{nbytes[name] / 1e6:.1f}", f"{nbytes[name] / count:,.0f}", f"{nbytes[name] / nbytes[_BASE]:.2f}",
            f"{count / write_s:,.0f}", harness.ratio(seconds["write_s"], found[_BASE]["write_s"]),
            f"{codes / read_s / 1e6:.1f}", f"{2 * codes / read_s / figures['copy']:.2g}",
            f"{codes / harness.median(theirs) / 1e6:.1f}" if theirs else "",
        ])  # fmt: skip
    columns = [
        "", "MB", "bytes per row", "× bytes", "rows/s written", "× write time", "M codes/s read", "share of a copy",
        "by `webdataset`",
    ]  # fmt: skip
    theirs = found[tars]["read_webdataset_s"]
    return harness.table_of(columns, rows, {
        "bytes of five orders: WebDataset tars over our Parquet": f"{nbytes[tars] / nbytes[five]:.3g}",
        "reading one of five orders: our Parquet over plain webdataset": harness.ratio(theirs, found[five]["read_s"]),
    })  # fmt: skip


if __name__ == "__main__":
    processes.write_answer(lambda: measure(int(sys.argv[1])))
