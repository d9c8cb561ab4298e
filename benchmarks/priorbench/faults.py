"""The fault matrix: small jobs on a cluster of three nodes, killed at random moments: `make faults`.

Workers die by SIGKILL, nodes by the end of their raylet (another joins), drivers by SIGKILL (and are started again).
Every final dataset must have the bytes of the undisturbed one.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

from codeshards.format import EVENTS_FILE, MANIFEST_FILE, PLAN_FILE, SAMPLES_FILE
from codeshards.job.progress import read_events
from priorbench import harness
from vqgan.checkpoint import save_model
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.model import VQGAN

Kind = Literal["worker", "node", "driver"]
NODES = 3
_JOB_S = 600.0
"""Seconds that a job may take after its last kill; one that takes longer has stalled."""
_STARTS = 8
_WORK_S = 5.0
"""Kills come within so many seconds of a driver's first ready worker, or before there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One kill and when it came."""

    kind: Kind
    job: int
    shards_done: int
    """Shards that were finished at that moment."""
    hit: bool
    """Whether there was something to kill."""


class Cluster:
    """A head without cores, and nodes, of one core unless said, that can be killed and replaced."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self._cluster = RayCluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20},
        )
        self._nodes: list[Any] = []
        for _ in range(nodes):
            self.add()

    @property
    def address(self) -> str:
        """What RAY_ADDRESS names."""
        return str(self._cluster.address)

    def add(self, cores: int = 1) -> None:
        """Start a node; Ray gives a raylet half a minute, which a busy machine may not keep."""
        for attempt in range(_STARTS):
            try:
                self._nodes.append(self._cluster.add_node(num_cpus=cores, object_store_memory=80 * 2**20))
                return
            except Exception as error:
                if attempt == _STARTS - 1:
                    raise RuntimeError("a node did not start: the machine is too busy for the fault matrix") from error

    def replace(self, rng: random.Random) -> None:
        """Kill a node with all that runs on it, and start another."""
        node = self._nodes.pop(rng.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self.add()

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


def make_inputs(root: Path, images: int) -> None:
    """A folder of pictures, two of them broken, and a tokenizer slow enough to be hit at work."""
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
    torch.nn.init.normal_(network.quantize.embedding.weight)  # type: ignore[union-attr, arg-type]
    save_model(root / "tokenizer", TrainConfig(model=model, loss=LossConfig(perceptual="none")), network)


def digest(out: Path) -> dict[str, str]:
    """Hash of every file that a job's bytes are promised for."""
    files = [*out.rglob("*.parquet"), *out.rglob("*.tar"), out / MANIFEST_FILE, out / PLAN_FILE, out / SAMPLES_FILE]
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(set(files))
    }


