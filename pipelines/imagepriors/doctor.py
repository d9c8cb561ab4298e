"""What this machine has, what is missing, and what works on it.

Libraries are imported in processes of their own, because a broken one may raise anything or end its process.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runkit.machine import memory_bytes, usable_cores

_PROBE_S = 120
"""Seconds that an import may take."""
_ENOUGH = {"memory": 2e9, "disk": 2e9, "shm": 3e8, "files": 1024}
"""Bytes, and number of open files, below which a job is likely to fail."""
_WRITTEN = 32 * 2**20
"""Bytes written to measure the speed of the disk."""
WEIGHTS = {
    "lpips-vgg": "vgg16-397923af.pth",
    "lpips-alex": "alexnet-owt-7be5be79.pth",
    "lpips-squeeze": "squeezenet1_1-b8a52dc0.pth",
    "inception": "weights-inception-2015-12-05-6726825d.pth",
}
"""Network → name of its file of weights in torch's cache."""
_DEVELOPMENT = ("dev", "bench", "docs")
"""Extras for work on this project."""

_IMPORT = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        found[name] = ""
    except BaseException as error:
        found[name] = f"{type(error).__name__}: {error}"
"""
_XFORMERS = """
from codeprior.attention import load_xformers
try:
    load_xformers()  # a plain import succeeds without the library
except ValueError as error:
    found["xformers"] = str(error)
"""
_TORCH = """
if not found["torch"]:
    import torch
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found["facts"] = {
        "cuda": torch.version.cuda, "simd": torch.backends.cpu.get_cpu_capability(), "hub": torch.hub.get_dir(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus] * torch.cuda.is_available(),
    }
