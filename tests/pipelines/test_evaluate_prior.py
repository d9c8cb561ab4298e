"""Condition predictors learn visible conditions, and distances separate equal pictures from different ones."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tiny_job import write_tokenizer
from tiny_shards import SPEC, make_dataset
from torchvision.models import ResNet18_Weights

import imagepriors as ip
from codeshards.format import ORDER_NAMES
from imagepriors.demo.layouts import write_demo_data
from imagepriors.evaluate.conditions import ConditionScore, derangement
from imagepriors.evaluate.config import EvaluatePriorConfig
from imagepriors.evaluate.distances import Judge
from imagepriors.evaluate.networks import (
    INCEPTION_FILE,
    Lite0Features,
    check_features,
    imagenet_accuracy,
    is_imagenet,
    load_network,
)
from imagepriors.evaluate.pictures import HeldPictures, Origin
from imagepriors.evaluate.predictor import ConditionPredictor
from imagepriors.evaluate.reference import Reference, dataset_reference
from vqgan.checkpoint import fingerprint
from vqgan.data import open_splits
from vqgan.errors import InputError

SIDE = 32
CPU = torch.device("cpu")
DATA = os.environ.get("IMAGEPRIORS_DATA")


def scenes(count: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Noisy pictures with a square in one of three colours, and all their conditions."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 60, (count, SIDE, SIDE, 3)).astype(np.uint8)
    known = {
        "class": rng.integers(0, 3, count),
        "segmentation": np.zeros((count, SIDE, SIDE), np.uint8),
        "depth": np.ones((count, SIDE, SIDE), np.float32),
        "pose": np.zeros((count, SIDE, SIDE, 3), np.uint8),
    }
    for i in range(count):
        top, left = rng.integers(0, SIDE - 12, 2)
        square = np.s_[i, top : top + 12, left : left + 12]
        pictures[(*square, known["class"][i])] = 220
        known["segmentation"][square] = 1 + known["class"][i]
        known["depth"][square] = 0.1
        known["pose"][square] = 255
    return pictures, known


def score(name, n, predictions, conditions, batch=60):
    result = ConditionScore(name, n)
    for start in range(0, len(predictions), batch):
        result.add(predictions[start : start + batch], conditions[start : start + batch])
    return result.value()


def test_visible_conditions_are_predicted_and_belong_to_their_own_picture():
    sizes = {"class": 3, "segmentation": 4, "depth": 0, "pose": 0}
    predictor = ConditionPredictor.fit(*scenes(200, 0), sizes, steps=250)
    pictures, wanted = scenes(60, 1)
    for name, n in sizes.items():
        found, target = predictor.predict(name, pictures), wanted[name]
        own = score(name, n, found, target)
        assert own > 0.75, name
        assert own > score(name, n, found, target[derangement(60)]) + 0.25, name
        assert score(name, n, found, target, batch=7) == pytest.approx(own)
        assert score(name, n, target, target) == pytest.approx(1)


def test_a_predictor_of_classes_alone_has_no_upward_path():
    pictures, known = scenes(40, 0)
    predictor = ConditionPredictor.fit(pictures, {"class": known["class"]}, {"class": 3}, steps=2)
    assert not predictor._net.up
    assert predictor.predict("class", pictures).shape == (40,)


def test_predictor_training_is_repeatable():
    pictures, known = scenes(40, 0)
    depth = {"depth": known["depth"]}
    predictors = (ConditionPredictor.fit(pictures, depth, {"depth": 0}, steps=3, seed=5) for _ in range(2))
    first, second = (predictor.predict("depth", pictures) for predictor in predictors)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_a_derangement_has_no_fixed_points(n):
    found = derangement(n)
    assert sorted(found) == list(range(n))
    assert (found != np.arange(n)).all()


@pytest.fixture(scope="module")
def judge():
    """Compares with 24 scenes."""
    pictures = HeldPictures(scenes(24, 0)[0])
    return Judge(Reference("scenes", pictures, Origin("", "", "", 24)), load_network("efficientnet-lite0", "", CPU))


def test_distances_separate_equal_pictures_from_different_ones(judge):
    pictures, _ = scenes(24, 0)
    same = judge.figures(HeldPictures(pictures[::-1]))
    noise = np.random.default_rng(2).integers(0, 256, pictures.shape).astype(np.uint8)
    other = judge.figures(HeldPictures(noise))
    assert same["frechet_efficientnet_lite0"] == pytest.approx(0, abs=1e-2)
    assert same["precision"] == same["recall"] == 1
    assert other["frechet_efficientnet_lite0"] > 10
    assert other["precision"] < 0.2
    assert "fid" not in same  # these features are not Inception's
    assert load_network("none", "", CPU) is None


def test_other_real_pictures_accompany_samples(tmp_path):
    """As many as there are samples and disjoint from the reference, from the same split or the other one."""
    write_demo_data(tmp_path, n_train=20, n_val=12, size=32)
    splits = open_splits("demo", tmp_path)
    for limit, n, whose in ((12, 8, "train"), (0, 12, "val"), (12, 13, None)):
        config = EvaluatePriorConfig(n=n, reference_limit=limit)
        reference = dataset_reference("demo", tmp_path, 32, n, config)
        assert reference.pictures.shape == (limit or 20, 32, 32, 3)
        if whose is None:
            assert reference.others is None
            continue
        known = {splits[whose].read(index, 32).image.tobytes() for index in range(len(splits[whose]))}
        others = {picture.tobytes() for batch in reference.others.batches() for picture in batch}
        assert len(others) == n
        assert others <= known
        assert others.isdisjoint(picture.tobytes() for batch in reference.pictures.batches() for picture in batch)
    reference = dataset_reference("demo", tmp_path, 32, 12, EvaluatePriorConfig())
    figures = Judge(reference, load_network("efficientnet-lite0", "", CPU)).figures(reference.pictures)
    assert figures["frechet_efficientnet_lite0"] == pytest.approx(0, abs=1e-2)
    assert figures["frechet_efficientnet_lite0, real"] > 1
    assert {"precision, real", "recall, real"} <= set(figures)


def test_given_samples_are_judged_by_given_pictures(tmp_path):
    """Nothing is drawn, and the report identifies both files. A prior of any order is measured in each order."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer", resolution=16, ch_mult=(1, 1, 1), codebook_size=50)
    spec = replace(SPEC, image=replace(SPEC.image, fingerprint=fingerprint(tokenizer)))
    make_dataset(tmp_path / "shards", spec=spec, tokenizer=tokenizer)
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "position": "grid"}
    fields = {"steps": 2, "batch_size": 2, "eval_every": 2, "objective": "any_order", "order": "zcurve", "model": model}
    prior = ip.train_prior(tmp_path / "shards", out=tmp_path / "prior", preset="tiny", **fields)
    pictures, _ = scenes(12, 0)
    np.savez(tmp_path / "samples.npz", pictures[:5])
    (tmp_path / "samples.json").write_text(json.dumps({"sampling": {"guidance": 2.5}}))
    np.savez(tmp_path / "reference.npz", pictures)
    files = {name: str(tmp_path / f"{name}.npz") for name in ("samples", "reference")}
    found = ip.evaluate_prior(prior, out=tmp_path / "p.json", **files)
    assert found == json.loads((tmp_path / "p.json").read_text())
    assert found["figures"]["precision"] == 1
    assert (found["samples"], found["reference_pictures"], found["sampling"]) == (5, 12, {"guidance": 2.5})
    for name, path in files.items():
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        assert (found[f"{name}_origin"]["path"], found[f"{name}_origin"]["sha256"]) == (path, digest)
    assert "5 pictures, not 50,000" in found["notes"][0]
    assert found["resize"] is None
    files["reference"] = "train"
    with pytest.raises(InputError, match="resize is 'adm', but nothing is resized: the reference is training pictures"):
        ip.evaluate_prior(prior, out=tmp_path / "q.json", resize="adm", **files)
    nll = {name: found["figures"][f"nll_nats_{name}"] for name in ORDER_NAMES}
    assert len(set(nll.values())) == len(ORDER_NAMES)
    assert nll["zcurve"] == found["figures"]["nll_nats"]


