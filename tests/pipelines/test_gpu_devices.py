"""What draws, judges and annotates pictures on a pretended GPU: it mixes no devices, and results are those of a CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretend_gpu import GPU, pretend_gpu
from tiny_job import write_images, write_tokenizer
from tiny_shards import SPEC, make_dataset
from torch import nn

import imagepriors as ip
from codeprior.config import ModelConfig, TrainConfig
from codeprior.sample_config import SampleConfig
from codeprior.train import train_prior
from codeshards.config import TokenizeConfig
from codeshards.format import GridSpec, ShardSpec
from codeshards.format.plan import PlannedShard
from codeshards.job.dry_run import plan_tokenize
from codeshards.job.encode import ShardTask, encode_shard
from imagepriors.annotate.networks import Annotator
from imagepriors.decode.draw import draw_samples
from imagepriors.decode.many import Drawing, write_many
from imagepriors.decode.partial import known_codes
from imagepriors.demo.layouts import write_demo_data
from imagepriors.evaluate.config import EvaluateConfig
from imagepriors.evaluate.distances import features_of
from imagepriors.evaluate.networks import frechet_distance, load_network
from imagepriors.evaluate.pictures import HeldPictures
from imagepriors.evaluate.predictor import ConditionPredictor
from imagepriors.evaluate.tokenizer import _to_tensor, evaluate_tokenizer
from vqgan.checkpoint import fingerprint
from vqgan.data import open_splits
from vqgan.tokenizer import Tokenizer

SIDE = 8
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with shards of pictures in three classes, and a class-conditional prior that is hardly trained."""
    root = tmp_path_factory.mktemp("gpu")
    tokenizer = write_tokenizer(root / "tokenizer", resolution=SIDE, ch=8, ch_mult=(1, 1), codebook_size=50)
    image = replace(SPEC.image, fingerprint=fingerprint(tokenizer))
    make_dataset(root / "shards", spec=replace(SPEC, image=image), tokenizer=tokenizer, labelled=True)
    config = TrainConfig(
        model=ModelConfig(n_layer=1, n_head=2, n_embd=16), condition="class", cond_dropout=0.5, steps=2,
        warmup_steps=1, batch_size=4, device="cpu",
    )  # fmt: skip
    train_prior(config, root / "shards", root / "prior")
    return root


def test_many_samples_and_their_decoding_thread_use_the_gpu(run, tmp_path):
    config, found = SampleConfig(batch_size=4, guidance=2.0, drafts=0), []
    sequence = ip.load_prior(run / "prior", device="cpu").sequence
    for device in ("cpu", "cuda"):
        with pretend_gpu(device == "cuda"):
            drawing = Drawing(
                prior_run=run / "prior", sequence=sequence, shards=run / "shards", out=tmp_path / f"{device}.npz", n=10,
                config=config, given="0", known_T=known_codes(sequence, 0), threads=1, part_samples=8, device=device,
            )  # fmt: skip
            write_many(drawing)
        with np.load(drawing.out) as arrays:
            found.append(arrays["arr_0"].astype(float))
    np.testing.assert_allclose(*found, atol=1.001)


def test_pictures_with_frames_are_drawn_on_the_gpu(run):
    config = SampleConfig(batch_size=2, drafts=0)
    nothing = known_codes(ip.load_prior(run / "prior", device="cpu").sequence, 0)
    arguments = {"config": config, "known_T": nothing, "frames": True}
    expected = draw_samples(run / "prior", run / "shards", 3, **arguments)
    with pretend_gpu() as waits:
        found = draw_samples(run / "prior", run / "shards", 3, **arguments)
        assert waits  # it was on the GPU
    assert len(found.frames) == len(expected.frames) > 1
    np.testing.assert_array_equal(found.codes_NHW, expected.codes_NHW)
    np.testing.assert_allclose(found.pictures.astype(float), expected.pictures, atol=1.001)


