"""The scheduler: workers fit their nodes, deadly shards are named, late nodes are used, lost nodes cost only time."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray_cluster import RayCluster
from tiny_job import CONFIG, command, hashes, words, write_images

from codeshards.config import TokenizeConfig
from codeshards.format import GridSpec, ShardDataset, ShardError, ShardSpec, load_plan
from codeshards.format.contents import EVENTS_FILE
from codeshards.format.files import sha256_file
from codeshards.format.plan import PlannedShard
from codeshards.job import progress
from codeshards.job.actors import ActorHandle
from codeshards.job.encode import ShardTask, WorkerResources, encode_shard
from codeshards.job.nodes import WorkerSize
from codeshards.job.progress import EventLog, LiveView, kind_of, read_events
from codeshards.job.scheduler import Scheduler, run_shards
from codeshards.job.tokenize import tokenize
from codeshards.tools.reencode import reencode
from imagepriors.cli import main
from runkit.errors import user_message
from vqgan.data import open_splits
from vqgan.tokenizer import Tokenizer

SHARDS = [PlannedShard(split="train", index=index, start=4 * index, stop=4 * index + 4) for index in range(6)]
SETTINGS = TokenizeConfig(workers=2, threads=1, decode_threads=1, max_attempts=2)
JOB = {"name": "test", "device": "cpu", "settings": SETTINGS}


@pytest.mark.parametrize(
    ("device", "node", "fits"),
    [
        ("cpu", (16, 0), (4, {"num_cpus": 4})),
        ("cpu", (2, 0), (1, {"num_cpus": 2})),  # smaller than a worker requires: still one
        ("cpu", (0, 0), (0, {"num_cpus": 0})),  # a head that is to do no work
        ("cuda", (16, 1), (1, {"num_gpus": 1, "num_cpus": 16})),
        ("cuda", (52, 8), (8, {"num_gpus": 1, "num_cpus": 6})),
        ("cuda", (2, 4), (4, {"num_gpus": 1, "num_cpus": 0})),
        ("cuda", (64, 0), (0, {"num_gpus": 1, "num_cpus": 0})),
    ],
)
def test_workers_fit_their_node(device, node, fits):
    assert WorkerSize(device=device, threads=4, decode_threads=0).fits(*node) == fits


def test_workers_share_a_gpu_and_its_cores():
    two = WorkerSize(device="cuda", threads=4, decode_threads=0, per_gpu=2)
    assert two.fits(16, 1) == (2, {"num_gpus": 0.5, "num_cpus": 8})


def test_failures_of_one_kind_are_counted_together():
    assert kind_of("a/1: 1.png: cannot identify image file <_io.BytesIO at 0x7f>") == kind_of(
        "b: 22.png: cannot identify image file <_io.BytesIO at 0x55>"
    )


def test_events_are_read_after_an_incomplete_line(tmp_path):
    log = EventLog(tmp_path / "e.jsonl")
    log.write("start", shards=2)
    log.close()
    with (tmp_path / "e.jsonl").open("a") as file:
        file.write('{"event": "shard_do')
    log = EventLog(tmp_path / "e.jsonl")
    log.write("made")
    log.close()
    assert [event["event"] for event in read_events(tmp_path / "e.jsonl")] == ["start", "made"]


def test_events_in_an_object_store_are_written_at_the_end_and_appended(s3):
    for number in range(2):
        log = EventLog("s3://bucket/d/e.jsonl")
        log.write("start", number=number)
        log.close()
    assert [event["number"] for event in read_events("s3://bucket/d/e.jsonl")] == [0, 1]


def test_live_view_shows_rate_time_left_failures_and_nodes(monkeypatch, tmp_path):
    now = iter((0.0, 0.0, 20.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    view = LiveView("job", shards=4, samples=240, events=EventLog(tmp_path / "e.jsonl"))
    view.update({"big-1": 0, "small-2": 10})
    view.shard_done({"cannot identify image file": 2, "truncated": 1})
    view.update({"big-1": 90, "small-2": 30})
    assert view._status_text(120) == (
        "1/4 shards · 5.5 images/s, 0.4 min left · 2 failed: cannot identify image file · 1 failed: truncated"
        " · big-1 4.5/s · small-2 1.0/s"
    )
    (logged,) = read_events(tmp_path / "e.jsonl")  # one in ten seconds
    assert logged["nodes"] == {"big-1": 90, "small-2": 30}


def ray_errors() -> list[Exception]:
    import ray.exceptions as errors

    return [
        errors.OutOfMemoryError("killed by the memory monitor"),
        errors.ActorUnschedulableError("its node is gone"),
        errors.RuntimeEnvSetupError("no py_modules"),
        errors.ObjectLostError("0" * 56, None, ""),
    ]


@pytest.mark.parametrize("error", ray_errors(), ids=lambda error: type(error).__name__)
def test_shard_of_a_worker_that_ray_ended_is_requeued(tmp_path, error):
    """Raised in place of Ray, because none of these errors can be provoked reliably."""
    import ray

    def get(reference):
        raise error

    fake = SimpleNamespace(exceptions=ray.exceptions, get=get, kill=lambda actor: None, remote=lambda **_: lambda c: c)
    cluster = SimpleNamespace(
        session=SimpleNamespace(ray=fake), is_alive=lambda node: True, name=str, mark_failed=lambda *_: None
    )
    events = EventLog(tmp_path / "e.jsonl")
    scheduler = Scheduler(
        cluster, (), task_of=lambda shard: None, name="test", shards=SHARDS, max_attempts=2, shards_at_once=1,
        events=events, on_done=lambda shard, answer: {},
    )  # fmt: skip
    handle = ActorHandle(None, "node", running={"reference": SHARDS[0]}, ready=True)
    scheduler._handles.append(handle)
    scheduler._receive(handle, "reference")
    assert list(scheduler._requeued) == [SHARDS[0]]
    assert not scheduler._handles
    assert [event["event"] for event in read_events(tmp_path / "e.jsonl")] == ["worker_died"]


UNEQUAL = """
import json
from codeshards.config import TokenizeConfig
from codeshards.format.plan import PlannedShard
from codeshards.job.scheduler import run_shards

