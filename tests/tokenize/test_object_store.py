"""A dataset in an object store or on the Hub is read like one in a local folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from tiny_shards import SPEC, make_dataset

from codeprior.data import memory_map, sequence_from_dataset
from codeprior.stream import StreamBatches
from codeshards.format import ShardDataset, ShardError
from codeshards.format.files import remove_stale_temps
from codeshards.tools.verify import verify
from runkit.places import open_store


def test_a_dataset_is_the_same_in_an_object_store(s3: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = ("parquet", "webdataset")
    make_dataset(tmp_path / "d", formats=formats)
    make_dataset("s3://bucket/d", formats=formats)
    remote, local = open_store("s3://bucket/d"), open_store(tmp_path / "d")
    assert remote.files() == local.files()
    for name in local.files():
        assert (remote / name).read_bytes() == (local / name).read_bytes()
    assert remove_stale_temps(remote) == []
    dataset = ShardDataset.open("s3://bucket/d")
    here = next(ShardDataset.open(tmp_path / "d").batches("train", SPEC.column_names))
    there = next(dataset.batches("train", SPEC.column_names))
    assert all(np.array_equal(here[name], there[name]) for name in SPEC.column_names)
    # Training maps columns into memory, which requires a local file.
    monkeypatch.delenv("IMAGEPRIORS_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    codes = memory_map(dataset, "train", "codes_zcurve")
    assert np.array_equal(codes, memory_map(ShardDataset.open(tmp_path / "d"), "train", "codes_zcurve"))
    assert len(list((tmp_path / "home" / ".cache" / "imagepriors").glob("train-codes_zcurve-*.npy"))) == 1
    sequence = sequence_from_dataset(dataset, "zcurve", "none")
    streams = [
        StreamBatches(one, "train", sequence, shuffle_rows=100, batch_size=4, seed=0)
        for one in (dataset, ShardDataset.open(tmp_path / "d"))
    ]
    assert torch.equal(*(next(stream).codes_BT for stream in streams))
    (remote / "val/shard-000000.parquet").delete()
    with pytest.raises(ShardError, match=r"s3://bucket/d/val/shard-000000.parquet is missing"):
        next(dataset.batches("val", ["key"]))
    with pytest.raises(ShardError, match=r"s3://bucket/none/dataset.json is missing"):
        ShardDataset.open("s3://bucket/none")


def test_a_dataset_is_the_same_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "d/shards")
    hub.put_folder("datasets/owner/name", tmp_path / "d")
    local, remote = (ShardDataset.open(place) for place in (tmp_path / "d/shards", "hf://datasets/owner/name/shards"))
    assert remote.fingerprint == local.fingerprint
    assert {name: found.bytes for name, found in (remote.path / "train").listing().items()} == {
        name: found.bytes for name, found in (local.path / "train").listing().items()
    }
    assert verify(remote.path, resume=True).problems == ()
    for here, there in zip(
        local.batches("train", SPEC.column_names), remote.batches("train", SPEC.column_names), strict=True
    ):
        assert all(np.array_equal(here[name], there[name]) for name in SPEC.column_names)
    with pytest.raises(ShardError, match=r"hf://datasets/owner/name/none/dataset.json is missing"):
        ShardDataset.open("hf://datasets/owner/name/none")
