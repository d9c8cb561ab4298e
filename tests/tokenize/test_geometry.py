"""Geometry of the tokenizers in the job: codes, plan, and refusals before the work starts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_job import CONFIG, write_tokenizer

from codeshards.format import GridSpec, ShardDataset, ShardError, ShardSpec, load_plan
from codeshards.format.plan import PlannedShard
from codeshards.job.encode import ShardTask, encode_shard
from codeshards.job.tokenize import tokenize
from vqgan.data import open_splits, views_of
from vqgan.data.poses import JOINTS
from vqgan.errors import InputError
from vqgan.tokenizer import Tokenizer


@pytest.fixture
def tall(tmp_path) -> Path:
    """Tall photos with depth and drawn poses, as `folder` reads them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for number in range(count):
            pixels = rng.integers(0, 250, (8, 5, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            for place, picture in (
                (split, pixels),
                (f"{split}_depth", pixels[..., 0].copy()),
                (f"{split}_pose", pixels),
            ):
                path = tmp_path / "data" / place / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    return tmp_path / "data"


def test_codes_are_those_of_padded_views_and_the_plan_records_it(local_ray_cores, tall, tmp_path):
    folders = {"image": write_tokenizer(tmp_path / "t", geometry="pad")}
    folders["depth"] = write_tokenizer(tmp_path / "d", geometry="pad", modality="depth")
    out = tmp_path / "o"
    tokenize(replace(CONFIG, views=2), dataset="folder", data=tall, tokenizers=folders, out=out)
    settings = load_plan(out).settings
    assert (settings["geometry"], settings["depth"]) == ("pad", "stretched over the whole map")
    dataset, split = ShardDataset.open(out), open_splits("folder", tall)["val"]
    (batch,) = dataset.batches("val", ["key", "view", "codes_row_major", "cond_depth"])
    samples = [
        sample
        for index in range(2)
        for sample in split.read_views(index, 32, views_of(2), conditions=("depth",), geometry="pad")
    ]
    for name, column in (("image", "codes_row_major"), ("depth", "cond_depth")):
        encoder = Tokenizer.load(folders[name], device="cpu")
        pictures = [sample.picture(encoder.config.modality) for sample in samples]
        assert all((picture[:, :4] == (255 if name == "image" else 0)).all() for picture in pictures)
        np.testing.assert_array_equal(batch[column], encoder.encode(pictures).reshape(4, -1))


def test_plan_of_a_crop_is_unchanged(undisturbed):
    settings = json.loads((undisturbed / "plan.json").read_text())["plan"]["settings"]
    assert not {"geometry", "depth"} & settings.keys()


def test_tokenizers_of_different_geometries_are_refused(tall, tmp_path):
    folders = {"image": write_tokenizer(tmp_path / "t")}
    folders["depth"] = write_tokenizer(tmp_path / "d", geometry="stretch", modality="depth")
    with pytest.raises(ShardError, match=r"'depth' and 'image' differ in geometry \(stretch and crop\)"):
        tokenize(CONFIG, dataset="folder", data=tall, tokenizers=folders, out=tmp_path / "o")
    assert not (tmp_path / "o" / "plan.json").exists()


def test_mirrors_of_drawn_poses_are_refused_before_the_work(tall, tmp_path):
    folders = {"image": write_tokenizer(tmp_path / "t"), "pose": write_tokenizer(tmp_path / "p", modality="pose")}
    where = {"dataset": "folder", "data": tall, "tokenizers": folders, "out": tmp_path / "o"}
    for views in (2, 12):
        with pytest.raises(InputError, match=r"a drawn pose cannot be mirrored.*set views = 1, or give keypoints"):
            tokenize(replace(CONFIG, views=views), **where)
        assert not (tmp_path / "o" / "plan.json").exists()


def test_keypoints_are_mirrored(tmp_path):
    """Layout of DeepFashion: both views of the padded photos have codes, and those of the poses differ."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (22, 32), "grey").save(tmp_path / split / "a.png")
        ys, xs = [2 + number for number in range(len(JOINTS))], list(range(len(JOINTS)))
        line = f"name:keypoints_y:keypoints_x\na.png: {ys}: {xs}\n"
        (tmp_path / f"fasion-annotation-{split}.csv").write_text(line)
    split = open_splits("deepfashion", tmp_path)["train"]
    encoders = {
        name: Tokenizer.load(write_tokenizer(tmp_path / name, modality=modality, geometry="pad"), device="cpu")
        for name, modality in (("image", "rgb"), ("pose", "pose"))
    }
    grid = {
        name: GridSpec(height=8, width=8, codebook_size=64, fingerprint=one.fingerprint)
        for name, one in encoders.items()
    }
    sidecar = encode_shard(
        ShardTask(shard=PlannedShard(split="train", index=0, start=0, stop=1), plan_hash="p", samples=split),
        tokenizers=encoders,
        spec=ShardSpec(image=grid.pop("image"), conditions=grid),
        config=replace(CONFIG, views=2),
        out=tmp_path / "o",
    )
    assert (sidecar.rows, sidecar.failures) == (2, ())