class Worker:
    def run(self, task):
        import os, time
        import codeshards, ray
        time.sleep(0.5)
        context = ray.get_runtime_context()
        return codeshards.__file__, context.get_node_id(), os.getpid(), context.get_assigned_resources()["CPU"]

shards = [PlannedShard(split="train", index=index, start=index, stop=index + 1) for index in range(12)]
found = []
run_shards(shards, lambda shard: None, Worker, (), name="test", device="cpu",
           settings=TokenizeConfig(workers=0, threads=2, decode_threads=1),
           on_done=lambda shard, answer: found.append(answer) or {})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_unequal_nodes_get_fitting_workers_and_the_packages(tmp_path):
    """A node of one core and one of four, workers of two cores: one small worker and two full ones."""
    cluster = RayCluster(1)
    try:
        cluster.add(cores=4)
        done = subprocess.run(
            [sys.executable, "-c", UNEQUAL], env={**os.environ, "RAY_ADDRESS": cluster.address}, cwd=tmp_path,
            capture_output=True, text=True, timeout=200,
        )  # fmt: skip
    finally:
        cluster.close()
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) == 12
    assert all("runtime_resources" in file for file, *_ in found)  # where Ray unpacks what it was sent
    workers = {(node, pid, cores) for _, node, pid, cores in found}
    assert sorted(cores for _, _, cores in workers) == [1, 2, 2]
    assert len({node for node, _, cores in workers if cores == 2}) == 1


def test_shard_that_kills_its_worker_is_named_and_others_are_made(local_ray_cores, tmp_path):
    class Worker:
        def __init__(self, out):
            self.out = out

        def run(self, task):
            import os
            import time
            from pathlib import Path

            time.sleep(0.3)
            if task == 3:
                os.kill(os.getpid(), 9)
            Path(self.out, str(task)).touch()

    with pytest.raises(ShardError, match="worker of train/shard-000003 died 2 times"):
        run_shards(SHARDS, lambda shard: shard.index, Worker, (str(tmp_path),), shards_at_once=2, **JOB)
    assert not (tmp_path / "3").exists()
    assert len(list(tmp_path.iterdir())) >= 3  # not only what came before it


def test_worker_that_cannot_start_is_a_message(local_ray_cores):
    class Worker:
        def __init__(self):
            raise ShardError("no tokenizer on this node")

        def run(self, task): ...

    with pytest.raises(ShardError, match="cannot start on any node: no tokenizer on this node"):
        run_shards(SHARDS, lambda shard: shard.index, Worker, (), **JOB)


