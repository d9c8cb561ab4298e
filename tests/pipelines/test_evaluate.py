"""evaluate-tokenizer, train-palette and training on a Ray cluster."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from random_inception import write_inception

from imagepriors.cli import main
from imagepriors.demo.layouts import write_demo_data
from imagepriors.evaluate.config import EvaluateConfig
from imagepriors.evaluate.networks import INCEPTION_FILE, Lite0Features, frechet_distance, network_notes
from imagepriors.evaluate.tokenizer import evaluate_tokenizer
from vqgan.checkpoint import load_model, publish_model, save_model, trained_against
from vqgan.config import LossConfig, ModelConfig, TrainConfig
from vqgan.errors import InputError
from vqgan.losses import TRUNK_FILES, LpipsLoss, lite0_input
from vqgan.model import VQGAN


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    write_demo_data(out, n_train=12, n_val=6, size=32)
    return out


def test_figures_of_a_palette_are_written_with_their_settings(data, tmp_path, capsys):
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
    assert 0 < figures["frechet_efficientnet_lite0"] < figures["frechet_efficientnet_lite0, real"]
    assert report["networks"] == {
        "frechet_efficientnet_lite0": "computed by efficientnet-lite0; the tokenizer's perceptual training loss is none"
    }
    assert not any("fid" in name for name in figures)  # offline features are never called FID
    assert f"{figures['psnr_db']:.4f}" in printed


def test_a_published_resize_is_recorded_and_requires_centre_squares(data, tmp_path):
    flags = ["--data", str(data), "--colours", "16"]
    main(["train-palette", *flags, "--out", str(tmp_path / "crop"), "--resolution", "16"])
    config = EvaluateConfig(frechet="none", resize="adm")
    found = evaluate_tokenizer(tmp_path / "crop", "demo", data, tmp_path / "adm.json", config)
    assert found["resize"].startswith("halved by a box filter")
    assert (found["images"], found["features"], found["weights_sha256"], found["notes"]) == (6, "none", "", [])
    own = evaluate_tokenizer(tmp_path / "crop", "demo", data, tmp_path / "own.json", EvaluateConfig(frechet="none"))
    assert found["figures"]["psnr_db"] != own["figures"]["psnr_db"]
    main(["train-palette", *flags, "--out", str(tmp_path / "pad"), "--resolution", "16", "--geometry", "pad"])
    with pytest.raises(InputError, match=r"resize is 'adm', a rule for centre squares.* geometry pad: use training"):
        evaluate_tokenizer(tmp_path / "pad", "demo", data, tmp_path / "x.json", config)


@pytest.mark.slow
def test_only_the_published_weights_give_an_rfid(data, tmp_path, monkeypatch):
    write_inception(tmp_path / "w.pth")
    main(["train-palette", "--data", str(data), "--out", str(tmp_path), "--colours", "16"])
    config = EvaluateConfig(frechet="inception", inception=str(tmp_path / "w.pth"), limit=3)
    found = evaluate_tokenizer(tmp_path, "demo", data, tmp_path / "x.json", config)
    name = f"frechet_inception_{found['weights_sha256'][:8]}"
    assert "rfid" not in found["figures"]
    assert found["figures"][name] > 0
    monkeypatch.setattr("imagepriors.evaluate.networks.PUBLISHED", found["weights_sha256"][:8])
    published = evaluate_tokenizer(tmp_path, "demo", data, tmp_path / "x.json", config)
    assert published["figures"]["rfid"] == pytest.approx(found["figures"][name], rel=1e-3)


def test_a_report_names_figures_of_the_network_in_the_training_loss(tmp_path):
    net = ModelConfig(resolution=16, ch=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), codebook_size=8)
    for loss, words in (
        (LossConfig(perceptual="efficientnet-lite0"), "loss is efficientnet-lite0, the same network"),
        (LossConfig(perceptual="lpips-vgg"), "loss is lpips-vgg"),
        (LossConfig(perceptual="lpips-vgg", perceptual_weight=0.0), "loss is none"),
        (None, "loss is unknown"),
    ):
        publish_model(tmp_path, net, VQGAN(net), "some-command", loss)
        (note,) = network_notes(["psnr_db", "frechet_efficientnet_lite0"], trained_against(tmp_path)).values()
        assert note.startswith("computed by efficientnet-lite0; ")
        assert words in note
        assert ("optimistic" in note) == ("the same network" in words)


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
    """The network's own classifier on the pooled features gives its logits."""
    features = Lite0Features().eval()
    x = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(
            features.net._fc(features(x)), features.net(lite0_input(x.float())), rtol=1e-3, atol=1e-3
        )


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


