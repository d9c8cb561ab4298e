"""Shards and a prior that earlier versions made open, resume and decode today.

tests/data/earlier/DATE was made on that day by the code of that day: a palette of 16 colours, shards of twelve 4×4
pictures with scales 1 and 2, and a prior of four steps with its checkpoint of step 2. That of 2026-11-30 is a
tokenizer of four steps with its checkpoint of step 2, from the former layout of the packages.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codeprior.checkpoint import RunConfig
from codeprior.sample_config import SampleConfig
from codeprior.train import train_prior
from codeshards.config import TokenizeConfig
from codeshards.format import ShardDataset
from codeshards.job.tokenize import tokenize
from codeshards.tools.verify import verify
from imagepriors.decode.draw import draw_samples
from runkit.tensors import load_tensors
from vqgan.checkpoint import fingerprint, load_config
from vqgan.data import open_splits
from vqgan.train import train_tokenizer

DATA = Path(__file__).parents[1] / "data" / "earlier"
TOKENIZE = TokenizeConfig(
    shard_rows=4, batch_size=4, threads=1, workers=1, scales=(1, 2), scales_from="continuous", device="cpu"
)


@pytest.fixture(params=["2026-11-28", "2026-11-29"])
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / request.param, tmp_path / "earlier"))


def test_the_shards_are_whole_and_a_lost_one_is_made_again(local_ray_cores: Any, earlier: Path) -> None:
    shards = earlier / "shards"
    assert verify(shards, fingerprint_of=fingerprint).problems == ()
    before = {path.name: path.read_bytes() for path in shards.rglob("shard-*.parquet")}
    identity, plan = ShardDataset.open(shards).fingerprint, (shards / "plan.json").read_bytes()
    for path in (shards / "train").glob("shard-000001.*"):
        path.unlink()
    tokenizer = Path(shutil.copytree(shards / "tokenizer", earlier / "tokenizer"))
    tokenize(TOKENIZE, dataset="folder", data=DATA / "images", tokenizers={"image": tokenizer}, out=shards)
    assert {path.name: path.read_bytes() for path in shards.rglob("shard-*.parquet")} == before
    assert (shards / "plan.json").read_bytes() == plan
    assert ShardDataset.open(shards).fingerprint == identity


def test_the_prior_is_complete_and_can_be_trained_further(earlier: Path) -> None:
    summary = json.loads((earlier / "run" / "summary.json").read_text())
    before = RunConfig.load(earlier / "run" / "config.json")
    assert train_prior(before.train, earlier / "shards", earlier / "run") == summary
    further = train_prior(replace(before.train, steps=6), earlier / "shards", earlier / "run")
    assert further["steps"] == 6
    assert math.isfinite(further["val_nll_nats"])
    assert RunConfig.load(earlier / "run" / "config.json").data == before.data


def test_its_samples_are_decoded(earlier: Path) -> None:
    drawn = draw_samples(earlier / "run", earlier / "shards", 4, config=SampleConfig(top_k=None))
    assert drawn.pictures.shape == (4, 4, 4, 3)


def test_a_tokenizer_of_the_former_layout_is_complete_and_resumes(tmp_path: Path) -> None:
    run = Path(shutil.copytree(DATA / "2026-11-30" / "tokenizer", tmp_path / "run"))
    config, splits = load_config(run), open_splits("folder", DATA / "images")
    assert train_tokenizer(config, splits, run) == json.loads((run / "summary.json").read_text())
    before = load_tensors(run / "model.safetensors")
    for name in ("summary.json", "model.safetensors"):  # as if it had been killed after step 2
        (run / name).unlink()
    assert train_tokenizer(config, splits, run)["steps"] == 4
    for name, tensor in load_tensors(run / "model.safetensors").items():
        torch.testing.assert_close(tensor, before[name], atol=1e-4, rtol=1e-3)