def test_bug_in_the_start_of_a_worker_keeps_its_traceback(local_ray_cores):
    class Worker:
        def __init__(self):
            {}["bug"]

        def run(self, task): ...

    with pytest.raises(local_ray_cores.exceptions.RayTaskError, match=r"(?s)in __init__.*KeyError: 'bug'"):
        run_shards(
            SHARDS, lambda shard: shard.index, Worker, (), **{**JOB, "settings": replace(SETTINGS, max_attempts=1)}
        )


def test_error_of_a_task_is_a_message_and_a_bug_keeps_its_traceback(local_ray_cores):
    class Worker:
        def run(self, error):
            raise error

    with pytest.raises(ShardError, match=r"train/shard-00000\d: disk full"):
        run_shards(SHARDS, lambda shard: OSError("disk full"), Worker, (), **JOB)
    with pytest.raises(ShardError, match=r"out of memory \(CUDA out of memory.*Use fewer workers"):
        run_shards(SHARDS, lambda shard: RuntimeError("CUDA out of memory. Tried"), Worker, (), **JOB)
    for error in (KeyError("bug"), ValueError("bug")):
        with pytest.raises(
            local_ray_cores.exceptions.RayTaskError, match=r"(?s)in run.*raise error.*Error: '?bug"
        ) as bug:
            run_shards(SHARDS, lambda shard, error=error: error, Worker, (), **JOB)
        assert user_message(bug.value) is None  # the command line prints the traceback


def test_missing_gpu_is_a_message(local_ray_cores):
    with pytest.raises(ShardError, match=r"this machine has no capacity for a worker, which requires a GPU"):
        run_shards(
            SHARDS,
            lambda shard: None,
            object,
            (),
            **{**JOB, "device": "cuda", "settings": replace(SETTINGS, workers=0)},
        )


def _task(data: Path, index: int) -> ShardTask:
    shard = PlannedShard(split="train", index=index, start=20 * index, stop=20 * index + 20)
    samples = open_splits("folder", data)["train"].subset(range(shard.start, shard.stop))
    return ShardTask(shard=shard, plan_hash="p", samples=samples)


def test_concurrent_shards_and_padded_batches_give_the_same_bytes(data, tokenizer, tmp_path):
    """Three threads share the resources of a process; with `compile` the last batch is padded (without compiling)."""
    encoder = Tokenizer.load(tokenizer, device="cpu")
    grid = GridSpec(height=8, width=8, codebook_size=64, fingerprint=encoder.fingerprint)
    spec, config = ShardSpec(image=grid, scales=(1, 2, 4)), TokenizeConfig(batch_size=6, threads=1, scales=(1, 2, 4))
    filled = TokenizeConfig(batch_size=6, threads=1, scales=(1, 2, 4), compile=True)
    resources, rows = WorkerResources(2), {"tokenizers": {"image": encoder}, "spec": spec}
    threads = [
        threading.Thread(
            target=encode_shard,
            args=(_task(data, i),),
            kwargs={**rows, "config": filled, "out": tmp_path / "a", "resources": resources},
        )
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resources.samples_done == 60
    for index in range(3):
        encode_shard(_task(data, index), **rows, config=config, out=tmp_path / "b")
        name = f"train/shard-{index:06d}.parquet"
        assert sha256_file(tmp_path / "a" / name) == sha256_file(tmp_path / "b" / name)


def test_scales_equal_those_of_the_tokenizer(local_ray_cores, data, tokenizer, tmp_path):
    config = TokenizeConfig(shard_rows=8, batch_size=4, threads=1, workers=1, scales=(1, 2, 4), views=2)
    tokenize(config, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=tmp_path / "o")
    columns = ["codes_row_major", "scale_1", "scale_2", "scale_4"]
    batch = next(ShardDataset.open(tmp_path / "o").batches("val", columns))
    split = open_splits("folder", data)["val"]
    first = [split.read(index, 32).image for index in range(2)]
    pictures = [picture for image in first for picture in (image, image[:, ::-1].copy())]
    codes, *scales = Tokenizer.load(tokenizer, device="cpu").encode_async(pictures, (1, 2, 4))()
    np.testing.assert_array_equal(batch["codes_row_major"][:4], codes.reshape(4, -1))
    for side, scale in zip((1, 2, 4), scales, strict=True):
        np.testing.assert_array_equal(batch[f"scale_{side}"][:4], scale.reshape(4, -1))


@pytest.mark.slow
def test_plans_of_earlier_versions_have_continuous_scales(local_ray_cores, data, tokenizer, tmp_path):
    """Their plans lack the field: such a job is resumed only with the setting that equals their behaviour."""
    config = TokenizeConfig(shard_rows=8, batch_size=4, threads=1, workers=1, scales=(2,), scales_from="continuous")
    where = {"dataset": "folder", "data": data, "tokenizers": {"image": tokenizer}, "out": tmp_path / "o"}
    tokenize(config, **where)
    plan = load_plan(tmp_path / "o")
    assert "scales_from" not in plan.settings
    assert plan.scales_from == "continuous"
    with pytest.raises(ShardError, match='scales_from: null → "quantised"'):
        tokenize(replace(config, scales_from="quantised"), **where)
    found = reencode(tmp_path / "o", source="folder", data=data, samples=4, device="cpu")
    assert found.same == {"codes_row_major": 1.0, "scale_2": 1.0}
    tokenize(replace(config, scales_from="quantised"), overwrite=True, **where)
    assert load_plan(tmp_path / "o").settings["scales_from"] == "quantised"
    found = reencode(tmp_path / "o", source="folder", data=data, samples=4, device="cpu")
    assert found.same == {"codes_row_major": 1.0, "scale_2": 1.0}


def test_failed_shards_are_made_again_when_asked_and_others_kept(local_ray_cores, tokenizer, tmp_path):
    """A file that could not be read at first and now can: its size and hence the plan are the same."""
    data = write_images(tmp_path / "data")
    victim = data / "train" / "class1" / "001.png"
    whole = victim.read_bytes()
    victim.write_bytes(whole[::-1])
    config = TokenizeConfig(shard_rows=8, batch_size=4, threads=1, workers=1, max_failure_rate=0.1)
    where = {"dataset": "folder", "data": data, "tokenizers": {"image": tokenizer}, "out": tmp_path / "o"}
    assert tokenize(config, **where).splits["train"].failures == 1
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "o" / "train").glob("*.parquet")}
    victim.write_bytes(whole)
    assert tokenize(config, **where).splits["train"].failures == 1
    assert tokenize(config, **where, retry_failed=True).splits["train"].failures == 0
    changed = [path for path, before in times.items() if path.stat().st_mtime_ns != before]
    assert len(changed) == 1
    done = [event for event in read_events(tmp_path / "o" / EVENTS_FILE) if event["event"] == "shard_done"]
    assert sum(sum(event["failures"].values()) for event in done) == 1


