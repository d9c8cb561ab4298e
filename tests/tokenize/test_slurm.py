"""The Slurm scripts of docs/cluster, run as they are on nodes that stand-ins for `srun` and `scontrol` make here."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm import processes_with, scancel
from tiny_job import CONFIG, FLAGS, hashes, write_images, write_tokenizer
from tiny_shards import make_dataset

from codeshards.format.files import sha256_file
from codeshards.job.tokenize import tokenize

CLUSTER = Path(__file__).resolve().parents[2] / "docs" / "cluster"
STAND_INS = Path(__file__).resolve().parents[1] / "helpers" / "slurm.py"
SCRIPTS = sorted(CLUSTER.glob("*.sbatch"))
JOB, NODES = "4711", ["localhost", "node2", "node3"]


class Job:
    """A batch job: its script, as Slurm starts it on the first node of the allocation."""

    def __init__(self, folder: Path, script: str, *command: str, nodes: list[str] = NODES) -> None:
        programs = folder / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        self._requeues = folder / "scontrol"
        self.mark = f"IMAGEPRIORS_TEST_JOB={uuid.uuid4().hex}"
        for name, line in (
            ("srun", f'exec {sys.executable} {STAND_INS} srun "$@"'),
            ("scancel", f"exec {sys.executable} {STAND_INS} scancel {self.mark}"),
            ("scontrol", f'echo "$@" >>{self._requeues}'),
        ):
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)
        env = {
            **os.environ,
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": ",".join(nodes),
            "SLURM_JOB_NUM_NODES": str(len(nodes)),
            "SLURM_CPUS_PER_TASK": "1",
            "SLURMD_NODENAME": nodes[0],
            **dict([self.mark.split("=")]),
        }
        self._log = folder / f"{uuid.uuid4().hex}.log"
        with self._log.open("w") as log:
            self._shell = subprocess.Popen(
                ["bash", CLUSTER / script, *command], env=env, cwd=folder, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def requeues(self) -> str:
        """Calls of scontrol."""
        return self._requeues.read_text() if self._requeues.exists() else ""

    def when(self, condition: Callable[[], bool]) -> None:
        """Wait for something to happen while the job runs."""
        end_s = time.monotonic() + 300
        while not condition():
            assert self._shell.poll() is None, self.log
            assert time.monotonic() < end_s, self.log
            time.sleep(0.02)

    def warn(self) -> None:
        """Signal the end of the time limit, as `--signal=B:USR1@120` does."""
        self._shell.send_signal(signal.SIGUSR1)

    def preempt(self) -> None:
        """Signal all processes of the steps, as Slurm does when a preemption or scancel begins."""
        scancel(self.mark)

    def result(self) -> int:
        code = self._shell.wait(300)
        sys.stdout.write(self.log)  # shown where a test fails, and with -s
        end_s = time.monotonic() + 5
        while (left := list(processes_with(self.mark))) and time.monotonic() < end_s:
            time.sleep(0.1)
        assert [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in left] == []
        return code


@pytest.fixture(autouse=True)
def no_folder_stays() -> Iterator[None]:
    """No job leaves its folder of Ray."""
    before = set(Path("/tmp").glob("*ray.??????"))
    yield
    assert set(Path("/tmp").glob("*ray.??????")) <= before


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_valid_and_print_their_usage(script):
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"usage: sbatch {script.name} ")
    options = {line.split()[1].partition("=")[0] for line in script.read_text().splitlines() if line[:7] == "#SBATCH"}
    assert options >= {"--nodes", "--cpus-per-task", "--gpus-per-node", "--time", "--requeue", "--signal", "--output"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """Pictures and a tokenizer."""
    folder = tmp_path_factory.mktemp("slurm")
    return write_images(folder / "data", train=1200), write_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def expected(local_ray_cores, inputs, tmp_path_factory) -> dict[str, str]:
    """Hashes of their shards, made on this machine without Slurm."""
    out = tmp_path_factory.mktemp("local") / "shards"
    tokenize(CONFIG, dataset="folder", data=inputs[0], tokenizers={"image": inputs[1]}, out=out)
    return hashes(out)


def _tokenize(inputs: tuple[Path, Path], out: Path) -> list[str]:
    data, tokenizer = map(str, inputs)
    flags = FLAGS[: FLAGS.index("--workers")]  # as many workers as the nodes have room for
    return [
        "imagepriors", "tokenize", "--dataset", "folder", "--data", data, "--tokenizer", tokenizer, "--out", str(out),
        *flags,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("end", ["none", "time limit", "preemption"])
def test_job_on_three_nodes_makes_the_shards_of_a_local_job(inputs, expected, tmp_path, end):
    out = tmp_path / "shards"
    command = _tokenize(inputs, out)
    if end != "none":
        job = Job(tmp_path, "slurm.sbatch", *command)
        job.when(lambda: len(list(out.glob("train/*.json"))) > 2)
        job.warn() if end == "time limit" else job.preempt()
        assert job.result() != 0
        assert "3 of 3 nodes have joined Ray" in job.log
        assert job.requeues == (f"requeue {JOB}\n" if end == "time limit" else "")
        finished, planned = (len(list(out.glob("train/*.json"))), sum(name.startswith("train/") for name in expected))
        sys.stdout.write(f"-- {finished} of {planned} training shards are finished --\n")
        assert 2 < finished < planned
        assert not (out / "dataset.json").exists()
    job = Job(tmp_path, "slurm.sbatch", *command)
    assert job.result() == 0
    assert "3 of 3 nodes have joined Ray" in job.log
    assert job.requeues == (f"requeue {JOB}\n" if end == "time limit" else "")
    assert hashes(out) == expected


@pytest.mark.slow
def test_time_limit_while_ray_starts_ends_in_the_queue(tmp_path):
    job = Job(tmp_path, "slurm.sbatch", "touch", str(tmp_path / "ran"))
    job.when(lambda: any(processes_with(job.mark, "SLURM_NODEID=0")))
    job.warn()
    assert job.result() == 143
    assert job.requeues == f"requeue {JOB}\n"
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_jobs_share_a_node_and_end_with_the_codes_of_their_commands(tmp_path):
    commands = [("sh", "-c", f"sleep 3; exit {code}") for code in (0, 7)]
    jobs = [Job(tmp_path, "slurm.sbatch", *command, nodes=NODES[:1]) for command in commands]
    assert [job.result() for job in jobs] == [0, 7]
    assert all("1 of 1 nodes have joined Ray" in job.log and job.requeues == "" for job in jobs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_on_two_nodes_resumes_where_the_time_limit_stopped_it(tmp_path):
    make_dataset(tmp_path / "shards", rows=40)
    flags = [
        "--preset", "demo", "--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16", "--batch-size", "4",
        "--steps", "800", "--device", "cpu", "--precision", "float32", "--log-every", "1", "--eval-every", "800",
        "--checkpoint-every", "800",
    ]  # fmt: skip

    def start(out: Path) -> Job:
        command = ["imagepriors", "train-prior", "--shards", str(tmp_path / "shards"), "--out", str(out), *flags]
        return Job(tmp_path, "torchrun.sbatch", *command, nodes=NODES[:2])

    whole, out = tmp_path / "whole", tmp_path / "prior"
    assert start(whole).result() == 0
    job, metrics = start(out), out / "metrics.jsonl"
    job.when(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 20)
    job.warn()
    assert job.result() != 0
    assert job.requeues == f"requeue {JOB}\n"
    assert not (out / "summary.json").exists()
    job = start(out)
    assert job.result() == 0
    assert job.requeues == f"requeue {JOB}\n"
    assert sha256_file(out / "model.safetensors") == sha256_file(whole / "model.safetensors")
