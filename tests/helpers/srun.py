"""A stand-in for Slurm's `srun` on one machine: each node is a set of processes with a /tmp of its own."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = {"--overlap", "--nodes", "--ntasks-per-node", "--cpus-per-task", "--kill-on-bad-exit", "--wait"}
"""Flags that make no difference here."""


def processes_with(mark: str) -> Iterator[int]:
    """Ids of the processes that have NAME=VALUE in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
        except OSError:
            continue


def main(words: list[str]) -> int:
    """Run a command once per node; SIGTERM kills all processes of the step at once, as Slurm's own does."""
    first, *_ = nodes = os.environ["SLURM_JOB_NODELIST"].split(",")
    tasks = len(nodes)
    while words[0].startswith("-"):
        name, _, value = words[0].partition("=")
        if name == "--nodelist":
            nodes = [value]
        elif name == "--exclude":
            nodes.remove(value)
        elif name == "--ntasks":
            tasks = int(value)
        elif name not in FLAGS:
            raise SystemExit(f"srun: unrecognized option '{name}'")
        words = words[1:]
    assert len(nodes) == tasks, (nodes, tasks)
    step = uuid.uuid4().hex

    def end(*_: Any) -> None:
        while found := list(processes_with(f"SLURM_STEP_ID={step}")):
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    signal.signal(signal.SIGTERM, end)
    started = []
    for rank, node in enumerate(nodes):
        env = {**os.environ, "SLURM_STEP_ID": step, "SLURMD_NODENAME": node, "SLURM_PROCID": str(rank)}
        own = [word if node == first else word.replace("/tmp/ray.", f"/tmp/{node}-ray.") for word in words]
        started.append(subprocess.Popen(own, env=env, stdin=subprocess.DEVNULL))
    codes = [task.wait() for task in started]
    end()  # what a task has left, as Slurm's end of a step
    return max(code if code >= 0 else 128 - code for code in codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