def test_overwrite_deletes_datasets_only(data, tokenizer, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ShardError, match="is no dataset of shards"):
        tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small file system needs root: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_full_disk_is_a_message_and_the_job_resumes(local_ray_cores, data, tokenizer, undisturbed, small_disk):
    out = small_disk / "o"
    arguments = {"dataset": "folder", "data": data, "tokenizers": {"image": tokenizer}, "out": out}
    used = sum(path.stat().st_size for path in tokenizer.iterdir())
    (small_disk / "filler").write_bytes(b"x" * (4 * 2**20 - used - 120_000))
    with pytest.raises(ShardError, match=r"cannot be written \(No space left.*Free some space, and run again"):
        tokenize(CONFIG, **arguments)
    assert not list(out.rglob("*.tmp-*"))
    (small_disk / "filler").unlink()
    tokenize(CONFIG, **arguments)
    assert hashes(out) == hashes(undisturbed)


def test_read_only_output_is_a_message_and_the_job_resumes(data, tokenizer, undisturbed, small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    arguments = words(data, tokenizer, small_disk / "o")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Read-only file system" in error
    assert "choose another folder" in error
    assert "Traceback" not in error
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert main(arguments) == 0
    assert hashes(small_disk / "o") == hashes(undisturbed)


@pytest.mark.slow
def test_late_node_is_used_and_a_lost_one_costs_only_time(data, tokenizer, undisturbed, tmp_path):
    """No node at the start; one joins and is lost as soon as its worker is ready; another joins."""
    cluster, out = RayCluster(0), tmp_path / "o"
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    job = subprocess.Popen(command(data, tokenizer, out), env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert _wait(job, out, lambda events: any(event["event"] == "node_joined" for event in events))
        cluster.add()
        assert _wait(job, out, lambda events: any(event["event"] == "worker_ready" for event in events))
        cluster.replace(random.Random(0))
        _, error = job.communicate(timeout=200)
    finally:
        job.kill()
        cluster.close()
    assert job.returncode == 0, error[-3000:]
    assert "waiting for one" in error
    assert hashes(out) == hashes(undisturbed)


def _wait(job, out, happened) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and job.poll() is None:
        if happened(read_events(out / EVENTS_FILE)):
            return True
        time.sleep(0.02)
    return False