def test_a_bad_picture_is_skipped_in_a_palette_and_its_figures(tmp_path):
    for split in ("train", "val"):
        for number in range(8):
            path = tmp_path / "data" / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n{} loop\n")
    flags = ["--dataset", "folder", "--data", str(tmp_path / "data")]
    palette = ["train-palette", *flags, "--out", str(tmp_path / "p"), "--colours", "16", "--resolution", "16"]
    assert main(palette) == 0
    assert main(["evaluate-tokenizer", *flags, "--tokenizer", str(tmp_path / "p"), "--frechet", "none"]) == 0
    report = json.loads((tmp_path / "p" / "evaluation.json").read_text())
    assert (report["images"], report["unreadable"]) == (7, 1)


def test_a_mask_with_labels_unknown_to_the_tokenizer_is_skipped(tmp_path):
    tokenizer, data = tmp_path / "tokenizer", tmp_path / "data"
    for number in range(4):
        for folder, picture in (
            ("val", Image.new("RGB", (16, 16))),
            ("val_segmentation", Image.new("L", (16, 16), number)),
        ):
            (data / folder).mkdir(parents=True, exist_ok=True)
            picture.save(data / folder / f"{number}.png")
    net = ModelConfig(
        modality="segmentation", n_labels=3, resolution=16, ch=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(),
        z_channels=8, embed_dim=8, codebook_size=8,
    )  # fmt: skip
    save_model(tokenizer, TrainConfig(model=net, loss=LossConfig(perceptual="none")), VQGAN(net))
    (data / "train").mkdir()
    Image.new("RGB", (16, 16)).save(data / "train" / "x.png")
    report = evaluate_tokenizer(tokenizer, "folder", data, tokenizer / "e.json", EvaluateConfig(frechet="none"))
    assert (report["images"], report["unreadable"]) == (3, 1)


class Marker:
    """Creates a file in the current folder when it is unpickled."""

    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


LPIPS_VGG = {"frechet": "none", "lpips": "vgg"}


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_no_named_or_cached_file_of_weights_is_executed(data, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    main(["train-palette", "--data", str(data), "--out", str(tmp_path / "tok"), "--colours", "16"])
    cached = tmp_path / "cache" / "hub" / "checkpoints"
    cached.mkdir(parents=True)
    for path in (tmp_path / "w.pth", cached / INCEPTION_FILE, *(cached / name for name in TRUNK_FILES.values())):
        torch.save({"a": Marker()}, path, _use_new_zipfile_serialization=form == "zip")
    for config in (
        {"frechet": "inception", "inception": "w.pth"},
        {"frechet": "inception"},
        {**LPIPS_VGG, "lpips_trunk": "w.pth"},
        LPIPS_VGG,
    ):
        with pytest.raises(InputError, match=r"it names \w+\.system, which no weights need"):
            evaluate_tokenizer(tmp_path / "tok", "demo", data, tmp_path / "out.json", EvaluateConfig(**config))
    for net in TRUNK_FILES:
        with pytest.raises(InputError, match=r"it names \w+\.system, which no weights need"):
            LpipsLoss(net, "")
    assert not (tmp_path / "executed").exists()


def test_a_cached_trunk_gives_the_distance_of_the_package(tmp_path, monkeypatch):
    """torchvision's files of this age are in torch's old format."""
    import lpips
    from torchvision.models import alexnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / TRUNK_FILES["alex"]
    path.parent.mkdir(parents=True)
    torch.save(alexnet(weights=None).state_dict(), path, _use_new_zipfile_serialization=False)
    pair = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        expected = lpips.LPIPS(net="alex", verbose=False)(*pair).mean()
        assert torch.equal(LpipsLoss("alex", "")(*pair), expected)
        assert torch.equal(LpipsLoss("alex", str(path))(*pair), expected)


def test_the_named_inception_weights_are_used(tmp_path):
    network = write_inception(tmp_path / "w.pth")
    metric = frechet_distance("inception", str(tmp_path / "w.pth"), torch.device("cpu"))
    assert torch.equal(metric.inception.fc.weight, network.fc.weight)
    torch.save({}, tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"none\.pth holds no state_dict"):
        frechet_distance("inception", str(tmp_path / "none.pth"), torch.device("cpu"))
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth does not fit.*weights-inception-2015"):
        frechet_distance("inception", str(tmp_path / "other.pth"), torch.device("cpu"))


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
