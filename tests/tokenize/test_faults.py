"""Jobs on a cluster of three nodes that are killed at random moments: `make faults` (KILLS, SEED and IMAGES).

Workers die by SIGKILL, nodes with their raylet (another joins), drivers by SIGKILL (and are started again). Every
dataset must have the bytes of the undisturbed one.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from ray_cluster import RayCluster

from codeshards.format.contents import EVENTS_FILE
from codeshards.format.manifest import MANIFEST_FILE
from codeshards.format.plan import PLAN_FILE, SAMPLES_FILE
from codeshards.job.progress import read_events
from vqgan.checkpoint import save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.model import VQGAN

Kind = Literal["worker", "node", "driver"]
KILLS, SEED, IMAGES = (
    int(os.environ.get(name, default)) for name, default in (("KILLS", 6), ("SEED", 1), ("IMAGES", 240))
)
NODES = 3
KILLS_PER_JOB = 4
JOB_S = 600.0
"""Seconds that a job may take after its last kill."""
WORK_S = 5.0
"""Kills come at most this many seconds after a worker of a driver is ready, or before that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    kind: Kind
    shards_done: int
    """Shards finished before the kill."""
    hit: bool
    """Whether there was a process to kill."""


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_random_kills_do_not_change_a_byte(tmp_path: Path) -> None:
    rng, cluster, faults = random.Random(SEED), RayCluster(NODES), list[Fault]()
    make_inputs(tmp_path, IMAGES)
    try:
        assert list(run_with_kills(tmp_path, tmp_path / "undisturbed", cluster, [], rng)) == []
        expected, jobs = digest(tmp_path / "undisturbed"), 0
        while sum(fault.hit for fault in faults) < KILLS:
            jobs += 1
            kinds: list[Kind] = [get_args(Kind)[(len(faults) + i) % 3] for i in range(KILLS_PER_JOB)]
            out = tmp_path / f"job-{jobs}"
            faults += run_with_kills(tmp_path, out, cluster, kinds, rng)
            assert digest(out) == expected, f"job {jobs} gave other bytes after {', '.join(kinds)}"
            assert not list(out.rglob("*.tmp-*"))
    finally:
        cluster.close()
    sys.stdout.write(f"\n{jobs} jobs on {NODES} nodes, seed {SEED}\n{table(faults)}\n")


def make_inputs(root: Path, images: int) -> None:
    """A folder of pictures, two of them broken, and a tokenizer slow enough to be killed at work."""
    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("val", max(8, images // 8))):
        for index in range(count):
            path = root / "data" / split / f"class{index % 3}" / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    for index in (3, 17):
        (root / "data" / "train" / f"class{index % 3}" / f"{index:04d}.png").write_bytes(b"broken")
    model = ModelConfig(
        resolution=64, ch=64, ch_mult=(1, 1, 2), num_res_blocks=2, attn_resolutions=(), z_channels=16, embed_dim=8,
        codebook_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    network = VQGAN(model)
    torch.nn.init.normal_(network.quantize.embedding.weight)
    save_model(root / "tokenizer", TrainConfig(model=model, loss=LossConfig(perceptual="none")), network)


def digest(out: Path) -> dict[str, str]:
    """Hash of every file whose bytes must not change."""
    files = [*out.rglob("*.parquet"), *out.rglob("*.tar"), out / MANIFEST_FILE, out / PLAN_FILE, out / SAMPLES_FILE]
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(set(files))
    }


def run_with_kills(
    root: Path, out: Path, cluster: RayCluster, kinds: list[Kind], rng: random.Random
) -> Iterator[Fault]:
    """Run one job to its end, with these kills on the way."""
    driver = start_driver(root, out, cluster.address)
    ready = 0
    try:
        for kind in kinds:
            wait_for_work(driver, out, ready, rng)
            done, running = len(list(out.glob("*/shard-*.json"))), driver.poll() is None
            ready, workers = count_ready(out), living_workers(out)
            hit = running and (kind != "worker" or bool(workers))
            if hit and kind == "worker":
                os.kill(rng.choice(workers), signal.SIGKILL)
            elif hit and kind == "node":
                cluster.replace(rng)
            elif hit:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
                driver = start_driver(root, out, cluster.address)
            yield Fault(kind=kind, shards_done=done, hit=hit)
        assert driver.wait(JOB_S) == 0, f"killed {', '.join(kinds)}; see {out}.log"
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def start_driver(root: Path, out: Path, address: str) -> subprocess.Popen[bytes]:
    """The job as a process of its own, through the command line."""
    command = [
        sys.executable, "-m", "imagepriors", "tokenize", "--preset", "demo",
        "--dataset", "folder", "--data", str(root / "data"),
        "--tokenizer", str(root / "tokenizer"), "--out", str(out), "--shard-rows", "16", "--batch-size", "4",
        "--threads", "1", "--max-failure-rate", "0.1", "--max-attempts", "5", "--scales", "1", "2",
    ]  # fmt: skip
    with (out.parent / f"{out.name}.log").open("ab") as log:
        environment = {**os.environ, "RAY_ADDRESS": address}
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def count_ready(out: Path) -> int:
    return sum(event["event"] == "worker_ready" for event in read_events(out / EVENTS_FILE))


def wait_for_work(driver: subprocess.Popen[bytes], out: Path, ready: int, rng: random.Random) -> None:
    """Wait until a worker of this driver is ready and then a random time; one kill in eight comes before that."""
    early = rng.random() < 1 / 8
    end_s = time.monotonic() + (rng.uniform(1, 8) if early else 600)
    while driver.poll() is None and time.monotonic() < end_s and (early or count_ready(out) <= ready):
        time.sleep(0.05)
    end_s = time.monotonic() + rng.uniform(0, WORK_S)
    while driver.poll() is None and time.monotonic() < end_s:
        time.sleep(0.02)


def living_workers(out: Path) -> list[int]:
    """Ids of the worker processes that are alive."""
    pids = {event["pid"] for event in read_events(out / EVENTS_FILE) if event["event"] == "worker_ready"}
    return sorted(pid for pid in pids if is_worker(pid))


def is_worker(pid: int) -> bool:
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def table(faults: list[Fault]) -> str:
    """How many kills of each kind hit, and when, as Markdown."""
    lines = ["| killed | kills | before the first shard | at work | too late |", "|---|---|---|---|---|"]
    for kind in get_args(Kind):
        counts = Counter((fault.hit, fault.shards_done > 0) for fault in faults if fault.kind == kind)
        early, at_work, late = counts[True, False], counts[True, True], counts[False, False] + counts[False, True]
        lines.append(f"| {kind} | {early + at_work} | {early} | {at_work} | {late} |")
    return "\n".join(lines)
