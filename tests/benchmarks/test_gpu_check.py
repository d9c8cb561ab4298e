"""The script for the day on which a GPU is available: its runner, and a rehearsal of every check on the CPU."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from priorbench.gpu import packages, report, runner
from priorbench.gpu.check import Check, Figure
from priorbench.gpu.plan import CHECKS
from priorbench.readme import tabulated

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
SLOW = {check.name for check in CHECKS if "compiled" in check.what}
SLOW |= {"tokenize_ray", "tokenize_two", "train_vqgan", "train_transformers"}
"""Checks whose rehearsal takes long: they compile, start processes, or train a rival."""
MADE_UP = """
import os, subprocess, sys, time
from priorbench.gpu.check import Figure, SkipCheckError

def right(setup):
    os.system("echo from a child process")
    yield Figure("a distance", 0.5, "", None, 1.0)

def wrong(setup):
    yield Figure("a distance", 2.0, "", None, 1.0)

def undefined(setup):
    yield Figure("a distance", float("nan"), "", None, 1.0)

def silent(setup):
    yield from ()

def skips(setup):
    raise SkipCheckError("no kernel for a | b")
    yield

def slow(setup):
    assert setup.device.type == "cpu" and setup.size == "tiny"
    yield Figure("a speed", 5.0, "images/s", 10.0)

def breaks(setup):
    yield Figure("before", 1.0)
    raise RuntimeError("device-side assert")

def dies(setup):
    yield Figure("before", 1.0)
    os._exit(3)

def hangs(setup):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)", __file__])
    yield Figure("before", 1.0)
    time.sleep(120)
"""


def made_up(name, kind="correct", **options):
    return Check(name, "made_up_checks", kind, 0.1, f"check {name}", **options)


def processes_with(text):
    """Return the processes whose command line contains a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended
            found += [path] * (text in path.read_text(errors="replace"))
    return found


