"""Figures agree with independent readings of their definitions, and sources of pictures hold what their files hold.

The published Inception weights are not part of the tests: networks here have the architecture and random weights.
"""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_inception import write_inception
from scipy import linalg
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from imagepriors.evaluate.config import EvaluatePriorConfig
from imagepriors.evaluate.distances import (
    Judge,
    features_of,
    frechet,
    inception_score,
    precision_recall,
    statistics_of,
)
from imagepriors.evaluate.networks import PUBLISHED, FeatureNetwork, load_network, network_notes
from imagepriors.evaluate.pictures import HeldPictures, NpzPictures, Origin, open_samples
from imagepriors.evaluate.protocol import comparison_notes
from imagepriors.evaluate.reference import Reference, Statistics, file_reference
from imagepriors.evaluate.resizes import resized
from vqgan.errors import InputError

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (130, 12, 12, 3)).astype(np.uint8)
HERE = Origin("here", "", "the array", 0)


def features(count: int, dims: int, shift: float = 0) -> torch.Tensor:
    mixing = np.random.default_rng(5).normal(size=(dims, dims))
    return torch.from_numpy(RNG.normal(size=(count, dims)) @ mixing + shift).float()


def test_the_frechet_distance_is_that_of_scipy_and_torchmetrics():
    a, b = features(80, 6), features(60, 6, shift=0.5)
    found = frechet(*(statistics_of({"pooled": part})["pooled"] for part in (a, b)))
    (mu_a, sigma_a), (mu_b, sigma_b) = ((part.double().mean(0).numpy(), np.cov(part.double().T)) for part in (a, b))
    root = linalg.sqrtm(sigma_a @ sigma_b).real
    assert found == pytest.approx(((mu_a - mu_b) ** 2).sum() + np.trace(sigma_a + sigma_b - 2 * root), rel=1e-6)
    network = nn.Identity()
    network.num_features = 6
    metric = FrechetInceptionDistance(feature=network)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert found == pytest.approx(float(metric.compute()), rel=1e-4)


def test_precision_and_recall_count_points_in_balls_to_the_third_neighbour():
    samples, reference = features(40, 4), features(30, 4, shift=1)

    def covered(points: torch.Tensor, centres: torch.Tensor) -> float:
        inside = 0
        for point in points.tolist():
            for centre in centres.tolist():
                near = sorted(
                    sum((x - y) ** 2 for x, y in zip(centre, other, strict=True)) for other in centres.tolist()
                )
                if sum((x - y) ** 2 for x, y in zip(point, centre, strict=True)) <= near[3]:  # near[0] is its own
                    inside += 1
                    break
        return inside / len(points)

    found = precision_recall(samples, reference)
    assert found["precision"] == pytest.approx(covered(samples, reference))
    assert found["recall"] == pytest.approx(covered(reference, samples))
    assert 0 < found["precision"] != found["recall"] > 0


def test_the_inception_score_is_the_mean_over_consecutive_parts():
    logits = torch.cat([features(5000, 3), features(2000, 3, shift=2)])
    scores = []
    for part in (logits[:5000].double().numpy(), logits[5000:].double().numpy()):
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        entropy = -(p * np.log(p)).sum(1).mean()
        mean = p.mean(0)
        scores.append(np.exp(-(mean * np.log(mean)).sum() - entropy))
    assert inception_score(logits) == pytest.approx(sum(scores) / 2, rel=1e-6)


@pytest.fixture(scope="module")
def inception(tmp_path_factory) -> Path:
    """A file of random weights of torch-fidelity's Inception."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    write_inception(path)
    return path


def test_inception_features_are_those_of_adms_evaluator(inception):
    network = load_network("inception", str(inception), torch.device("cpu"))
    found = features_of(HeldPictures(PICTURES[:3]), network)
    assert {name: values.shape[1] for name, values in found.items()} == {
        "pooled": 2048,
        "spatial": 2023,
        "logits": 1008,
    }
    assert all((values[0] - values[1]).abs().max() > 0.01 for values in found.values())
    net, seen = network.net.net, {}
    net.Mixed_6d.register_forward_hook(lambda _module, _inputs, output: seen.update(mixed_6=output))
    with torch.inference_mode():
        (pooled, logits) = net(torch.from_numpy(PICTURES[:3]).permute(0, 3, 1, 2))
    torch.testing.assert_close(found["pooled"], pooled)
    torch.testing.assert_close(found["logits"], logits)
    torch.testing.assert_close(found["logits"], pooled @ net.fc.weight.T)
    # The first branch of mixed_6 comes first in its channels. TensorFlow's channels are last.
    torch.testing.assert_close(found["spatial"].reshape(3, 17, 17, 7)[:, 4, 9], seen["mixed_6"][:, :7, 4, 9])


def test_precision_and_recall_are_noted_with_the_network_of_their_distance():
    notes = network_notes(["nll_nats", "frechet_efficientnet_lite0", "precision", "recall"], "efficientnet-lite0")
    assert list(notes) == ["frechet_efficientnet_lite0", "precision", "recall"]
    assert len(set(notes.values())) == 1
    assert network_notes(["fid", "precision"], "none")["precision"].startswith("computed by inception;")


def test_weights_that_are_not_the_published_ones_give_no_fid(inception):
    network = load_network("inception", str(inception), torch.device("cpu"))
    names = set(network.figures.values())
    assert names == {f"{name}_inception_{network.weights_sha256[:8]}" for name in ("frechet", "score")} | {
        f"frechet_inception_{network.weights_sha256[:8]}_spatial"
    }
    assert all("not the published ones" in note for note in network_notes(names, "none").values())
    with pytest.raises(InputError, match="statistics are of the published Inception weights"):
        Judge(Reference("x.npz", None, HERE, statistics={"pooled": STATISTICS}), network)


class Tiny(nn.Module):
    """A network with the outputs of Inception in few dimensions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict(
            {"pooled": nn.Linear(432, 5), "spatial": nn.Linear(432, 4), "logits": nn.Linear(432, 3)}
        )

    def forward(self, x_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: layer(x_BCHW.flatten(1) / 255) for name, layer in self.layers.items()}


