"""A Ray session: if a process dies or a signal comes, the job ends soon, reports why, and leaves no process or file."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
from ray_cluster import RayCluster
from tiny_job import CONFIG, command, hashes

from codeshards.job.progress import read_events
from codeshards.job.tokenize import EVENTS_FILE, tokenize
from runkit import ray_session
from runkit.errors import UserError
from runkit.machine import usable_cores
from runkit.ray_session import Session, any_agent_port, connected
from runkit.signals import StoppedError
from runkit.termination import defer_signals, exit_on_sigterm

MARK = "IMAGEPRIORS_TEST_RUN"


def environment(**more: str) -> dict[str, str]:
    """An environment by which all processes of one job, including those of its Ray, are found."""
    return {**os.environ, MARK: uuid.uuid4().hex, **more}


def marked(env: dict[str, str]) -> list[tuple[int, str]]:
    """Processes with this environment, each with its command."""
    mark, found = f"{MARK}={env[MARK]}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found.append((int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
        except OSError:
            continue
    return found


def gone(env: dict[str, str], patience_s: float = 2.0) -> bool:
    end_s = time.monotonic() + patience_s
    while marked(env) and time.monotonic() < end_s:
        time.sleep(0.05)
    return not marked(env)


DEADLY = """
import sys, time
import ray
from codeshards.config import TokenizeConfig
from codeshards.format.plan import PlannedShard
from codeshards.job.scheduler import run_shards
from runkit.errors import UserError

class Worker:
    def run(self, task):
        import time
        time.sleep(600 * task)

def kill(shard, answer):
    node = ray._private.worker._global_node
    print("port of the agent:", node.dashboard_agent_listen_port, flush=True)
    started = {name: process for name, process in node.live_processes()}
    started[sys.argv[1]].kill()
    kill.at_s = time.monotonic()
    return {}

shards = [PlannedShard(split="train", index=index, start=index, stop=index + 1) for index in range(3)]
try:
    run_shards(shards, lambda shard: shard.index, Worker, (), name="test", device="cpu",
               settings=TokenizeConfig(workers=1, threads=1, max_attempts=2), on_done=kill)
except UserError as error:
    print(f"{time.monotonic() - kill.at_s:.0f} {error}")
