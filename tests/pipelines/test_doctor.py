"""`imagepriors doctor` on whole and on broken installations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagepriors.cli import main
from imagepriors.doctor import WEIGHTS
from imagepriors.evaluate.networks import INCEPTION_FILE
from runkit.machine import memory_bytes
from vqgan.losses import TRUNK_FILES


def _run(folder: Path, modules: dict[str, str], **environment: str) -> tuple[int, str, str]:
    """Run the command where these modules have other content; returns exit code, output and errors."""
    folder.mkdir(exist_ok=True)
    for name, content in modules.items():
        (folder / f"{name}.py").write_text(content)
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "imagepriors", "doctor", "--json", "--out", str(folder / "runs")],
        env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_whole_installation_is_well_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    answer = capsys.readouterr().out
    for part in ("Python", "torch", "Ray", "memory", "disk", "/dev/shm", "open files", "train on the CPU"):
        assert part in answer
    assert list(tmp_path.iterdir()) == []


def test_libraries_that_are_missing_or_broken_are_named_with_their_remedy(tmp_path):
    crash = "import os\nos._exit(11)\n"
    code, answer, errors = _run(tmp_path, {"torch": crash, "ray": "raise ImportError('no raylet')\n"})
    assert code == 2
    assert errors.splitlines()[-1].startswith("imagepriors doctor: required parts are missing or broken: torch,")
    found = json.loads(answer)
    parts = {part["name"]: part for part in found["findings"]}
    assert "the process ended with code 11" in parts["torch"]["text"]
    assert "no raylet" in parts["Ray"]["text"]
    assert parts["Ray"]["remedy"] == "pip install --force-reinstall 'ray[default,train]'"
    assert found["works"]["tokenize"].startswith("no: torch, torchvision, Ray")
    assert parts["packages"]["facts"]["versions"]["torch"]


@pytest.mark.parametrize(
    ("package", "version", "remedy"),
    [("torch", "1.13", "pip install 'torch>=2.6'"), ("tyro", "", "pip install 'tyro>=1.0'")],
)
def test_versions_outside_their_bounds_are_named(tmp_path, package, version, remedy, monkeypatch, capsys):
    import imagepriors.doctor as doctor

    own = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == package else own(name))
    monkeypatch.setattr(doctor, "_probe", lambda names, more="": dict.fromkeys(names, ""))
    assert main(["doctor", "--out", str(tmp_path)]) == 2
    assert f"→ {remedy}\n" in capsys.readouterr().out


def test_a_cluster_that_does_not_answer_and_a_disk_that_cannot_be_written_are_reported(tmp_path):
    fast = {"torch": "raise ImportError\n", "ray": ""}
    code, answer, _ = _run(tmp_path, fast, RAY_ADDRESS="127.0.0.1:9")
    ray = next(part for part in json.loads(answer)["findings"] if part["name"] == "Ray")
    assert code == 2
    assert "nothing answers there" in ray["text"]
    assert "unset RAY_ADDRESS" in ray["remedy"]
    assert main(["doctor", "--out", "/proc/runs"]) == 2


def test_the_files_of_weights_have_the_names_that_the_networks_read():
    assert {**{f"lpips-{net}": file for net, file in TRUNK_FILES.items()}, "inception": INCEPTION_FILE} == WEIGHTS


def test_memory_is_within_the_machine():
    total, available = memory_bytes()
    assert 0 < available <= total
    assert total < 2**50