TINY = FeatureNetwork(Tiny(), "inception", PUBLISHED.ljust(64, "0"))
STATISTICS = Statistics(np.zeros(5), np.eye(5))


def test_a_judge_compares_with_pictures_or_with_statistics_in_their_place():
    first, second, others = (HeldPictures(PICTURES[start : start + 40]) for start in (0, 40, 80))
    judge = Judge(Reference("pictures", second, HERE, others), TINY)
    by_pictures = judge.figures(first)
    names = ["fid", "sfid", "precision", "recall", "inception_score"]
    assert list(by_pictures) == [*names, *(f"{name}, real" for name in names)]
    statistics = statistics_of(features_of(second, TINY))
    by_statistics = Judge(Reference("statistics", None, HERE, statistics=statistics), TINY)
    assert by_statistics.figures(first) == {name: by_pictures[name] for name in ("fid", "sfid", "inception_score")}
    assert "precision and recall are missing" in by_statistics.notes(first.shape)[0]
    both = Judge(Reference("both", others, HERE, statistics={"pooled": statistics["pooled"]}), TINY)
    found = both.figures(first)
    assert found["fid"] == by_pictures["fid"]
    assert (
        found["recall"] == precision_recall(*(features_of(part, TINY)["pooled"] for part in (first, others)))["recall"]
    )
    assert "sfid is missing: the reference has no mu_s and sigma_s" in both.notes(first.shape)
    with pytest.raises(InputError, match="statistics of Inception features alone: choose features inception"):
        Judge(Reference("x", None, HERE, statistics=statistics), FeatureNetwork(Tiny(), "efficientnet-lite0", ""))


def test_a_note_says_what_differs_from_published_figures():
    assert comparison_notes("inception", PUBLISHED, 50_000, (256, 256)) == []
    (note,) = comparison_notes("inception", "0" * 64, 9_000, (32, 48), "the resize is another")
    for words in ("the resize is another", "not the published ones", "9,000 pictures", "48×32 pixels, not 256×256"):
        assert words in note
    assert "efficientnet-lite0, not Inception" in comparison_notes("efficientnet-lite0", "", 50_000, (256, 256))[0]
    assert comparison_notes("none", "", 4, (8, 8)) == []
    assert "60,000 pictures, not 50,000" in comparison_notes("inception", PUBLISHED, 60_000, (256, 256))[0]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pictures_of_an_npz_are_read_in_batches(tmp_path, save):
    save(tmp_path / "x.npz", PICTURES, labels=np.arange(130))
    pictures = NpzPictures.open(tmp_path / "x.npz")
    assert pictures.shape == PICTURES.shape
    for _ in range(2):
        batches = list(pictures.batches())
        assert [len(batch) for batch in batches] == [64, 64, 2]
        np.testing.assert_array_equal(np.concatenate(batches), PICTURES)


