"""Shards read by tools outside this package (the test of duckdb is in test_format.py)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_shards import make_dataset

from codeshards.format import ORDER_NAMES, ShardDataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside") / "d"
    make_dataset(folder, formats=("parquet", "webdataset"))
    return folder


@pytest.fixture(scope="module")
def expected(dataset: Path) -> dict[str, Any]:
    batches = list(ShardDataset.open(dataset).batches("train", ["key", "label", "codes_zcurve", "cond_segmentation"]))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_webdataset(dataset: Path, expected: dict[str, Any]) -> None:
    import webdataset

    urls = sorted(map(str, (dataset / "train").glob("*.tar")))
    rows = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [row["__key__"] for row in rows] == expected["key"].tolist()
    for row, codes, label in zip(rows, expected["codes_zcurve"], expected["label"], strict=True):
        assert row["json"]["orders"] == list(ORDER_NAMES)
        assert row["json"]["label"] == (None if label < 0 else label)
        assert row["codes.npy"].dtype == np.uint16
        assert np.array_equal(row["codes.npy"][ORDER_NAMES.index("zcurve")], codes)
    assert np.array_equal(np.stack([row["cond_segmentation.npy"] for row in rows]), expected["cond_segmentation"])


def test_hugging_face_datasets(
    dataset: Path, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    loaded = datasets.load_dataset(str(dataset), cache_dir=str(tmp_path))  # the card says what is where
    assert {name: len(split) for name, split in loaded.items()} == {"train": 10, "validation": 3}
    assert loaded["train"]["key"][:] == expected["key"].tolist()
    assert np.array_equal(loaded["train"].with_format("numpy")["codes_zcurve"][:], expected["codes_zcurve"])
    tars = {"train": str(dataset / "train/*.tar")}
    loaded = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path))
    assert loaded["__key__"][:] == expected["key"].tolist()
    codes = np.array(loaded["codes.npy"][:])
    assert np.array_equal(codes[:, ORDER_NAMES.index("zcurve")], expected["codes_zcurve"])


def test_polars(dataset: Path, expected: dict[str, Any]) -> None:
    import polars

    frame = polars.read_parquet(dataset / "train/*.parquet")
    assert frame["key"].to_list() == expected["key"].tolist()
    assert np.array_equal(frame["codes_zcurve"].to_numpy(), expected["codes_zcurve"])
    assert frame.filter(polars.col("label").is_null()).height == (expected["label"] < 0).sum()


@pytest.mark.slow
def test_ray_data(local_ray_cores: Any, dataset: Path, expected: dict[str, Any]) -> None:
    paths = sorted(map(str, (dataset / "train").glob("*.parquet")))
    rows = local_ray_cores.data.read_parquet(paths).select_columns(["key", "codes_zcurve"]).take_all()
    found = {row["key"]: row["codes_zcurve"] for row in rows}
    assert sorted(found) == sorted(expected["key"])
    for key, codes in zip(expected["key"], expected["codes_zcurve"], strict=True):
        assert np.array_equal(found[key], codes)
