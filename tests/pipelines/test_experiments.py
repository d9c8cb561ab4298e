"""All experiments run from one command, write results and a page, and resume where they were stopped."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codeprior.config import ModelConfig, SequenceSpec
from codeprior.model import Prior
from codeprior.sample import sample_sequences
from codeprior.sample_config import SampleConfig
from codeshards.format import ShardError, order
from imagepriors.cli import main
from imagepriors.experiments import EXPERIMENTS, any_order, conditional, training
from imagepriors.experiments.command import load_config
from imagepriors.experiments.efficiency import describe_training, sample_uncached, seconds_per_picture
from imagepriors.experiments.inpainting import error_outside, known_region
from imagepriors.experiments.orders import describe, position_map, ranking
from imagepriors.experiments.page import write_page
from imagepriors.experiments.paired import difference
from imagepriors.experiments.quality import frechet
from imagepriors.experiments.workspace import Workspace
from imagepriors.presets import load_preset, preset_names
from vqgan.errors import InputError

TINY = """
[vqgan]
steps = 2
batch_size = 4
eval_images = 4
warmup_steps = 0
precision = "float32"
[vqgan.model]
modality = "{modality}"
n_labels = {n_labels}
resolution = 32
ch = 8
ch_mult = {ch_mult}
num_res_blocks = 1
attn_resolutions = []
z_channels = 8
embed_dim = 4
codebook_size = 32
[vqgan.loss]
perceptual = "none"
disc_weight = 0.0
[tokenize]
shard_rows = 16
[prior]
batch_size = 4
[prior.model]
n_layer = 1
n_head = 2
n_embd = 32
[sample]
top_k = 100
"""


@pytest.fixture(scope="module")
def words(local_ray_cores, tmp_path_factory):
    """Arguments of the command except the names, with a preset that takes seconds."""
    root = tmp_path_factory.mktemp("experiments")
    for name, modality, ch_mult in (
        ("image", "rgb", "[1, 1, 1, 1]"), ("f2", "rgb", "[1, 1]"), ("masks", "segmentation", "[1, 1, 1, 1]"),
    ):  # fmt: skip
        (root / f"{name}.toml").write_text(
            TINY.format(modality=modality, n_labels=8 * (name == "masks"), ch_mult=ch_mult)
        )
    (root / "tiny.toml").write_text(
        f'dataset = "demo"\ntokenizer = "{root}/image.toml"\nsmall_tokenizer = "{root}/f2.toml"\n'
        f'prior = "{root}/image.toml"\nscales = [1]\nn = 4\nprior_steps = 2\n'
        f"reader_steps = 2\nevaluations = 2\n"
        f'[conditions]\nsegmentation = "{root}/masks.toml"\n'
    )
    assert main(["demo-data", str(root / "data"), "--n-train", "24", "--n-val", "8", "--size", "32"]) == 0
    return ["--preset", str(root / "tiny.toml"), "--data", str(root / "data"), "--run", str(root / "run")], root / "run"


def read_results(run, name):
    found = json.loads((run / "experiments" / name / "results.json").read_text())
    page = (run / "experiments" / "index.html").read_text()
    assert found["text"][:40].replace("×", "") in page.replace("×", "")
    assert all((run / "experiments" / name / f"{picture}.png").is_file() for picture in found["pictures"])
    return found


def test_experiments_write_results_figures_and_one_page(words, capsys):
    flags, run = words
    names = [name for name in EXPERIMENTS if name != "efficiency"]  # its sequences of 1,024 are slow
    assert main(["experiment", *names, *flags]) == 0
    assert f"open {run}/experiments/index.html" in capsys.readouterr().out
    found = {name: read_results(run, name) for name in names}
    assert sorted(found["orders"]["ranking"]) == sorted(found["orders"]["val_nll_nats"])
    assert set(found["conditional"]["agreement"]) == {"class", "segmentation"}
    assert set(found["any-order"]["val_nll_nats"]) == set(found["orders"]["val_nll_nats"])
    assert set(found["any-order"]["seconds_per_picture"]) == {"row_major", "2 steps", "4 steps", "8 steps", "16 steps"}
    assert found["inpainting"]["error"]["upper"]["one_order"]  # row_major begins with it
    assert not found["inpainting"]["error"]["checkerboard"]["one_order"]


@pytest.mark.slow
def test_all_experiments_in_one_call(words):
    flags, run = words
    assert main(["experiment", "all", *flags]) == 0
    figures = {name: read_results(run, name) for name in EXPERIMENTS}["efficiency"]["figures"]
    assert figures["pixels"]["tokens"] == 4 * figures["codes"]["tokens"] == 1024
    assert figures["codes"]["steps"] > 4 * figures["pixels"]["steps"]  # the same FLOPs


def test_scales_are_made_of_the_pictures_in_the_preset(tmp_path):
    small, paper = (Workspace(load_config(name), tmp_path, tmp_path) for name in ("small", "paper"))
    assert small.tokenize_config("shards-codes").scales == paper.tokenize_config("shards").scales == (1, 2, 4, 8)
    assert small.tokenize_config("shards").scales == paper.tokenize_config("shards-codes").scales == ()


def test_many_codes_per_step_are_drawn_in_up_to_one_step_per_code(tmp_path):
    ways = any_order.drawing_ways(Workspace(load_config("small"), tmp_path, tmp_path).sampling(), 256)
    counts = [config.steps for config in ways.values() if (config.order, config.schedule) == ("auto", "cosine")]
    assert counts == [0, 8, 16, 32, 64, 128, 256]
    assert {ways[name].steps for name in ways if "," in name} == {32}


def test_the_papers_learning_rate_follows_the_batch(tmp_path):
    workspace = Workspace(load_config("paper"), tmp_path, tmp_path)
    assert [workspace.learning_rate(batch) for batch in (12, 16)] == pytest.approx([12 * 4.5e-6, 16 * 4.5e-6])
    fewer = Workspace(replace(load_config("paper"), prior_batch=4), tmp_path, tmp_path)
    assert fewer.learning_rate(12) == pytest.approx(12 * 4.5e-6)


def test_too_few_steps_for_a_comparison_are_reported():
    one = {
        "steps": 40, "tokens": 256, "epochs": 2.0, "val_nll_nats": 5.0, "unigram_entropy_nats": 6.0, "batch": 16,
        "learning_rate": 7.2e-5,
    }  # fmt: skip
    enough = describe_training({"pixels": one, "codes": one})
    few = describe_training({"pixels": {**one, "epochs": 0.21}, "codes": one})
    assert "too few" not in enough
    assert "too few steps to say which of the two is better: pixels saw less than the training set once" in few


def test_a_picture_is_timed_with_its_decoding_after_an_untimed_round():
    sequence = SequenceSpec(height=2, width=2, codebook_size=5, order="row_major", fingerprint="")
    prior, decoded = Prior(ModelConfig(n_layer=1, n_head=1, n_embd=8), sequence).eval(), []

    def decode(grid):
        decoded.append(grid.shape)
        time.sleep(5.0 if len(decoded) == 1 else 0.05)  # the first use is slow

    times = seconds_per_picture({"codes": (prior, decode)})["codes"]
    assert decoded == [(1, 2, 2)] * 3 * len(times)
    assert all(len(of_one) == 2 for of_one in times.values())
    assert all(0.05 < seconds < 5 for of_one in times.values() for seconds in of_one)


def test_finished_runs_are_not_trained_again(words, monkeypatch):
    flags, run = words
    summaries = sorted(run.rglob("summary.json"))
    before = [path.stat().st_mtime_ns for path in summaries]
    assert main(["experiment", "inpainting", *flags]) == 0
    assert [path.stat().st_mtime_ns for path in summaries] == before


def test_runs_with_other_settings_are_refused(words, capsys):
    flags, run = words
    assert main(["experiment", "inpainting", *flags, "--prior-steps", "4"]) == 2
    assert "was trained with steps = 2, 4 is asked for: pass another --run" in capsys.readouterr().err
    assert main(["experiment", "inpainting", *flags, "--tokenizer-steps", "3"]) == 2
    assert f"{run}/tokenizer was trained with steps = 2, the experiment asks for 3" in capsys.readouterr().err


def test_a_dataset_without_conditions_is_reported_and_affects_no_other_experiment(words, monkeypatch):
    flags, run = words
    monkeypatch.setattr(conditional, "names", lambda _: ())
    workspace = Workspace(load_config(flags[1]), run, Path(flags[3]))
    conditional.run(workspace)
    assert "demo has one class and none of the" in write_page(run).read_text()


def test_an_interval_is_students_of_the_paired_differences():
    baseline = np.array([9.0, 2.0, 5.0, 7.0, 3.0])  # seeds differ more than the runs of a seed
    values = baseline + np.arange(1.0, 6.0)
    found = difference(values, baseline)
    assert (found.mean, found.half) == pytest.approx((3.0, 2.776 * 0.5**0.5), abs=1e-3)  # t of 97.5%, 4 degrees
    assert found.shown
    assert str(found) == "+3.0 ± 2.0"
    at_once = difference(values, baseline, comparisons=5)
    assert at_once.half == pytest.approx(4.604 * 0.5**0.5, abs=1e-3)  # of 99.5%
    assert not at_once.shown
    assert not difference(baseline[:1] + 9, baseline[:1]).shown  # one seed has no interval


def test_only_shown_differences_between_orders_are_reported():
    base = np.array([5.0, 5.5, 5.2])
    behind = {
        "row_major": [0, 0, 0], "zcurve": [0.1, 0.02, 0.05], "alternate": [-0.11, -0.1, -0.12],
        "spiral_out": [0.2, 0.22, 0.21], "subsample": [0.3, 0.31, 0.33],
    }  # fmt: skip
    finals = {name: base + np.array(nll) for name, nll in behind.items()}
    assert ranking(finals) == ["alternate", "row_major", "zcurve", "spiral_out", "subsample"]
    text = describe(finals)
    assert "alternate than row_major, spiral_out, subsample; row_major than spiral_out, subsample." in text
    assert "Not shown to differ: alternate and zcurve, row_major and zcurve, zcurve and spiral_out" in text
    assert "of these 8 differences 4 are shown, 1 are shown to be the other way round" in text
    assert "shows no ranking" in describe({name: nll[:1] for name, nll in finals.items()})


@pytest.mark.parametrize("counts", [(30, 20), (5, 7)])
def test_the_distance_of_features_is_torch_fidelitys(counts):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    torch.manual_seed(0)
    features = [
        torch.randn(count, 8).double() @ torch.randn(8, 8).double() + shift for shift, count in enumerate(counts)
    ]
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, features), verbose=False)
    expected = theirs["frechet_inception_distance"]
    assert frechet(*(part.numpy() for part in features)) == pytest.approx(expected, rel=1e-5)


def test_speed_and_loss_of_quality_are_those_of_the_same_round_and_seed():
    distances = {
        "row_major": np.array([100.0, 140.0]),
        "8 steps": np.array([110.0, 150.0]),
        "4 steps": np.array([90.0, 250.0]),
    }
    text = any_order.describe_steps(distances, {"row_major": [4.0, 8.0], "8 steps": [2.0, 2.0], "4 steps": [1.0, 1.0]})
    assert "8 steps 2.000 s, 3.0× as fast (2.0–4.0), distance 130.0 (+10.000)" in text
    assert (
        "4 steps 1.000 s, 6.0× as fast (4.0–8.0), distance 170.0 (+50 ± 2291, not shown; +40 ± 2291, not shown)" in text
    )


def test_the_error_of_a_completion_is_that_of_its_unknown_part():
    sequence = SequenceSpec(
        height=4, width=4, codebook_size=5, order="row_major", fingerprint="", objective="any_order"
    )
    known = known_region(sequence, "upper")
    assert known.sum() == 8
    assert known_region(sequence, "random cells").sum() == 4
    originals = np.zeros((2, 8, 8, 3), np.uint8)
    completed = originals.copy()
    completed[:, :4], completed[0, 4:] = 200, 10
    assert error_outside(originals, known, completed) == pytest.approx(50**0.5)


def test_the_loss_of_each_cell_is_at_its_position(tmp_path):
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        losses = {"val_nll_nats_by_position": [float(cell + seed) for cell in order("spiral_out", 4, 4)]}
        (tmp_path / str(seed) / "summary.json").write_text(json.dumps(losses))
    cells = position_map([tmp_path / "0", tmp_path / "1"], "spiral_out", (4, 4))
    np.testing.assert_array_equal(cells, np.arange(16).reshape(4, 4) + 0.5)


def test_samples_without_a_cache_equal_samples_with_one():
    torch.manual_seed(0)
    sequence = SequenceSpec(height=3, width=3, codebook_size=11, order="zcurve", fingerprint="")
    prior = Prior(ModelConfig(n_layer=2, n_head=2, n_embd=16), sequence).eval()
    config = SampleConfig(batch_size=3, top_k=5)
    assert torch.equal(sample_uncached(prior, 3, config), sample_sequences(prior, 3, config=config))


def test_a_refused_training_is_named_in_one_error(local_ray_cores):
    def refuse(device):
        raise InputError(f"no {device} today")

    with pytest.raises(ShardError, match="second: no cpu today"):
        training.run_parallel({"first": lambda device: None, "second": refuse}, "train", device="cpu", threads=1)


def test_unknown_names_and_presets_are_user_errors(words, capsys):
    flags, _ = words
    assert main(["experiment", "colours", *flags]) == 2
    assert "choose one of orders, efficiency" in capsys.readouterr().err
    assert main(["experiment", "orders", "--preset", "huge"]) == 2
    assert "choose one of cifar10, paper, small" in capsys.readouterr().err


@pytest.mark.parametrize("name", preset_names("imagepriors.experiments"))
def test_presets_refer_to_existing_presets(name):
    config = load_config(name)
    for preset in (config.tokenizer, config.small_tokenizer, *config.conditions.values()):
        load_preset(preset, "vqgan")
    for table in ("prior", "sample"):
        load_preset(config.prior, table)
    load_preset(config.tokenizer, "tokenize")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet", "ade20k", "landscapes", "imagenet-depth", "deepfashion"])
def test_the_papers_configs_take_a_step(tmp_path, name):
    """Full networks on a few pictures: 256×256 tokenizers, GPT-2 medium, one step each at batch 1."""
    assert main(["demo-data", str(tmp_path / "d"), "--n-train", "12", "--n-val", "6", "--size", "64"]) == 0
    ade = tmp_path / "d" / "ADEChallengeData2016"
    place = {"ade20k": ade, "landscapes": tmp_path / "landscapes"}.get(name, tmp_path / "d" / name)
    if name == "landscapes":
        shutil.copytree(ade / "images" / "training", place / "images")
        shutil.copytree(ade / "annotations" / "training", place / "segmentations")
        for path in (place / "segmentations").rglob("*.png"):  # its labels go up to 181
            mask = np.array(Image.open(path))
            mask[:2] = 181
            Image.fromarray(mask).save(path)
    config = replace(
        load_config("paper"), dataset=name, tokenizer_steps=1, tokenizer_batch=1, prior_steps=1, prior_batch=1,
        perceptual="none", threads=2,
    )  # fmt: skip
    workspace = Workspace(config, tmp_path / "run", place)
    training.prepare(workspace, ("shards",))
    condition = next(iter(workspace.conditions()), "class")
    assert condition == {"imagenet": "class", "imagenet-depth": "depth", "deepfashion": "pose"}.get(
        name, "segmentation"
    )
    prior = workspace.prior_config(condition=condition)
    assert (prior.model.n_layer, prior.model.n_head, prior.model.n_embd) == (24, 16, 1024)
    folder = workspace.out("conditional") / condition
    training.train_priors(workspace, {folder: (prior, workspace.shards())})
    assert json.loads((folder / "summary.json").read_text())["steps"] == 1