def start_driver(root: Path, out: Path, address: str) -> subprocess.Popen[bytes]:
    """The job in a process of its own, through the CLI."""
    command = [
        sys.executable, "-m", "imagepriors", "tokenize", "--preset", "demo",
        "--dataset", "folder", "--data", str(root / "data"),
        "--tokenizer", str(root / "tokenizer"), "--out", str(out), "--shard-rows", "16", "--batch-size", "4",
        "--threads", "1", "--max-failure-rate", "0.1", "--max-attempts", "5", "--scales", "1", "2",
    ]  # fmt: skip
    log = (out.parent / f"{out.name}.log").open("ab")
    environment = {**os.environ, "RAY_ADDRESS": address, "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def _done(out: Path) -> int:
    return len(list(out.glob("*/shard-*.json")))


def _wait_for_work(driver: subprocess.Popen[bytes], out: Path, seen: int, rng: random.Random) -> None:
    """Until a worker of this driver is ready, and then a random while; one kill in eight comes before that."""
    early = rng.random() < 1 / 8
    deadline_s = time.monotonic() + (rng.uniform(1, 8) if early else 600)
    while driver.poll() is None and time.monotonic() < deadline_s:
        events = read_events(out / EVENTS_FILE)
        if not early and sum(event["event"] == "worker_ready" for event in events) > seen:
            break
        time.sleep(0.05)
    end_s = time.monotonic() + rng.uniform(0, _WORK_S)
    while driver.poll() is None and time.monotonic() < end_s:
        time.sleep(0.02)


def _workers(out: Path) -> list[int]:
    """Processes of workers that are alive."""
    pids = {event["pid"] for event in read_events(out / EVENTS_FILE) if event["event"] == "worker_ready"}
    return sorted(pid for pid in pids if _is_worker(pid))


def _is_worker(pid: int) -> bool:
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def disturbed_job(
    root: Path, out: Path, cluster: Cluster, kinds: list[Kind], rng: random.Random, number: int
) -> Iterator[Fault]:
    """Run one job to its end, with these kills on the way.

    Raises:
        RuntimeError: the job failed or stalled.
    """
    driver = start_driver(root, out, cluster.address)
    seen = 0
    try:
        for kind in kinds:
            _wait_for_work(driver, out, seen, rng)
            done, running = _done(out), driver.poll() is None
            seen = sum(event["event"] == "worker_ready" for event in read_events(out / EVENTS_FILE))
            workers = _workers(out)
            hit = running and (kind != "worker" or bool(workers))
            if hit and kind == "worker":
                os.kill(rng.choice(workers), signal.SIGKILL)
            elif hit and kind == "node":
                cluster.replace(rng)
            elif hit:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
                driver = start_driver(root, out, cluster.address)
            yield Fault(kind=kind, job=number, shards_done=done, hit=hit)
        if driver.wait(_JOB_S) != 0:
            raise RuntimeError(f"job {number} ended with {driver.returncode}: see {out}.log")
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"job {number} stalled after {', '.join(kinds)}: see {out}.log") from error
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def run_matrix(root: Path, *, kills: int, seed: int, images: int, kills_a_job: int = 4) -> tuple[list[Fault], int]:
    """Kill until `kills` have hit; returns the faults and how many datasets were compared.

    Raises:
        RuntimeError: a job failed or stalled, or its dataset has other bytes.
    """
    rng = random.Random(seed)
    make_inputs(root, images)
    cluster = Cluster(NODES)
    try:
        for _ in disturbed_job(root, root / "undisturbed", cluster, [], rng, 0):
            pass
        expected = digest(root / "undisturbed")
        faults: list[Fault] = []
        number = 0
        while sum(fault.hit for fault in faults) < kills:
            number += 1
            kinds: list[Kind] = [get_args(Kind)[(len(faults) + i) % 3] for i in range(kills_a_job)]
            out = root / f"job-{number}"
            faults += disturbed_job(root, out, cluster, kinds, rng, number)
            if digest(out) != expected or list(out.rglob("*.tmp-*")):
                raise RuntimeError(f"job {number} gave other bytes after {', '.join(kinds)}: compare {out}")
            print(f"job {number}: {', '.join(kinds)}: same bytes", file=sys.stderr)
        return faults, number
    finally:
        cluster.close()


def report(faults: list[Fault], datasets: int, args: argparse.Namespace) -> str:
    """What was killed when, and what came of it: written into `args.out`, returned as Markdown."""
    text = f"{datasets} jobs on {NODES} nodes, seed {args.seed}; every dataset has the undisturbed one's bytes."
    command = f"make faults KILLS={args.kills} SET='--seed {args.seed} --images {args.images}'"
    kills = [asdict(fault) for fault in faults]
    return harness.save(args.out, "faults", table(kills), command=command, text=text, figures=kills, packages=("ray",))


def table(kills: list[dict[str, Any]]) -> harness.Table:
    """How many of each kind hit, and when."""
    rows = []
    for kind in get_args(Kind):
        mine = [kill for kill in kills if kill["kind"] == kind]
        hits = [kill for kill in mine if kill["hit"]]
        early = sum(kill["shards_done"] == 0 for kill in hits)
        rows.append([kind, *map(str, (len(hits), early, len(hits) - early, len(mine) - len(hits)))])
    columns = ["killed", "kills", "before the first shard", "at work", "came too late"]
    return harness.table_of(columns, rows, {})


def main() -> None:
    """Run the matrix and print its table."""
    parser = argparse.ArgumentParser(prog="python -m priorbench.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kills that must hit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=240, help="pictures of a job")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder for the report")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="imagepriors-faults-"))
    faults, datasets = run_matrix(folder, kills=args.kills, seed=args.seed, images=args.images)
    shutil.rmtree(folder)  # where a job failed it stays, with its log and its bytes
    print(report(faults, datasets, args))


if __name__ == "__main__":
    main()
