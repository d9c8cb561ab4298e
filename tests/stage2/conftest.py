"""Small shard datasets, written through codeshards.format like real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from codeshards.format import GridSpec, Manifest, ShardDataset, ShardSpec, Sidecar, build_plan
from codeshards.format.manifest import sidecar_path
from codeshards.format.schema import row_key
from codeshards.format.shardfile import write_shard

CLASSES = 4
IMAGE = GridSpec(height=4, width=4, codebook_size=16, fingerprint="image-tokenizer")
PICTURES = {
    name: GridSpec(height=2, width=2, codebook_size=size, fingerprint=f"{name}-tokenizer")
    for name, size in (("segmentation", 6), ("depth", 5), ("pose", 7))
}
ORDERS = ("row_major", "spiral_out", "zcurve", "subsample", "alternate")

MakeDataset = Callable[..., ShardDataset]


def structured_rows(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Labels, and pictures that mostly follow from them: a diagonal ramp with a tenth of the codes random."""
    labels = rng.integers(CLASSES, size=n)
    row, column = np.mgrid[: IMAGE.height, : IMAGE.width]
    codes = (4 * labels[:, None, None] + row + 2 * column) % IMAGE.codebook_size
    noise = rng.integers(IMAGE.codebook_size, size=codes.shape)
    codes = np.where(rng.random(codes.shape) < 0.1, noise, codes).astype(np.uint16)
    same = np.repeat(labels, 4).reshape(n, 2, 2).astype(np.uint16)
    pictures = {"segmentation": same, "depth": same + np.uint16(1), "pose": same + np.uint16(2)}
    return {"labels": labels, "codes": codes, **pictures}


def write_dataset(
    path: Path,
    *,
    rows: dict[str, int] | None = None,
    shard_rows: int = 60,
    orders: tuple[str, ...] = ORDERS,
    pictures: tuple[str, ...] = ("segmentation", "depth", "pose"),
    labelled: bool = True,
    class_names: tuple[str, ...] = ("ant", "bee", "cat", "dog"),
    seed: int = 0,
    views: int = 1,
    scales: tuple[int, ...] = (),
    formats: tuple[str, ...] = ("parquet",),
    first_number: int | None = None,
) -> ShardDataset:
    """Write structured rows, or from `first_number` on rows whose last four codes are their number in base 16."""
    rows = rows or {"train": 200, "val": 50}
    conditions = {name: PICTURES[name] for name in pictures}
    spec = ShardSpec(image=IMAGE, orders=orders, conditions=conditions, scales=scales)
    plan = build_plan(
        samples={split: [f"{split}-{i:05d}" for i in range(n)] for split, n in rows.items()},
        source_hashes=dict.fromkeys(rows, f"seed-{seed}"),
        settings={},
        views=views,
        shard_rows=shard_rows,
        shuffle_seed=None,
    )
    rng, sidecars = np.random.default_rng(seed), []
    for shard in plan.shards:
        count = shard.samples * views
        made = structured_rows(rng, count)
        if first_number is not None:
            numbers = first_number + np.arange(count)[:, None]
            made["codes"][:, -1] = numbers // 16 ** np.arange(3, -1, -1) % 16
            first_number += count
        table = spec.rows_to_table(
            [row_key(key, view) for key in plan.sample_keys(shard) for view in range(views)],
            np.tile(np.arange(views), shard.samples),
            made["labels"] if labelled else None,
            made["codes"],
            scales={side: made["codes"][:, :: IMAGE.height // side, :: IMAGE.width // side] for side in scales},
            conditions={name: made[name] for name in pictures},
        )
        sidecar = Sidecar(
            plan_hash=plan.hash,
            split=shard.split,
            index=shard.index,
            rows=count,
            samples=shard.samples,
            files=write_shard(path, shard, table, formats),
        )
        sidecar.save(sidecar_path(path, shard))
        sidecars.append(sidecar)
    names = class_names if labelled else ()
    Manifest.build(plan=plan, sidecars=sidecars, spec=spec, class_names=names).save(path)
    return ShardDataset.open(path)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small lose more than they gain from threads, above all on a busy machine.

    Of module scope, so that it holds for the runs that a module's tests share: other threads, other bits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for the processes that a test starts
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Writes a dataset of structured codes under tmp_path; keywords as in `write_dataset`."""

    def make(name: str = "shards", **options: object) -> ShardDataset:
        return write_dataset(tmp_path / name, **options)

    return make


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    """200 training and 50 validation rows in several shards; read-only by agreement."""
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, float]:
    """A blend: 200 training rows with numbers from 0, 90 from 1000, as 7 to 3; read-only by agreement."""
    root = tmp_path_factory.mktemp("pair")
    write_dataset(root / "a", first_number=0)
    write_dataset(root / "b", rows={"train": 90, "val": 20}, first_number=1000, seed=1)
    return {root / "a": 0.7, root / "b": 0.3}
