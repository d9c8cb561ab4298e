"""evaluate-tokenizer, train-palette and training on a Ray cluster, through the functions that the CLI calls."""

import json

import numpy as np
import pytest
import torch

from imagepriors.cli import main
from imagepriors.config import EvaluateConfig
from imagepriors.demo.layouts import write_demo_data
from imagepriors.evaluate import Lite0Features, evaluate_tokenizer, frechet_distance
from vqgan.checkpoint import load_model
from vqgan.errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=12, n_val=6, size=32)
    return out


def test_figures_of_a_palette_are_written_with_what_they_are_of(data, tmp_path, capsys):
    palette = tmp_path / "palette"
    flags = ["--data", str(data)]
    assert main(["train-palette", *flags, "--out", str(palette), "--colours", "64"]) == 0
    assert main(["evaluate-tokenizer", *flags, "--tokenizer", str(palette)]) == 0
    printed = capsys.readouterr().out
    report = json.loads((palette / "evaluation.json").read_text())
    figures = report["figures"]
    assert report["images"] == 6
    assert report["grid"] == [32, 32]
    assert 20 < figures["psnr_db"] < 60
    assert 0.8 < figures["ssim"] < 1
    assert 0.5 < figures["usage"] <= 1
    assert figures["frechet_efficientnet_lite0"] > 0
    assert not any("fid" in name for name in figures)  # offline features are never called FID
    assert f"{figures['psnr_db']:.4f}" in printed


def test_the_frechet_distance_ranks_distortions():
    rng = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=rng)
    distances = []
    for fake in (real, real // 2, torch.zeros_like(real)):
        metric = frechet_distance("efficientnet-lite0", "", torch.device("cpu"))
        metric.update(real, real=True)
        metric.update(fake, real=False)
        distances.append(float(metric.compute()))
    assert abs(distances[0]) < 1e-3
    assert distances[0] < distances[1] < distances[2]


def test_offline_features_classify_as_published():
    """The pooled features, put through the network's own classifier, give its logits: the trunk is wired as trained."""
    features = Lite0Features().eval()
    x = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    pixels = (x.float() / 255 - features.mean) / features.std
    with torch.inference_mode():
        torch.testing.assert_close(features.net._fc(features(x)), features.net(pixels), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"frechet": "inception", "inception": "nowhere.pth"}, r"nowhere\.pth does not exist.*weights-inception-2015"),
        ({"frechet": "none", "lpips": "vgg", "lpips_trunk": "nowhere.pth"}, r"nowhere\.pth does not exist.*vgg16"),
    ],
)
def test_missing_weights_are_named(data, tmp_path, config, words):
    main(["train-palette", "--data", str(data), "--out", str(tmp_path), "--colours", "16"])
    with pytest.raises(InputError, match=words):
        evaluate_tokenizer(tmp_path, "demo", data, tmp_path / "out.json", EvaluateConfig(**config))


TINY = """
[vqgan]
batch_size = 4
steps = 4
precision = "float32"
device = "cpu"

[vqgan.model]
resolution = 32
ch = 32
ch_mult = [1, 1, 1]
num_res_blocks = 1
attn_resolutions = []
z_channels = 16
embed_dim = 8
codebook_size = 32

[vqgan.loss]
perceptual = "none"
disc_weight = 0.0
"""


@pytest.mark.slow
def test_ray_train_workers_leave_one_tokenizer(local_ray_cores, data, tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(TINY)
    flags = ["--preset", str(tmp_path / "tiny.toml"), "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(["train-vqgan", *flags, "--workers", "2"]) == 0
    assert all(np.isfinite(value).all() for value in load_model(tmp_path / "run")[1].state_dict().values())
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4
    flags[-1] = str(tmp_path / "another")
    assert main(["train-vqgan", *flags, "--workers", "2", "--batch-size", "3"]) == 2
    assert "batch_size is 3: choose a multiple of 2" in capsys.readouterr().err
