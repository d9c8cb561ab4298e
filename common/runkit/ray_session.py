"""A Ray session: join a cluster or start Ray here, watch it, and leave no process of it behind."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runkit.errors import UserError
from runkit.machine import ALLOCATOR, usable_cores
from runkit.signals import StoppedError
from runkit.termination import defer_signals, exit_on_sigterm, forget_sigterm, keep_handlers, raise_if_terminated

log = logging.getLogger(__name__)

_VITAL_PROCESSES = ("raylet", "gcs_server")
"""Processes without which a local Ray does no more work."""
_EXIT_S = 5.0
"""Seconds that the processes of a local Ray may take to exit; after that they are killed."""
_HEAD_S = 30.0
"""Seconds that a cluster's head may take to answer; after 60 Ray ends the process."""
_MAX_CORES = 1024
"""Most cores of a local Ray, because it starts a process per core."""
_CONNECT_S = 10.0
"""Seconds that a cluster's address may take to accept a connection."""
_WATCH_S = 0.5
"""Seconds between two checks whether Ray is alive, while another function waits for it."""

_TOKEN = (
    "the Ray cluster at RAY_ADDRESS={address} answers only those who have its token: set RAY_AUTH_MODE=token, and "
    "RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head, or put that into ~/.ray/auth_token or a file that "
    "RAY_AUTH_TOKEN_PATH names"
)
_RUN_AGAIN = "Finished work is kept: run again"


class Session:
    """The connection of this process to Ray. Make one with :func:`connected`."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        """The module."""
        node = ray._private.worker._global_node  # no public function returns the processes that init has started
        started = [*node.live_processes(), *node.dead_processes()] if node is not None else []
        self._processes = {name: process for name, process in started if name in _VITAL_PROCESSES}
        self._node_id = ray.get_runtime_context().get_node_id()
        self._nodes: list[dict[str, Any]] = []
        self._failure = ""

    @property
    def is_local(self) -> bool:
        """Whether this process has started Ray: then it has one node and never gets another."""
        return bool(self._processes)

    @property
    def environment_marks(self) -> list[str]:
        """Variables in the environments of the workers and agents of a local Ray, by which they are found."""
        if "raylet" not in self._processes:
            return []
        return [f"RAY_RAYLET_PID={self._processes['raylet'].pid}", f"RAY_NODE_ID={self._node_id}"]

    def is_dead(self) -> bool:
        """Whether Ray is known to have died; of a local Ray this is known as soon as a vital process has ended."""
        return bool(self._failure) or any(process.poll() is not None for process in self._processes.values())

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, as ``ray.nodes`` describes them.

        Raises:
            UserError: Ray has died on this machine, so that waiting is useless.
            SystemExit: SIGTERM came at a moment when its exception was lost.
        """
        raise_if_terminated()
        if self.is_dead():
            raise self._death_error()
        if self._nodes:
            return self._nodes
        alive = [node for node in self._query_nodes() if node["Alive"]]
        if all(node["NodeID"] != self._node_id for node in alive):
            self._failure = (
                f"the cluster's node on this machine has died (its raylet was killed, perhaps for memory). "
                f"{_RUN_AGAIN}, when the node is back"
            )
            raise self._death_error()
        if self.is_local:
            self._nodes = alive  # another query would wait for a dead Ray
        return alive

    def _death_error(self) -> UserError:
        if self._failure:
            return UserError(self._failure)
        dead = ", ".join(name for name, process in self._processes.items() if process.poll() is not None)
        return UserError(
            f"Ray on this machine has died (its {dead} was killed, perhaps for memory). "
            f"{_RUN_AGAIN}, with fewer workers where memory is short"
        )

    def _query_nodes(self) -> list[dict[str, Any]]:
        """``ray.nodes`` with a timeout: by itself it waits for a lost head until Ray ends the process."""
        answers = queue.SimpleQueue[Any]()

        def query() -> None:
            try:
                answers.put(self.ray.nodes())
            except Exception as error:  # noqa: BLE001 - raised below
                answers.put(error)

        threading.Thread(target=query, daemon=True).start()
        try:
            answer = answers.get(timeout=_HEAD_S)
        except queue.Empty:
            self._failure = (
                f"the head of the Ray cluster has not answered for {_HEAD_S:.0f} s: it has died, or cannot be reached. "
                f"{_RUN_AGAIN}, when it is back"
            )
            raise self._death_error() from None
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Leave the block when a local Ray dies, whatever the block waits for; Ctrl-C works in the block as before it.

        Raises:
            UserError: Ray has died.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_WATCH_S):
                if self.is_dead():
                    os.kill(os.getpid(), signal.SIGTERM)  # interrupts every wait in Ray
                    return

        threading.Thread(target=watch, name="ray-watch", daemon=True).start()
        try:
            with exit_on_sigterm(), keep_handlers(signal.SIGTERM, signal.SIGINT):
                yield
        except (Exception, SystemExit, StoppedError) as error:
            if self.is_dead():
                forget_sigterm()
                raise self._death_error() from error
            raise
        finally:
            ended.set()


