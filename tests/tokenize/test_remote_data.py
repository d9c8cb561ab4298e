"""A dataset of tars in one bucket becomes shards in another, with the bytes of the same job on local files."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import pytest
from s3_server import S3Server
from tiny_job import CONFIG

from codeshards.format import ShardError
from codeshards.format.plan import load_plan
from codeshards.job.progress import read_events
from codeshards.job.tokenize import tokenize
from runkit.places import Store, open_store


def write_tars(data: Path, root: Path) -> None:
    """Put the pictures of the folders `train` and `val` into tars of 20, with their classes."""
    root.mkdir()
    for split in ("train", "val"):
        pictures = sorted((data / split).rglob("*.png"))
        for first in range(0, len(pictures), 20):
            with tarfile.open(root / f"{split}-{first:06d}.tar", "w") as archive:
                for path in pictures[first : first + 20]:
                    for suffix, content in (("png", path.read_bytes()), ("cls", path.parent.name.encode())):
                        member = tarfile.TarInfo(f"{path.parent.name}-{path.stem}.{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))


def shards_in(out: Store) -> dict[str, bytes]:
    names = [name for name in out.files() if name.endswith(".parquet") and name != "samples.parquet"]
    return {name: (out / name).read_bytes() for name in names}


def plan_in(out: Store) -> dict[str, Any]:
    """The plan without what a remote source adds: the states of its files."""
    plan = json.loads((out / "plan.json").read_bytes())
    del plan["hash"]
    for split in plan["plan"]["splits"].values():
        del split["source_hash"]
    return plan  # type: ignore[no-any-return]


def own_workers() -> list[int]:
    """Ids of the workers of jobs of this process; other tests of this machine may run jobs of their own."""
    processes = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    status = {path: text for path in processes if (text := read_or_empty(path / "stat"))}
    parents = {int(path.name): int(text.rpartition(")")[2].split()[1]) for path, text in status.items()}
    workers = [int(path.name) for path in status if read_or_empty(path / "cmdline").startswith("ray::ActorHost")]
    return [pid for pid in workers if os.getpid() in (parents.get(pid), parents.get(parents.get(pid, 0)))]


def read_or_empty(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process has ended
        return ""


@pytest.fixture
def source(s3: S3Server, data: Path, tmp_path: Path) -> Any:
    """A bucket with the tars, which are in the folder `tars` as well."""
    bucket = boto3.resource("s3").Bucket("photos")
    bucket.create()
    write_tars(data, tmp_path / "tars")
    for path in (tmp_path / "tars").iterdir():
        bucket.upload_file(str(path), f"set/{path.name}")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


def test_a_bucket_of_tars_becomes_the_shards_of_the_local_job(
    local_ray_cores: Any, s3: S3Server, source: Any, tokenizer: Path, tmp_path: Path
) -> None:
    job: dict[str, Any] = {"dataset": "auto", "tokenizers": {"image": tokenizer}}
    tokenize(CONFIG, **job, data=tmp_path / "tars", out=tmp_path / "local")
    seen, killed = Counter[str](), list[int]()

    def busy(environ: dict[str, Any]) -> bool:
        kind = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO'].split('/')[1]}"
        seen[kind] += 1
        if kind == "GET photos" and seen[kind] > 20 and not killed:
            killed.extend(own_workers()[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        return sum(seen.values()) % 17 == 0

    s3.fails, s3.status = busy, "503 Slow Down"
    tokenize(CONFIG, **job, data=Path("s3://photos/set"), out="s3://bucket/shards")
    s3.fails = lambda environ: False
    lost = [event for event in read_events("s3://bucket/shards/events.jsonl") if event["event"] == "worker_died"]
    assert len(killed) == len(lost) == 1
    remote, local = open_store("s3://bucket/shards"), open_store(tmp_path / "local")
    assert shards_in(remote) == shards_in(local)
    assert plan_in(remote) == plan_in(local)
    assert load_plan(remote).source_hashes.keys() == load_plan(local).source_hashes.keys()
    assert tokenize(CONFIG, **job, data=Path("s3://photos/set"), out="s3://bucket/shards").splits["train"].failures == 0


def test_a_changed_tar_fails_the_job_by_name(
    local_ray_cores: Any, s3: S3Server, source: Any, tokenizer: Path, tmp_path: Path
) -> None:
    job: dict[str, Any] = {"dataset": "webdataset", "tokenizers": {"image": tokenizer}, "data": Path("s3://photos/set")}
    name, out = "train-000020.tar", tmp_path / "o"
    content = (tmp_path / "tars" / name).read_bytes()

    def change(environ: dict[str, Any]) -> bool:
        if (out / "plan.json").exists():  # planning is over
            s3.fails = lambda environ: False
            source.put_object(Key=f"set/{name}", Body=content + bytes(512))
        return False

    s3.fails = change
    with pytest.raises(ShardError, match=rf"train/shard-00000\d: .*s3://photos/set/{name} was changed"):
        tokenize(CONFIG, **job, out=out)
    with pytest.raises(ShardError, match=r"source_hash"):
        tokenize(CONFIG, **job, out=out)


def test_shards_beside_their_source_are_refused(s3: S3Server, source: Any, tokenizer: Path) -> None:
    with pytest.raises(ValueError, match=r"the output s3://photos/set/o is in the input data s3://photos/set"):
        tokenize(
            CONFIG,
            dataset="auto",
            data=Path("s3://photos/set"),
            tokenizers={"image": tokenizer},
            out="s3://photos/set/o",
        )
