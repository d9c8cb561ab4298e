"""Loading shuffled batches of codes against the loaders people use: `imagepriors bench loader`.

The same 50,000 sequences in each one's own format; each contender in a process of its own, pinned to one core, timed
from its own start of an epoch to int64 torch batches [256, 256].
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parent / "results"
_ROWS, _LENGTH, _BATCH, _CODEBOOK = 50_000, 256, 256, 1024
_SECONDS = 4.0
CONTENDERS = {
    "imagepriors, memory map (exact shuffle)": "memory_map",
    "imagepriors, stream (65,536-row shuffle)": "stream",
    "Hugging Face datasets, random rows": "datasets",
    "litdata, shuffled": "litdata",
    "mosaicml-streaming, shuffled": "mosaicml",
    "webdataset, tar of .npy, 5,000-row shuffle": "webdataset",
}


def _codes() -> Any:
    """Codes with the skew of real ones: [rows, length] uint16."""
    import numpy as np

    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, _CODEBOOK + 1)
    return rng.choice(_CODEBOOK, (_ROWS, _LENGTH), p=share / share.sum()).astype(np.uint16)


def write_shards(folder: Path) -> None:
    """Our shards, row_major only: every format then holds each code once."""
    import numpy as np

    from codeshards.format import GridSpec, Manifest, ShardSpec, Sidecar, build_plan, sidecar_path, write_shard

    image = GridSpec(height=16, width=16, codebook_size=_CODEBOOK, fingerprint="benchmark")
    spec = ShardSpec(image=image, orders=("row_major",))
    plan = build_plan(
        samples={"train": [f"row-{i:06d}" for i in range(_ROWS)]}, source_hashes={"train": "benchmark"}, settings={},
        views=1, shard_rows=8192, shuffle_seed=None,
    )  # fmt: skip
    codes, sidecars, start = _codes().reshape(-1, 16, 16), [], 0
    for shard in plan.shards:
        part = codes[start : start + shard.samples]
        start += shard.samples
        table = spec.rows_to_table(list(plan.sample_keys(shard)), np.zeros(shard.samples), None, part)
        file = shard.path(folder, ".parquet")
        file.parent.mkdir(parents=True, exist_ok=True)
        sidecar = Sidecar(
            plan_hash=plan.hash, split=shard.split, index=shard.index, rows=shard.samples, samples=shard.samples,
            files={file.name: write_shard(file, table)},
        )  # fmt: skip
        sidecar.save(sidecar_path(folder, shard))
        sidecars.append(sidecar)
    Manifest.build(plan=plan, sidecars=sidecars, spec=spec).save(folder)


def memory_map(folder: Path) -> Iterator[Any]:
    """Our random access."""
    from codeprior.data import CodeBatches, CodeData, sequence_from_dataset
    from codeshards.format import ShardDataset

    if not folder.exists():
        write_shards(folder)
    dataset = ShardDataset.open(folder)
    data = CodeData.open(dataset, "train", sequence_from_dataset(dataset, "row_major", "none"))
    return (batch.codes_BT for batch in CodeBatches(data, batch_size=_BATCH, seed=0))


def stream(folder: Path) -> Iterator[Any]:
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


def webdataset(folder: Path) -> Iterator[Any]:
    """A tar of .npy members, read by its usual pipeline."""
    import numpy as np
    import torch
    import webdataset as wds

    if not folder.exists():
        folder.mkdir()
        with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=10_000, verbose=0) as writer:
            for i, row in enumerate(_codes()):
                writer.write({"__key__": f"{i:06d}", "codes.npy": row})
    urls = sorted(map(str, folder.glob("*.tar")))
    data = wds.WebDataset(urls, shardshuffle=100, empty_check=False).shuffle(5000).decode().to_tuple("codes.npy")
    data = data.repeat().batched(_BATCH, partial=False)
    return (torch.from_numpy(np.asarray(codes).astype(np.int64)) for (codes,) in data)


def datasets(folder: Path) -> Iterator[Any]:
    """An Arrow table on disk, rows at random: the fastest of its formats that was found (numpy)."""
    import datasets as hf
    import numpy as np
    import torch

    if not folder.exists():
        features = hf.Features({"codes": hf.Sequence(hf.Value("uint16"), length=_LENGTH)})
        hf.Dataset.from_dict({"codes": _codes()}, features=features).save_to_disk(str(folder))
    table = hf.load_from_disk(str(folder)).with_format("numpy")
    rng = np.random.default_rng(0)
    for _ in itertools.count():
        order = rng.permutation(_ROWS)
        for start in range(0, _ROWS - _BATCH + 1, _BATCH):
            yield torch.from_numpy(table[order[start : start + _BATCH]]["codes"].astype(np.int64))


def mosaicml(folder: Path) -> Iterator[Any]:
    """MDS shards through its StreamingDataset and torch's DataLoader."""
    import streaming
    import torch

    if not folder.exists():
        columns = {"codes": f"ndarray:uint16:{_LENGTH}"}
        with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
            for row in _codes():
                writer.write({"codes": row})
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=_BATCH)
    loader = torch.utils.data.DataLoader(data, batch_size=_BATCH, drop_last=True)
    return (batch["codes"].long() for _ in itertools.count() for batch in loader)