def test_samples_of_one_kind_have_high_precision_and_low_recall(judge):
    pictures, _ = scenes(24, 0)
    one_kind = judge.figures(HeldPictures(pictures[[0, 1, 0, 1, 0, 1, 0, 1]]))
    assert one_kind["precision"] == 1
    assert one_kind["recall"] < 0.5


def test_missing_inception_weights_are_named(tmp_path):
    with pytest.raises(InputError, match=INCEPTION_FILE):
        load_network("inception", str(tmp_path / "w.pth"), CPU)


def test_imagenet_classes_are_recognised():
    synsets = [f"n{i:08d}" for i in range(1000)]
    assert is_imagenet(synsets)
    assert not is_imagenet(synsets[:999])
    assert not is_imagenet(synsets[::-1])
    assert not is_imagenet([*synsets[:999], "tench"])


def test_accuracy_of_the_classifiers_own_labels_is_one():
    pictures, _ = scenes(6, 0)
    with torch.inference_mode():
        best = Lite0Features().eval().classify(torch.from_numpy(pictures).permute(0, 3, 1, 2)).topk(6).indices.numpy()
    assert imagenet_accuracy(pictures, best[:, 0]) == {"imagenet top-1": 1.0, "imagenet top-5": 1.0}
    assert imagenet_accuracy(pictures, best[:, 4]) == {"imagenet top-1": 0.0, "imagenet top-5": 1.0}
    assert imagenet_accuracy(pictures, best[:, 5]) == {"imagenet top-1": 0.0, "imagenet top-5": 0.0}


