"""Read token shards with numpy, pyarrow and the standard library, as docs/format.md specifies them.

Usage: python read_shards.py runs/demo/shards
"""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq


def compact(value: Any) -> bytes:
    """The form of a JSON value that hashes are computed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(content: bytes) -> str:
    """The hash of bytes."""
    return hashlib.sha256(content).hexdigest()


def sealed(path: Path) -> dict[str, Any]:
    """A JSON object that contains its own hash."""
    value = json.loads(path.read_text())
    if value.pop("sha256") != sha256(compact(value)):
        raise ValueError(f"{path} was changed")
    return value


def checked(path: Path, records: dict[str, Any], name: str) -> bytes:
    """The bytes of a file, which must have the recorded size and hash."""
    content = (path / name).read_bytes()
    if records[name] != {"bytes": len(content), "sha256": sha256(content)}:
        raise ValueError(f"{path / name} was changed")
    return content


def order(name: str, height: int, width: int) -> np.ndarray:
    """The permutation of an order: sequence[t] = raster[order[t]]."""
    raster = np.arange(height * width).reshape(height, width)
    if name == "alternate":
        return np.concatenate([line[::-1] if r % 2 else line for r, line in enumerate(raster)])
    if name == "zcurve":
        bits = range(max(height, width).bit_length())
        code = [
            sum((c >> p & 1) << 2 * p | (r >> p & 1) << 2 * p + 1 for p in bits) for r, c in np.ndindex(height, width)
        ]
        return np.argsort(code)
    if name == "subsample":
        if height == 1:
            return raster.ravel()
        phases = [raster[r::2, c::2].ravel() for r in (0, 1) for c in (0, 1)]
        return np.concatenate([phase[order(name, height // 2, width // 2)] for phase in phases])
    if name == "spiral_out":
        r, c, steps = height // 2, width // 2 - 1, [(-1, 0), (0, 1), (1, 0), (0, -1)]
        path = [raster[r, c]]
        for turn in range(2 * height):
            for _ in range(min(turn // 2 + 1, height * width - len(path))):
                r, c = r + steps[turn % 4][0], c + steps[turn % 4][1]
                path.append(raster[r, c])
        return np.array(path)
    return raster.ravel()


def orders_hash(names: list[str], height: int, width: int) -> str:
    """The hash of the tables of these orders."""
    parts = [
        f"{name} {height} {width}\n".encode() + order(name, height, width).astype("<i8").tobytes() for name in names
    ]
    return sha256(b"".join(parts))


def parquet_rows(content: bytes, spec: dict[str, Any]) -> dict[str, np.ndarray]:
    """Column → array of a Parquet shard; a null label is -1."""
    table = pq.read_table(io.BytesIO(content)).combine_chunks()
    if json.loads(table.schema.metadata[b"imagepriors"]) != spec:
        raise ValueError("the shard belongs to another dataset")
    rows = {"label": table["label"].fill_null(-1).to_numpy()}
    rows |= {name: np.array(table[name].to_pylist(), object) for name in spec.get("carried", {})}
    for name in set(table.column_names) - rows.keys():
        values = table[name].combine_chunks()
        codes = name.startswith(("codes_", "scale_", "cond_"))
        rows[name] = values.flatten().to_numpy().reshape(len(values), -1) if codes else values.to_numpy(False)
    return rows


def tar_rows(content: bytes, spec: dict[str, Any]) -> dict[str, np.ndarray]:
    """Column → array of a WebDataset shard; a null label is -1."""
    found: dict[str, list[Any]] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            data = tar.extractfile(member).read()
            if member.name == "__imagepriors__":
                if {**spec, "rows": json.loads(data)["rows"]} != json.loads(data):
                    raise ValueError("the shard belongs to another dataset")
                continue
            column = member.name.partition(".")[2]
            if column == "json":
                about = json.loads(data)
                row = {"key": about["key"], "view": about["view"]}
                row["label"] = -1 if about["label"] is None else about["label"]
                row |= {name: about[name] for name in spec.get("carried", {})}
            elif column == "codes.npy":
                row = {
                    f"codes_{name}": codes
                    for name, codes in zip(about["orders"], np.load(io.BytesIO(data)), strict=True)
                }
            else:
                row = {column.removesuffix(".npy"): np.load(io.BytesIO(data))}
            for name, value in row.items():
                found.setdefault(name, []).append(value)
    objects = {"key", *spec.get("carried", {})}
    return {name: np.array(values, object if name in objects else None) for name, values in found.items()}


def shards(dataset: Path, split: str, ending: str = ".parquet") -> Iterator[dict[str, np.ndarray]]:
    """The rows of each shard of a split in planned order, from the files with this ending."""
    manifest = sealed(dataset / "dataset.json")
    spec, image = manifest["spec"], manifest["spec"]["image"]
    if manifest["format_version"] != 1:
        raise ValueError(f"format version {manifest['format_version']} is unknown")
    if spec["orders_hash"] != orders_hash(spec["orders"], image["height"], image["width"]):
        raise ValueError("the orders of the shards have other tables")
    for shard in manifest["splits"][split]["shards"]:
        name = shard["name"] + ending
        content = checked(dataset / split, shard["files"], name)
        yield (tar_rows if ending == ".tar" else parquet_rows)(content, spec)


def planned_keys(dataset: Path, split: str) -> list[str]:
    """The keys of all samples of a split in planned order, those that failed included."""
    manifest = sealed(dataset / "dataset.json")
    plan = json.loads(checked(dataset, manifest["files"], "plan.json"))
    if not plan["hash"] == sha256(compact(plan["plan"])) == manifest["plan_hash"]:
        raise ValueError("the shards were made from another plan")
    table = pq.read_table(io.BytesIO(checked(dataset, manifest["files"], "samples.parquet"))).to_pylist()
    keys = [row["key"] for row in table if row["split"] == split]
    if plan["plan"]["splits"][split]["keys_sha256"] != sha256("".join(f"{key}\n" for key in keys).encode()):
        raise ValueError("samples.parquet belongs to another plan")
    return keys


def planned_order(samples: int, seed: int | None) -> np.ndarray:
    """Planned position → position in the source, for the split train."""
    return np.arange(samples) if seed is None else np.argsort(np.random.PCG64(seed).random_raw(samples), kind="stable")


def fingerprint(dataset: Path) -> str:
    """The content address of a dataset."""
    manifest = sealed(dataset / "dataset.json")
    splits = {
        split: [[s["name"], s["rows"], {n: f["sha256"] for n, f in s["files"].items()}] for s in found["shards"]]
        for split, found in manifest["splits"].items()
    }
    return sha256(compact({"spec": manifest["spec"], "splits": splits}))


if __name__ == "__main__":
    for rows in shards(Path(sys.argv[1]), "val"):
        shapes = ", ".join(f"{name} {values.shape}" for name, values in sorted(rows.items()))
        print(len(rows["key"]), "rows:", shapes)  # noqa: T201
