"""How the tokenize driver grows with samples and shards: `imagepriors bench scaling`.

Everything a driver does for ten million synthetic samples but the encoding itself: planning, finding what is made
already, committing; and handing out 100 to 100,000 shards to workers that do nothing. Each measurement is a process of
its own, whose memory is its resident set at its highest.
"""

import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tqdm import tqdm

from codeshards.format import (
    FileRecord,
    GridSpec,
    Manifest,
    Plan,
    PlannedShard,
    ShardSpec,
    Sidecar,
    build_plan,
    sidecar_path,
)
from codeshards.pool import run_shards
from codeshards.progress import EventLog
from codeshards.resume import MissingShards, close_job, open_job

RESULTS = Path(__file__).parent / "results"
SAMPLES = 10_000_000
SHARDS = (100, 1_000, 10_000, 100_000)
_SPEC = ShardSpec(image=GridSpec(height=16, width=16, codebook_size=1024, fingerprint="benchmark"))


class _Idle:
    """A worker that gives back what it gets."""

    def run(self, task: Any) -> Any:
        return task


def plan_of(samples: int, shards: int) -> Plan:
    """A shuffled plan of synthetic keys, shaped like ImageNet's."""
    return build_plan(
        samples={"train": [f"n{i % 1000:08d}/picture{i:010d}" for i in range(samples)]},
        source_hashes={"train": "benchmark"},
        settings={},
        views=1,
        shard_rows=-(-samples // shards),
        shuffle_seed=0,
    )


def memory_mb(key: str = "VmRSS") -> float:
    """Resident memory of this process in MB; VmHWM is the most it has been."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def plan(folder: Path, samples: int, shards: int) -> dict[str, float]:
    """Seconds to plan, to start, to resume with every shard made, and to commit; memory at its highest."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    made = timed("plan_s", lambda: plan_of(samples, shards))
    missing: MissingShards = timed("open_s", lambda: open_job(made, folder))
    with mock.patch("os.fsync"):  # what was made is no part of this
        for shard in missing:
            _pretend(shard, made.hash, folder)
    if left := len(timed("resume_s", lambda: open_job(made, folder))):
        raise RuntimeError(f"{left} of {shards} made shards are to be made again")
    timed("commit_s", lambda: Manifest.build(plan=made, sidecars=close_job(made, folder, 0), spec=_SPEC).save(folder))
    return {**seconds, "peak_mb": memory_mb("VmHWM")}


def _pretend(shard: PlannedShard, plan_hash: str, folder: Path) -> None:
    """An empty shard and its sidecar."""
    name = f"{shard.name}.parquet"
    Sidecar(
        plan_hash=plan_hash,
        split=shard.split,
        index=shard.index,
        rows=shard.samples,
        samples=shard.samples,
        files={name: FileRecord(hashlib.sha256().hexdigest(), 0)},
    ).save(sidecar_path(folder, shard))
    (folder / shard.split / name).touch()


def hand_out(folder: Path, samples: int, shards: int) -> dict[str, float]:
    """Seconds and the driver's memory while workers take shards and give them back."""
    made = plan_of(samples, shards)
    missing = open_job(made, folder)
    before_mb, start = memory_mb(), time.perf_counter()
    run_shards(
        missing, lambda shard: shard, _Idle, (), name="scaling", device="cpu", workers=2, threads=1, decode_threads=1,
        max_attempts=1, shards_at_once=2, events=EventLog(folder / "events.jsonl"),
    )  # fmt: skip
    return {"seconds": time.perf_counter() - start, "before_mb": before_mb, "peak_mb": memory_mb("VmHWM")}


PARTS = {"plan": (plan, SAMPLES), "hand_out": (hand_out, 1_000_000)}


def run(repeats: int = 1, out: Path = RESULTS) -> str:
    """Measure, write JSON and a Markdown table, and return the table."""
    rounds: list[dict[str, dict[str, Any]]] = []
    for _ in range(repeats):
        work = [(part, shards) for part in PARTS for shards in SHARDS]
        rounds.append({f"{part} {shards}": _measure(part, shards) for part, shards in tqdm(work, "bench scaling")})
    table = _table(rounds)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling-cpu.md").write_text(table)
    (out / "scaling-cpu.json").write_text(json.dumps({"rounds": rounds}, indent=2) + "\n")
    return table


def _measure(part: str, shards: int) -> dict[str, float]:
    command = [sys.executable, "-m", "imagepriors.benchmarks.scaling", part, str(shards)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _table(rounds: list[dict[str, dict[str, Any]]]) -> str:
    def median(what: str, name: str) -> Any:
        return statistics.median(found[what][name] for found in rounds)

    lines = [
        f"The driver's own work for {SAMPLES:,} samples ({PARTS['hand_out'][1]:,} while handing out), {os.cpu_count()} "
        f"cores, {platform.machine()}, local disk, {len(rounds)} rounds; `imagepriors bench scaling`.",
        "Memory: the process's resident set at its highest, the synthetic list of keys included. Resume: every shard "
        "is made, and looked at.",
        "",
        "| shards | plan, s | start, s | resume, s | commit, s | peak MB | handed out, shards/s | peak MB then |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shards in SHARDS:
        planned, handed = f"plan {shards}", f"hand_out {shards}"
        seconds = [median(planned, name) for name in ("plan_s", "open_s", "resume_s", "commit_s")]
        lines.append(
            f"| {shards:,} | {' | '.join(f'{value:.1f}' for value in seconds)} | {median(planned, 'peak_mb'):,.0f} "
            f"| {shards / median(handed, 'seconds'):,.0f} | {median(handed, 'peak_mb'):,.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout = sys.stderr  # what libraries print
    measure, total = PARTS[sys.argv[1]]
    with tempfile.TemporaryDirectory() as place:
        sys.__stdout__.write(json.dumps(measure(Path(place), total, int(sys.argv[2]))))  # type: ignore[union-attr]
