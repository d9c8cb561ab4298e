"""The whole way through the command line, small: data → tokenizers → shards → priors → samples → report."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codeprior.config import SampleConfig, SequenceSpec
from codeprior.config import TrainConfig as PriorConfig
from codeshards.config import TokenizeConfig
from codeshards.format import ShardDataset, ShardError, order
from imagepriors.cli import COMMANDS, _given, _preset_of, main
from imagepriors.decode.samples import given_codes, read_rows
from imagepriors.presets import load_preset, preset_names
from imagepriors.reports.figures import colorize, picture_grid
from runkit.configs import from_dict
from runkit.signals import StoppedError
from vqgan.data import DATASETS

ROOT = Path(__file__).resolve().parents[2]
_TABLES = {"tokenize": TokenizeConfig, "prior": PriorConfig, "sample": SampleConfig}


@pytest.fixture(scope="module")
def run(local_ray_cores, tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    data, out = str(root / "data"), root / "run"
    short = ["--steps", "3", "--batch-size", "4", "--eval-images", "4", "--data", data]
    tiny = [
        "--model.ch-mult",
        "1",
        "1",
        "1",
        "1",
        "--model.resolution",
        "32",
        "--loss.disc-start",
        "2",
    ]
    assert main(["demo-data", data, "--n-train", "24", "--n-val", "6", "--size", "32"]) == 0
    assert main(["train-vqgan", *short, *tiny, "--out", str(out / "tokenizer")]) == 0
    seg = ["--preset", "demo-segmentation", *short, *tiny, "--out", str(out / "tokenizer-segmentation")]
    assert main(["train-vqgan", *seg]) == 0
    shards = str(out / "shards")
    conditions = ["--tokenizer", str(out / "tokenizer"), "--condition", str(out / "tokenizer-segmentation")]
    assert main(["tokenize", "--data", data, *conditions, "--out", shards, "--shard-rows", "10", "--views", "2"]) == 0
    for condition in ("class", "segmentation"):
        flags = [
            "--steps",
            "3",
            "--batch-size",
            "4",
            "--model.n-layer",
            "1",
            "--condition",
            condition,
            "--order",
            "zcurve",
        ]
        assert main(["train-prior", *flags, "--shards", shards, "--out", str(out / f"prior-zcurve-{condition}")]) == 0
    return data, out


def test_the_last_preset_counts():
    assert _preset_of("train-vqgan", _given(["--preset", "demo", "--preset=cifar10"])) == "cifar10"
    assert _preset_of("train-vqgan", _given(["--preset", "auto", "--help"])) == "demo"


def test_samples_are_pictures_with_codes_and_metadata(run, tmp_path):
    _, out = run
    for condition in ("class", "segmentation"):
        prior, where = out / f"prior-zcurve-{condition}", tmp_path / condition
        command = ["sample", "--prior", str(prior), "--shards", str(out / "shards"), "--out", str(where)]
        assert main([*command, "--n", "6", "--frames"]) == 0
        for mine in ("samples/2024-holiday.png", "samples/0007.png"):
            (where / mine).write_bytes(b"mine")
        assert main([*command, "--n", "5"]) == 0
        assert sorted(path.name for path in (where / "samples").iterdir()) == [
            *(f"{i:04d}.png" for i in (0, 1, 2, 3, 4, 7)), "2024-holiday.png",
        ]  # fmt: skip
        assert not (where / "frames.gif").exists()
        codes = np.load(where / "codes.npz")["codes"]
        assert codes.shape == (5, 4, 4)
        assert codes.max() < 512
        assert Image.open(where / "grid.png").size[0] > 32
        assert json.loads((where / "metadata.json").read_text())["sampling"]["seed"] == 0


def test_pictures_are_completed_and_shown_while_they_are_drawn(run, tmp_path):
    _, out = run
    words = ["sample", "--prior", str(out / "prior-zcurve-class"), "--shards", str(out / "shards"), "--n", "8"]
    assert main([*words, "--out", str(tmp_path), "--given", "upper", "--frames", "--precision", "bfloat16"]) == 0
    codes = np.load(tmp_path / "codes.npz")["codes"].reshape(8, 16)
    dataset = ShardDataset.open(out / "shards")
    batches = list(dataset.batches("val", ["codes_zcurve", "label"]))
    batch = {name: np.concatenate([part[name] for part in batches]) for name in batches[0]}
    upper = order("zcurve", 4, 4)[:8]  # four of a grid's quarters: its upper half
    rows = [0] * 4 + [-1] * 4  # evenly spread: validation rows are sorted by class
    np.testing.assert_array_equal(codes[:, upper], batch["codes_zcurve"][rows, :8])
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npz")["condition_class"], batch["label"][rows])
    with Image.open(tmp_path / "frames.gif") as animation, Image.open(tmp_path / "grid.png") as grid:
        assert animation.n_frames == 8  # one for every code that was drawn
        assert animation.size == grid.size
        first = np.array(animation.convert("RGB"))
        animation.seek(7)
        last = np.array(animation.convert("RGB"))
    assert (first == 128).all(-1).mean() > (last == 128).all(-1).mean() + 0.1  # grey cells fill in


def test_samples_that_cannot_be_drawn_are_refused(run, tmp_path, capsys):
    _, out = run
    words = ["sample", "--prior", str(out / "prior-zcurve-class"), "--shards", str(out / "shards"), "--n", "2"]
    for flags, message in {
        ("--given", "16"): "given = 16: this prior's sequences have 16 codes",
        ("--given", "centre"): "orders that begin with it: spiral_out",
        ("--given", "scales-1"): "this prior has 0 scales",
        ("--given", "lower"): "use a number of codes, upper, corner, centre, or scales-K",
        ("--size", "8", "8"): "larger grids require a prior of order row_major",
        ("--guidance", "2.0"): "trained with cond_dropout = 0",
        ("--top-p", "0"): "top_p is 0.0: use above 0 to 1",
    }.items():
        assert main([*words, "--out", str(tmp_path), *flags]) == 2
        assert message in capsys.readouterr().err
    words[2] = str(out / "prior-zcurve-segmentation")
    assert main([*words, "--out", str(tmp_path), "--size", "8", "8"]) == 2
    assert "the condition 'segmentation' of this prior comes from validation pictures" in capsys.readouterr().err


def test_rows_of_a_sorted_split_are_spread_and_those_of_a_shuffled_one_are_the_first_of_its_shards(run):
    dataset = ShardDataset.open(run[1] / "shards")
    for split in ("train", "val"):
        keys = np.concatenate([batch["key"] for batch in dataset.batches(split, ["key"])])
        assert list(read_rows(dataset, split, ["key"], 0)["key"]) == list(keys)
        starts = np.cumsum([0, *(shard.rows for shard in dataset.shards(split))])[:-1]
        wanted = starts[[0, 2, 4]] if split == "train" else [0, round((len(keys) - 1) / 2), len(keys) - 1]
        assert list(read_rows(dataset, split, ["key", "view"], 3)["key"]) == list(keys[wanted])
        assert len(read_rows(dataset, split, ["view"], 10**6)["view"]) == len(keys)


@pytest.mark.parametrize(
    ("order_name", "scales", "given", "codes"),
    [
        ("row_major", (), "upper", 128),
        ("zcurve", (), "upper", 128),
        ("zcurve", (), "corner", 64),
        ("spiral_out", (), "centre", 64),
        ("zcurve", (1, 2, 4), "scales-3", 21),
        ("subsample", (), "7", 7),
    ],
)
def test_regions_and_scales_are_numbers_of_first_codes(order_name, scales, given, codes):
    sequence = SequenceSpec(height=16, width=16, codebook_size=8, order=order_name, fingerprint="f", scales=scales)
    assert given_codes(sequence, given) == codes


def test_report_is_one_self_contained_page(run):
    data, out = run
    assert main(["report", str(out), "--data", data]) == 0
    html = (out / "report" / "report.html").read_text()
    assert "below the unigram entropy" in html
    pictures = sorted(path.stem for path in (out / "report").glob("*.png"))
    assert pictures == [
        "codebook", "data", "orders", "reconstructions", "samples-prior-zcurve-class",
        "samples-prior-zcurve-segmentation", "stage1", "stage2",
    ]  # fmt: skip
    assert html.count("data:image/png;base64,") == len(pictures)
    assert "http:" not in html  # the four letters alone may be a part of a picture
    assert "https:" not in html


def test_foreign_tokenizer_is_refused(run, tmp_path, capsys):
    import shutil

    _, out = run
    shutil.copytree(out / "shards", tmp_path / "shards")
    shutil.copy(out / "tokenizer-segmentation" / "model.safetensors", tmp_path / "shards" / "tokenizer")
    shutil.copy(out / "tokenizer-segmentation" / "config.json", tmp_path / "shards" / "tokenizer")
    prior = str(out / "prior-zcurve-class")
    assert main(["sample", "--prior", prior, "--shards", str(tmp_path / "shards"), "--out", str(tmp_path / "o")]) == 2
    assert "fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["frobnicate"], "unknown command 'frobnicate'"),
        (["train-vqgan", "--preset", "nope"], "unknown preset 'nope': choose one of"),
        (["train-vqgan", "--preset", "demo", "--data", "/nowhere/at/all"], "does not exist"),
        (["train-vqgan", "--dataset", "imagenette"], "unknown dataset 'imagenette'"),
        (["train-prior", "--shards", "/nowhere/at/all"], "dataset.json"),
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


def test_wrong_flags_exit_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train-prior", "--order", "hilbert"])
    assert stop.value.code == 2
    assert "spiral_out" in capsys.readouterr().err


@pytest.mark.parametrize("name", preset_names())
def test_every_table_of_every_preset_parses(name):
    for table, cls in _TABLES.items():
        try:
            values = load_preset(name, table)
        except ShardError:
            continue
        assert isinstance(from_dict(cls, values), cls)


def test_a_preset_changes_what_it_names_of_its_base(tmp_path):
    (tmp_path / "narrow.toml").write_text('base = "imagenet-f16-1024"\n[vqgan.model]\nch = 64\n')
    (tmp_path / "mine.toml").write_text('base = "narrow.toml"\n[vqgan]\nsteps = 10\n')
    mine, published = (load_preset(name, "vqgan") for name in (str(tmp_path / "mine.toml"), "imagenet-f16-1024"))
    assert mine["model"] == {**published["model"], "ch": 64}
    assert {**mine, "model": 0} == {**published, "steps": 10, "model": 0}
    # A base's base: the prior's table has been in none of these files.
    assert load_preset(str(tmp_path / "mine.toml"), "prior") == load_preset("gpt2-medium", "prior")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "demos"', "mine.toml: base: unknown preset 'demos'"),
        ('base = "other.toml"', "mine.toml: base: unknown preset 'other.toml'"),
        ('base = "mine.toml"', "leads back to itself"),
        ('base = "./mine.toml"', "leads back to itself"),
        ("vqgan = 3", r"has no table \[vqgan\]"),
        ("vqgan = ", "mine.toml: Invalid value"),
    ],
)
def test_a_preset_that_cannot_be_read_says_why(tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ShardError, match=message):
        load_preset(str(tmp_path / "mine.toml"), "vqgan")


@pytest.mark.parametrize(
    ("variable", "choice"), [("ORDER=hilbert", "zcurve"), ("DATASET=mnist", "cifar10"), ("COND=text", "class")]
)
def test_make_names_the_valid_choices(variable, choice):
    done = subprocess.run(["make", "-C", ROOT, "-n", "train-prior", variable], capture_output=True, text=True)
    assert done.returncode == 2
    assert choice in done.stderr


def test_make_and_help_know_every_dataset():
    listed = re.search(r"^DATASETS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    assert set(listed[1].split()) == {"auto", *DATASETS}
    assert all(name in (COMMANDS["train-vqgan"].__doc__ or "") for name in DATASETS)
    done = subprocess.run(["make", "-C", ROOT, "-n", "tokenize", "CONDITIONS=text"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "choose out of segmentation depth pose" in done.stderr


@pytest.mark.parametrize(("error", "told"), [((), "interrupted"), (("stopped at step 3",), "stopped at step 3")])
def test_an_interrupt_says_so(error, told, monkeypatch, capsys):
    def stopped() -> str:
        raise KeyboardInterrupt(*error)

    monkeypatch.setitem(COMMANDS, "inspect", stopped)
    assert main(["inspect"]) == 130
    assert capsys.readouterr().err == f"imagepriors inspect: {told}\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_ends_with_the_exit_code_of_its_signal(number, code, monkeypatch):
    def stopped() -> str:
        raise StoppedError(number, "stopped at step 3")

    monkeypatch.setitem(COMMANDS, "inspect", stopped)
    assert main(["inspect"]) == code


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
def test_every_error_of_the_system_is_one_message(monkeypatch, capsys, error, words):
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
def test_places_and_files_that_are_not_what_they_should_be(tmp_path, monkeypatch, capsys, argv, words):
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


def test_samples_never_replace_a_file_of_somebody_else(run, tmp_path, capsys):
    _, out = run
    command = ["sample", "--prior", str(out / "prior-zcurve-class"), "--shards", str(out / "shards"), "--n", "2"]
    (tmp_path / "mine" / "samples").mkdir(parents=True)
    (tmp_path / "mine" / "samples" / "0001.png").write_bytes(b"mine")
    assert main([*command, "--out", str(tmp_path / "mine")]) == 2
    assert "0001.png is there, and sample has not made it" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").rglob("*.png")] == ["0001.png"]
    for inside in (out / "shards" / "samples", out):
        assert main([*command, "--out", str(inside)]) == 2
        assert "choose an output folder apart from it" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["demo-data", str(tmp_path / "file" / "data"), "--n-train", "1", "--n-val", "1"]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("dataset", ["auto", *sorted(DATASETS)])
def test_make_has_a_preset_for_every_dataset(dataset, tmp_path):
    make = ["make", "-C", ROOT, "-n", "train-prior", f"DATASET={dataset}", "DATA=/data", f"RUN={tmp_path}"]
    done = subprocess.run(make, capture_output=True, text=True, check=True)
    found = set(re.findall(r"imagepriors (train-vqgan|tokenize|train-prior) --preset (\S+)", done.stdout))
    assert {command for command, _ in found} == {"train-vqgan", "tokenize", "train-prior"}
    assert {preset for _, preset in found} <= {"auto", *preset_names()}


def test_make_help_lists_targets_and_variables():
    done = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    for word in ("quickstart", "train-prior", "ORDER=row_major", "RAY_ADDRESS="):
        assert word in done.stdout


def test_grid_has_the_size_of_its_tiles():
    grid = picture_grid(np.zeros((5, 8, 8, 3), np.uint8), 3, scale=2, pad=1)
    assert grid.size == (3 * 17 + 1, 2 * 17 + 1)
    with pytest.raises(ShardError, match="at least one"):
        picture_grid(np.zeros((0, 8, 8, 3), np.uint8), 3)


def test_labels_and_depth_get_colours():
    labels = colorize(np.array([[[0, 1], [2, 3]]], np.uint8))
    assert labels.shape == (1, 2, 2, 3)
    assert not labels[0, 0, 0].any()
    assert len(np.unique(labels.reshape(-1, 3), axis=0)) == 4
    assert colorize(np.linspace(0, 1, 4, dtype=np.float32).reshape(1, 2, 2)).dtype == np.uint8


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
def test_streams_that_are_closed_or_full_cost_no_file(tmp_path, command, code):
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
def test_help_ends_in_a_narrow_terminal(columns):
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


def test_demo_data_beyond_all_bounds_are_refused(tmp_path, capsys):
    for flag, value in (("--size", "1000000000"), ("--n-train", "1000000000"), ("--n-val", str(2**70))):
        assert main(["demo-data", str(tmp_path / "made"), flag, value]) == 2
        assert "choose" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