@pytest.fixture(scope="module")
def made_up_run(tmp_path_factory):
    """One run of made-up checks; returns its exit code, its report and the reason and figures of each check."""
    folder = tmp_path_factory.mktemp("made-up")
    (folder / "made_up_checks.py").write_text(MADE_UP)
    names = ("right", "wrong", "undefined", "silent", "skips")
    checks = (
        *map(made_up, names), made_up("slow", "speed"), made_up("lacks", needs=("no_such_module",)),
        made_up("gpu_only", gpu=True), made_up("breaks"), made_up("right"), made_up("dies"), made_up("hangs"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        patch.setattr(runner, "CHECKS", checks)
        patch.setattr(runner, "_LEAST_PATIENCE_S", 3.0)
        code = runner.main(["--device", "cpu", "--out", str(folder / "out")])
    return code, folder / "out", json.loads((folder / "out/gpu-check-cpu.json").read_text())


def test_each_check_has_the_outcome_that_it_earns(made_up_run):
    code, _, saved = made_up_run
    assert code == 1
    found = [(one["name"], one["status"]) for one in saved["figures"]["checks"]]
    assert found == [
        ("right", "passed"), ("wrong", "failed"), ("undefined", "failed"), ("silent", "failed"), ("skips", "skipped"),
        ("slow", "measured"), ("lacks", "skipped"), ("gpu_only", "skipped"), ("breaks", "failed"), ("right", "passed"),
        ("dies", "failed"), ("hangs", "failed"),
    ]  # fmt: skip
    reasons = {one["name"]: one["reason"] for one in saved["figures"]["checks"]}
    assert reasons["wrong"] == "outside its limit: a distance"
    assert reasons["skips"] == "no kernel for a | b"
    assert reasons["lacks"] == "no_such_module not installed"
    assert reasons["breaks"] == "RuntimeError: device-side assert"
    assert reasons["dies"] == "exit code 3"
    assert reasons["hangs"] == "no answer within 3 s"
    assert reasons["silent"] == "it has no figures"


def test_a_check_ends_with_its_processes_and_the_next_one_does_not_count_the_start_of_its_own(made_up_run):
    _, out, saved = made_up_run
    assert not processes_with(str(out.parent / "made_up_checks.py"))
    *_, after_a_failure = (one["seconds"] for one in saved["figures"]["checks"] if one["name"] == "right")
    assert after_a_failure < 1  # torch is imported in more
    assert "from a child process" in (out / "gpu-check.log").read_text()


def test_figures_before_an_error_are_kept(made_up_run):
    _, out, saved = made_up_run
    of = {one["name"]: one["figures"] for one in saved["figures"]["checks"]}
    assert of["breaks"] == of["dies"] == of["hangs"] == [["before", 1.0, "", None, None]]
    assert "device-side assert" in (out / "gpu-check.log").read_text()


def test_the_table_follows_from_the_figures(made_up_run):
    _, out, saved = made_up_run
    assert tabulated(out / "gpu-check-cpu.json") == saved
    text = (out / "gpu-check-cpu.md").read_text()
    assert "Rehearsal: the speeds mean nothing." in text
    assert "| wrong | failed | 0 | a distance | 2 | ≤ 1 |" in text
    assert "| skips | skipped | 0 | no kernel for a \\| b |" in text
    assert all(len(row) == len(saved["columns"]) for row in saved["rows"])


@pytest.mark.parametrize(
    ("kind", "targets", "value", "status"),
    [
        ("correct", False, 9.0, "failed"),
        ("correct", False, 11.0, "passed"),
        ("speed", False, 9.0, "measured"),
        ("speed", True, 9.0, "below target"),
        ("speed", True, 11.0, "passed"),
    ],
)
def test_speeds_have_targets_only_where_they_hold(kind, targets, value, status):
    figures = [Figure("rate", value, "images/s", at_least=10.0)]
    assert report.outcome(made_up("a", kind), 1.0, figures, targets=targets).status == status


def test_a_value_beyond_its_limit_fails_also_where_the_budget_ended():
    figures, ended = [Figure("share", 0.5, "%", at_least=1)], ("left out", "the budget ended")
    assert report.outcome(made_up("a"), 1.0, figures, targets=False, ended=ended).status == "failed"
    assert report.outcome(made_up("a"), 1.0, figures[:0], targets=False, ended=ended).status == "left out"


def test_a_speed_without_a_target_is_measured():
    assert report.outcome(made_up("a", "speed"), 1.0, [Figure("rate", 1.0)], targets=True).status == "measured"


def test_a_check_that_does_not_fit_into_the_budget_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "CHECKS", (Check("peaks", ".speed_limits", "speed", 5000, "limits"),))
    assert runner.main(["--device", "cpu", "--size", "full", "--only", "peaks", "--out", str(tmp_path)]) == 0
    (only,) = json.loads((tmp_path / "gpu-check-cpu.json").read_text())["figures"]["checks"]
    assert only["status"] == "left out"
    assert "about 5000 s" in only["reason"]


def test_a_check_that_the_budget_ends_keeps_its_figures(monkeypatch, tmp_path):
    (tmp_path / "made_up_checks.py").write_text(MADE_UP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(runner, "CHECKS", (made_up("hangs"), made_up("right")))
    assert runner.main(["--device", "cpu", "--budget-s", "10", "--out", str(tmp_path)]) == 0
    ended, never_begun = json.loads((tmp_path / "gpu-check-cpu.json").read_text())["figures"]["checks"]
    assert (ended["status"], ended["reason"], len(ended["figures"])) == ("left out", "the budget ended", 1)
    assert (never_begun["status"], never_begun["seconds"]) == ("left out", 0)


def test_an_unknown_check_or_a_missing_gpu_is_one_message(capsys, tmp_path):
    assert runner.main(["--only", "attentoin"]) == 2
    assert "unknown check attentoin: --list lists the checks" in capsys.readouterr().err
    assert runner.main(["--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("budget", ["0", "-5", "nan", "abc"])
def test_a_budget_is_a_time(budget, capsys):
    with pytest.raises(SystemExit, match="2"):
        runner.main(["--budget-s", budget])
    assert f"'{budget}' is no time: choose a number of seconds above 0" in capsys.readouterr().err


def test_a_signal_ends_a_run_with_its_processes_and_temporary_files(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, SCRIPT, "--device", "cpu", "--out", tmp_path / "out", "--only", "tokenize_two"]
    env = {**os.environ, "TMPDIR": str(work)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert "Rehearsal" in run.stdout.readline()  # the worker is there, and photos are being written
        second = [*command[:-2], "--only", "peaks"]
        refused = subprocess.run(second, capture_output=True, text=True)
        assert (refused.returncode, "is in use by gpu-check" in refused.stderr) == (2, True)
        run.terminate()
        message = run.communicate()[1]
    assert run.returncode == 143
    assert message == f"gpu_check: stopped; {tmp_path / 'out'} has the checks that are done\n"
    assert not list(work.iterdir())
    assert not processes_with(str(work))


def test_missing_packages_are_listed_with_the_command_that_brings_them(monkeypatch, capsys):
    monkeypatch.setattr(packages, "versions", lambda names: {"torch": "2.11.0", "torchvision": "0.26.0"})
    assert runner.main(["--packages"]) == 0
    text = capsys.readouterr().out
    assert ["lpips", ">=0.1.4", "missing"] in [line.split()[:3] for line in text.splitlines()]
    assert '"dacite>=1.9"' in text.split("pip download")[1]
    assert '"nvidia-cuda-runtime-cu12>=12.4"' in text.split("pip download")[1]
    assert '"torch>' not in text.split("pip download")[1]
    monkeypatch.setattr(packages, "versions", lambda names: {})
    assert runner.main(["--packages"]) == 0
    assert "pip download" not in (text := capsys.readouterr().out)  # torch without its dependencies does not run
    assert "Install torch and torchvision for this machine's GPU first" in text


def test_the_list_and_the_packages_need_nothing_installed():
    """A machine may lack torch, too: the script runs with the standard library alone up to the first check."""
    for flag in ("--list", "--packages"):
        done = subprocess.run([sys.executable, "-I", "-S", SCRIPT, flag], capture_output=True, text=True, check=True)
        assert "attention_xformers" in done.stdout
    done = subprocess.run([sys.executable, "-I", "-S", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, "no check can run without dacite, numpy" in done.stderr) == (2, True)


def rehearse(folder, *names):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--out", folder, "--only", *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    checks = json.loads((folder / "gpu-check-cpu.json").read_text())["figures"]["checks"]
    assert done.returncode == 0, done.stdout + (folder / "gpu-check.log").read_text()[-3000:]
    lacking = {check.name for check in CHECKS if check.gpu or packages.missing(check.needs)}
    assert {one["name"] for one in checks if one["status"] == "skipped"} == lacking & set(names)
    assert [one["name"] for one in checks] == list(names)
    assert all(figure[1] == figure[1] for one in checks for figure in one["figures"])


def test_quick_checks_are_rehearsed_on_the_cpu(tmp_path):
    rehearse(tmp_path, *(check.name for check in CHECKS if check.name not in SLOW))


@pytest.mark.slow
def test_slow_checks_are_rehearsed_on_the_cpu(tmp_path):
    rehearse(tmp_path, *(check.name for check in CHECKS if check.name in SLOW))
