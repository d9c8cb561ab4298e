"""The package of docs/extending.md through the whole pipeline, with two Ray workers."""

import os
import subprocess
import sys

import numpy as np
from PIL import Image
from plugin_package import install_page, write_photos

from codeshards.format import ShardDataset, load_plan

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
from pathlib import Path
from imagepriors.cli import main
from photo_scores import write_tokenizer

write_tokenizer(Path("image"))
data = ["--preset", "tiny.toml", "--dataset", "photo_scores:read", "--data", "data"]
for command in (
    ["train-vqgan", *data, "--out", "depth", "--model.modality", "depth"],
    ["tokenize", *data, "--tokenizer", "image", "--condition", "depth", "--out", "shards"],
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