def test_samples_are_read_from_a_folder_and_a_tar_in_the_order_of_their_names(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in (2, 0, 1):
            file = io.BytesIO()
            Image.fromarray(PICTURES[number]).save(file, "PNG")
            member = tarfile.TarInfo(f"{number:06d}.png")
            member.size = file.tell()
            tar.addfile(member, io.BytesIO(file.getvalue()))
            (tmp_path / "x").mkdir(exist_ok=True)
            (tmp_path / "x" / member.name).write_bytes(file.getvalue())
    for path in (tmp_path / "x", tmp_path / "x.tar"):
        found = open_samples(path)
        assert found.pictures.shape == (3, 12, 12, 3)
        np.testing.assert_array_equal(np.concatenate(list(found.pictures.batches())), PICTURES[:3])
        assert (found.origin.path, found.origin.pictures, len(found.origin.sha256)) == (str(path), 3, 64)
        assert found.sampling is None
    Image.new("RGB", (16, 12)).save(tmp_path / "x" / "3.png")
    with pytest.raises(InputError, match="picture '3' is 16×12, the first one 12×12"):
        list(open_samples(tmp_path / "x").pictures.batches())
    reference = file_reference(tmp_path / "x", 8, EvaluatePriorConfig(resize="adm"))
    assert next(iter(reference.pictures.batches())).shape == (4, 8, 8, 3)
    assert "halved by a box filter" in reference.name
    assert (reference.resize, reference.differences) == ("adm", ())
    trained = file_reference(tmp_path / "x", 8, EvaluatePriorConfig())
    assert trained.differences == ("pictures of the reference are resized as in the tokenizer's training",)


def test_broken_files_of_pictures_are_named(tmp_path):
    path = tmp_path / "x.npz"
    for arrays, words in (
        ({"arr_0": PICTURES.astype(np.float32)}, r"float32 \[130, 12, 12, 3\]: expected uint8"),
        ({"arr_0": PICTURES[0]}, r"expected uint8 \[N, H, W, 3\]"),
        ({"arr_0": np.array([None])}, "expected uint8"),
        ({"images": PICTURES}, "x.npz has no arr_0"),
        ({"arr_0": PICTURES[:1]}, "has 1 picture: a distance requires two"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=words):
            open_samples(path)
    np.savez(path, x=PICTURES)
    with pytest.raises(InputError, match=r"has x: a reference has pictures \(arr_0\) or mu and sigma"):
        file_reference(path, 12, EvaluatePriorConfig())
    np.savez(path, mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(InputError, match=r"\[7\] and \[7, 7\]: Inception's are \[2048\]"):
        file_reference(path, 12, EvaluatePriorConfig())
    for mu, words in (
        (np.array([None]), "cannot be read as numbers: Object arrays"),
        (np.array(["a"]), "cannot be read as numbers: could not convert"),
        (np.full(2048, np.nan), "values that are not finite"),
    ):
        np.savez(path, mu=mu, sigma=np.eye(2048, dtype=np.float32))
        with pytest.raises(InputError, match=f"x.npz.*{words}"):
            file_reference(path, 12, EvaluatePriorConfig())
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("mu", "sigma"):
            archive.writestr(name, "1 2 3")
    with pytest.raises(InputError, match="cannot be read as numbers"):
        file_reference(path, 12, EvaluatePriorConfig())
    with pytest.raises(InputError, match="number of pictures is 1, and a distance requires two"):
        Judge(Reference("x", HeldPictures(PICTURES[:1]), HERE), TINY)
    np.savez(path, PICTURES)
    damaged = bytearray(path.read_bytes())
    damaged[2000] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"cannot be read as \.npz: Bad CRC"):
        list(NpzPictures.open(path).batches())
    path.write_bytes(path.read_bytes()[:1000])
    for call in (open_samples, lambda path: file_reference(path, 12, EvaluatePriorConfig())):
        with pytest.raises(InputError, match="cannot be read as"):
            call(path)
    with pytest.raises(InputError, match="nowhere does not exist"):
        open_samples(tmp_path / "nowhere")


def test_a_reference_of_adm_has_statistics_and_pictures(tmp_path):
    path, spatial = tmp_path / "VIRTUAL.npz", np.eye(2023, dtype=np.float32)
    np.savez(path, PICTURES, mu=np.ones(2048, np.float32), sigma=np.eye(2048), mu_s=np.zeros(2023), sigma_s=spatial)
    reference = file_reference(path, 12, EvaluatePriorConfig())
    assert reference.pictures.shape == PICTURES.shape
    assert set(reference.statistics) == {"pooled", "spatial"}
    assert reference.statistics["pooled"].mu.dtype == reference.statistics["spatial"].sigma.dtype == np.float64
    assert "its 130 pictures and its statistics" in reference.name
    with zipfile.ZipFile(path) as archive:
        assert "arr_0.npy" in archive.namelist()
    assert reference.origin.sha256_of == "the file"


def test_published_resizes_average_pixels_as_their_projects_do():
    """A picture of even blocks shows the filter: averages of blocks, or single pixels without antialiasing."""
    blocks = RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    large = blocks.repeat(8, 0).repeat(8, 1)  # 32 × 48: the centre square of 4 has columns 1 to 4
    for how in ("adm", "taming"):
        np.testing.assert_array_equal(resized(large, 4, how), blocks[:, 1:5])
    noise = RNG.integers(0, 256, (32, 48, 3)).astype(np.uint8)
    means = noise.reshape(4, 8, 6, 8, 3).mean((1, 3))[:, 1:5]
    assert np.abs(resized(noise, 4, "adm") - means).max() < 2.5  # three halvings, each rounded
    picked = noise[3::8, 3::8].astype(float) + noise[4::8, 3::8] + noise[3::8, 4::8] + noise[4::8, 4::8]
    assert np.abs(resized(noise, 4, "taming") - picked[:, 1:5] / 4).max() <= 0.5
    whole = Image.fromarray(noise)
    for how, kernel in (("titok", Image.Resampling.BICUBIC), ("open-magvit2", Image.Resampling.BILINEAR)):
        expected = np.asarray(whole.resize((6, 4), kernel))[:, 1:5]
        np.testing.assert_array_equal(resized(noise, 4, how), expected)
        np.testing.assert_array_equal(resized(noise[:, :32], 32, how), noise[:, :32])