@contextlib.contextmanager
def connected(min_cores: int, packages: Sequence[str] = ()) -> Iterator[Session]:
    """Connect to the Ray that the caller has started, else to RAY_ADDRESS, else to one started for this block.

    In the block SIGTERM raises SystemExit, and StoppedError out of it, see :func:`exit_on_sigterm`.

    Args:
        min_cores: Least number of cores of a Ray that is started here, whatever the machine has.
        packages: Names of packages that workers on a cluster get from here, if this process has imported them.

    Raises:
        UserError: Ray is not installed, there is no cluster at RAY_ADDRESS, or Ray cannot start on this machine.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with exit_on_sigterm():
        try:
            import ray
        except ImportError as error:
            raise UserError("this job requires Ray: pip install 'ray[default]'") from error
        if ray.is_initialized():
            yield Session(ray)
            return
        session = None
        try:
            if address := os.environ.get("RAY_ADDRESS"):
                with keep_handlers(signal.SIGTERM, signal.SIGINT):
                    session = _join(ray, address, packages)
            else:
                with defer_signals():
                    session = _start(ray, min_cores)
            yield session
        finally:
            with defer_signals():
                grace_s = 0.0 if session is not None and session.is_dead() else _EXIT_S
                try:
                    ray.shutdown()
                finally:
                    if session is not None and session.is_local:
                        _wait_for_exit(session, grace_s)


def _join(ray: Any, address: str, packages: Sequence[str]) -> Session:
    loaded = [sys.modules[name] for name in ("runkit", *packages) if name in sys.modules]
    modules = sorted({str(Path(str(module.__file__)).parent) for module in loaded})
    token_error: type[Exception] = ray.exceptions.AuthenticationError
    try:
        _check_address(address, token_error)
        ray.init(
            runtime_env={"env_vars": ALLOCATOR, "py_modules": modules},
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        return Session(ray)
    except (OSError, OverflowError, RuntimeError, ValueError, token_error) as error:
        endpoint = re.search(r"at (\S+:\d+)", str(error))  # with a wrong token Ray only says that it cannot connect
        if isinstance(error, token_error) or (endpoint is not None and _requires_token(endpoint[1])):
            raise UserError(_TOKEN.format(address=address)) from error
        raise UserError(
            f"no Ray cluster at RAY_ADDRESS={address} ({error}): start one, or unset RAY_ADDRESS"
        ) from error


def _check_address(address: str, token_error: type[Exception]) -> None:
    """Find out at once that nothing listens, or that a token is required: Ray would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" and _requires_token(f"{host}:{port}"):
        raise token_error("RAY_AUTH_MODE is not token")


def _requires_token(endpoint: str) -> bool:
    """Whether a cluster's head refuses callers without a token; Ray's errors do not distinguish this."""
    try:
        import grpc  # type: ignore[import-untyped]
    except ImportError:  # then it is unknown
        return False
    with grpc.insecure_channel(endpoint) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=_CONNECT_S)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


@contextlib.contextmanager
def any_agent_port(ray: Any) -> Iterator[None]:
    """Let the agent of a Ray that is started in this block take any free port.

    By default all agents of a machine take the same port, and every Ray but the first tries for four seconds. A version
    of Ray without this private parameter starts as by default.
    """
    module: Any = getattr(getattr(ray, "_private", None), "parameter", None)  # ray.init has no argument for this port
    parameters = getattr(module, "RayParams", None)
    if parameters is None or "dashboard_agent_listen_port" not in inspect.signature(parameters).parameters:
        yield
        return
    module.RayParams = functools.partial(parameters, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        module.RayParams = parameters


def _start(ray: Any, min_cores: int) -> Session:
    if min_cores > _MAX_CORES:
        raise UserError(
            f"{min_cores:,} cores are requested on this machine, which has {usable_cores()}: use fewer workers and "
            "threads, or name a cluster in RAY_ADDRESS"
        )
    try:
        with any_agent_port(ray):
            ray.init(
                address="local",  # else Ray joins any cluster that runs on this machine
                runtime_env={"env_vars": ALLOCATOR},
                num_cpus=max(usable_cores(), min_cores),
                include_dashboard=False,
                object_store_memory=256 * 2**20,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        return Session(ray)
    except Exception as error:  # Ray raises plain exceptions where one of its processes does not start
        folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        other = "/var/tmp" if os.path.realpath(folder) == os.path.realpath("/tmp") else "/tmp"
        raise UserError(
            f"Ray cannot start on this machine ({error}). It requires free memory, and a folder with space and a short "
            f"path for its sockets: {folder} is that now; set RAY_TMPDIR to choose another, such as {other}, and run "
            "again"
        ) from error


def _wait_for_exit(session: Session, grace_s: float) -> None:
    """Wait until the workers and agents of a local Ray exit, or kill them: none may write during the next job."""
    marks = [f"\0{mark}\0".encode() for mark in session.environment_marks]
    end_s = time.monotonic() + grace_s
    while running := _processes_with(marks):
        if time.monotonic() > end_s:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end_s + _EXIT_S:
                log.warning("processes of Ray cannot be killed: %s", ", ".join(map(str, running)))
                return
        time.sleep(0.05)


def _processes_with(marks: list[bytes]) -> list[int]:
    """Ids of the processes with one of these variables in their environment; none where /proc is missing."""
    found = list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            environment = b"\0" + (folder / "environ").read_bytes() + b"\0"
            if any(mark in environment for mark in marks):
                found.append(int(folder.name))
    return found