"""


@pytest.mark.parametrize("name", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_local_ray_that_dies_ends_the_job_in_seconds(name):
    """A local Ray does not come back, so that waiting for another node is useless."""
    env = environment()
    done = subprocess.run(
        [sys.executable, "-c", DEADLY, name], env=env, stdout=subprocess.PIPE, text=True, timeout=200, check=True
    )
    seconds, _, message = done.stdout.strip().splitlines()[-1].partition(" ")  # Ray may print its raylet's log before
    assert message.startswith(f"Ray on this machine has died (its {name} was killed, perhaps for memory)")
    assert "Finished work is kept: run again" in message
    assert int(seconds) < 30
    (port,) = re.findall(r"^port of the agent: (\d+)$", done.stdout, re.MULTILINE)
    assert int(port) not in (0, DEFAULT_DASHBOARD_AGENT_LISTEN_PORT)  # that of another Ray on this machine
    assert gone(env)


@pytest.mark.parametrize("parameter", [{}, {"RayParams": lambda *, redis_address=None: redis_address}])
def test_a_ray_without_a_port_of_its_agent_starts_as_by_default(parameter):
    module = SimpleNamespace(**parameter)
    for ray in (SimpleNamespace(_private=SimpleNamespace(parameter=module)), SimpleNamespace()):
        with any_agent_port(ray):
            assert vars(module) == parameter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [("raylet", "the cluster's node on this machine has died"), ("gcs_server", "head of the Ray cluster has not answ")],
)
def test_cluster_whose_local_node_dies_ends_the_job(name, message):
    cluster = RayCluster(1)
    head = cluster.head
    env = environment(RAY_ADDRESS=cluster.address)
    script = DEADLY.replace("node.live_processes()", "[]").replace(
        "started[sys.argv[1]].kill()", "open(sys.argv[1], 'w').close()"
    )
    flag = Path(f"/tmp/{env[MARK]}")
    job = subprocess.Popen([sys.executable, "-c", script, flag], env=env, stdout=subprocess.PIPE, text=True)
    try:
        while not flag.exists() and job.poll() is None:
            time.sleep(0.1)
        dict(head.live_processes())[name].kill()
        answer, _ = job.communicate(timeout=120)
    finally:
        job.kill()
        cluster.close()
        flag.unlink(missing_ok=True)
    assert message in answer


@pytest.mark.slow
def test_ray_that_cannot_start_is_a_message_whose_remedy_works(tmp_path):
    place = tmp_path / ("a" * 100)
    place.mkdir()
    script = "from runkit.ray_session import connected\nwith connected(1) as found: print(len(found.nodes()))"
    run = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120}
    env = environment(TMPDIR=str(place))
    failed = subprocess.run([sys.executable, "-c", script], env=env, **run)
    last = failed.stderr.strip().splitlines()[-1]
    assert "UserError: Ray cannot start on this machine" in last
    assert f"{place} is that now; set RAY_TMPDIR to choose another, such as /tmp, and run again" in last
    assert gone(env)
    done = subprocess.run([sys.executable, "-c", script], env={**env, "RAY_TMPDIR": "/tmp"}, **run)
    assert done.stdout == "1\n", done.stderr[-2000:]
    assert gone(env)


@pytest.mark.slow
def test_remedy_works_where_the_usual_folder_is_occupied():
    """The folders are directly in /tmp, because sockets require short paths."""
    script = "from runkit.ray_session import connected\nwith connected(1) as found: print(len(found.nodes()))"
    run = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120}
    with tempfile.TemporaryDirectory(dir="/tmp") as taken, tempfile.TemporaryDirectory(dir="/var/tmp") as free:
        Path(taken, "ray").write_text("somebody's file, where Ray makes a folder")
        env = environment(RAY_TMPDIR=taken)
        failed = subprocess.run([sys.executable, "-c", script], env=env, **run)
        assert f"{taken} is that now; set RAY_TMPDIR to choose another" in failed.stderr.strip().splitlines()[-1]
        done = subprocess.run([sys.executable, "-c", script], env={**env, "RAY_TMPDIR": free}, **run)
        assert done.stdout == "1\n", done.stderr[-2000:]
        assert gone(env)


@contextlib.contextmanager
def head_with_token(home: Path) -> Iterator[str]:
    """Address of a cluster that requires the token in `home`."""
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(uuid.uuid4().hex * 2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, Path(folder, "log").open("w+") as log:
        start = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port", "0", "--num-cpus", "1",
            "--include-dashboard", "false", "--dashboard-agent-listen-port", "0", "--ray-client-server-port", port,
            "--object-store-memory", "80000000",
        ]  # fmt: skip
        head = subprocess.Popen(start, env=environment(HOME=str(home), RAY_TMPDIR=folder), stdout=log, stderr=log)
        try:
            end_s = time.monotonic() + 120
            while not (found := re.search(r"address='([\d.]+:\d+)'", Path(log.name).read_text())):
                assert head.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < end_s, Path(log.name).read_text()
                time.sleep(0.2)
            yield found[1]
        finally:
            head.terminate()
            head.wait(60)


@pytest.mark.slow
def test_cluster_with_a_token_is_recognised_and_the_remedies_work(tmp_path):
    script = "from runkit.ray_session import connected\nwith connected(1) as found: print(len(found.nodes()))"
    run = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120}
    (tmp_path / "stranger").mkdir()
    with head_with_token(tmp_path / "home") as address:
        token = (tmp_path / "home" / ".ray" / "auth_token").read_text()
        stranger = environment(HOME=str(tmp_path / "stranger"), RAY_ADDRESS=address)
        for more in ({}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            refused = subprocess.run([sys.executable, "-c", script], env={**stranger, **more}, **run)
            last = refused.stderr.strip().splitlines()[-1]
            assert f"the Ray cluster at RAY_ADDRESS={address} answers only those who have its token" in last
            assert all(word in last for word in ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN ", "RAY_AUTH_TOKEN_PATH"))
        named = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "home" / ".ray" / "auth_token")}
        for more in ({"RAY_AUTH_TOKEN": token}, named, {"HOME": str(tmp_path / "home")}):
            done = subprocess.run(
                [sys.executable, "-c", script], env={**stranger, "RAY_AUTH_MODE": "token", **more}, **run
            )
            assert done.stdout == "1\n", done.stderr[-2000:]


def test_more_cores_than_a_machine_can_have_are_refused(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(UserError, match=r"100,000 cores are requested on this machine"), connected(100_000):
        pass


def test_missing_cluster_is_a_message(monkeypatch):
    import ray

    def init(**_):
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"no Ray cluster at RAY_ADDRESS=auto .*start one, or unset"), connected(1):
        pass


def test_address_without_listener_is_a_message_at_once(monkeypatch):
    """Ray would try for ten minutes."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=rf"no Ray cluster at RAY_ADDRESS={address} \(.*start one"), connected(1):
            pass


def test_wait_for_an_unresponsive_head_is_limited(monkeypatch):
    """Uses a substitute, because a real head takes half a minute."""
    monkeypatch.setattr(ray_session, "_HEAD_S", 0.2)
    worker = SimpleNamespace(_global_node=None)
    context = SimpleNamespace(get_node_id=lambda: "n")
    ray = SimpleNamespace(
        _private=SimpleNamespace(worker=worker), get_runtime_context=lambda: context, nodes=lambda: time.sleep(5)
    )
    with pytest.raises(UserError, match="has not answered for 0 s"):
        Session(ray).nodes()


# -- signals -----------------------------------------------------------------------------------------------


def test_exit_code_of_sigterm_is_kept(default_handlers):
    """While Ray waits, it replaces an exit from a signal handler by its own with code 1."""

    def wait(killed):
        try:
            if killed:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
        except SystemExit:
            raise SystemExit(1) from None
        raise SystemExit(7)

    with pytest.raises(StoppedError) as stopped, exit_on_sigterm(), exit_on_sigterm():
        wait(True)
    assert stopped.value.exit_code == 143
    with pytest.raises(SystemExit) as ended, exit_on_sigterm(), exit_on_sigterm():
        wait(False)
    assert ended.value.code == 7
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, StoppedError), (signal.SIGINT, KeyboardInterrupt)])
def test_signals_are_deferred_until_ray_has_started(default_handlers, number, error):
    reached = []

    def start():
        with defer_signals():
            signal.signal(number, lambda *_: sys.exit(15))  # as Ray does
            signal.raise_signal(number)
            reached.append(True)

    with pytest.raises(error), exit_on_sigterm():
        start()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_whose_exception_was_lost_ends_the_job(local_ray_cores):
    def lose():
        with contextlib.suppress(SystemExit):  # as in a destructor
            signal.raise_signal(signal.SIGTERM)
        Session(local_ray_cores).nodes()

    with pytest.raises(StoppedError) as found, exit_on_sigterm():
        lose()
    assert found.value.exit_code == 143


