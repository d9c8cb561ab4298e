"""Small finished datasets, written through codeshards.format like real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codeshards.format import Failure, GridSpec, Manifest, ShardSpec, Sidecar, Where, build_plan, open_store
from codeshards.format.contents import save_dataset, save_or_match
from codeshards.format.files import file_record, read_sealed_json, write_sealed_json
from codeshards.format.manifest import finished_sidecar, sidecar_path
from codeshards.format.shardfile import ShardFormat, write_shard

SPEC = ShardSpec(
    image=GridSpec(height=4, width=4, codebook_size=50, fingerprint="image-tokenizer"),
    scales=(1, 2),
    conditions={"segmentation": GridSpec(height=2, width=3, codebook_size=7, fingerprint="mask-tokenizer")},
)


def make_rows(count: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "keys": [f"sample{seed}-{i:04d}" for i in range(count)],
        "views": np.arange(count) % 2,
        "labels": np.where(np.arange(count) % 5 == 4, -1, np.arange(count) % 3),
        "codes_NHW": rng.integers(0, 50, (count, 4, 4), dtype=np.uint16),
        "scales": {side: rng.integers(0, 50, (count, side, side), dtype=np.uint16) for side in (1, 2)},
        "conditions": {"segmentation": rng.integers(0, 7, (count, 2, 3), dtype=np.uint16)},
    }


def make_dataset(
    folder: Where,
    rows: int = 10,
    shard_rows: int = 4,
    formats: Sequence[ShardFormat] = ("parquet",),
    *,
    seed: int = 1,
    fails: Sequence[str] = (),
    spec: ShardSpec = SPEC,
    tokenizer: Path | None = None,
    labelled: bool = False,
) -> dict[str, dict[str, Any]]:
    """A finished dataset of a train and a val split; returns the rows of each split in planned order.

    The tokenizer beside it is not one, unless its folder is given: nothing that reads shards alone looks into it. Keys
    in `fails` give no rows. A fifth of the rows have no label, unless `labelled`. Carried columns are of text.
    """
    content = {"train": make_rows(rows, seed=seed), "val": make_rows(3, seed=seed + 1)}
    for part in content.values():
        part["views"][:] = 0
        part["labels"] = np.arange(len(part["keys"])) % 3 if labelled else part["labels"]
        part["carried"] = {name: [f"{name} of {key}" for key in part["keys"]] for name in spec.carried}
    plan = build_plan(
        samples={split: part["keys"] for split, part in content.items()},
        source_hashes=dict.fromkeys(content, "source"),
        settings={"spec": spec.to_json(), "formats": list(formats)},
        views=1,
        shard_rows=shard_rows,
        shuffle_seed=3,
    )
    save_or_match(plan, folder)
    for name in ("config.json", "model.safetensors"):
        file = (tokenizer / name).read_bytes() if tokenizer else f"the tokenizer's {name}".encode()
        (open_store(folder) / f"tokenizer/{name}").write_bytes(file)
    sidecars, planned = [], {split: [] for split in content}  # type: ignore[var-annotated]
    for shard in plan.shards:
        keys = content[shard.split]["keys"]
        picked = np.array([i for i in plan.sample_indices(shard) if keys[i] not in fails], np.int64)
        planned[shard.split].append(picked)
        table = spec.rows_to_table(**pick(content[shard.split], picked))
        sidecar = Sidecar(
            plan_hash=plan.hash,
            split=shard.split,
            index=shard.index,
            rows=len(picked),
            samples=len(picked),
            failures=tuple(Failure(key, "a broken file") for key in plan.sample_keys(shard) if key in fails),
            files=write_shard(folder, shard, table, formats),
        )
        sidecar.save(sidecar_path(folder, shard))
        assert finished_sidecar(folder, plan.hash, shard, check_hash=True)
        sidecars.append(sidecar)
    manifest = Manifest.build(
        plan=plan,
        sidecars=sidecars,
        spec=spec,
        class_names=["cat", "dog", "owl"],
        tokenizer={"folder": "tokenizer", "fingerprint": spec.image.fingerprint},
    )
    save_dataset(manifest, folder)
    return {split: pick(content[split], np.concatenate(parts)) for split, parts in planned.items()}


def reseal(folder: Path, name: str, content: bytes, *, rows: int | None = None, number: int = 0) -> None:
    """Replace a data file of one of train's shards as somebody would who also mends every hash on the way.

    Args:
        folder: The dataset.
        name: The file's name.
        content: Its new bytes.
        rows: What sidecar and manifest say of its rows; None leaves that.
        number: Number of the shard.
    """
    (folder / "train" / name).write_bytes(content)
    record = file_record(folder / "train" / name)._asdict()
    for path in (folder / f"train/shard-{number:06d}.json", folder / "dataset.json"):
        value = read_sealed_json(path)
        shard = value["splits"]["train"]["shards"][number] if path.name == "dataset.json" else value
        shard["files"][name] = record
        shard["rows"] = shard["rows"] if rows is None else rows
        write_sealed_json(path, value)


def pick(rows: dict[str, Any], indices: np.ndarray) -> dict[str, Any]:
    """The same rows in another sequence."""
    arrays = {name: rows[name][indices] for name in ("views", "labels", "codes_NHW")}
    nested = {part: {k: v[indices] for k, v in rows[part].items()} for part in ("scales", "conditions")}
    carried = {name: [values[i] for i in indices] for name, values in rows.get("carried", {}).items()}
    return {"keys": [rows["keys"][i] for i in indices], **arrays, **nested, "carried": carried}
