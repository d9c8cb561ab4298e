"""DeepFashion's tall photos keep head and feet by default, and commands use the geometry of their tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pictures import TINY

from imagepriors.cli import main
from imagepriors.experiments.config import ExperimentConfig
from imagepriors.experiments.workspace import Workspace
from vqgan.checkpoint import load_config, save_model
from vqgan.config import ModelConfig, TrainConfig
from vqgan.data import open_splits
from vqgan.data.poses import JOINTS
from vqgan.model import VQGAN
from vqgan.tokenizer import Tokenizer


@pytest.fixture
def people(tmp_path) -> Path:
    """Photos of 22×32 in DeepFashion's layout, with a red head at the upper edge and blue feet at the lower edge."""
    root, rng = tmp_path / "people", np.random.default_rng(0)
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        lines = ["name:keypoints_y:keypoints_x"]
        for number in range(4):
            photo = Image.fromarray(rng.integers(60, 140, (32, 22, 3), dtype=np.uint8))
            photo.paste((250, 0, 0), (8, 0, 14, 3))
            photo.paste((0, 0, 250), (8, 29, 14, 32))
            photo.save(root / split / f"{number}.png")
            ys, xs = [-1] * len(JOINTS), [-1] * len(JOINTS)
            for name, y in (("nose", 1), ("neck", 12)):
                ys[JOINTS.index(name)], xs[JOINTS.index(name)] = y, 11
            lines.append(f"{number}.png: {ys}: {xs}")
        (root / f"fasion-annotation-{split}.csv").write_text("\n".join(lines))
    return root


def has_head_and_feet(picture: np.ndarray) -> tuple[bool, bool]:
    red, green, blue = picture.astype(int).reshape(-1, 3).T
    return bool(((red > 200) & (green < 60)).any()), bool(((blue > 200) & (green < 60)).any())


def test_inspect_shows_whole_people_by_default(people, tmp_path):
    for flags, whole in (([], True), (["--geometry", "stretch"], True), (["--geometry", "crop"], False)):
        out = tmp_path / "-".join(["inspect", *flags])
        assert main(["inspect", "deepfashion", "--data", str(people), "--out", str(out), "--size", "32", *flags]) == 0
        sheet = np.asarray(Image.open(out / "train.png"))[2:34, 2:34]
        assert has_head_and_feet(sheet) == (whole, whole)
        assert json.loads((out / "inspection.json").read_text())["geometry"] == (flags[-1] if flags else "pad")


def test_geometry_follows_the_flag_then_the_preset_then_the_dataset(people, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "squeezed.toml").write_text(TINY.replace("[vqgan.model]", '[vqgan.model]\ngeometry = "stretch"'))
    for number, (dataset, preset, flags, expected) in enumerate((
        ("deepfashion", "tiny", [], "pad"),
        ("deepfashion", "squeezed", [], "stretch"),
        ("deepfashion", "squeezed", ["--model.geometry", "crop"], "crop"),
        ("folder", "tiny", [], "crop"),
    )):  # fmt: skip
        out = tmp_path / str(number)
        where = ["--dataset", dataset, "--data", str(people), "--out", str(out)]
        assert main(["train-vqgan", "--preset", str(tmp_path / f"{preset}.toml"), *where, *flags]) == 0
        assert load_config(out).model.geometry == expected


def test_palettes_and_evaluations_use_the_geometry(people, tmp_path):
    where = ["--dataset", "deepfashion", "--data", str(people)]
    for flags, expected in (([], "pad"), (["--geometry", "crop"], "crop")):
        palette = tmp_path / expected
        size = ["--colours", "2", "--resolution", "32"]
        assert main(["train-palette", *where, "--out", str(palette), *size, *flags]) == 0
        assert load_config(palette).model.geometry == expected
        assert main(["evaluate-tokenizer", *where, "--tokenizer", str(palette), "--frechet", "none"]) == 0
        report = json.loads((palette / "evaluation.json").read_text())
        assert report["geometry"] == expected
        # A naive reference: the palette's reconstructions of the pictures in this geometry.
        split, encoder = open_splits("deepfashion", people)["val"], Tokenizer.load(palette, device="cpu")
        pictures = np.stack([split.read(index, 32, geometry=expected).image for index in range(4)])
        errors = np.square(encoder.decode(encoder.encode(list(pictures))).astype(float) - pictures).mean((1, 2, 3))
        np.testing.assert_allclose(report["figures"]["psnr_db"], np.mean(10 * np.log10(255**2 / errors)))


def test_depth_is_scaled_by_its_whole_map(tmp_path):
    """The depths at the edges, outside the crop, decide the scale of the metrics."""
    rng = np.random.default_rng(0)
    for number in range(4):
        depth = rng.normal(0, 1, (16, 40))
        depth[:, :4], depth[:, -4:] = -50, 50
        for folder, form, content in (("val", "png", None), ("val_depth", "npy", depth)):
            path = tmp_path / "data" / folder / f"{number}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, content) if content is not None else Image.new("RGB", (40, 16), "grey").save(path)
    net = ModelConfig(
        modality="depth", resolution=16, ch=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), z_channels=8,
        embed_dim=8, codebook_size=8,
    )  # fmt: skip
    save_model(tmp_path / "t", TrainConfig(model=net), VQGAN(net))
    where = ["--dataset", "folder", "--data", str(tmp_path / "data"), "--tokenizer", str(tmp_path / "t")]
    assert main(["evaluate-tokenizer", *where, "--frechet", "none"]) == 0
    report = json.loads((tmp_path / "t" / "evaluation.json").read_text())
    split, encoder = open_splits("folder", tmp_path / "data")["val"], Tokenizer.load(tmp_path / "t", device="cpu")
    seen = np.stack([split.read(i, 16, conditions=("depth",)).picture("depth") for i in range(len(split))])
    assert 0.4 < seen.min() < seen.max() < 0.6
    errors = np.square(encoder.decode(encoder.encode(list(seen))).astype(float) - seen).mean((1, 2))
    np.testing.assert_allclose(report["figures"]["psnr_db"], np.mean(10 * np.log10(1 / errors)), rtol=1e-6)


def test_an_experiment_has_one_geometry_for_image_and_conditions(tmp_path):
    for dataset, expected in (("deepfashion", "pad"), ("imagenet", "crop")):
        config = ExperimentConfig(
            name="x", dataset=dataset, tokenizer="imagenet-f16-1024", small_tokenizer="cifar10-f2", prior="gpt2-small"
        )
        workspace = Workspace(config, tmp_path, tmp_path)
        for preset in ("imagenet-f16-1024", "pose-f16", "cifar10-f2"):
            assert workspace.tokenizer_config(preset).model.geometry == expected