@pytest.mark.skipif(not DATA, reason="IMAGEPRIORS_DATA is not set: it names the folder of real photos")
def test_the_classifier_recognises_real_photos():
    """Top-1 accuracy is about 0.9; a wrong normalisation reduces it by an eighth.

    A photo's file has the name of its class; ambiguous names ("crane") are omitted.
    """
    names = [name.replace(" ", "_") for name in ResNet18_Weights.DEFAULT.meta["categories"]]
    paths = sorted((Path(DATA) / "imagenet-sample" / "train").glob("*/*.JPEG"))
    known = [path for path in paths if names.count(path.stem.partition("_")[2]) == 1]
    assert len(known) > 400
    pictures = np.stack([photo(path) for path in known])
    found = imagenet_accuracy(pictures, np.array([names.index(path.stem.partition("_")[2]) for path in known]))
    assert found["imagenet top-1"] > 0.85
    assert found["imagenet top-5"] > 0.95


def photo(path: Path) -> np.ndarray:
    """The inner 224×224 pixels of a photo whose shorter side is 256, as classifiers are evaluated."""
    with Image.open(path) as image:
        square = ImageOps.fit(image.convert("RGB"), (256, 256), Image.BICUBIC)
    return np.asarray(square)[16:240, 16:240]


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_the_file_of_inception_weights_is_never_executed(tmp_path, monkeypatch, form):
    class Marker:
        def __reduce__(self):
            return os.system, ("touch executed",)

    monkeypatch.chdir(tmp_path)
    torch.save({"a": Marker()}, tmp_path / "w.pth", _use_new_zipfile_serialization=form == "zip")
    for run in (lambda: load_network("inception", "w.pth", CPU), lambda: check_features("inception", "w.pth")):
        with pytest.raises(InputError, match=r"it names \w+\.system, which no weights need"):
            run()
    assert not (tmp_path / "executed").exists()
