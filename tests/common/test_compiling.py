"""Without a compiler torch.compile is refused before any work, wherever it is asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_job import CONFIG, MODEL, write_images, write_tokenizer
from tiny_shards import make_dataset

from codeprior.config import ModelConfig, PriorError, SequenceSpec, TrainConfig
from codeprior.model import Prior
from codeprior.sample import sample_codes
from codeprior.sample_config import SampleConfig
from codeprior.train import train_prior
from codeshards.format import ShardError
from codeshards.job.tokenize import tokenize
from runkit.compiling import allow_cuda_graphs, check_compiler
from runkit.errors import UserError
from vqgan.config import LossConfig
from vqgan.config import TrainConfig as TokenizerConfig
from vqgan.data import open_splits
from vqgan.errors import InputError
from vqgan.tokenizer import Tokenizer
from vqgan.train import train_tokenizer

REFUSED = (
    r"compile requires a C\+\+ compiler, and this machine has no .*install one, name it in CXX, or leave compile off"
)


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search path without any program."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)


def test_another_compiler_can_be_named(no_compiler: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for device, variable in (("cpu", "CXX"), ("cuda", "CC")):
        with pytest.raises(UserError, match=variable):
            check_compiler(device)
        program = tmp_path / "bin" / "my-compiler"
        program.write_text("")
        program.chmod(0o755)
        monkeypatch.setenv(variable, "my-compiler --fast")
        check_compiler(device)
        monkeypatch.setenv(variable, "another")
        with pytest.raises(UserError, match="no another"):
            check_compiler(device)


def test_training_a_tokenizer(no_compiler: None, tmp_path: Path) -> None:
    splits = open_splits("folder", write_images(tmp_path / "data", train=8))
    config = TokenizerConfig(
        model=MODEL, loss=LossConfig(perceptual="none"), batch_size=4, steps=2, compile=True, device="cpu"
    )
    with pytest.raises(InputError, match=REFUSED):
        train_tokenizer(config, splits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tokenizing(no_compiler: None, tmp_path: Path) -> None:
    data, tokenizer = write_images(tmp_path / "data", train=8), write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(ShardError, match=REFUSED):
        tokenize(
            replace(CONFIG, compile=True, device="cpu"), dataset="folder", data=data, tokenizers={"image": tokenizer},
            out=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out" / "plan.json").exists()
    with pytest.raises(InputError, match=REFUSED):
        Tokenizer.load(tokenizer, device="cpu", compiled=True)


def test_training_and_sampling_a_prior(no_compiler: None, tmp_path: Path) -> None:
    make_dataset(tmp_path / "shards")
    model = ModelConfig(n_layer=1, n_head=1, n_embd=8)
    config = TrainConfig(model=model, batch_size=2, steps=2, compile=True, device="cpu")
    with pytest.raises(PriorError, match=REFUSED):
        train_prior(config, tmp_path / "shards", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    sequence = SequenceSpec(height=4, width=4, codebook_size=50, order="row_major", fingerprint="x")
    with torch.random.fork_rng(), pytest.raises(PriorError, match=REFUSED):
        sample_codes(Prior(model, sequence), 2, config=SampleConfig(compile=True, top_k=None))


def test_every_thread_can_capture_cuda_graphs() -> None:
    from torch._inductor import cudagraph_trees as trees  # this thread imports it

    def graphs() -> object:
        allow_cuda_graphs()
        found: object = trees.local.tree_manager_containers
        assert trees.get_obj(trees.local, "tree_manager_containers") is found
        return found

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        first, again, second = (pool.submit(graphs).result() for pool in (one, one, other))
    assert first is again
    assert first is not second
