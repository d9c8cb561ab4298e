"""The package of docs/extending.md through the whole pipeline, with two Ray workers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plugin_package import install_page, write_photos

from codeprior.config import SequenceSpec
from codeshards.format import ShardDataset, load_plan
from imagepriors.decode.partial import decode_partial
from imagepriors.reports.run_codes import block_means
from vqgan.tokenizer import Tokenizer

PRESET = """
[vqgan]
batch_size = 2
steps = 1
device = "cpu"
[vqgan.model]
resolution = 32
ch = 8
ch_mult = [1, 1, 1]
num_res_blocks = 1
attn_resolutions = []
z_channels = 8
embed_dim = 8
codebook_size = 8
[vqgan.loss]
perceptual = "none"
disc_weight = 0.0
[tokenize]
shard_rows = 8
batch_size = 4
threads = 1
workers = 2
[prior]
steps = 2
batch_size = 4
device = "cpu"
[prior.model]
n_layer = 1
n_head = 1
n_embd = 16
"""


PIPELINE = """
from imagepriors.cli import main

data = ["--preset", "tiny.toml", "--dataset", "photo_scores:read", "--data", "data"]
for command in (
    ["train-vqgan", *data, "--out", "depth", "--model.modality", "depth"],
    ["tokenize", *data, "--tokenizer", "block-colours", "--condition", "depth", "--out", "shards"],
    ["train-prior", "--preset", "tiny.toml", "--shards", "shards", "--out", "prior", "--condition", "depth"],
    ["sample", "--prior", "prior", "--shards", "shards", "--n", "4", "--out", "samples"],
):
    assert main(command) == 0, command
"""


def test_a_package_adds_a_dataset_and_a_tokenizer_to_the_pipeline(tmp_path):
    site = install_page(tmp_path / "site")
    write_photos(tmp_path / "data")
    (tmp_path / "tiny.toml").write_text(PRESET)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    command = [sys.executable, "-c", PIPELINE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert load_plan(tmp_path / "shards").settings["dataset"] == "photo_scores:read"
    dataset = ShardDataset.open(tmp_path / "shards")
    (batch,) = dataset.batches("val", ["key", "codes_row_major", "cond_depth"])
    # Naively: the nearest of four levels to the mean red, green and blue of each block.
    for key, codes in zip(batch["key"], batch["codes_row_major"], strict=True):
        pixels = np.asarray(Image.open(tmp_path / f"data/photos/{key}.png")).astype(float)
        means = pixels.reshape(8, 4, 8, 4, 3).mean((1, 3)).reshape(64, 3)
        np.testing.assert_array_equal(codes, np.rint(means / 85) @ [16, 4, 1])
    grid = np.asarray(Image.open(tmp_path / "samples/grid.png"))
    assert grid.ndim == 3


ROW = """
import numpy as np

class Row:
    '''16 codes in a row: the mean brightness of strips of 2 columns.'''
    resolution, grid, codebook_size, fingerprint = 32, (1, 16), 256, "strips"

    def encode(self, pictures):
        return pictures.reshape(-1, 32, 16, 2, 3).mean((1, 3, 4)).round().astype(int)[:, None]

    def decode(self, codes):
        return codes[..., None, None].astype(np.uint8).repeat(32, 1).repeat(2, 2).reshape(-1, 32, 32, 1).repeat(3, 3)
"""
ROW_PIPELINE = """
from imagepriors.cli import main
data = ["--preset", "tiny.toml", "--dataset", "folder", "--data", "data/photos", "--workers", "1"]
for command in (
    ["tokenize", *data, "--tokenizer", "strips:Row", "--out", "run/shards"],
    ["train-prior", "--preset", "tiny.toml", "--shards", "run/shards", "--out", "run/prior-row_major"],
    ["sample", "--prior", "run/prior-row_major", "--tokenizer", "strips:Row", "--n", "4", "--frames",
     "--out", "samples"],
    ["shards", "verify", "run/shards"],
    ["report", "run", "--dataset", "folder", "--data", "data/photos", "--tokenizer", "strips:Row"],
):
    assert main(command) == 0, command
"""


@pytest.mark.slow
def test_codes_in_a_row_go_through_the_pipeline_by_the_name_of_a_module(tmp_path):
    write_photos(tmp_path / "data")
    (tmp_path / "tiny.toml").write_text(PRESET)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/strips.py").write_text(ROW)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    command = [sys.executable, "-c", ROW_PIPELINE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "imagepriors", "sample", "--prior", "run/prior-row_major", "--n", "1"]
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2
    assert "not imported because a file names it: pass strips:Row as the tokenizer" in refused.stderr
    dataset = ShardDataset.open(tmp_path / "run/shards")
    assert dataset.spec.orders == ("row_major", "zcurve", "alternate")
    (batch,) = dataset.batches("val", ["key", "codes_row_major", "codes_zcurve"])
    np.testing.assert_array_equal(batch["codes_row_major"], batch["codes_zcurve"])
    for key, codes in zip(batch["key"], batch["codes_row_major"], strict=True):
        pixels = np.asarray(Image.open(tmp_path / f"data/photos/{key}.png")).astype(float)
        np.testing.assert_array_equal(codes, [pixels[:, 2 * i : 2 * i + 2].mean().round() for i in range(16)])
    assert np.asarray(Image.open(tmp_path / "samples/grid.png")).ndim == 3
    assert (tmp_path / "samples/frames.gif").is_file()


def test_a_cell_need_not_have_a_whole_number_of_pixels(tmp_path, monkeypatch):
    source = ROW.replace("(1, 16)", "(2, 3)").replace("codes[", "codes[:, :1, [0] * 16][")
    (tmp_path / "three_codes.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    tokenizer = Tokenizer.load(Path("three_codes:Row"), device="cpu")
    sequence = SequenceSpec(height=2, width=3, codebook_size=256, order="row_major", fingerprint="strips")
    shown = decode_partial(tokenizer, sequence, np.array([[9, 9, -1, -1, -1, -1]]))[0]
    assert (shown[:16, :22] == 9).all()  # two thirds of 32 columns
    assert (shown[:, 22:] == 128).all()
    assert (shown[16:] == 128).all()
    pictures = np.arange(32, dtype=np.uint8).repeat(3).reshape(1, 1, 32, 3).repeat(32, 1)
    means = block_means(pictures, 1, 3)
    assert means.shape == pictures.shape
    assert abs(means.mean() - pictures.mean()) < 1
