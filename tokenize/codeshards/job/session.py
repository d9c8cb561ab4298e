"""A Ray session: joined or started, watched, ended with no process of it left behind; signals end it cleanly."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codeshards.format import ShardError

log = logging.getLogger(__name__)

# glibc would otherwise return every large activation to the kernel and fault its pages in anew: 1.7× slower. One arena,
# for the others, those of all threads but the first, know no blocks above 64 MB and map them whatever the limit says.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_ARENA_MAX": "1"}

_VITAL = ("raylet", "gcs_server")
"""Processes without which a Ray that was started here does nothing any more."""
_GONE_S = 5.0
"""Seconds that the processes of a Ray may take to end by themselves; later they are killed."""
_HEAD_S = 30.0
"""Seconds that a cluster's head may take to answer; after 60 Ray ends the process."""
_MOST_CORES = 1024
"""Most cores of a Ray that is started here, because it starts a process for each."""
_LISTEN_S = 10.0
"""Seconds that a cluster's address may take to accept a connection."""
_WATCH_S = 0.5
"""Seconds between two looks whether Ray is alive, where others wait for it."""
_PACKAGES = ("runkit", "vqgan", "codeshards", "codeprior", "imagepriors")

_stopped: list[int] = []
"""The SIGTERM that ends this process, while :func:`terminable` cleans up."""


class Session:
    """Ray as this process is connected to it. Make one with :func:`connected`."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        """The module."""
        node = ray._private.worker._global_node  # no public call names the processes that init has started
        started = [*node.live_processes(), *node.dead_processes()] if node is not None else []
        self._processes = {name: process for name, process in started if name in _VITAL}
        self._node_id = ray.get_runtime_context().get_node_id()
        self._nodes: list[dict[str, Any]] = []
        self._loss = ""

    @property
    def is_own(self) -> bool:
        """Whether this process has started Ray: it has one node and never gets another."""
        return bool(self._processes)

    @property
    def marks(self) -> list[str]:
        """What the environments of workers and agents of a Ray that was started here say."""
        if "raylet" not in self._processes:
            return []
        return [f"RAY_RAYLET_PID={self._processes['raylet'].pid}", f"RAY_NODE_ID={self._node_id}"]

    def is_dead(self) -> bool:
        """Whether Ray is known to have died; of one that was started here as soon as a vital process has ended."""
        return bool(self._loss) or any(process.poll() is not None for process in self._processes.values())

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, as ``ray.nodes`` describes them.

        Raises:
            ShardError: Ray has died on this machine, so that waiting is no use.
            SystemExit: SIGTERM came at a moment when its exception was lost.
        """
        if _stopped:
            raise SystemExit(128 + _stopped[0])
        if self.is_dead():
            raise self._death()
        if self._nodes:
            return self._nodes
        alive = [node for node in self._ask() if node["Alive"]]
        if all(node["NodeID"] != self._node_id for node in alive):
            self._loss = (
                f"the cluster's node on this machine has died (its raylet was killed, perhaps for memory). {_AGAIN}, "
                "when the node is back"
            )
            raise self._death()
        if self.is_own:
            self._nodes = alive  # asking again would wait for a dead Ray
        return alive

    def _death(self) -> ShardError:
        if self._loss:
            return ShardError(self._loss)
        dead = ", ".join(name for name, process in self._processes.items() if process.poll() is not None)
        return ShardError(
            f"Ray on this machine has died (its {dead} was killed, perhaps for memory). "
            f"{_AGAIN}, with fewer workers where memory is short"
        )

    def _ask(self) -> list[dict[str, Any]]:
        """``ray.nodes``, which waits for a lost head until Ray ends the process, with nothing cleaned up."""
        answers = queue.SimpleQueue[Any]()

        def ask() -> None:
            try:
                answers.put(self.ray.nodes())
            except Exception as error:  # noqa: BLE001 - raised below
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer = answers.get(timeout=_HEAD_S)
        except queue.Empty:
            self._loss = (
                f"the head of the Ray cluster has not answered for {_HEAD_S:.0f} s: it has died, or cannot be reached. "
                f"{_AGAIN}, when it is back"
            )
            raise self._death() from None
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Leave the block when a Ray that was started here dies, whatever it waits for; Ctrl-C stays as it is there.

        Raises:
            ShardError: it has died.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_WATCH_S):
                if self.is_dead():
                    os.kill(os.getpid(), signal.SIGTERM)  # all waits of Ray's heed it
                    return

        threading.Thread(target=watch, name="ray-watch", daemon=True).start()
        try:
            with terminable(), _handlers_kept(signal.SIGTERM, signal.SIGINT):
                yield
        except (Exception, SystemExit) as error:
            if self.is_dead():
                _stopped.clear()
                raise self._death() from error
            raise
        finally:
            ended.set()


_TOKEN = (
    "the Ray cluster at RAY_ADDRESS={address} answers only those who have its token: set RAY_AUTH_MODE=token, and "
    "RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head, or put that into ~/.ray/auth_token or a file that "
    "RAY_AUTH_TOKEN_PATH names"
)
_AGAIN = "What is finished is kept: run again"


