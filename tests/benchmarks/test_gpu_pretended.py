"""The checks of a GPU on a pretended one: no operation mixes devices, none waits without need, and codes are a CPU's.

Left out are checks of what is not imitated (NCCL, the limit of a GPU's memory, compilers), those that start other
processes, and those whose code beyond the others is that of a rival, or of training, which has such tests of its own.
"""

import importlib
import warnings

import pytest
import torch
from pretend_gpu import pretend_gpu

from codeprior import speed
from priorbench import harness
from priorbench.gpu import replay, speed_limits, speed_prior, speed_sample
from priorbench.gpu.check import Setup
from priorbench.gpu.runner import choose

_CHECKS = (
    "attention", "prior_samples", "tokenizer_codes", "vqgan_resume", "shards_again", "peaks", "encode", "train_prior",
    "sample", "load", "sample_compiled",
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU with the functions that the checks call besides."""
    for name in ("empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(replay, "_recorded", lambda step: step)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    # Their sizes are for a GPU.
    monkeypatch.setattr(harness, "read_floor", lambda: 1e12)
    for module in (speed, speed_limits):
        monkeypatch.setattr(module, "measured_flops", lambda *_: 1e12)
    with pretend_gpu() as waits:

        def counted(work):
            waits.clear()
            work()
            return len(waits)

        for module in (speed_prior, speed_sample):
            monkeypatch.setattr(module, "waits", counted)
        yield


@pytest.mark.parametrize("name", _CHECKS)
def test_check_runs(name, work, gpu):
    (check,) = choose([name])
    run = getattr(importlib.import_module(check.module, "priorbench.gpu"), name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures = list(run(Setup(torch.device("cuda"), "tiny", work)))
    assert figures
    judged = [figure for figure in figures if check.kind == "correct" or "that wait" in figure.what]
    assert [figure for figure in judged if not figure.within] == []
