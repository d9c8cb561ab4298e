"""The whole pipeline through the command line, small: data → tokenizers → shards → priors → samples → report."""

import json

import numpy as np
import pytest
from PIL import Image

from codeprior.config import SequenceSpec
from codeshards.format import ShardDataset, ShardError, order
from imagepriors.cli import main
from imagepriors.decode.partial import known_codes
from imagepriors.decode.rows import read_rows
from imagepriors.reports.figures import colorize, picture_grid


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


def test_given_codes_are_kept_and_frames_show_the_sampling(run, tmp_path):
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
        ("--given", "centre"): "orders that begin with them: spiral_out",
        ("--given", "scales-1"): "this prior has 0 scales",
        ("--given", "lower"): "use a number of codes, upper, left, corner, centre, checkerboard, a rectangle",
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
    assert np.array_equal(known_codes(sequence, given), np.arange(sequence.length) < codes)


def test_report_is_one_self_contained_page(run):
    data, out = run
    assert main(["report", str(out), "--data", data]) == 0
    html = (out / "report" / "report.html").read_text()
    assert "below the unigram entropy" in html
    assert sorted(path.name for path in (out / "report").iterdir()) == [".report.json", "report.html"]
    assert "http:" not in html  # the four letters alone may be a part of a picture
    assert "https:" not in html


def test_another_tokenizer_is_refused(run, tmp_path, capsys):
    import shutil

    _, out = run
    shutil.copytree(out / "shards", tmp_path / "shards")
    shutil.copy(out / "tokenizer-segmentation" / "model.safetensors", tmp_path / "shards" / "tokenizer")
    shutil.copy(out / "tokenizer-segmentation" / "config.json", tmp_path / "shards" / "tokenizer")
    prior = str(out / "prior-zcurve-class")
    assert main(["sample", "--prior", prior, "--shards", str(tmp_path / "shards"), "--out", str(tmp_path / "o")]) == 2
    assert "fingerprint" in capsys.readouterr().err


def test_samples_never_replace_other_files(run, tmp_path, capsys):
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