"""


Status = Literal["ok", "note", "missing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One part of the machine or of the installation."""

    name: str
    """Name of the part."""
    status: Status
    """note: something optional is absent or small; missing: a required part is absent or broken."""
    text: str
    """What was found."""
    remedy: str = ""
    """What to do; empty if nothing is to be done."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Values for a bug report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """All findings, and what works."""

    findings: tuple[Finding, ...]
    """In the order of the report."""
    works: dict[str, str]
    """Task → "yes", or "no" with the reason."""

    @property
    def missing(self) -> list[Finding]:
        """Required parts that are absent or broken."""
        return [finding for finding in self.findings if finding.status == "missing"]

    def __str__(self) -> str:
        lines = []
        for finding in self.findings:
            mark = {"ok": "ok", "note": "--", "missing": "!!"}[finding.status]
            lines.append(f"{mark} {finding.name:14} {finding.text}")
            lines += [f"   {'':14} → {finding.remedy}"] if finding.remedy else []
        return "\n".join([*lines, "", "what works", *(f"   {task:24} {works}" for task, works in self.works.items())])


def diagnose(out: Path = Path("runs"), *, start_ray: bool = False) -> Diagnosis:
    """Examine this machine and the installation.

    Args:
        out: Folder of the runs, whose disk is measured with a temporary file.
        start_ray: Also start a local Ray and end it.
    """
    with ThreadPoolExecutor(4) as pool:
        torch, ray, xformers = (
            pool.submit(_probe, names, more)
            for names, more in (
                (("torch", "torchvision", "lpips"), _TORCH),
                (("ray",), ""),
                (("codeprior.attention",), _XFORMERS) if _version("xformers") else ((), ""),
            )
        )
    imported = torch.result()
    facts = imported.pop("facts", {})
    findings = (
        _python(),
        _packages(),
        *_libraries(imported),
        _cpu(facts),
        _memory(),
        _gpu(facts, xformers.result()),
        _ray(ray.result()["ray"], start_ray),
        _disk(out),
        _shared_memory(),
        _weights(Path(facts.get("hub") or Path.home() / ".cache/torch/hub")),
        _extras(),
        _open_files(),
    )
    return Diagnosis(findings=findings, works=_verdict(findings))


def _probe(names: Iterable[str], more: str = "") -> dict[str, Any]:
    """Import modules in another process; returns module → error, "" if there is none, and what `more` adds."""
    listed = list(names)
    code = f"{_IMPORT}{more}\nprint('\\n' + json.dumps(found))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *listed], capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    except subprocess.TimeoutExpired:
        return dict.fromkeys(listed, f"the import has not finished in {_PROBE_S} s")
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines() or ["no message"]
        return dict.fromkeys(listed, f"the process ended with code {done.returncode}: {lines[-1]}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _required() -> dict[str, list[tuple[str, str, bool]]]:
    """Extra ("" for the base) → name, bounds and whether the installed version is within them."""
    from packaging.requirements import Requirement

    found: dict[str, list[tuple[str, str, bool]]] = {}
    for line in importlib.metadata.requires("imagepriors") or ():
        needed = Requirement(line)
        extra = re.search(r"extra == ['\"]([\w-]+)", line)
        have = _version(needed.name)
        fits = bool(have) and needed.specifier.contains(have, prereleases=True)
        found.setdefault(extra[1] if extra else "", []).append((needed.name, str(needed.specifier), fits))
    return found


def _found(name: str, text: str, remedy: str = "", *, status: Status | None = None, **facts: Any) -> Finding:
    """A finding, which by default is a note if there is something to do."""
    return Finding(name=name, status=status or ("note" if remedy else "ok"), text=text, remedy=remedy, facts=facts)


def _python() -> Finding:
    python, own, system = platform.python_version(), _version("imagepriors"), platform.platform()
    text = f"{python}, imagepriors {own}, {system}"
    return _found("Python", text, python=python, imagepriors=own, platform=system, executable=sys.executable)


def _packages() -> Finding:
    try:
        needed = _required()[""]
    except (ImportError, importlib.metadata.PackageNotFoundError, KeyError) as error:
        text = f"the bounds of the versions cannot be read ({error})"
        return _found("packages", text, "pip install imagepriors", status="missing")
    versions = {name: _version(name) for name, _, _ in needed}
    wrong = [(name, bounds) for name, bounds, fits in needed if not fits]
    if wrong:
        text = ", ".join(f"{name} {versions[name] or 'not installed'} (required: {bounds})" for name, bounds in wrong)
        remedy = f"pip install {' '.join(repr(f'{name}{bounds}') for name, bounds in wrong)}"
        return _found("packages", text, remedy, status="missing", versions=versions)
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision", "ray", "pyarrow", "numpy"))
    return _found("packages", f"{shown}; all {len(needed)} within their bounds", versions=versions)


def _libraries(imported: dict[str, str]) -> list[Finding]:
    """The libraries that cannot be imported, although they may be installed."""
    remedy = "pip install --force-reinstall {}, in a version that fits torch"
    return [
        _found(name, f"cannot be imported ({error})", remedy.format(name), status="missing")
        for name, error in imported.items()
        if error
    ]


def _cpu(torch_facts: dict[str, Any]) -> Finding:
    info = _read("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info)
    flags = set((re.search(r"^(?:flags|Features)\s*: (.*)", info, re.MULTILINE) or ["", ""])[1].split())
    levels = {"AMX": "amx_tile", "AVX512-BF16": "avx512_bf16", "AVX-512": "avx512f", "AVX2": "avx2", "NEON": "asimd"}
    simd = [level for level, flag in levels.items() if flag in flags]
    name = model[1] if model else platform.processor() or platform.machine()
    cores, total = usable_cores(), os.cpu_count()
    text = f"{name}, {cores} usable cores of {total}, {', '.join(simd) or 'no known SIMD extension'}"
    known: dict[str, Any] = {"usable_cores": cores, "cores": total, "simd": simd, "torch_simd": torch_facts.get("simd")}
    return _found("CPU", text, model=name, **known)


def _memory() -> Finding:
    total, free = memory_bytes()
    remedy = "" if free >= _ENOUGH["memory"] else "end other programs, or choose a smaller model and batch"
    text = f"{free / 1e9:.1f} GB available of {total / 1e9:.1f} GB"
    return _found("memory", text, remedy, total_bytes=total, available_bytes=free)


def _gpu(torch_facts: dict[str, Any], xformers: dict[str, str]) -> Finding:
    gpus, cuda = torch_facts.get("gpus") or [], torch_facts.get("cuda")
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    problem, version = next(filter(None, xformers.values()), ""), _version("xformers")
    facts: dict[str, Any] = {"gpus": gpus, "cuda": cuda, "driver": driver, "xformers": version}
    if not gpus:
        why = f"torch is built for CUDA {cuda}" if cuda else "torch is built without CUDA"
        remedy = "install a torch that is built for CUDA" if driver and not cuda else ""
        text = f"none that torch can use ({why}, driver {driver or 'not found'})"
        return _found("GPU", text, remedy, status="note", **facts)
    names = ", ".join(f"{gpu['name']} ({gpu['memory_bytes'] / 1e9:.0f} GB)" for gpu in gpus)
    kernels = f"xformers {version or 'not installed'}" + (f", which cannot be used ({problem})" if problem else "")
    return _found("GPU", f"{names}, CUDA {cuda}, driver {driver}, {kernels}", **facts)


def _ray(error: str, start: bool) -> Finding:
    address, version = os.environ.get("RAY_ADDRESS", ""), _version("ray")
    if error:
        remedy, text = "pip install --force-reinstall 'ray[default,train]'", f"cannot be imported ({error})"
        return _found("Ray", text, remedy, status="missing", version=version, address=address)
    text = f"{version}, " + (f"cluster at RAY_ADDRESS={address}" if address else "started on this machine by a job")
    problem = _connection_problem(address) if address else ""
    if start and not problem:
        problem, text = _start_problem(), f"{text}, which was tried"
    if problem:
        remedy = "start the cluster, or unset RAY_ADDRESS" if address else ""
        return _found("Ray", f"{text}: {problem}", remedy, status="missing", version=version, address=address)
    return _found("Ray", text, version=version, address=address)


def _connection_problem(address: str) -> str:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return ""  # "auto" and "local" name no host
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        return f"nothing answers there ({error})"
    return ""


def _start_problem() -> str:
    from runkit.errors import UserError
    from runkit.ray_session import connected

    try:
        with connected(1) as session:
            session.nodes()
    except UserError as error:
        return str(error)
    return ""


def _disk(out: Path) -> Finding:
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free, path = shutil.disk_usage(place).free, place / f".doctor-{secrets.token_hex(4)}"
    try:
        speed, fsync_s = _write_speed(path)
    except OSError as error:
        text = f"{place} cannot be written ({error.strerror})"
        return _found("disk", text, "choose another folder", status="missing", folder=str(place), free_bytes=free)
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    remedy = "" if free >= _ENOUGH["disk"] else "free some space, or choose a folder on another disk"
    text = f"{free / 1e9:.1f} GB free in {place}, writes {speed / 1e6:,.0f} MB/s, fsync {fsync_s * 1e3:.1f} ms"
    known: dict[str, Any] = {"free_bytes": free, "write_bytes_per_s": round(speed), "fsync_s": round(fsync_s, 6)}
    return _found("disk", text, remedy, folder=str(place), **known)


def _write_speed(path: Path) -> tuple[float, float]:
    """Bytes per second of one large write that reaches the disk, and seconds of one fsync after a small one."""
    content, small = os.urandom(_WRITTEN), []
    with path.open("xb", buffering=0) as file:
        for _ in range(5):
            file.write(content[:4096])
            start = time.perf_counter()
            os.fsync(file.fileno())
            small.append(time.perf_counter() - start)
        start = time.perf_counter()
        file.write(content)
        os.fsync(file.fileno())
        return _WRITTEN / (time.perf_counter() - start), sorted(small)[2]


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return _found("/dev/shm", "absent: Ray keeps its objects on the disk", status="note")
    remedy = "" if free >= _ENOUGH["shm"] else "start the container with a larger one, such as --shm-size 1g"
    return _found("/dev/shm", f"{free / 1e9:.1f} GB free", remedy, free_bytes=free)


def _weights(hub: Path) -> Finding:
    folder = hub / "checkpoints"
    found = {network: (folder / file).is_file() for network, file in WEIGHTS.items()}
    there = ", ".join(network for network, is_there in found.items() if is_there)
    absent = ", ".join(WEIGHTS[network] for network, is_there in found.items() if not is_there)
    remedy = f"downloaded when first used; without a network copy them there: {absent}" if absent else ""
    text = f"{there or 'none'} in {folder}; efficientnet-lite0 is in its package"
    return _found("weights", text, remedy, folder=str(folder), networks=found)


def _extras() -> Finding:
    try:
        extras = {extra: parts for extra, parts in _required().items() if extra and extra not in _DEVELOPMENT}
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return _found("extras", "unknown, because the package's metadata cannot be read", status="note")
    installed = {extra: all(fits for _, _, fits in parts) for extra, parts in extras.items()}
    text = ", ".join(f"{extra} {'is installed' if is_there else 'is absent'}" for extra, is_there in installed.items())
    absent = [f"pip install 'imagepriors[{extra}]'" for extra, is_there in installed.items() if not is_there]
    return _found("extras", text, f"optional: {'; '.join(absent)}" if absent else "", installed=installed)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = "" if soft >= _ENOUGH["files"] else f"ulimit -n {min(hard, 65_536)}"
    return _found("open files", f"{soft:,} (at most {hard:,})", remedy, soft=soft, hard=hard)


def _verdict(findings: Iterable[Finding]) -> dict[str, str]:
    found = {finding.name: finding for finding in findings}
    broken = {finding.name for finding in findings if finding.status == "missing"}

    def works(*parts: str) -> str:
        problems = [part for part in parts if part in broken]
        return f"no: {', '.join(problems)} (see above)" if problems else "yes"

    train = works("Python", "packages", "torch", "torchvision", "disk")
    gpus = found["GPU"].facts["gpus"]
    lpips = found["weights"].facts["networks"]["lpips-vgg"]
    return {
        "train on the CPU": train,
        "train on a GPU": train if gpus else "no: torch finds no GPU",
        "tokenize": works("Python", "packages", "torch", "torchvision", "Ray", "disk"),
        "LPIPS without a network": works("packages", "torch", "lpips") if lpips else "no: its weights are not cached",
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _output(*command: str) -> str:
    """What a program prints; "" if it is absent or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
