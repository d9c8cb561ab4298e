"""Stand-ins for Slurm's `srun` and `scancel` on one machine: a node is a set of processes with a /tmp of its own."""

import contextlib
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


def processes_with(*marks: str) -> Iterator[int]:
    """Ids of the processes that have each of these NAME=VALUE in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if {mark.encode() for mark in marks} <= {*(folder / "environ").read_bytes().split(b"\0")}:
                yield int(folder.name)


def processes_of(sessions: set[int]) -> Iterator[int]:
    """Ids of the processes of these sessions that have not ended; some processes of Ray overwrite their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = (folder / "stat").read_text().rpartition(") ")[2].split()[:4]
            if int(session) in sessions and state != "Z":
                yield int(folder.name)


def srun(words: list[str]) -> int:
    """Run a command once per node; SIGTERM kills all processes of the step at once, as Slurm's own does."""
    first, *_ = nodes = os.environ["SLURM_JOB_NODELIST"].split(",")
    count = len(nodes)
    while words[0].startswith("-"):
        name, _, value = words[0].partition("=")
        if name == "--nodelist":
            nodes = [value]
        elif name == "--exclude":
            nodes.remove(value)
        elif name == "--ntasks":
            count = int(value)
        elif name not in FLAGS:
            raise SystemExit(f"srun: unrecognized option '{name}'")
        words = words[1:]
    assert len(nodes) == count, (nodes, count)
    tasks, step = [], uuid.uuid4().hex

    def end(*_: Any) -> None:
        while left := [*processes_with(f"SLURM_STEP_ID={step}"), *processes_of({task.pid for task in tasks})]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for task in tasks:
                task.poll()

    signal.signal(signal.SIGTERM, end)
    for rank, node in enumerate(nodes):
        env = {**os.environ, "SLURM_STEP_ID": step, "SLURMD_NODENAME": node, "SLURM_NODEID": str(rank)}
        own = [word if node == first else word.replace("/tmp/ray.", f"/tmp/{node}-ray.") for word in words]
        tasks.append(subprocess.Popen(own, env=env, stdin=subprocess.DEVNULL, start_new_session=True))
    codes = [task.wait() for task in tasks]
    end()  # what a task has left, as Slurm's end of a step
    return max(code if code >= 0 else 128 - code for code in codes)


def scancel(mark: str) -> int:
    """Send SIGTERM to the processes of all steps of a job, which has NAME=VALUE in its environment."""
    for pid in processes_with(mark):
        with contextlib.suppress(OSError):
            if b"SLURM_STEP_ID=" in Path(f"/proc/{pid}/environ").read_bytes():
                os.kill(pid, signal.SIGTERM)
    return 0


if __name__ == "__main__":
    program, *arguments = sys.argv[1:]
    sys.exit(srun(arguments) if program == "srun" else scancel(arguments[0]))