@contextlib.contextmanager
def connected(least_cores: int) -> Iterator[Session]:
    """Ray, connected to what the caller has started, else to RAY_ADDRESS, else started here for the block's length.

    In the block SIGTERM is as :func:`terminable` has it.

    Args:
        least_cores: Cores that a Ray started here has at least, whatever the machine has.

    Raises:
        ShardError: there is no Ray, no cluster at RAY_ADDRESS, or Ray cannot start on this machine.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with terminable():
        try:
            import ray
        except ImportError as error:
            raise ShardError("this job needs Ray: pip install 'ray[default]'") from error
        if ray.is_initialized():
            yield Session(ray)
            return
        session = None
        try:
            if address := os.environ.get("RAY_ADDRESS"):
                with _handlers_kept(signal.SIGTERM, signal.SIGINT):
                    session = _joined(ray, address)
            else:
                with _signals_held():
                    session = _started(ray, least_cores)
            yield session
        finally:
            with _signals_held():
                grace_s = 0.0 if session is not None and session.is_dead() else _GONE_S
                try:
                    ray.shutdown()
                finally:
                    if session is not None and session.is_own:
                        _see_off(session, grace_s)


def _joined(ray: Any, address: str) -> Session:
    loaded = [sys.modules[name] for name in _PACKAGES if name in sys.modules]
    modules = [str(Path(str(module.__file__)).parent) for module in loaded]
    lacks_token: type[Exception] = ray.exceptions.AuthenticationError
    try:
        _knock(address, lacks_token)
        ray.init(
            runtime_env={"env_vars": ALLOCATOR, "py_modules": modules},
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        return Session(ray)
    except (OSError, OverflowError, RuntimeError, ValueError, lacks_token) as error:
        place = re.search(r"at (\S+:\d+)", str(error))  # with another token Ray only says that it cannot connect
        if isinstance(error, lacks_token) or (place is not None and _asks_for_token(place[1])):
            raise ShardError(_TOKEN.format(address=address)) from error
        raise ShardError(
            f"no Ray cluster at RAY_ADDRESS={address} ({error}): start one, or unset RAY_ADDRESS"
        ) from error


def _knock(address: str, lacks_token: type[Exception]) -> None:
    """Find out in a moment what Ray would try for half a minute, or ten: that nobody listens, or asks for a token."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTEN_S).close()
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" and _asks_for_token(f"{host}:{port}"):
        raise lacks_token("RAY_AUTH_MODE is not token")


def _asks_for_token(place: str) -> bool:
    """Whether a cluster's head refuses callers without a token, which Ray's errors do not tell from no cluster."""
    try:
        import grpc  # type: ignore[import-untyped]
    except ImportError:  # without it nobody knows
        return False
    with grpc.insecure_channel(place) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=_LISTEN_S)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _started(ray: Any, least_cores: int) -> Session:
    if least_cores > _MOST_CORES:
        raise ShardError(
            f"{least_cores:,} cores are asked for on this machine, which has {usable_cores()}: use fewer workers and "
            "threads, or name a cluster in RAY_ADDRESS"
        )
    try:
        ray.init(
            address="local",  # else Ray joins whatever cluster somebody runs on this machine
            runtime_env={"env_vars": ALLOCATOR},
            num_cpus=max(usable_cores(), least_cores),
            include_dashboard=False,
            object_store_memory=256 * 2**20,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        return Session(ray)
    except Exception as error:  # Ray raises bare ones where a process of its own does not come up
        folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        other = "/var/tmp" if os.path.realpath(folder) == os.path.realpath("/tmp") else "/tmp"
        raise ShardError(
            f"Ray cannot start on this machine ({error}). It requires free memory, and a folder with space and a short "
            f"path for its sockets: {folder} is that now; set RAY_TMPDIR to choose another, such as {other}, and run "
            "again"
        ) from error


def _see_off(session: Session, grace_s: float) -> None:
    """Wait until the workers and agents of a raylet are gone, or kill them: none may write when the next job does."""
    marks = [f"\0{mark}\0".encode() for mark in session.marks]
    end_s = time.monotonic() + grace_s
    while left := _marked(marks):
        if time.monotonic() > end_s:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end_s + _GONE_S:
                log.warning("processes of Ray cannot be killed: %s", ", ".join(map(str, left)))
                return
        time.sleep(0.05)


def _marked(marks: list[bytes]) -> list[int]:
    """Processes with one of these variables in their environment; none are found where there is no /proc."""
    found = list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            environment = b"\0" + (folder / "environ").read_bytes() + b"\0"
            if any(mark in environment for mark in marks):
                found.append(int(folder.name))
    return found


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM raise SystemExit(143) in the block, so that it cleans up; elsewhere than the main thread nothing.

    Blocks may be nested: the outermost one counts.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _leave:
        yield
        return
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except SystemExit as error:
        if _stopped:  # while it waits, Ray puts an exit of its own, with code 1, in place of ours
            raise SystemExit(128 + _stopped[0]) from error
        raise
    finally:
        _stopped.clear()
        signal.signal(signal.SIGTERM, previous)


def _leave(number: int, _: Any) -> None:
    signal.alarm(0)  # Ray's own handler, which may have been called before, aborts the process in three seconds
    if not _stopped:  # a second one must not interrupt the cleaning up
        _stopped.append(number)
        raise SystemExit(128 + number)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold SIGTERM and Ctrl-C back while Ray starts or ends, for half of it could not be ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came, held = list[int](), (signal.SIGTERM, signal.SIGINT)

    def hold(number: int, _: Any) -> None:
        signal.alarm(0)  # as in _leave
        came.append(number)

    previous = {number: signal.signal(number, hold) for number in held}
    try:
        with _handlers_kept(*held):
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def _handlers_kept(*numbers: int) -> Iterator[None]:
    """Keep the handlers of signals: Ray would put in their place its own, which exit with other codes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    set_handler: Any = signal.signal

    def keep(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in numbers else set_handler(number, handler)

    signal.signal = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = set_handler
        for number in numbers:
            signal.signal(number, signal.getsignal(number))  # Ray sets handlers in C too, which Python does not see


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity (Slurm, cpusets), within its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2 here; "max" is no number
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores
