"""The packages that the checks require, and which of them this machine lacks. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from priorbench.gpu.check import Check

CORE = ("dacite", "numpy", "packaging", "pillow", "pyarrow", "safetensors", "torch", "torchvision", "tqdm")
"""Packages without which no check runs."""
_MODULES = {"pillow": "PIL"}
_BESIDE = {"xformers": "nvidia-cuda-runtime-cu12"}
"""Package → another one that it does not run without, beside a torch for CUDA 13."""
_PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def missing(modules: Sequence[str]) -> list[str]:
    """Return those of these modules that cannot be found."""
    return [name for name in modules if importlib.util.find_spec(_MODULES.get(name, name)) is None]


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those of these packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def listing(checks: Sequence[Check]) -> str:
    """Return a table of the packages, and the commands that bring missing ones to a machine without a network."""
    users = dict.fromkeys(CORE, "every check")
    for check in checks:
        for name in (*check.needs, *(_BESIDE[need] for need in check.needs if need in _BESIDE)):
            users[name] = ", ".join(filter(None, [users.get(name, ""), check.name]))
    here, ranges = versions(list(users)), _ranges()
    lines = [f"{'package':24} {'required':9} {'here':16} for"]
    lines += [
        f"{name:24} {ranges.get(name, ''):9} {here.get(name, 'missing'):16} {used}"
        for name, used in sorted(users.items())
    ]
    absent = sorted(set(users) - set(here))
    if not absent:
        return "\n".join([*lines, "nothing is missing"])
    if not {"torch", "torchvision"}.isdisjoint(absent):
        return "\n".join([*lines, "", "Install torch and torchvision for this machine's GPU first, then list again."])
    wheels = " ".join(f'"{name}{ranges.get(name, "")}"' for name in absent)
    python, platforms = f"{sys.version_info.major}.{sys.version_info.minor}", " --platform ".join(_PLATFORMS)
    return "\n".join([
        *lines,
        "",
        "Missing ones can be downloaded where there is a network,",
        f"  python3 -m pip download --no-deps --only-binary=:all: --python-version {python} --implementation cp \\",
        f"    --platform {platforms} -d wheels {wheels}",
        "and installed here, beside the packages that this Python has:",
        "  python3 -m pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site",
    ])  # fmt: skip


def _ranges() -> dict[str, str]:
    """Return package → versions that pyproject.toml accepts."""
    project = tomllib.loads(_PROJECT.read_text())["project"]
    found: dict[str, str] = {}
    for requirement in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        name, sign, version = requirement.partition(";")[0].partition(">=")
        found.setdefault(name.partition("[")[0], sign + version)
    return found
