"""The loss of large codebooks: that of the plain head and cross-entropy, in the memory of a small codebook."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from codeprior import chunked_loss, model
from codeprior.chunked_loss import head_nll
from codeprior.config import ModelConfig, SequenceSpec
from codeprior.model import Prior

MEMORY = """
import re, sys
from pathlib import Path
import torch
import torch.nn.functional as F
from codeprior.chunked_loss import head_nll
x_ND, weight_VD = torch.zeros(256, 8, requires_grad=True), torch.zeros(1 << 18, 8, requires_grad=True)
codes_N = torch.arange(256)
# Not ru_maxrss, which begins at that of the process that has started this one.
used = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = used()
plain = lambda: F.cross_entropy(x_ND @ weight_VD.T, codes_N, reduction="none")
(head_nll(x_ND, weight_VD, codes_N) if sys.argv[1] == "chunked" else plain()).sum().backward()
print(used() - before)
"""


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x_ND, weight_VD = torch.randn(9, 16, requires_grad=True), torch.randn(103, 16, requires_grad=True)
    return x_ND, weight_VD, torch.tensor([0, 9, 10, 19, 20, 99, 100, 102, 50]), torch.randn(9)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_plain_loss(
    inputs: tuple[torch.Tensor, ...], precision: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_loss, "CHUNK", 10)
    x_ND, weight_VD, codes_N, weight_N = inputs
    plain_N = F.cross_entropy(x_ND @ weight_VD.T, codes_N, reduction="none")
    expected = torch.autograd.grad(plain_N @ weight_N, (x_ND, weight_VD))
    function = torch.compile(head_nll) if compiled else head_nll
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        nll_N = function(x_ND, weight_VD, codes_N)
    found = torch.autograd.grad(nll_N @ weight_N, (x_ND, weight_VD))
    within = {"rtol": 1e-5, "atol": 1e-5} if precision == "float32" else {"rtol": 0.02, "atol": 0.1}
    assert nll_N.dtype == found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close((nll_N, *found), (plain_N, *expected), **within)


@pytest.mark.parametrize("tie_head", [False, True])
def test_a_prior_of_a_large_codebook_has_the_same_loss(tie_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = SequenceSpec(height=2, width=2, codebook_size=50, order="row_major", fingerprint="f")
    torch.manual_seed(0)
    prior = Prior(ModelConfig(n_layer=1, n_head=2, n_embd=16, dropout=0.0, tie_head=tie_head), sequence)
    codes_BT, condition_BC = torch.randint(50, (3, 4)), torch.zeros(3, 1, dtype=torch.int64)

    def loss() -> tuple[torch.Tensor, ...]:
        nll_BT = prior.nll(condition_BC, codes_BT)
        return nll_BT, *torch.autograd.grad(nll_BT.mean(), list(prior.parameters()), allow_unused=True)

    plain = loss()
    monkeypatch.setattr(model, "LARGE_CODEBOOK", 49)
    monkeypatch.setattr(chunked_loss, "CHUNK", 16)
    for one, other in zip(loss(), plain, strict=True):
        torch.testing.assert_close(one, other)


def test_memory_is_that_of_a_part_of_the_codebook() -> None:
    used = {
        kind: int(subprocess.run([sys.executable, "-c", MEMORY, kind], capture_output=True, check=True).stdout)
        for kind in ("plain", "chunked")
    }
    # 256 MiB of logits per copy, against 16 MiB of a part.
    assert used["chunked"] < used["plain"] / 3
