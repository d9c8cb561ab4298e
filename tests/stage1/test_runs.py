"""A tokenizer's folder: one process at a time, nothing foreign touched, damage survived, kills without a trace."""

import contextlib
import dataclasses
import json
import logging
import math
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from killing import killed_at
from safetensors.torch import load_file, save_file

from imagepriors.annotate.config import AnnotateConfig
from imagepriors.demo.layouts import write_demo_data
from imagepriors.evaluate.config import EvaluateConfig, EvaluatePriorConfig
from imagepriors.experiments.config import ExperimentConfig
from runkit.checkpoints import checkpoints
from runkit.folders import held
from runkit.signals import StoppedError
from vqgan.checkpoint import load_model, publish_model, save_model
from vqgan.compat.diffusers import export_diffusers, import_diffusers
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.data import open_splits
from vqgan.errors import InputError
from vqgan.model import VQGAN
from vqgan.palette import fit_palette
from vqgan.train import _reconstruct as reconstruct
from vqgan.train import train_tokenizer

TINY = ModelConfig(
    resolution=16, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8, embed_dim=4,
    codebook_size=16,
)  # fmt: skip
CONFIG = TrainConfig(
    model=TINY, loss=LossConfig(perceptual="none", disc_start=2, disc_ramp=2, disc_ch=8, disc_layers=1), batch_size=4,
    steps=6, learning_rate=1e-3, precision="float32", device="cpu", eval_every=3, eval_images=4, checkpoint_every=2,
    keep_checkpoints=3, restart_every=2, ema_decay=0.9, reader_threads=1,
)  # fmt: skip
FILES = ("config.json", "model.safetensors", "state.safetensors", "state.json")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=8, n_val=4, size=32)
    return out


@pytest.fixture(scope="module")
def splits(data):
    return open_splits("demo", data)