def _started(name: str) -> Callable[[dict[str, str], Path], bool]:
    return lambda env, out: any(name in line for _, line in marked(env))


def _logged(event: str) -> Callable[[dict[str, str], Path], bool]:
    return lambda env, out: any(found["event"] == event for found in read_events(out / EVENTS_FILE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        (_started("gcs_server"), signal.SIGTERM, 143),
        (_logged("worker_ready"), signal.SIGTERM, 143),
        (_started("raylet"), signal.SIGINT, 130),
        (_started("DashboardAgent"), signal.SIGTERM, 143),
        (_logged("worker_ready"), signal.SIGINT, 130),
        (_logged("made"), signal.SIGTERM, 143),
    ],
    ids=["gcs", "work", "raylet-int", "agent", "work-int", "end"],
)
def test_signals_end_the_job_cleanly_at_any_moment(
    local_ray_cores, data, tokenizer, undisturbed, tmp_path, moment, number, code
):
    out, env = tmp_path / "o", environment()
    job = subprocess.Popen(command(data, tokenizer, out), env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and job.poll() is None and not moment(env, out):
        time.sleep(0.02)
    _check_end(job, number, code, env, out)
    tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=out)
    assert hashes(out) == hashes(undisturbed)


def _check_end(job: subprocess.Popen[str], number: int, code: int, env: dict[str, str], out: Path) -> None:
    job.send_signal(number)
    _, error = job.communicate(timeout=120)
    if job.returncode != 0:  # else it was done before
        # Before the job's first line, while Ray ends (which takes our handler away) and after the job's last line the
        # signal itself ends the process: shells call that 143 too.
        assert job.returncode in (code, -number), error[-2000:]
        assert "Traceback" not in error or job.returncode != code, error[-2000:]
    assert gone(env), marked(env)
    assert not list(out.rglob("*.tmp-*"))


@pytest.mark.slow
def test_sigterm_at_many_moments(local_ray_cores, data, tokenizer, undisturbed, tmp_path):
    start_s = time.monotonic()
    subprocess.run(command(data, tokenizer, tmp_path / "whole"), check=True, stderr=subprocess.DEVNULL)
    whole_s, moments = time.monotonic() - start_s, 24
    for moment in range(moments):
        out, env = tmp_path / str(moment), environment()
        job = subprocess.Popen(command(data, tokenizer, out), env=env, stderr=subprocess.PIPE, text=True)
        time.sleep(whole_s * moment / moments)
        _check_end(job, signal.SIGTERM, 143, env, out)
        tokenize(CONFIG, dataset="folder", data=data, tokenizers={"image": tokenizer}, out=out)
        assert hashes(out) == hashes(undisturbed)


def test_cores_are_those_that_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(allowed)
    os.sched_setaffinity(0, [min(allowed)])
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