def test_a_tokenizer_is_evaluated_on_the_gpu(run, tmp_path):
    write_demo_data(tmp_path / "data", n_train=2, n_val=3, size=32)
    config = EvaluateConfig(frechet="none", lpips="none", limit=3)
    reports = []
    for device in ("cpu", "cuda"):
        with pretend_gpu(device == "cuda"):
            out = tmp_path / f"{device}.json"
            reports.append(
                evaluate_tokenizer(run / "tokenizer", "demo", tmp_path / "data", out, replace(config, device=device))
            )
    assert reports[1]["figures"] == pytest.approx(reports[0]["figures"], rel=0.02)


def test_features_and_a_predictor_are_computed_on_the_gpu():
    pictures = np.random.default_rng(0).integers(256, size=(4, 32, 32, 3), dtype=np.uint8)
    labels, depth = np.array([0, 1, 2, 0]), np.linspace(0, 1, 4 * 32 * 32, dtype=np.float32).reshape(4, 32, 32)
    conditions, sizes = {"class": labels, "depth": depth}, {"class": 3, "depth": 0}
    predictions, features = [], []
    for device in (CPU, GPU):
        with pretend_gpu(device == GPU):
            network = load_network("efficientnet-lite0", "", device)
            assert next(network.net.parameters()).device == device
            features.append(features_of(HeldPictures(pictures), network)["pooled"])
            distance = frechet_distance("efficientnet-lite0", "", device)
            distance.update(_to_tensor(pictures, device).to(torch.uint8), real=True)
            assert distance.real_features_sum.device == device
            predictor = ConditionPredictor.fit(pictures, conditions, sizes, steps=2)
            assert predictor._device.type == device.type
            predictions.append([predictor.predict(name, pictures) for name in conditions])
    torch.testing.assert_close(*features, atol=1e-3, rtol=1e-3)
    for ours, theirs in zip(*predictions, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-2)


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_maps_are_made_on_the_gpu(kind):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 20 if kind == "segmentation" else 1, 3, stride=2)
    picture = np.random.default_rng(0).integers(256, size=(24, 30, 3), dtype=np.uint8)

    def map_on(device):
        annotator = Annotator(
            kind, model, lambda picture_HW3: torch.from_numpy(picture_HW3).permute(2, 0, 1) / 255,
            lambda output: output if kind == "segmentation" else output[:, 0], (), device, torch.float32,
        )  # fmt: skip
        (output,) = annotator.infer([annotator.prepare(picture)])
        assert output.device == device
        return annotator.to_map(output, picture.shape[:2])

    expected = map_on(CPU)
    with pretend_gpu():
        np.testing.assert_allclose(map_on(GPU), expected, atol=1e-4)


def test_shards_are_encoded_on_the_gpu_without_waiting_between_batches(tmp_path):
    data, folder = write_images(tmp_path / "data", train=9, val=1), write_tokenizer(tmp_path / "tokenizer", ch=8)
    config = TokenizeConfig(shard_rows=8, batch_size=4, threads=1, workers=1, scales=(2,))
    shard, split = PlannedShard(split="train", index=0, start=0, stop=8), open_splits("folder", data)["train"]
    task = ShardTask(shard=shard, plan_hash="p", samples=split.subset(range(8)))
    sidecars = []
    for device in ("cpu", "cuda"):
        with pretend_gpu(device == "cuda") as waits:
            encoder = Tokenizer.load(folder, device=device)
            grid = GridSpec(height=8, width=8, codebook_size=64, fingerprint=encoder.fingerprint)
            spec = ShardSpec(image=grid, scales=(2,))
            waits.clear()
            sidecars.append(
                encode_shard(task, tokenizers={"image": encoder}, spec=spec, config=config, out=tmp_path / device)
            )
            assert waits == []
    assert sidecars[0].files == sidecars[1].files
    with pretend_gpu():
        plan = plan_tokenize(
            replace(config, device="cuda"), dataset="folder", data=data, tokenizers={"image": folder},
            out=tmp_path / "out",
        )  # fmt: skip
    assert (plan.figures["device"], plan.figures["workers"]) == ("cuda", 1)