@pytest.fixture(scope="module")
def finished(splits, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    train_tokenizer(CONFIG, splits, out)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def snapshot(run):
    """Return all files of a run, without times and its hidden lock file."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or name == ".train-vqgan.lock" or "tfevents" in name:
            continue
        if path.suffix in (".json", ".jsonl"):
            lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
            times = {"images_per_s", "wall_s"}
            found[name] = [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def test_a_second_process_is_refused_untouched(splits, tmp_path):
    with (
        held(tmp_path / "run", "train-vqgan"),
        pytest.raises(InputError, match=r"is in use by train-vqgan .* wait until"),
    ):
        train_tokenizer(CONFIG, splits, tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob("*") if not path.name.startswith(".")]
    assert train_tokenizer(dataclasses.replace(CONFIG, steps=1), splits, tmp_path / "run")["steps"] == 1


def test_all_ranks_end_with_the_refusal(data, tmp_path):
    config = f"config = TrainConfig(model={TINY!r}, loss={CONFIG.loss!r}, batch_size=4, device='cpu')"
    lines = ["import sys", "from pathlib import Path", "from vqgan.config import LossConfig, ModelConfig, TrainConfig"]
    lines += ["from vqgan.data import open_splits", "from vqgan.train import train_tokenizer", config]
    lines += ["train_tokenizer(config, open_splits('demo', Path(sys.argv[1])), Path(sys.argv[2]))"]
    (tmp_path / "script.py").write_text("\n".join(lines))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with held(tmp_path / "run", "train-vqgan"):
        done = subprocess.run(
            [*start, str(tmp_path / "script.py"), str(data), str(tmp_path / "run")],
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("InputError: ") >= 2
    assert "is in use by train-vqgan" in done.stderr


def test_a_complete_run_is_not_run_again_and_needs_no_lock(splits, run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with held(run, "train-vqgan"):
        summary = train_tokenizer(CONFIG, splits, run)
    assert summary == json.loads((run / "summary.json").read_text())
    del before[run / ".train-vqgan.lock"]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".train-vqgan.lock"} == before


@pytest.mark.parametrize(
    "name", ["best/x.txt", "checkpoints/step-00000001/x", "tensorboard/x", "metrics.jsonl", "config.json",
             "model.safetensors", "summary.json", "reconstructions/x.png", "non-finite-step-00000001/x"],
)  # fmt: skip
def test_foreign_files_are_refused_and_kept(splits, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="was not made by train-vqgan"):
        train_tokenizer(CONFIG, splits, tmp_path / "run")
    assert [found for found in (tmp_path / "run").rglob("*") if found.is_file()] == [path]
    assert path.read_text() == "mine"


def test_a_tokenizer_of_another_command_is_never_trained_over(splits, tmp_path):
    fit_palette(splits["train"], tmp_path, colours=8, resolution=16)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="was not made by train-vqgan"):
        train_tokenizer(CONFIG, splits, tmp_path)
    assert snapshot(tmp_path) == before
    fit_palette(splits["train"], tmp_path, colours=9, resolution=16)  # its own it may replace
    assert load_model(tmp_path)[0].model.codebook_size == 9


def test_a_finished_run_without_checkpoints_is_never_trained_over(splits, run):
    shutil.rmtree(run / "checkpoints")
    before = snapshot(run)
    assert train_tokenizer(CONFIG, splits, run)["steps"] == 6
    for left in ("", "summary.json"):
        if left:
            (run / left).unlink()
            del before[left]
        with pytest.raises(InputError, match="its checkpoints are gone: choose another output folder"):
            train_tokenizer(dataclasses.replace(CONFIG, steps=8), splits, run)
        assert snapshot(run) == before


def test_foreign_files_in_a_run_survive(splits, run):
    foreign = ["log.txt", "tensorboard/notes", ".tmp-x/y", "checkpoints/x", ".step-notes.tmp-1"]
    for name in (*foreign, "checkpoints/step-00000002/notes", "best/notes"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    (run / "best" / "figures.json").unlink()
    train_tokenizer(dataclasses.replace(CONFIG, steps=8, keep_checkpoints=1), splits, run)
    kept = [*foreign, "checkpoints/leftover-step-00000002/notes", "leftover-best/notes"]
    assert [(run / name).read_text() for name in kept] == ["mine"] * len(kept)


def damaged(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "nan":
        tensors = load_file(path)
        tensors[max(name for name in tensors if tensors[name].is_floating_point())].view(-1)[0] = float("nan")
        save_file(tensors, path)
    else:
        content[len(content) // 2] ^= 4
        changed = {"empty": b"", "cut": content[: len(content) // 2], "zeros": bytes(len(content)), "bit": content}
        path.write_bytes(changed[kind])


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, kind) for name in FILES for kind in ("empty", "cut", "zeros", "bit", "missing")),
     ("model.safetensors", "nan"), ("state.safetensors", "nan")],
)  # fmt: skip
def test_a_damaged_checkpoint_loses_only_its_steps(splits, finished, run, caplog, name, kind):
    for published in ("summary.json", "config.json", "model.safetensors"):
        (run / published).unlink()
    damaged(checkpoints(run)[-1] / name, kind)
    with caplog.at_level(logging.WARNING):
        train_tokenizer(CONFIG, splits, run)
    assert any(f"step-00000006/{name}" in message for message in caplog.messages)
    shutil.rmtree(run / "checkpoints" / "damaged-step-00000006")
    assert snapshot(run) == snapshot(finished)


def test_with_all_checkpoints_damaged_another_folder_works(splits, run):
    for path in checkpoints(run):
        damaged(path / "state.json", "empty")
    (run / "summary.json").unlink()
    for _ in range(2):
        with pytest.raises(InputError, match=r"no intact checkpoint .* Train again in another output folder"):
            train_tokenizer(CONFIG, splits, run)
    assert train_tokenizer(CONFIG, splits, run.with_name("another"))["steps"] == 6


def test_another_config_or_fewer_steps_are_no_damage(splits, run):
    (run / "summary.json").unlink()
    with pytest.raises(InputError, match=r"differently: seed was 0 and is 1 now. Use the same settings, or another"):
        train_tokenizer(dataclasses.replace(CONFIG, seed=1), splits, run)
    with pytest.raises(InputError, match=r"steps is 4: .* is already at step 6"):
        train_tokenizer(dataclasses.replace(CONFIG, steps=4), splits, run)
    assert len(checkpoints(run)) == 3


@pytest.mark.parametrize("name", ["summary.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["empty", "zeros", "missing"])
def test_a_damaged_result_is_published_again(splits, finished, run, name, kind):
    damaged(run / name, kind)
    train_tokenizer(CONFIG, splits, run)
    assert snapshot(run) == snapshot(finished)


@pytest.mark.parametrize("tail", [b'{"step": 6, "tr', b"\0" * 64, b"\xff\xfe\n", b"[1]\n", b"{}\n", b'{"step": "x"}\n'])
def test_a_damaged_log_loses_only_its_damaged_lines(splits, finished, run, tail):
    (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes() + tail)
    (run / "summary.json").unlink()
    train_tokenizer(CONFIG, splits, run)
    assert snapshot(run) == snapshot(finished)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"val_loss": null}', '{"val_loss": "x"}', "\0" * 40])
def test_damaged_figures_of_the_best_are_rewritten(splits, run, text):
    (run / "best" / "figures.json").write_text(text)
    train_tokenizer(dataclasses.replace(CONFIG, steps=9), splits, run)
    assert json.loads((run / "best" / "figures.json").read_text())["step"] == 9


def test_runs_of_earlier_versions_continue(splits, finished, run):
    (run / ".train-vqgan.lock").unlink()
    (run / "summary.json").unlink()
    shutil.rmtree(checkpoints(run)[-1])
    (run / "checkpoints" / ".step-00000006.tmp-12").mkdir()
    for path in checkpoints(run):
        step = json.loads((path / "state.json").read_text())["step"]
        (path / "state.json").write_text(json.dumps({"step": step}))
        for name in ("model.safetensors", "state.safetensors"):
            save_file(load_file(path / name), path / name)
    train_tokenizer(CONFIG, splits, run)
    for name in ("model.safetensors", "checkpoints/step-00000006/state.safetensors"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize(("kind", "words"), [("bit", "is damaged|cannot be read"), ("nan", "values that are NaN")])
def test_damaged_weights_are_named_where_they_are_used(run, kind, words):
    damaged(run / "model.safetensors", kind)
    with pytest.raises(InputError, match=rf"model\.safetensors.*({words})"):
        load_model(run)


@pytest.mark.parametrize("text", [b"", b"[]", b"\0" * 9, b"[" * 100_000, b'{"format_version": 1, "model": 3}'])
def test_damaged_configs_are_named_where_they_are_used(run, text):
    (run / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(run)


@pytest.mark.parametrize("command", ["train-palette", "import-diffusers", "export-diffusers"])
def test_writing_a_tokenizer_refuses_foreign_files_before_the_work(splits, tmp_path, command):
    def write(out):
        if command == "train-palette":
            fit_palette(splits["train"], out, colours=8, resolution=16)
        elif command == "import-diffusers":
            import_diffusers(tmp_path / "theirs", out)
        else:
            export_diffusers(tmp_path / "ours", out)

    wide = ModelConfig(resolution=16, ch=128, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), codebook_size=8)
    save_model(tmp_path / "ours", TrainConfig(model=wide), VQGAN(wide))
    export_diffusers(tmp_path / "ours", tmp_path / "theirs")
    weights = "diffusion_pytorch_model.safetensors" if command == "export-diffusers" else "model.safetensors"
    for name in ("config.json", weights):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text("mine")
        with pytest.raises(InputError, match=f"{name} is there, and {command} has not made it"):
            write(tmp_path / "out")
        assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
        (tmp_path / "out").rename(tmp_path / f"elsewhere-{name}")  # what the message advises
    for _ in range(2):
        write(tmp_path / "out")
    written = (tmp_path / "out" / weights).read_bytes()
    write(tmp_path / "again")
    assert (tmp_path / "again" / weights).read_bytes() == written


def test_a_model_that_was_changed_since_is_not_replaced(tmp_path):
    for _ in range(2):
        publish_model(tmp_path, TINY, VQGAN(TINY), "some-command")
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(InputError, match="was changed since: nothing was replaced"):
        publish_model(tmp_path, TINY, VQGAN(TINY), "some-command")
    assert (tmp_path / "config.json").read_text() == "mine"


def test_figures_that_are_not_finite_cost_no_run(splits, tmp_path, monkeypatch):
    monkeypatch.setattr("vqgan.metrics.TokenizerMetrics.result", lambda _: {"val_loss": math.nan, "val_usage": 1.0})
    train_tokenizer(CONFIG, splits, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["val_loss"] is None
    assert (tmp_path / "model.safetensors").is_file()


def test_a_signal_ends_an_evaluation_with_a_checkpoint(splits, finished, tmp_path, monkeypatch, default_handlers):
    config = dataclasses.replace(CONFIG, checkpoint_every=100)
    with monkeypatch.context() as patched:
        patched.setattr(
            "vqgan.train._reconstruct", lambda *args: signal.raise_signal(signal.SIGTERM) or reconstruct(*args)
        )
        patched.setattr("vqgan.train._EVAL_BATCH", 1)
        with pytest.raises(StoppedError):
            train_tokenizer(config, splits, tmp_path)
        assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]
        with pytest.raises(StoppedError):  # it resumes with the evaluation of that step
            train_tokenizer(config, splits, tmp_path)
    assert not (tmp_path / "best").exists()
    train_tokenizer(config, splits, tmp_path)
    assert snapshot(tmp_path)["metrics.jsonl"] == snapshot(finished)["metrics.jsonl"]
    assert snapshot(tmp_path)["model.safetensors"] == snapshot(finished)["model.safetensors"]


def test_a_run_resumes_in_the_precision_that_auto_picked(splits, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, steps=2, precision="auto", restart_every=0)
    for precision in ("bfloat16", "float32"):
        with monkeypatch.context() as patched:
            patched.setattr("vqgan.trainer.resolve_precision", lambda *_, picked=precision: picked)
            train_tokenizer(config, splits, tmp_path / precision)
        train_tokenizer(dataclasses.replace(config, steps=4), splits, tmp_path / precision)
        fixed = dataclasses.replace(config, steps=4, precision=precision)
        train_tokenizer(fixed, splits, tmp_path / f"fixed-{precision}")
        resumed, whole = (
            load_file(tmp_path / name / "model.safetensors") for name in (precision, f"fixed-{precision}")
        )
        assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"restart_every": 0}, []),
        ({"restart_every": 2, "decay": True}, ["changes the learning rate (decay) and the restarts of unused codes"]),
    ],
)
def test_other_steps_are_warned_of_where_the_run_depends_on_them(splits, tmp_path, caplog, changes, words):
    config = dataclasses.replace(CONFIG, steps=2, **changes)
    train_tokenizer(config, splits, tmp_path)
    with caplog.at_level(logging.WARNING, "runkit"):
        train_tokenizer(dataclasses.replace(config, steps=3), splits, tmp_path)
    found = [message for message in caplog.messages if message.startswith("steps was 2 and is 3 now")]
    assert len(found) == len(words)
    assert all(word in message for word, message in zip(words, found, strict=True))


CONFIGS = (TrainConfig, LossConfig, ModelConfig, EvaluateConfig, EvaluatePriorConfig, AnnotateConfig)


@pytest.mark.parametrize("cls", [*CONFIGS, ExperimentConfig])
def test_every_field_of_every_config_is_checked(cls):
    names = ("name", "dataset", "tokenizer", "small_tokenizer", "prior")
    given = dict.fromkeys(names, "x") if cls is ExperimentConfig else {}
    cls(**given)
    for field in dataclasses.fields(cls):
        for value in (float("nan"), float("inf"), -(10**400), b"bytes", None, (float("inf"), 0.5)):
            with pytest.raises(InputError, match=f"^{field.name} is "):
                cls(**{**given, field.name: value})


@pytest.mark.parametrize("name", ["num_res_blocks", "ch", "embed_dim", "z_channels", "codebook_size", "resolution"])
def test_sizes_that_no_machine_holds_are_refused_at_once(name):
    for value in (10**8, 0, -8):
        with pytest.raises(InputError, match=f"{name} is {value}: choose"):
            ModelConfig(**{name: value})
    for mult in ((), (1,) * 40, (10**7,), (0, 1)):
        with pytest.raises(InputError, match="ch_mult is"):
            ModelConfig(ch_mult=mult)
    with pytest.raises(InputError, match="disc_ch is 10000000"):
        LossConfig(disc_ch=10**7)


def check_kills(data, finished, folder, sample):
    """Kill runs at `sample` of their file operations (0: at each), resume them, and compare all that they leave."""
    splits = open_splits("demo", data)
    operations = killed_at(0, folder / "whole", train_tokenizer, CONFIG, splits, folder / "whole")
    assert snapshot(folder / "whole") == snapshot(finished)
    moments = range(1, operations + 1)
    for at in random.sample(moments, sample) if sample else moments:
        run = folder / f"run-{at}"
        killed_at(at, run, train_tokenizer, CONFIG, splits, run)
        with contextlib.suppress(StoppedError):
            train_tokenizer(CONFIG, splits, run)
        assert snapshot(run) == snapshot(finished), at


def test_a_kill_at_a_file_operation_leaves_no_trace(data, finished, tmp_path):
    check_kills(data, finished, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_any_file_operation_leaves_no_trace(data, finished, tmp_path):
    check_kills(data, finished, tmp_path, 0)