def litdata(folder: Path) -> Iterator[Any]:
    """Its optimized chunks through its StreamingDataset and StreamingDataLoader."""
    import litdata as lit
    import numpy as np
    import torch

    if not folder.exists():
        rows = [row.astype(np.int32) for row in _codes()]  # its tensor serializer knows no uint16
        lit.optimize(
            fn=_as_tensor, inputs=rows, output_dir=str(folder), chunk_bytes="16MB", num_workers=1, verbose=False
        )
    data = lit.StreamingDataset(str(folder), shuffle=True, drop_last=True)
    loader = lit.StreamingDataLoader(data, batch_size=_BATCH, num_workers=0)
    return (torch.as_tensor(batch).long() for _ in itertools.count() for batch in loader)


def _as_tensor(row: Any) -> Any:
    import torch

    return torch.from_numpy(row)


def _contender(name: str, folder: Path, prepare: bool) -> None:
    """Write a contender's data, or read it for a while and print M codes/s as JSON, in this process."""
    out, sys.stdout = sys.stdout, sys.stderr
    if not prepare and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    batches = globals()[name](folder)
    if prepare:
        next(batches)
        return
    for _ in range(5):
        batch = next(batches)
    if (tuple(batch.shape), str(batch.dtype)) != ((_BATCH, _LENGTH), "torch.int64"):
        raise RuntimeError(f"{name} gives {tuple(batch.shape)} {batch.dtype}")
    counted, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < _SECONDS:
        counted += next(batches).numel()
    out.write(json.dumps(counted / seconds / 1e6))
    out.flush()
    os._exit(0)  # some rivals leave threads behind


def run(repeats: int = 5, out: Path = _RESULTS) -> str:
    """Measure all contenders in turn, `repeats` rounds; write JSON and a Markdown table, and return the table."""
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats + 1):
            for name, job in CONTENDERS.items():
                place = Path(folder) / ("memory_map" if job == "stream" else job)
                mode = "prepare" if number == 0 else "read"
                command = [sys.executable, "-m", "imagepriors.benchmarks.loader", job, str(place), mode]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
                if number:
                    rates[name].append(json.loads(done.stdout))
    base = rates["webdataset, tar of .npy, 5,000-row shuffle"]
    lines = [
        f"Shuffled batches of {_BATCH} × {_LENGTH} codes as int64 tensors, one x86 core, page cache warm, "
        f"{_ROWS:,} rows, medians of {repeats} rounds; `imagepriors bench loader`. Ratios are medians within a round.",
        "",
        "| | M codes/s | × webdataset |",
        "|---|---|---|",
    ]
    for name, found in rates.items():
        ratio = statistics.median(one / other for one, other in zip(found, base, strict=True))
        lines.append(f"| {name} | {statistics.median(found):.3g} | {ratio:.3g} |")
    table = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "loader-cpu.md").write_text(table)
    (out / "loader-cpu.json").write_text(json.dumps({"m_codes_per_s": rates}, indent=2) + "\n")
    return table


if __name__ == "__main__":
    _contender(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "prepare")
