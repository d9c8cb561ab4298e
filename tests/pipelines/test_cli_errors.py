"""Errors, interrupts, streams and terminals of the command line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from imagepriors.cli import COMMANDS, main
from runkit.signals import StoppedError


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["frobnicate"], "unknown command 'frobnicate'"),
        (["train-vqgan", "--preset", "nope"], "unknown preset 'nope': choose one of"),
        (["train-vqgan", "--preset", "demo", "--data", "/nowhere/at/all"], "does not exist"),
        (["train-vqgan", "--dataset", "imagenette"], "unknown dataset 'imagenette'"),
        (["train-prior", "--shards", "/nowhere/at/all"], "there are no shards in /nowhere/at/all"),
        (["tokenize", "--preset", "demo-segmentation"], "no table [tokenize]"),
        (["sample", "--preset", "demo", "--n", "1000000000"], "n is 1000000000: choose 1 to 1,000,000 pictures"),
        (["evaluate-prior", "--n", str(2**70)], "n is"),
    ],
)
def test_user_errors_are_one_message_and_exit_code_2(capsys, monkeypatch, tmp_path, argv, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "demo").mkdir(parents=True)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_wrong_flags_end_with_2(capsys):
    assert main(["train-prior", "--order", "hilbert"]) == 2
    assert "spiral_out" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["train-prior", "--odrer", "zcurve"])
    assert stop.value.code == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_ends_with_the_exit_code_of_its_signal(number, code, monkeypatch):
    def stopped() -> str:
        raise StoppedError(number, "stopped at step 3")

    monkeypatch.setitem(COMMANDS, "inspect", stopped)
    assert main(["inspect"]) == code


@pytest.mark.parametrize(("error", "message"), [((), "interrupted"), (("stopped at step 3",), "stopped at step 3")])
def test_an_interrupt_is_reported(error, message, monkeypatch, capsys):
    def stopped() -> str:
        raise KeyboardInterrupt(*error)

    monkeypatch.setitem(COMMANDS, "inspect", stopped)
    assert main(["inspect"]) == 130
    assert capsys.readouterr().err == f"imagepriors inspect: {message}\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "a/b"), "a/b: No such file or directory"),
        (OSError(36, "File name too long", "x"), "x: File name too long"),
        (OSError("odd"), "odd"),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid byte"), "save the file as UTF-8"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RuntimeError("Storage size calculation overflowed with sizes=[9999999999]"), "out of memory"),
    ],
)
def test_system_errors_are_one_message(monkeypatch, capsys, error, words):
    def report() -> str:
        raise error

    monkeypatch.setitem(COMMANDS, "report", report)
    assert main(["report"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("imagepriors report: ")
    assert words in message
    assert message.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
    def report() -> str:
        raise RuntimeError("a bug")

    monkeypatch.setitem(COMMANDS, "report", report)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["report"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train-prior", "--preset", "latin.toml"], "save the file as UTF-8"),
        (["demo-data", "x" * 300], "File name too long"),
        (["demo-data", "/proc/demo"], "choose another folder"),
        (["shards", "verify", "deep"], "nested too deep"),
        (["shards", "inspect", "deep"], "nested too deep"),
        (["report", "deep-run"], "nested too deep"),
    ],
)
def test_unusable_paths_and_files_are_one_message(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    Path("latin.toml").write_bytes("[prior]\n# caf\xe9".encode("latin-1"))
    deep = "[" * 100_000
    for name in ("deep/dataset.json", "deep-run/shards/dataset.json"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text(deep)
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert words in message
    assert len(message) < 600


def test_the_answer_reaches_a_terminal_that_is_not_utf8(tmp_path):
    code = "from imagepriors import cli; cli.COMMANDS['report'] = lambda: '×16'; raise SystemExit(cli.main(['report']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"\\xd716\n")


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["demo-data", str(tmp_path / "file" / "data"), "--n-train", "1", "--n-val", "1"]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help >&-", 0),
        ("--help >/dev/full", 2),
        ("sample --help >/dev/full", 2),
        ("sample --help | head -1", 0),
        ("demo-data made --n-train 1 --n-val 1 >&-", 0),
        ("demo-data made --n-train 1 --n-val 1 2>&-", 0),
        ("demo-data made --n-train 1 --n-val 1 0<&- >&- 2>&-", 0),
        ("demo-data made --n-train 1 --n-val 1 2>/dev/full", 0),
        ("demo-data made --n-train 1 --n-val 1 >/dev/full", 2),
    ],
)
def test_closed_or_full_streams_damage_no_file(tmp_path, command, code):
    python = f"{sys.executable} -m imagepriors"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{python} {command}"],
        cwd=tmp_path,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if "made" in command:
        assert main(["inspect", "--data", str(tmp_path / "made"), "--out", str(tmp_path / "look"), "--size", "8"]) == 0
        found = json.loads((tmp_path / "look/inspection.json").read_text())["splits"]
        assert {name: (split["samples"], split["unreadable"]) for name, split in found.items()} == {
            "train": (1, {}),
            "val": (1, {}),
        }


@pytest.mark.parametrize("columns", ["1", "5", "39"])
def test_help_terminates_in_a_narrow_terminal(columns):
    environment = {**os.environ, "COLUMNS": columns}
    done = subprocess.run(
        [sys.executable, "-m", "imagepriors", "sample", "--help"], env=environment, timeout=120, capture_output=True
    )
    assert done.returncode == 0
    assert b"--top-k" in done.stdout


def test_without_docstrings_and_in_a_deleted_folder(tmp_path):
    for command in (
        "--help",
        "train-vqgan --help",
        "shards --help",
        f"demo-data {tmp_path}/made --n-train 1 --n-val 1",
    ):
        subprocess.run([sys.executable, "-OO", "-m", "imagepriors", *command.split()], check=True, capture_output=True)
    script = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} -m imagepriors inspect --data {tmp_path}/made"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "imagepriors inspect: the working folder is deleted: change into another\n"


@pytest.mark.parametrize("workers", ["-3", "3", "1000000000"])
def test_workers_that_cannot_share_a_batch_are_refused_before_ray_starts(tmp_path, capsys, workers):
    pictures = tmp_path / "photos"
    pictures.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(pictures / f"{number}.png")
    flags = ["--batch-size", "8", "--workers", workers, "--out", str(tmp_path / "run")]
    assert main(["train-vqgan", "--data", str(pictures), *flags]) == 2
    assert f"workers is {workers}: choose a divisor of the batch size, which is 8" in capsys.readouterr().err


def test_demo_data_beyond_the_bounds_are_refused(tmp_path, capsys):
    for flag, value in (("--size", "1000000000"), ("--n-train", "1000000000"), ("--n-val", str(2**70))):
        assert main(["demo-data", str(tmp_path / "made"), flag, value]) == 2
        assert "choose" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
